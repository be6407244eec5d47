"""The images in which two networks disagree, as SVG values: the picture once, the boxes of each side over it."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Final

from trt_qat.report.record import Disagreement, RunRecord, ShownBox

_WIDEST: Final = 0.8  # of a character, in font sizes; on a phone the labels of what differs are larger
_JPEG: Final = b"\xff\xd8\xff"


@dataclass(frozen=True)
class PictureBox:
    """A detection in pixels of the picture.

    Args:
        label: class and score.
        label_xy: where its text begins; inside the picture.
        differs: the other network has no partner of it.
    """

    x: float
    y: float
    width: float
    height: float
    label: str
    label_xy: tuple[float, float]
    differs: bool


@dataclass(frozen=True)
class Picture:
    """An image twice, with the detections of each side.

    Args:
        uri: of the picture as data, empty if it is no JPEG.
        sides: the boxes of the first and of the second network.
        font_size: in pixels of the picture.
    """

    name: str
    uri: str
    width: int
    height: int
    sides: tuple[tuple[PictureBox, ...], tuple[PictureBox, ...]]
    font_size: float
    differing: int


def pictures(record: RunRecord) -> tuple[Picture, ...]:
    """Those of a record, the worst first."""
    return tuple(_picture(entry, record.inputs.classes) for entry in record.disagreements.worst)


def jpeg_uri(encoded: str) -> str:
    """A JPEG as a ``data:`` URI, encoded anew; empty for anything else."""
    try:
        content = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return ""
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}" if content.startswith(_JPEG) else ""


def _picture(entry: Disagreement, classes: tuple[str, ...]) -> Picture:
    width, height = (max(1, side) for side in entry.size_wh)
    font = max(8.0, width / 38)
    first, second = (
        tuple(_box(box, classes, width, font) for box in sorted(side, key=lambda box: not box.matched))
        for side in (entry.fp32, entry.int8)
    )
    return Picture(entry.image, jpeg_uri(entry.jpeg), width, height, (first, second), font, entry.differing)


def _box(box: ShownBox, classes: tuple[str, ...], width: int, font: float) -> PictureBox:
    left, top, right, bottom = box.xyxy
    name = classes[box.class_id] if box.class_id < len(classes) else f"class {box.class_id}"
    label = f"{name} {box.score:.2f}"
    x = max(0.0, min(left, width - _WIDEST * font * len(label)))
    y = top - 0.3 * font if top > 1.3 * font else top + font
    return PictureBox(left, top, max(0.0, right - left), max(0.0, bottom - top), label, (x, y), not box.matched)
