"""One label file: YOLO rows to class ids and boxes, by ONE set of rules for validation, training and mAP.

The rules are those of Ultralytics' ``verify_image_label``, and that a box has an area. What breaks one leaves the
whole image out, because an image with half of its objects labelled teaches that the others are background.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from trt_qat.errors import DatasetError
from trt_qat.limits import LABEL_MEGABYTES, LABEL_ROWS
from trt_qat.reading import read_text, shortened

LabelDefectKind = Literal["bad-label", "class-out-of-range", "box-outside"]
Severity = Literal["error", "warning"]

_TOLERANCE = 0.01  # of the image side; annotation tools round that far

_Row = tuple[int, list[str]]  # line number from 1, columns


@dataclass(frozen=True)
class Labels:
    """What is labelled on one image, in the order of the file.

    Args:
        class_ids: int64, shape (n,).
        boxes_cxcywh: float32, shape (n, 4): centre and size as fractions of the shown image.
    """

    class_ids: NDArray[np.int64]
    boxes_cxcywh: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.class_ids)


@dataclass(frozen=True)
class LabelDefect:
    """One broken rule.

    Args:
        line: in the file, from 1; None for the file as a whole.
        severity: an error leaves the image out; a warning may be intended.
    """

    kind: LabelDefectKind
    line: int | None
    detail: str
    severity: Severity

    def __str__(self) -> str:
        return self.detail if self.line is None else f"line {self.line}: {self.detail}"


def read_labels(path: Path, classes: int) -> Labels:
    """Read a label file. Polygons become the boxes around them; a row that stands there twice counts once.

    Args:
        path: the file; an empty or missing one is a background image.
        classes: ids run from 0 to one less.

    Raises:
        DatasetError: the file cannot be read, or breaks a rule.
    """
    if not has_labels(path):
        return _labels([])
    rows = _rows(path)
    for defect in _defects(rows, classes):
        if defect.severity == "error":
            raise DatasetError(f"'{path}' {defect}.")
    return _labels(rows)


def has_labels(path: Path) -> bool:
    """Whether there is a label file, of whatever kind; without one an image counts as background.

    Raises:
        DatasetError: it cannot be asked.
    """
    try:
        return path.exists()
    except OSError as exc:
        raise DatasetError(f"Label file '{path}' cannot be read: {exc.strerror or exc}.") from exc


def label_defects(path: Path, classes: int) -> list[LabelDefect]:
    """Every broken rule of a label file that exists; one with an error makes :func:`read_labels` raise."""
    try:
        return list(_defects(_rows(path), classes))
    except DatasetError as exc:
        return [LabelDefect("bad-label", None, str(exc), "error")]


def _rows(path: Path) -> list[_Row]:
    lines = read_text(path, "Label file", LABEL_MEGABYTES, DatasetError).splitlines()
    LABEL_ROWS.check(len(lines), f"Label file '{path}'", DatasetError)
    return [(number, line.split()) for number, line in enumerate(lines, start=1) if line.strip()]


def _labels(rows: Sequence[_Row]) -> Labels:
    # float32 before rows are compared, as Ultralytics does; two polygons with one box around them stay two
    unique = dict.fromkeys(tuple(np.array(columns, dtype=np.float32).tolist()) for _, columns in rows)
    class_ids = np.array([int(row[0]) for row in unique], dtype=np.int64)
    boxes = np.array([row[1:] if len(row) == 5 else _around(row[1:]) for row in unique], dtype=np.float32)
    return Labels(class_ids, boxes.reshape(-1, 4))


def _around(polygon: Sequence[float]) -> tuple[float, float, float, float]:
    """The box around x1, y1, x2, y2, ..., as centre and size."""
    xs, ys = polygon[0::2], polygon[1::2]
    left, top, right, bottom = min(xs), min(ys), max(xs), max(ys)
    return (left + right) / 2, (top + bottom) / 2, right - left, bottom - top


def _defects(rows: Sequence[_Row], classes: int) -> Iterator[LabelDefect]:
    if len({len(columns) > 6 for _, columns in rows}) == 2:
        yield LabelDefect("bad-label", None, "mixes boxes and polygons", "error")
    for number, columns in rows:
        for kind, detail, severity in _row_defects(columns, classes):
            yield LabelDefect(kind, number, detail, severity)


def _row_defects(columns: Sequence[str], classes: int) -> Iterator[tuple[LabelDefectKind, str, Severity]]:
    try:
        class_id, *values = (float(column) for column in columns)
    except ValueError:
        yield "bad-label", f"{_shown(columns)} is not numbers", "error"
        return
    polygon = len(values) >= 6 and len(values) % 2 == 0
    if len(values) != 4 and not polygon:
        yield "bad-label", f"{len(columns)} columns; 5 (class, centre x, y, width, height) are needed", "error"
        return
    if not all(math.isfinite(value) for value in (class_id, *values)) or class_id % 1:
        yield "bad-label", f"{_shown(columns)} needs a whole class id and finite numbers", "error"
        return
    if not 0 <= class_id < classes:
        yield "class-out-of-range", f"class {class_id:.15g}, allowed are 0 to {classes - 1}", "error"
    if max(values) > 1 + _TOLERANCE or min(values) < -_TOLERANCE:
        yield "box-outside", f"{_shown(columns[1:])} is not in fractions of the image, 0 to 1", "error"
    else:
        yield from _box_defects(_around(values) if polygon else values)


def _shown(columns: Sequence[str]) -> str:
    """A row for a message: one line, however long it is and whatever bytes it holds."""
    return shortened(" ".join(columns[:20]))


def _box_defects(values: Sequence[float]) -> Iterator[tuple[LabelDefectKind, str, Severity]]:
    x, y, width, height = values
    if np.float32(width) <= 0 or np.float32(height) <= 0:  # as it will be stored
        yield "bad-label", f"width {width:g} and height {height:g} must be above 0", "error"
        return
    overhang = max(width / 2 - x, height / 2 - y, x + width / 2 - 1, y + height / 2 - 1)
    if overhang > _TOLERANCE:
        yield "box-outside", f"the box reaches {overhang:.1%} beyond the image", "warning"
