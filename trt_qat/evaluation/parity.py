"""Do two sides compute the same? Outputs, detections and mAP of the same images, letterboxed as in deployment.

A side is an open :class:`~trt_qat.runtime.runner.Runner`: the float network, the fake-quantized one, or an exported
file on any runtime. The thresholds are for one network on two runtimes (docs/parity.md has what was measured).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trt_qat.config import EvaluationSection, InferSection, ParitySection
from trt_qat.data.dataset import Dataset, check_classes
from trt_qat.data.images import evenly_spaced
from trt_qat.data.labelled import LabelledImage, labelled_split
from trt_qat.data.labels import Labels
from trt_qat.errors import ConsistencyError, DatasetError, RunnerError
from trt_qat.evaluation.accuracy import MatchedImage, PreparedImage, match_image, mean_average_precision, prepared
from trt_qat.evaluation.agreement import matched
from trt_qat.evaluation.comparator import Arrays, ComparedRunner, compare_chunk
from trt_qat.evaluation.parity_report import (
    MapPair,
    MatchedDetections,
    OutputParity,
    ParityReport,
    ParitySide,
    broken_thresholds,
)
from trt_qat.metadata import output_layout
from trt_qat.progress import SILENT, Progress
from trt_qat.results import LeftOut, Measure
from trt_qat.runtime.runner import Runner, check_output, class_names, image_size
from trt_qat.targets.check import difference
from trt_qat.vision.letterbox import network_input
from trt_qat.vision.postprocess import detections_from_output
from trt_qat.vision.self_check import check_preprocessing
from trt_qat.vision.size import ImageSize, shown_size

Array = NDArray[np.float32]


def cosine(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Cosine similarity of two arrays of equal shape; 1 if both are zero."""
    a, b = first.astype(np.float64).ravel(), second.astype(np.float64).ravel()
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norm if norm else float(np.array_equal(a, b))


def lowest_cosine(expected: Runner, found: Runner, batches: Iterable[NDArray[np.float32]]) -> list[float]:
    """Per output, the lowest cosine similarity over the batches."""
    lowest: list[float] = []
    for batch in batches:
        similarities = [cosine(a, b) for a, b in zip(expected.infer(batch), found.infer(batch), strict=True)]
        lowest = [min(pair) for pair in zip(lowest, similarities, strict=True)] if lowest else similarities
    return lowest


def psnr(first: Array, second: Array, peak: float | Array) -> float:
    """Peak signal-to-noise ratio in dB, 20 log10(peak / root mean square error); infinite for equal arrays.

    Args:
        peak: one for all values, or one for each of them (to be broadcast).
    """
    error = float(np.sqrt(np.mean(np.square((first.astype(np.float64) - second) / peak))))
    return -20 * float(np.log10(error)) if error else float("inf")


@dataclass(frozen=True)
class Side:
    """What is compared: an open runner and what messages call it."""

    label: str
    runner: Runner

    @property
    def description(self) -> ParitySide:
        """As the report names it."""
        runner = self.runner
        precision = runner.metadata.get("precision", "unknown")
        return ParitySide(model=self.label, runtime=runner.name, precision=precision, device=runner.device)

    @property
    def imgsz(self) -> ImageSize:
        """Height and width of its input in pixels."""
        return image_size(self.runner.metadata, self.runner.input_shape)


def compare(
    first: Side,
    second: Side,
    dataset: Dataset,
    section: ParitySection,
    *,
    evaluation: EvaluationSection,
    infer: InferSection,
    progress: Progress = SILENT,
) -> ParityReport:
    """Compare two sides on images of the dataset's val split.

    Args:
        section: how many images, and what is still the same.
        evaluation: how mAP or agreement is measured, and images per forward pass.
        infer: what a detection is.

    Raises:
        ConsistencyError: the two take images of other sizes, have other classes, or outputs of other shapes, or one
            puts out rows of detections.
        DatasetError: no image can be read, or the dataset has other classes.
        RunnerError: a side cannot run, its first output is not raw YOLOv8 detection, or an output is not finite.
    """
    check_preprocessing(network_input)
    _check_comparable(first, second, dataset)
    images, left_out, not_measured = _chosen(dataset, section.images)
    counting = _Counting((first, second), section, evaluation, infer, dataset.measure, not_measured)
    runners = [ComparedRunner(side.runner, name) for side, name in ((first, "first"), (second, "second"))]
    unreadable: dict[Path, str] = {}
    chunks = [images[start : start + evaluation.batch] for start in range(0, len(images), evaluation.batch)]
    for chunk in progress.over(chunks, "comparing"):
        items = list(prepared(chunk, first.imgsz, unreadable))
        if items:
            counting.items = items
            compare_chunk(runners[0], runners[1], np.concatenate([item.pixels for item in items]), counting)
    if unreadable:
        earlier = left_out.images if left_out else 0
        reason = left_out.reason if left_out else next(iter(unreadable.values())).rstrip(".")
        left_out = LeftOut(earlier + len(unreadable), len(dataset.val), reason)
    if not counting.images:
        raise DatasetError(f"No image of split 'val' of '{dataset.source}' is usable: {left_out}.")
    return counting.report(len(dataset.val), left_out)


