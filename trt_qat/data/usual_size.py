"""The rectangle that fits a dataset: gray border costs time, and most cameras give one shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trt_qat.data.images import evenly_spaced
from trt_qat.errors import DatasetError
from trt_qat.vision.image import image_size
from trt_qat.vision.size import ImageSize, rectangle_for

LOOKED_AT = 256
MOST = 0.9


@dataclass(frozen=True)
class UsualSize:
    """What :func:`usual_size` chose.

    Args:
        imgsz: height and width in pixels.
        fitting: images that the letterbox makes no smaller than a square of the longer side would.
        images: that were looked at.
    """

    imgsz: ImageSize
    fitting: int
    images: int


def usual_size(images: Sequence[Path], longer_side: int, stride: int = 32) -> UsualSize:
    """The smallest input whose height and whose width are enough for nine of ten images at their full size.

    A set of both upright and lying images gets the square.

    Args:
        images: files; at most 256 of them are looked at, evenly spaced. Those that cannot be read do not count.
        longer_side: of the input, as each image's longer side; a multiple of ``stride``.

    Raises:
        DatasetError: none can be read.
    """
    wanted: list[ImageSize] = []
    reason = "there is none"
    for image in evenly_spaced(images, LOOKED_AT):
        try:
            wanted.append(rectangle_for(image_size(image), longer_side, stride))
        except DatasetError as exc:
            reason = str(exc).rstrip(".")
    if not wanted:
        raise DatasetError(f"model.imgsz=auto looks at the images' sizes, and no image can be read: {reason}.")
    enough = math.ceil(MOST * len(wanted)) - 1
    height, width = (sorted(sides)[enough] for sides in zip(*wanted, strict=True))
    fitting = sum(size[0] <= height and size[1] <= width for size in wanted)
    return UsualSize((height, width), fitting, len(wanted))
