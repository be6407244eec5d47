"""Images that are trained on and measured on: what makes a figure too good."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from trt_qat.artifacts import file_sha256
from trt_qat.data.dataset import Dataset
from trt_qat.progress import SILENT, Progress


def same_images(dataset: Dataset) -> str:
    """What to say where the two splits are one."""
    return f"train and val are the same images: {dataset.measure} is measured on what was trained on"


def leaked_images(dataset: Dataset, progress: Progress = SILENT) -> Iterator[tuple[Path, Path]]:
    """Each val image that is in train as well, by its content, and its twin there."""
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
            yield image, twin


def note_leaks(dataset: Dataset, progress: Progress) -> None:
    """Say in one line that val is not what it should be, if it is not."""
    if dataset.train == dataset.val:
        progress.note(f"Warning: {same_images(dataset)} ('{dataset.source}').")
        return
    leaks = list(leaked_images(dataset))
    if leaks:
        image, twin = leaks[0]
        progress.note(
            f"Warning: {len(leaks)} of {len(dataset.val)} val images are in train as well, e.g. '{image}' = '{twin}': "
            f"{dataset.measure} is too good. 'trt-qat data validate' lists them."
        )
