"""Read an image file, or say in one line why it cannot be read.

Pillow checks and knows the orientation, OpenCV decodes. An image is what a viewer shows: its EXIF orientation is
applied by one rule, whatever the format and whatever the installed OpenCV does by itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from PIL.AvifImagePlugin import AvifImageFile

from trt_qat.errors import DatasetError

IMAGE_SUFFIXES = frozenset({".avif", ".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""The files that count as images, in every stage. What such a file holds decides how it is decoded, not its name."""

_Pixels = NDArray[np.uint8]

# What turns stored pixels upright, by EXIF orientation (1 is upright already).
_UPRIGHT: Mapping[int, Callable[[_Pixels], _Pixels]] = {
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.transpose(1, 0, 2),
    6: lambda image: image[::-1].transpose(1, 0, 2),
    7: lambda image: image[::-1, ::-1].transpose(1, 0, 2),
    8: lambda image: image.transpose(1, 0, 2)[::-1],
}
_LYING = frozenset({5, 6, 7, 8})  # width and height change places


def read_image_bgr(path: Path) -> NDArray[np.uint8]:
    """Read an image as shown: uint8 BGR, shape (h, w, 3), EXIF orientation applied.

    Raises:
        DatasetError: the file is missing, truncated or not an image.
    """
    check_image(path)
    return decode_image_bgr(path)


def check_image(path: Path) -> tuple[int, int]:
    """Decode the whole file with Pillow (OpenCV accepts truncated JPEGs silently); return (width, height) as shown.

    Raises:
        DatasetError: the file is missing, truncated or not an image.
    """
    with _opened(path) as image:
        image.load()
        return _shown_size(image)


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) as shown, from the head of the file alone: the size that labels are fractions of.

    Raises:
        DatasetError: the file is missing or not an image.
    """
    with _opened(path) as image:
        if image.format == "TIFF":  # not every Pillow turns its size before the pixels
            image.load()
        return _shown_size(image)


def decode_image_bgr(path: Path) -> NDArray[np.uint8]:
    """:func:`read_image_bgr` for a file that :func:`check_image` has passed: half the time, a cut file is half gray.

    Raises:
        DatasetError: the file is missing or cannot be decoded.
    """
    with _opened(path) as image:
        upright = _UPRIGHT.get(_orientation(image))
        stored: Any = None
        if image.format == "AVIF":  # OpenCV is not always built with it
            stored = np.asarray(image.convert("RGB"))[..., ::-1]
        else:
            flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
            stored = cv2.imdecode(np.fromfile(path, dtype=np.uint8), flags)
    if stored is None:
        raise DatasetError(f"Image '{path}' cannot be decoded. Replace or remove it.")
    return np.ascontiguousarray(upright(stored) if upright else stored, dtype=np.uint8)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with _open(path) as image:
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as exc:
        raise DatasetError(f"Image '{path}' cannot be read: {exc}. Replace or remove it.") from exc


def _open(path: Path) -> Image.Image:
    # Ultralytics replaces Pillow's open by one that installs packages when it meets an unknown format: such a file
    # must not come that far
    if path.is_file() and _is_avif(path):
        return AvifImageFile(path)
    if path.is_file() and not cv2.haveImageReader(str(path)):
        raise DatasetError(f"Image '{path}' is not an image. Replace or remove it.")
    return Image.open(path)


def _is_avif(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(12)[4:] in (b"ftypavif", b"ftypavis")  # the file type box of ISO 14496-12


def _shown_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    return (height, width) if _orientation(image) in _LYING else (width, height)


def _orientation(image: Image.Image) -> int:
    if image.format == "TIFF":  # both libraries turn these themselves, whatever they are asked
        return 1
    found = image.getexif().get(ExifTags.Base.Orientation)
    return int(found) if found is not None and found in _UPRIGHT else 1