def _check_comparable(first: Side, second: Side, dataset: Dataset) -> None:
    for side in (first, second):
        if output_layout(side.runner.metadata) == "rows":
            raise ConsistencyError(
                f"'{side.label}' puts out rows of detections, whose order says nothing of how far two networks are "
                "apart. Export it without --nms to compare it."
            )
    sizes = first.imgsz, second.imgsz
    if sizes[0] != sizes[1]:
        raise ConsistencyError(
            f"'{first.label}' takes images of {shown_size(sizes[0])} pixels, '{second.label}' of "
            f"{shown_size(sizes[1])}. Export both at one "
            "size; a checkpoint is run at another one with --set model.imgsz=N."
        )
    counts = [len(class_names(side.runner.metadata)) for side in (first, second)]
    if 0 not in counts and counts[0] != counts[1]:
        raise ConsistencyError(
            f"'{first.label}' has {counts[0]} classes, '{second.label}' {counts[1]}: two different networks. Compare "
            "files of one network."
        )
    for side in (first, second):
        check_classes(dataset, class_names(side.runner.metadata) or dict(dataset.names))


def _chosen(dataset: Dataset, count: int) -> tuple[Sequence[LabelledImage], LeftOut | None, str]:
    """The images to compare on, what is left out, and why no mAP or agreement can be measured, if so."""
    try:
        split = labelled_split(dataset, "val")
    except DatasetError as exc:
        nothing = Labels(np.zeros(0, np.int64), np.zeros((0, 4), np.float32))
        return [LabelledImage(path, nothing) for path in evenly_spaced(dataset.val, count)], None, str(exc)
    images = evenly_spaced(split.images, count)
    no_box = "" if any(len(image.labels) for image in images) else "None of the chosen images has a labelled box."
    return images, split.left_out, no_box


@dataclass
class _Figures:
    """One output or part of it, image by image."""

    cosines: list[float] = field(default_factory=list)
    psnrs: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)

    def add(self, first: Array, second: Array, peak: float | Array | None) -> None:
        """Count one image; without ``peak`` it is the largest magnitude of ``first``."""
        self.cosines.append(cosine(first, second))
        self.psnrs.append(psnr(first, second, float(np.abs(first).max()) or 1.0 if peak is None else peak))
        self.errors.append(float(np.abs(first.astype(np.float64) - second).max()))

    def row(self, name: str, images: Sequence[str]) -> OutputParity:
        """The worst of all images."""
        lowest = min(self.psnrs)
        return OutputParity(
            name=name,
            cosine_lowest=min(self.cosines),
            cosine_mean=float(np.mean(self.cosines)),
            psnr_lowest=None if np.isinf(lowest) else lowest,
            largest_error=max(self.errors),
            cosine_image=images[int(np.argmin(self.cosines))],
            error_image=images[int(np.argmax(self.errors))],
        )


