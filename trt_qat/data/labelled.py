"""The images of a split that can be measured or trained on, and why the others cannot.

Every stage that needs labels comes through here, so that each counts the same images and says the same about the
ones it leaves out.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Literal

from trt_qat.data.dataset import Dataset, LabelledBy, label_path
from trt_qat.data.labels import Labels, read_labels
from trt_qat.errors import DatasetError
from trt_qat.progress import SILENT, Progress
from trt_qat.results import LeftOut
from trt_qat.vision.image import check_image

SplitName = Literal["train", "val"]

_MOST_THREADS = 16


@dataclass(frozen=True)
class LabelledImage:
    """An image and what is labelled on it; nothing is a background image."""

    image: Path
    labels: Labels


@dataclass(frozen=True)
class LabelledSplit:
    """What is usable of a split.

    Args:
        name: of the split.
        source: the dataset's.
        images: the usable ones, sorted.
        reasons: one line for each image that was left out.
        labelled_by: the dataset's.

    Raises:
        DatasetError: no image is usable, or there is not one box on them.
    """

    name: SplitName
    source: Path
    images: tuple[LabelledImage, ...]
    reasons: tuple[str, ...] = ()
    labelled_by: LabelledBy = "people"

    def __post_init__(self) -> None:
        if not self.images:
            raise DatasetError(
                f"No image of split '{self.name}' of '{self.source}' is usable: {self.left_out}. "
                "'trt-qat data validate' lists them all."
            )
        if not any(len(image.labels) for image in self.images):
            raise DatasetError(self._no_box() + (f" Besides, {self.left_out}." if self.reasons else ""))

    def _no_box(self) -> str:
        if self.labelled_by == "model":
            return (
                f"Split '{self.name}' of '{self.source}' has no box: the FP32 model detects nothing on its "
                f"{len(self.images)} images with a score above data.label_conf. Give images of what it was trained "
                "on, or lower data.label_conf."
            )
        return (
            f"Split '{self.name}' of '{self.source}' has no box: the label files of {len(self.images)} images "
            f"are empty or missing, e.g. '{label_path(self.images[0].image)}'. Label some objects, or check the "
            "place of the labels; without labels, give the images alone (--data with their folder), and the FP32 model "
            "labels them."
        )

    @property
    def left_out(self) -> LeftOut | None:
        """What was left out, None if nothing was."""
        if not self.reasons:
            return None
        return LeftOut(len(self.reasons), len(self.images) + len(self.reasons), self.reasons[0].rstrip("."))

    def without(self, unreadable: Mapping[Path, str]) -> LabelledSplit:
        """The split less images that turned out unreadable, by file and reason.

        Raises:
            DatasetError: nothing usable, or no box, is left.
        """
        kept = tuple(image for image in self.images if image.image not in unreadable)
        return LabelledSplit(self.name, self.source, kept, (*self.reasons, *unreadable.values()), self.labelled_by)


def labelled_split(dataset: Dataset, name: SplitName) -> LabelledSplit:
    """Read the label files of a split; the images are not looked at.

    Raises:
        DatasetError: no label file is usable, or there is not one box.
    """
    images: list[LabelledImage] = []
    reasons: list[str] = []
    for path in dataset.train if name == "train" else dataset.val:
        try:
            images.append(LabelledImage(path, read_labels(label_path(path), len(dataset.names))))
        except DatasetError as exc:
            reasons.append(str(exc))
    return LabelledSplit(name, dataset.source, tuple(images), tuple(reasons), dataset.labelled_by)


def checked_split(dataset: Dataset, name: SplitName, progress: Progress = SILENT) -> LabelledSplit:
    """:func:`labelled_split`, and every image is decoded once: what training cannot find out on its way.

    Raises:
        DatasetError: no image is usable, or there is not one box on them.
    """
    split = labelled_split(dataset, name)
    paths = [image.image for image in split.images]
    with ThreadPool(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:  # Pillow decodes without the interpreter's lock
        faults: Iterable[str | None] = pool.imap(_fault, paths)
        pairs = zip(progress.over(paths, f"reading {name} images"), faults, strict=True)
        return split.without({path: fault for path, fault in pairs if fault})


def _fault(path: Path) -> str | None:
    try:
        check_image(path)
    except DatasetError as exc:
        return str(exc)
    return None
