"""Read an image file, or say in one line why it cannot be read.

Pillow decodes: its JPEG, PNG, BMP, WebP and TIFF pixels are those of OpenCV bit for bit, it refuses a truncated file
and it is quiet, where OpenCV fills the missing half with gray and its libjpeg and libpng write to the terminal. OpenCV
is given no file name: it crashes on one that is not UTF-8. An image is what a viewer shows: its EXIF orientation is
applied by one rule, whatever the format.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from trt_qat.errors import DatasetError
from trt_qat.limits import IMAGE_MEGABYTES, IMAGE_MEGAPIXELS
from trt_qat.memory import check_memory
from trt_qat.reading import read_bytes
from trt_qat.vision.quiet import NO_STDERR, NO_WARNINGS

IMAGE_SUFFIXES = frozenset({".avif", ".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""The files that count as images, in every stage. What such a file holds decides how it is decoded, not its name."""

_ADVICE = "Replace or remove it."

_Pixels = NDArray[np.uint8]

# First bytes and where they stand. Pillow's own open asks more decoders than these, and Ultralytics replaces it by one
# that installs a package when it meets an unknown format.
_FORMATS: tuple[tuple[int, tuple[bytes, ...], type[ImageFile.ImageFile]], ...] = (
    (0, (b"\xff\xd8\xff",), JpegImageFile),
    (0, (b"\x89PNG\r\n\x1a\n",), PngImageFile),
    (0, (b"BM",), BmpImageFile),
    (0, (b"GIF87a", b"GIF89a"), GifImageFile),  # its first picture, as of every format with several
    (0, (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), TiffImageFile),
    (8, (b"WEBP",), WebPImageFile),  # behind "RIFF" and a length
    (4, (b"ftypavif", b"ftypavis", b"ftypmif1", b"ftypmsf1"), AvifImageFile),  # the file type box of ISO 14496-12
)
# Pillow's names of pixels that have one meaning as 8-bit colours. Not "F" and "I": nobody says where white is.
_SIXTEEN_BITS = frozenset({"I;16", "I;16B", "I;16L", "I;16N"})
_MODES = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr"}) | _SIXTEEN_BITS

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
_PIXELS_AT_ONCE = 1 << 16
_LYING = frozenset({5, 6, 7, 8})  # width and height change places


def read_image_bgr(path: Path) -> NDArray[np.uint8]:
    """Read an image as shown: uint8 BGR, shape (h, w, 3), EXIF orientation applied; of 16 bits the upper 8.

    Raises:
        DatasetError: the file is missing, not a regular file, too large, truncated or not an image.
    """
    with _opened(path, _content(path)) as image:
        image.load()
        return _upright(_stored_bgr(image), image)


def decode_image_bgr(path: Path) -> NDArray[np.uint8]:
    """:func:`read_image_bgr` for a file that :func:`check_image` has passed: quicker, a cut JPEG is half gray.

    Raises:
        DatasetError: the file is missing, not a regular file, too large or cannot be decoded.
    """
    content = _content(path)
    with _opened(path, content) as image:
        if image.format != "JPEG" or image.mode not in ("L", "RGB"):
            return _upright(_stored_bgr(image), image)
        with NO_STDERR:  # libjpeg
            flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
            stored = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), flags)
        if stored is None or stored.shape[:2] != (image.height, image.width):
            raise ValueError("OpenCV does not decode it")
        return _upright(np.asarray(stored, dtype=np.uint8), image)


def check_image(path: Path) -> tuple[int, int]:
    """Decode the whole file; return (width, height) as shown.

    Raises:
        DatasetError: as :func:`read_image_bgr`.
    """
    with _opened(path, _content(path)) as image:
        image.load()
        return _shown_size(image)


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) as shown, from the head of the file alone: the size that labels are fractions of.

    Raises:
        DatasetError: the file is missing, not a regular file, too large or not an image.
    """
    with _opened(path, _content(path)) as image:
        if image.format == "TIFF":  # not every Pillow turns its size before the pixels
            image.load()
        return _shown_size(image)


def _content(path: Path) -> bytes:
    return read_bytes(path, "Image", IMAGE_MEGABYTES, DatasetError)


@contextlib.contextmanager
def _opened(path: Path, content: bytes) -> Iterator[ImageFile.ImageFile]:
    """The image, its head read and its size within the limit. Whatever fails inside is an error of this file."""
    decoder = next((decoder for at, magics, decoder in _FORMATS if content.startswith(magics, at)), None)
    if decoder is None:
        raise DatasetError(f"Image '{path}' is not an image: none of AVIF, BMP, GIF, JPEG, PNG, TIFF, WebP. {_ADVICE}")
    try:
        with NO_WARNINGS, _quiet_c(decoder), decoder(io.BytesIO(content)) as image:
            IMAGE_MEGAPIXELS.check(image.width * image.height / 1e6, f"Image '{path}'", DatasetError)
            if image.mode not in _MODES:
                raise ValueError(f"its pixels are of type '{image.mode}', not 8 or 16 bits per colour")
            yield image
    except DatasetError:
        raise
    except Exception as exc:  # what decoders raise for a damaged file is no closed list
        check_memory(exc)
        reason = " ".join(str(exc).split())[:200].rstrip(".") or type(exc).__name__
        raise DatasetError(f"Image '{path}' cannot be read: {reason}. {_ADVICE}") from exc


def _quiet_c(decoder: type[ImageFile.ImageFile]) -> AbstractContextManager[None]:
    return NO_STDERR if decoder is TiffImageFile else contextlib.nullcontext()  # the one that Pillow lets talk: libtiff


def _stored_bgr(image: Image.Image) -> _Pixels:
    if image.mode in _SIXTEEN_BITS:
        upper = (np.asarray(image) >> 8).astype(np.uint8)
        return np.asarray(cv2.cvtColor(upper, cv2.COLOR_GRAY2BGR), dtype=np.uint8)
    colours = image if image.mode == "RGB" else image.convert("RGB")
    stored = np.empty((image.height, image.width, 3), dtype=np.uint8)
    rows = max(1, _PIXELS_AT_ONCE // image.width)  # Pillow gives bytes away by copying them; small copies stay in cache
    for top in range(0, image.height, rows):
        band = colours.crop((0, top, image.width, min(top + rows, image.height)))
        cv2.cvtColor(np.asarray(band), cv2.COLOR_RGB2BGR, dst=stored[top : top + rows])
    return stored


def _upright(stored: _Pixels, image: Image.Image) -> _Pixels:
    turn = _UPRIGHT.get(_orientation(image))
    return np.ascontiguousarray(turn(stored)) if turn else stored


def _shown_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    return (height, width) if _orientation(image) in _LYING else (width, height)


def _orientation(image: Image.Image) -> int:
    if image.format == "TIFF":  # Pillow turns these itself as it loads them
        return 1
    found = image.getexif().get(ExifTags.Base.Orientation)
    return int(found) if found is not None and found in _UPRIGHT else 1
