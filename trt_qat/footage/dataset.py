"""Footage as an ordinary dataset in a folder of ours, which every stage and Ultralytics' trainer read like any other.

``data.yaml`` says ``labelled_by: model``; ``images/`` holds frames as JPEG and links to the user's images, ``labels/``
what the FP32 model detects on them, ``footage.json`` what all of it was made from. Nothing is written elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import cv2
import yaml
from pydantic import JsonValue

from trt_qat import distributed
from trt_qat.artifacts import write_json, write_text
from trt_qat.config import DataSection, EvaluationSection
from trt_qat.data.dataset import Dataset, label_path, load_dataset
from trt_qat.data.folder import atomic_folder
from trt_qat.data.images import evenly_spaced
from trt_qat.errors import ArtifactError, DatasetError
from trt_qat.footage.frames import Moment, differing, held_out_by_time, held_out_count, numbered_frames
from trt_qat.footage.labelling import detected_labels, label_text
from trt_qat.footage.named import Footage
from trt_qat.progress import Progress
from trt_qat.provenance import files_sha256, package_versions
from trt_qat.reading import FileModel, checked, printable, read_json
from trt_qat.runtime.runner import Runner

FILE = "footage.json"
DATA = "data.yaml"

_SPLITS: tuple[Literal["train", "val"], ...] = ("train", "val")
_LONGEST_STEM = 80
_JPEG = (cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)


@dataclass(frozen=True)
class Labeller:
    """The FP32 model that labels.

    Args:
        weights: its file, for messages.
        sha256: of the weights; empty where there is no file.
        size: what its input depends on, e.g. "auto" or "384x640".
        opened: it, ready to run, for a dataset of these training images.
    """

    weights: str
    sha256: str
    size: str
    opened: Callable[[Sequence[Path]], AbstractContextManager[Runner]]


class FootageFile(FileModel):
    """The content of ``footage.json``.

    Args:
        key: one hash of sources, weights, settings and versions.
        sources: as they were given.
        settings: the section ``data``.
        frames: of each video: how many differ, how many of those are taken.
        detections: labels in all.
        left_out: why images could not be read.
        images: the size of each image in bytes, by its path below the folder.
    """

    format: Literal["trt_qat-footage-1"] = "trt_qat-footage-1"
    key: str
    sources: str
    weights: str
    weights_sha256: str
    settings: dict[str, JsonValue]
    frames: dict[str, tuple[int, int]]
    detections: int
    left_out: tuple[str, ...]
    images: dict[str, int]


@dataclass(frozen=True)
class Making:
    """A dataset that is made of footage, unless its folder holds it.

    Args:
        out: the folder; what it holds of other footage is replaced.
        names: the model's class names.
        labeller: None writes no labels, which calibration does not read.
        section: which frames, how many are held out, which detections count.
        evaluation: how detections are suppressed.
        check: refuses a dataset that is of no use, before it takes its place.
        kept: whether the folder stays, and all processes of a job share it: then the main one makes it.
    """

    footage: Footage
    out: Path
    names: Mapping[int, str]
    labeller: Labeller | None
    section: DataSection
    evaluation: EvaluationSection
    progress: Progress
    check: Callable[[Dataset], object] | None = None
    kept: bool = True

    @cached_property
    def key(self) -> str:
        """One hash of everything that decides the dataset."""
        labeller = self.labeller
        content = {
            "files": files_sha256((*self.footage.images, *self.footage.videos)),
            "names": [self.names[index] for index in sorted(self.names)],
            "weights": None if labeller is None else [labeller.sha256, labeller.size],
            "settings": _settings(self.section),
            "suppression": [self.evaluation.iou, self.evaluation.max_det],
            "versions": package_versions(),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def files(self) -> tuple[Path, Path]:
        """What says what the folder holds."""
        return self.out / DATA, self.out / FILE

    def is_made(self) -> bool:
        """Whether the folder holds this dataset, and every image of it."""
        try:
            content = checked(FootageFile, read_json(self.out / FILE, "Footage"), self.out / FILE, "")
            whole = all((self.out / name).stat().st_size == size for name, size in content.images.items())
        except (ArtifactError, OSError, ValueError):
            return False
        return content.key == self.key and whole and (self.out / DATA).is_file()

    def make(self) -> None:
        """Make it.

        Raises:
            DatasetError: no video or image can be read.
            ArtifactError: the folder holds something else, or cannot be written.
            RunnerError: the model is no raw YOLOv8 detector.
            TrtQatError: what ``check`` raises.
        """
        _check_replaceable(self.out)
        _make(self)

    def as_given(self, folder: Path) -> Dataset:
        """The dataset that was made in a folder, called as its footage was given."""
        return replace(load_dataset(folder / DATA), source=Path(self.footage.shown))

    def dataset(self) -> Dataset:
        """The dataset, made if it is not there; one that is not kept is called as its footage was given."""
        if distributed.is_main() or not self.kept:
            if self.is_made():
                self.progress.note(f"Reusing the footage: {self.out / DATA}.")
            else:
                self.make()
        if not self.kept:
            return self.as_given(self.out)
        distributed.barrier()
        return load_dataset(self.out / DATA)


def _check_replaceable(out: Path) -> None:
    try:
        if out.is_dir() and any(out.iterdir()) and not (out / FILE).is_file():
            raise ArtifactError(f"'{out}' holds other files than footage. Choose a new or empty folder.")
    except OSError as exc:
        raise ArtifactError(f"'{out}' cannot be read: {exc.strerror or exc}. Choose another folder.") from exc


def _make(making: Making) -> None:
    left_out: list[str] = []
    moments = _chosen_moments(making, left_out)
    with atomic_folder(making.out) as folder:
        for split in _SPLITS:
            (folder / "images" / split).mkdir(parents=True)
            (folder / "labels" / split).mkdir(parents=True)
        images = _written_images(making, {video: chosen for video, (_, chosen) in moments.items()}, folder, left_out)
        detections = 0 if making.labeller is None else _label(making, making.labeller, images, left_out)
        there = {split: [image for image in images[split] if image.exists()] for split in _SPLITS}
        if not there["train"]:
            raise DatasetError(f"No image of '{making.footage.shown}' can be read: {left_out[0]}")
        write_text(folder / DATA, _data_yaml(making, bool(there["val"])))
        content = FootageFile(
            key=making.key,
            sources=printable(making.footage.shown),
            weights=making.labeller.weights if making.labeller else "",
            weights_sha256=making.labeller.sha256 if making.labeller else "",
            settings=_settings(making.section),
            frames={printable(str(video)): (count, len(chosen)) for video, (count, chosen) in moments.items()},
            detections=detections,
            left_out=tuple(map(printable, left_out)),
            images={
                printable(image.relative_to(folder).as_posix()): image.stat().st_size
                for split in _SPLITS
                for image in there[split]
            },
        )
        write_json(folder / FILE, content.model_dump(mode="json"))
        if making.check is not None:
            making.check(making.as_given(folder))
    _tell(making, content, {split: len(there[split]) for split in _SPLITS})


def _chosen_moments(making: Making, left_out: list[str]) -> dict[Path, tuple[int, list[Moment]]]:
    """By video: how many frames differ, and which of them are taken, so that all videos together give few enough."""
    found: dict[Path, list[Moment]] = {}
    for video in making.footage.videos:
        try:
            found[video] = differing(video, making.section.difference, making.progress)
        except DatasetError as exc:
            if len(making.footage.videos) + len(making.footage.images) == 1:
                raise
            left_out.append(str(exc))
    taken = evenly_spaced([(video, moment) for video, all_ in found.items() for moment in all_], making.section.frames)
    chosen: dict[Path, list[Moment]] = {video: [] for video in found}
    for video, moment in taken:
        chosen[video].append(moment)
    return {video: (len(all_), chosen[video]) for video, all_ in found.items()}


def _written_images(
    making: Making, moments: Mapping[Path, Sequence[Moment]], folder: Path, left_out: list[str]
) -> dict[Literal["train", "val"], list[Path]]:
    """The images of both splits, numbered in their order: links to the user's, then frames of the videos."""
    written: dict[Literal["train", "val"], list[Path]] = {split: [] for split in _SPLITS}
    given, share = making.footage.images, making.section.held_out
    held = held_out_count(len(given), share)
    for number, image in enumerate(given):
        split: Literal["train", "val"] = "val" if number >= len(given) - held else "train"
        link = folder / "images" / split / f"{number:06d}_{image.stem[:_LONGEST_STEM]}{image.suffix}"
        link.symlink_to(image)
        written[split].append(link)
    number = len(given)
    for video, chosen in moments.items():
        train, val = held_out_by_time(chosen, share)
        of = {moment.number: split for split, part in zip(_SPLITS, (train, val), strict=True) for moment in part}
        for frame in numbered_frames(video, of, making.progress):
            split = of[frame.number]
            name = f"{number:06d}_{video.stem[:_LONGEST_STEM]}_{frame.number:06d}.jpg"
            file = folder / "images" / split / name
            file.write_bytes(cv2.imencode(".jpg", frame.image_bgr, _JPEG)[1].tobytes())
            written[split].append(file)
            number += 1
    if not written["train"]:
        raise DatasetError(f"No frame of '{making.footage.shown}' can be read: {(*left_out, 'there is none.')[0]}")
    if not written["val"]:  # of sources with few images each the last of all are held out
        there = len(written["train"])
        for image in written["train"][there - held_out_count(there, share) :]:
            written["train"].remove(image)
            written["val"].append(image.rename(folder / "images" / "val" / image.name))
    return written


