"""Images as every stage reads them: files or arrays, letterboxed to the network's input."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from trt_qat.errors import DatasetError
from trt_qat.limits import IMAGE_MEGABYTES
from trt_qat.reading import read_bytes
from trt_qat.vision.image import read_image_bgr
from trt_qat.vision.letterbox import network_input
from trt_qat.vision.size import ImageSize

Image = Path | NDArray[np.uint8]
"""A file, or uint8 BGR pixels of shape (h, w, 3)."""

Item = TypeVar("Item")


def network_batch(images: Sequence[Image], imgsz: ImageSize) -> NDArray[np.float32]:
    """The network's input: float32, shape (images, 3, *imgsz), in [0, 1].

    Raises:
        DatasetError: a file cannot be read.
    """
    batch = np.empty((len(images), 3, *imgsz), dtype=np.float32)
    for image, out in zip(images, batch, strict=True):
        network_input(pixels(image), imgsz, out)
    return batch


def pixels(image: Image) -> NDArray[np.uint8]:
    """The pixels of an image, uint8 BGR (h, w, 3).

    Raises:
        DatasetError: the file cannot be read.
    """
    return read_image_bgr(image) if isinstance(image, Path) else image


def evenly_spaced(items: Sequence[Item], count: int) -> list[Item]:
    """``count`` of the items, in order; all of them if there are fewer."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def images_sha256(images: Iterable[Image]) -> str:
    """Hex SHA-256 over contents, and for files names (relative to the common folder); their order does not matter.

    Raises:
        DatasetError: an image cannot be read.
    """
    images = list(images)
    files = [image.absolute() for image in images if isinstance(image, Path)]
    digest = hashlib.sha256()
    common = Path(os.path.commonpath([file.parent for file in files])) if files else Path()
    for name, file in sorted((file.relative_to(common).as_posix(), file) for file in files):
        content = read_bytes(file, "Image", IMAGE_MEGABYTES, DatasetError)
        # lengths keep two neighbouring fields from being read as one
        encoded = os.fsencode(name)  # not every name is UTF-8
        digest.update(f"{len(encoded)}:{len(content)}:".encode() + encoded)
        digest.update(content)
    arrays = [image for image in images if not isinstance(image, Path)]
    for part in sorted(hashlib.sha256(str(array.shape).encode() + array.tobytes()).digest() for array in arrays):
        digest.update(part)
    return digest.hexdigest()
