"""Find what would spoil a training or an accuracy figure, before the hours are spent.

An image with an error is left out by every stage that needs its labels (:mod:`trt_qat.data.labelled`); this module
names file and line of all of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trt_qat.data.dataset import Dataset, label_path
from trt_qat.data.labels import Severity, has_labels, label_defects
from trt_qat.data.leaks import leaked_images, same_images
from trt_qat.errors import DatasetError
from trt_qat.limits import LABEL_MEGABYTES
from trt_qat.progress import SILENT, Progress
from trt_qat.reading import read_bytes
from trt_qat.vision.image import IMAGE_SUFFIXES, check_image

FindingKind = Literal[
    "missing-label",
    "bad-label",
    "class-out-of-range",
    "box-outside",
    "unreadable-image",
    "train-val-leak",
    "orphan-label",
    "no-box",
]

_NO_LABELS = frozenset({"classes.txt", "labels.txt"})  # annotation tools leave the class list here


@dataclass(frozen=True)
class Finding:
    """One defect.

    Args:
        kind: what is wrong.
        path: the file it is in.
        detail: the line, the values, the consequence.
        severity: an error leaves the image out or makes figures untrue; a warning may be intended.
    """

    kind: FindingKind
    path: Path
    detail: str
    severity: Severity


def validate_dataset(dataset: Dataset, progress: Progress = SILENT) -> list[Finding]:
    """Check every image, every label file and the split.

    Args:
        dataset: what to check. An empty label file is a background image and fine.
        progress: told of the loops over the images.

    Returns:
        The findings, images first, in the order of the files.
    """
    images = list(dict.fromkeys(dataset.train + dataset.val))
    findings: list[Finding] = []
    for image in progress.over(images, "images and labels"):
        findings += _image_findings(image)
        findings += _label_findings(label_path(image), image, len(dataset.names))
    findings += _without_boxes(dataset)
    findings += _orphans(images)
    findings += _leaks(dataset, progress)
    return findings


def _image_findings(image: Path) -> Iterator[Finding]:
    try:
        check_image(image)
    except DatasetError as exc:
        yield Finding("unreadable-image", image, str(exc), "error")


def _label_findings(label: Path, image: Path, classes: int) -> list[Finding]:
    try:
        there = has_labels(label)
    except DatasetError as exc:
        return [Finding("bad-label", label, str(exc), "error")]
    if not there:
        detail = f"'{image.name}' has no label file: it counts as background. Add an empty file if that is meant."
        return [Finding("missing-label", label, detail, "warning")]
    found: dict[tuple[FindingKind, Severity], list[str]] = defaultdict(list)
    for defect in label_defects(label, classes):
        found[defect.kind, defect.severity].append(str(defect))
    return [
        Finding(kind, label, details[0] + (f" (and {len(details) - 1} more)" if len(details) > 1 else ""), severity)
        for (kind, severity), details in found.items()
    ]


def _without_boxes(dataset: Dataset) -> Iterator[Finding]:
    """A split whose label files are all empty or missing; one whose labels are bad has findings enough."""
    splits = {"train": dataset.train, "val": dataset.val}
    if dataset.train == dataset.val:
        splits = {"train and val": dataset.train}
    for name, images in splits.items():
        if not any(_says_something(label_path(image)) for image in images):
            detail = f"{name}: not one box on {len(images)} images, there is nothing to train on or to measure"
            yield Finding("no-box", dataset.source, detail, "warning")


def _says_something(label: Path) -> bool:
    try:
        return has_labels(label) and bool(
            read_bytes(label, "Label file", LABEL_MEGABYTES, DatasetError).strip(b"\xef\xbb\xbf \t\r\n")
        )
    except DatasetError:
        return True  # an error of its own


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
        yield Finding("train-val-leak", dataset.source, same_images(dataset), "warning")
        return
    for image, twin in leaked_images(dataset, progress):
        yield Finding("train-val-leak", image, f"the same image is in train: '{twin}'", "error")
