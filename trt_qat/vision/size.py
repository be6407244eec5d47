"""The size of a network's input: ONE form everywhere, (height, width) in pixels, as Ultralytics writes ``imgsz``.

One number, which means a square, exists only at the rim: in a configuration, on a command line, in a call.
"""

from __future__ import annotations

from collections.abc import Iterable

ImageSize = tuple[int, int]
"""Height and width in pixels."""


def image_size_of(imgsz: int | Iterable[int]) -> ImageSize:
    """One number or (height, width), as (height, width).

    Raises:
        ValueError: neither one nor two numbers.
    """
    if isinstance(imgsz, int):
        return imgsz, imgsz
    height, width = imgsz
    return height, width


def shown_size(imgsz: ImageSize) -> str:
    """As a configuration says it: ``640`` for a square, else ``[384, 640]``."""
    return str(imgsz[0]) if imgsz[0] == imgsz[1] else str(list(imgsz))


def rectangle_for(size_wh: tuple[int, int], longer_side: int, stride: int = 32) -> ImageSize:
    """The smallest input that an image fits into with its longer side at ``longer_side``.

    Args:
        size_wh: width and height of the image.
        longer_side: of the input, a multiple of ``stride``.
        stride: both sides of the input are multiples of it.

    Returns:
        (height, width); 640 x 360 pixels at 640 give (384, 640).
    """
    width, height = size_wh
    shorter = round(longer_side * min(width, height) / max(width, height))  # as the letterbox rounds
    rounded_up = max(stride, -(-shorter // stride) * stride)
    return (rounded_up, longer_side) if width >= height else (longer_side, rounded_up)