def _label(
    making: Making, labeller: Labeller, images: Mapping[Literal["train", "val"], list[Path]], left_out: list[str]
) -> int:
    """Write the label files; an image that cannot be read is taken away. Returns how many detections there are."""
    detections = 0
    with labeller.opened(images["train"]) as runner:
        every = [image for split in _SPLITS for image in images[split]]
        conf = making.section.label_conf
        for image, labels in detected_labels(runner, every, conf, making.evaluation, making.progress):
            if isinstance(labels, DatasetError):
                left_out.append(str(labels).replace(str(image), str(image.readlink())))
                image.unlink()
                continue
            label_path(image).write_text(label_text(labels), encoding="utf-8")
            detections += len(labels)
    return detections


def _data_yaml(making: Making, held_out: bool) -> str:
    content: dict[str, Any] = {"train": "images/train"}
    if held_out:
        content["val"] = "images/val"
    content["labelled_by"] = "model"
    if making.labeller is not None:
        content["weights_sha256"] = making.labeller.sha256
    content["names"] = dict(making.names)
    head = f"# Labels are what the FP32 model detects, made by trt_qat; {FILE} says from what.\n"
    return head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _settings(section: DataSection) -> dict[str, Any]:
    return section.model_dump(mode="json", exclude={"calibration_cache"})


def _tell(making: Making, content: FootageFile, counts: Mapping[str, int]) -> None:
    """In one line what there is now."""
    held_out = f"and {counts['val']} held out" if counts["val"] else "too few to hold some out"
    parts = [f"{counts['train']} images, {held_out}"]
    parts += [f"{taken} of {found} differing frames of {Path(name).name}" for name, (found, taken) in _some(content)]
    if making.labeller is not None:
        parts.append(
            f"labels are {content.detections} detections of '{content.weights}' above {making.section.label_conf:g}"
        )
    if content.left_out:
        parts.append(f"{len(content.left_out)} left out: {content.left_out[0].rstrip('.')}")
    place = f"Footage in '{making.out}'" if making.kept else f"Footage of '{making.footage.shown}'"
    making.progress.note(f"{place}: {'; '.join(parts)}.")


def _some(content: FootageFile) -> Iterator[tuple[str, tuple[int, int]]]:
    yield from list(content.frames.items())[:3]