@dataclass
class _Counting:
    """Told the outputs of chunk after chunk by Polygraphy; keeps figures, never outputs.

    Attributes:
        items: the images of the next chunk.
        measure: what the labels give.
        not_measured: why that cannot be measured; empty if it can.
        images: the names of those that were counted.
    """

    sides: tuple[Side, Side]
    section: ParitySection
    evaluation: EvaluationSection
    infer: InferSection
    measure: Measure
    not_measured: str
    items: Sequence[PreparedImage] = ()
    images: list[str] = field(default_factory=list)
    figures: dict[str, _Figures] = field(default_factory=dict)
    logits: list[float] = field(default_factory=list)
    found: list[tuple[NDArray[np.bool_], NDArray[np.bool_]]] = field(default_factory=list)
    accuracy: tuple[list[MatchedImage], list[MatchedImage]] = field(default_factory=lambda: ([], []))

    def __call__(self, first: Arrays, second: Arrays) -> Mapping[str, bool]:
        """Count one chunk: outputs by name, each of shape (images, ...)."""
        both = [name for name in first if name in second]
        for side, outputs in zip(self.sides, (first, second), strict=True):
            names = class_names(side.runner.metadata)
            check_output(outputs[both[0]], names, f"'{side.label}'", len(self.items))
            for name in both:
                if not np.isfinite(outputs[name]).all():
                    raise RunnerError(f"'{name}' of '{side.label}' holds NaN or infinity. Export or build it again.")
        for name in both:
            if first[name].shape != second[name].shape:
                shapes = " and ".join(str(outputs[name].shape[1:]) for outputs in (first, second))
                raise ConsistencyError(
                    f"'{name}' has shape {shapes} per image in '{self.sides[0].label}' and '{self.sides[1].label}': "
                    "two different networks. Compare files of one network."
                )
        self.images += [item.given.image.name for item in self.items]
        for index, item in enumerate(self.items):
            self._count({name: (first[name][index], second[name][index]) for name in both}, item)
        return dict.fromkeys(both, True)

    def _count(self, outputs: Mapping[str, tuple[Array, Array]], item: PreparedImage) -> None:
        raw = next(iter(outputs.values()))
        imgsz = self.sides[0].imgsz
        for name, a, b, peak in _parts(outputs, imgsz):
            self.figures.setdefault(name, _Figures()).add(a, b, peak)
        self.logits.append(difference(raw[1][None], raw[0][None], imgsz).logits)
        infer = self.infer
        layouts = [output_layout(side.runner.metadata) for side in self.sides]
        ours, theirs = (
            detections_from_output(output, infer.conf, infer.iou, infer.max_det, layout=layout)
            for output, layout in zip(raw, layouts, strict=True)
        )
        iou = self.section.match_iou
        self.found.append((matched(ours, theirs, iou), matched(theirs, ours, iou)))
        if not self.not_measured:
            for output, layout, kept in zip(raw, layouts, self.accuracy, strict=True):
                kept.append(match_image(output, item, self.evaluation, layout))

    def report(self, of: int, left_out: LeftOut | None) -> ParityReport:
        """What all chunks say together, of a split with so many images."""
        ours, theirs = (np.concatenate(side) for side in zip(*self.found, strict=True))
        section = self.section
        report = ParityReport(
            first=self.sides[0].description,
            second=self.sides[1].description,
            images=len(self.images),
            of=of,
            left_out=left_out,
            outputs=tuple(figures.row(name, self.images) for name, figures in self.figures.items()),
            logits=max(self.logits),
            detections=MatchedDetections(
                conf=self.infer.conf,
                iou=section.match_iou,
                first=len(ours),
                first_matched=int(ours.sum()),
                second=len(theirs),
                second_matched=int(theirs.sum()),
            ),
            map50_95=self._map50_95(),
            not_measured=self.not_measured,
            thresholds=section.thresholds(),
            broken=(),
            measure=self.measure,
        )
        return report.model_copy(update={"broken": tuple(broken_thresholds(report, section))})

    def _map50_95(self) -> MapPair | None:
        if not (self.not_measured or any(len(image.target_class_ids) for image in self.accuracy[0])):
            self.not_measured = "No image that could be read has a labelled box."
        if self.not_measured:
            return None
        first, second = (round(mean_average_precision(kept)[0], 5) for kept in self.accuracy)
        return MapPair(first=first, second=second)


def _parts(
    outputs: Mapping[str, tuple[Array, Array]], imgsz: ImageSize
) -> Iterator[tuple[str, Array, Array, float | Array | None]]:
    """Every output of one image, and behind the raw detections their boxes and scores with the peak that is known.

    That of a box's x and width is the width of the input, that of y and height its height.
    """
    height, width = imgsz
    sides = np.array([width, height, width, height], dtype=np.float32)[:, None]
    for index, (name, (first, second)) in enumerate(outputs.items()):
        yield name, first, second, None
        if index == 0:
            yield f"{name} boxes", first[:4], second[:4], sides
            yield f"{name} scores", first[4:], second[4:], 1.0
