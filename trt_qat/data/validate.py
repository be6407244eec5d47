"""Find what would spoil a training or an accuracy figure, before the hours are spent.

The label rules are those of Ultralytics' ``verify_image_label``, which drops a whole image with a log line
where this module names file and line.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trt_qat.artifacts import file_sha256
from trt_qat.data.dataset import Dataset, label_path
from trt_qat.errors import DatasetError
from trt_qat.progress import SILENT, Progress
from trt_qat.vision.image import IMAGE_SUFFIXES, check_image

FindingKind = Literal[
    "missing-label",
    "bad-label",
    "class-out-of-range",
    "box-outside",
    "unreadable-image",
    "train-val-leak",
    "orphan-label",
]
Severity = Literal["error", "warning"]

_TOLERANCE = 0.01  # of the image side; Ultralytics drops the image beyond it
_NO_LABELS = frozenset({"classes.txt", "labels.txt"})  # annotation tools leave the class list here


@dataclass(frozen=True)
class Finding:
    """One defect.

    Args:
        kind: what is wrong.
        path: the file it is in.
        detail: the line, the values, the consequence.
        severity: an error makes Ultralytics drop the image or makes mAP untrue; a warning may be intended.
    """

    kind: FindingKind
    path: Path
    detail: str
    severity: Severity


def validate_dataset(dataset: Dataset, progress: Progress = SILENT) -> list[Finding]:
    """Check every image, every label file and the split.

    Args:
        dataset: what to check. An empty label file is a background image and fine.
        progress: wraps the loop over the images.

    Returns:
        The findings, images first, in the order of the files.
    """
    images = list(dict.fromkeys(dataset.train + dataset.val))
    findings: list[Finding] = []
    for image in progress.over(images, "images and labels"):
        findings += _image_findings(image)
        findings += _label_findings(label_path(image), image, len(dataset.names))
    findings += _orphans(images)
    findings += _leaks(dataset, progress)
    return findings


def _image_findings(image: Path) -> Iterator[Finding]:
    try:
        check_image(image)
    except DatasetError as exc:
        yield Finding("unreadable-image", image, str(exc), "error")


def _label_findings(label: Path, image: Path, classes: int) -> list[Finding]:
    if not label.is_file():
        detail = f"'{image.name}' has no label file: it counts as background. Add an empty file if that is meant."
        return [Finding("missing-label", label, detail, "warning")]
    try:
        lines = label.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        return [Finding("bad-label", label, f"cannot be read as UTF-8 text: {exc}", "error")]
    rows = [(number, line.split()) for number, line in enumerate(lines, start=1) if line.strip()]
    found: dict[tuple[FindingKind, Severity], list[str]] = defaultdict(list)
    if len({len(row) > 6 for _, row in rows}) == 2:
        found["bad-label", "error"].append("mixes boxes and polygons")
    for number, row in rows:
        for kind, detail, severity in _row_defects(row, classes):
            found[kind, severity].append(f"line {number}: {detail}")
    return [
        Finding(kind, label, details[0] + (f" (and {len(details) - 1} more)" if len(details) > 1 else ""), severity)
        for (kind, severity), details in found.items()
    ]


def _row_defects(row: Sequence[str], classes: int) -> Iterator[tuple[FindingKind, str, Severity]]:
    try:
        class_id, *values = (float(field) for field in row)
    except ValueError:
        yield "bad-label", f"'{' '.join(row)}' is not numbers", "error"
        return
    polygon = len(values) >= 6 and len(values) % 2 == 0
    if len(values) != 4 and not polygon:
        yield "bad-label", f"{len(row)} columns; 5 (class, centre x, y, width, height) are needed", "error"
        return
    if not all(math.isfinite(value) for value in (class_id, *values)) or class_id % 1:
        yield "bad-label", f"'{' '.join(row)}' needs a whole class id and finite numbers", "error"
        return
    if not 0 <= class_id < classes:
        yield "class-out-of-range", f"class {int(class_id)}, allowed are 0 to {classes - 1}", "error"
    if max(values) > 1 + _TOLERANCE or min(values) < -_TOLERANCE:
        yield "box-outside", f"'{' '.join(row[1:])}' is not in fractions of the image, 0 to 1", "error"
    elif not polygon:
        yield from _box_defects(values)


def _box_defects(values: Sequence[float]) -> Iterator[tuple[FindingKind, str, Severity]]:
    x, y, width, height = values
    if width <= 0 or height <= 0:
        yield "bad-label", f"width {width:g} and height {height:g} must be above 0", "error"
        return
    overhang = max(width / 2 - x, height / 2 - y, x + width / 2 - 1, y + height / 2 - 1)
    if overhang > _TOLERANCE:
        yield "box-outside", f"the box reaches {overhang:.1%} beyond the image", "warning"


def _orphans(images: Iterable[Path]) -> Iterator[Finding]:
    folders: dict[Path, set[Path]] = defaultdict(set)
    for image in images:
        folders[label_path(image).parent].add(image.parent)
    for labels, image_folders in sorted(folders.items()):
        if not labels.is_dir() or labels in image_folders:  # beside images any .txt may stand
            continue
        stems = {
            file.stem
            for folder in image_folders
            if folder.is_dir()
            for file in folder.iterdir()
            if file.suffix.lower() in IMAGE_SUFFIXES
        }
        for label in sorted(labels.glob("*.txt")):
            if label.stem not in stems and label.name not in _NO_LABELS:
                yield Finding("orphan-label", label, "no image of that name: the label is never used", "warning")


def _leaks(dataset: Dataset, progress: Progress) -> Iterator[Finding]:
    if dataset.train == dataset.val:
        detail = "train and val are the same images: mAP is measured on what was trained on"
        yield Finding("train-val-leak", dataset.source, detail, "warning")
        return
    by_size: dict[int, list[Path]] = defaultdict(list)
    for image in dataset.train:
        if image.is_file():
            by_size[image.stat().st_size].append(image)
    # only files of equal length can be equal, so few are hashed
    hashes: dict[int, dict[str, Path]] = {}
    for image in progress.over(dataset.val, "train/val overlap"):
        size = image.stat().st_size if image.is_file() else -1
        if size not in by_size:
            continue
        if size not in hashes:
            hashes[size] = {file_sha256(file): file for file in by_size[size]}
        if twin := hashes[size].get(file_sha256(image)):
            yield Finding("train-val-leak", image, f"the same image is in train: '{twin}'", "error")
