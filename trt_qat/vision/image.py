"""Read an image file, or say in one line why it cannot be read."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trt_qat.errors import DatasetError

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


def read_image_bgr(path: Path) -> NDArray[np.uint8]:
    """Read an image as uint8 BGR, shape (h, w, 3).

    Raises:
        DatasetError: the file is missing, truncated or not an image.
    """
    check_image(path)
    image = cv2.imdecode(np.fromfile(path, dtype=np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise DatasetError(f"Image '{path}' cannot be decoded. Replace or remove it.")
    return np.asarray(image, dtype=np.uint8)


def check_image(path: Path) -> tuple[int, int]:
    """Decode the whole file with Pillow (OpenCV accepts truncated JPEGs silently); return (width, height).

    Raises:
        DatasetError: the file is missing, truncated or not an image.
    """
    # asked first because Ultralytics replaces Pillow's open by one that installs packages for unknown formats
    if path.is_file() and not cv2.haveImageReader(str(path)):
        raise DatasetError(f"Image '{path}' is not an image. Replace or remove it.")
    try:
        with Image.open(path) as image:
            image.load()
            width, height = image.size
            return width, height
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as exc:
        raise DatasetError(f"Image '{path}' cannot be read: {exc}. Replace or remove it.") from exc
