"""mAP of what is deployed: our reader, letterbox and NMS around a Runner. Ultralytics matches and counts.

Two settings differ from deployment, as in every published mAP: the threshold is so low that the whole
precision-recall curve is seen, and a box counts for every class that it scores in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from ultralytics.engine.validator import BaseValidator
from ultralytics.utils.metrics import ap_per_class, box_iou

from trt_qat.config import EvaluationSection
from trt_qat.data.dataset import Dataset, check_classes
from trt_qat.data.labelled import LabelledImage, LabelledSplit, labelled_split
from trt_qat.data.labels import Labels
from trt_qat.errors import ConsistencyError, DatasetError
from trt_qat.metadata import Layout, output_layout
from trt_qat.progress import SILENT, Progress
from trt_qat.results import LeftOut
from trt_qat.runtime.runner import Runner, check_output, class_names, image_size
from trt_qat.vision.image import read_image_bgr
from trt_qat.vision.letterbox import LetterboxTransform, network_input
from trt_qat.vision.postprocess import detections_from_output
from trt_qat.vision.self_check import check_preprocessing
from trt_qat.vision.size import ImageSize

COCO_IOU: Final = torch.linspace(0.5, 0.95, 10)


@dataclass(frozen=True)
class Accuracy:
    """Mean average precision as fractions, on how many images, and which were left out (None: none).

    Against labels that the FP32 model made it is agreement with that model, see :data:`trt_qat.results.Measure`.
    """

    map50_95: float
    map50: float
    images: int
    left_out: LeftOut | None = None

    def as_dict(self) -> dict[str, Any]:
        """A JSON object; ``left_out`` is there where images were left out."""
        content = asdict(self)
        return content if self.left_out else {key: value for key, value in content.items() if key != "left_out"}


@dataclass(frozen=True)
class MatchedImage:
    """What one image adds to mAP; boxes in pixels of the image.

    Args:
        right: bool, shape (n, 10): whether a detection is right at each IoU from 0.5 to 0.95.
        scores: shape (n,), best first.
        class_ids: shape (n,), of the detections.
        boxes_xyxy: shape (n, 4), of the detections.
        target_class_ids: shape (m,), of the labels.
        target_boxes_xyxy: shape (m, 4), of the labels.
    """

    right: NDArray[np.bool_]
    scores: NDArray[np.float32]
    class_ids: NDArray[np.int64]
    boxes_xyxy: NDArray[np.float32]
    target_class_ids: NDArray[np.int64]
    target_boxes_xyxy: NDArray[np.float32]


def measure_accuracy(
    runner: Runner,
    dataset: Dataset,
    section: EvaluationSection,
    progress: Progress = SILENT,
    label: str = "",
) -> Accuracy:
    """Evaluate on the dataset's val split exactly as :class:`~trt_qat.runtime.detector.Detector` computes.

    Args:
        section: NMS thresholds and images per forward pass; a model's static batch comes first.
        label: what a progress bar and an error call the model.

    Raises:
        DatasetError: no image of the split is usable, there is not one box, or the model has other classes.
        RunnerError: the output is not raw YOLOv8 detection with these classes, or not finite.
        ConsistencyError: images are prepared otherwise than in training, or not each is counted.
    """
    images, measured = match_images(runner, dataset, section, progress, label)
    return Accuracy(*mean_average_precision(images), len(images), measured.left_out)


def match_images(
    runner: Runner,
    dataset: Dataset,
    section: EvaluationSection,
    progress: Progress = SILENT,
    label: str = "",
) -> tuple[list[MatchedImage], LabelledSplit]:
    """What :func:`measure_accuracy` counts, image by image, and the split without what was left out; see there."""
    check_preprocessing(network_input)
    imgsz = image_size(runner.metadata, runner.input_shape)
    names = class_names(runner.metadata) or dict(dataset.names)
    check_classes(dataset, names)
    layout = output_layout(runner.metadata)
    split = labelled_split(dataset, "val")
    size = runner.input_shape[0] or section.batch
    batches = [split.images[first : first + size] for first in range(0, len(split.images), size)]
    unreadable: dict[Path, str] = {}
    matched: list[MatchedImage] = []
    for batch in progress.over(batches, f"evaluating {label or runner.name}"):
        inputs = list(prepared(batch, imgsz, unreadable))
        if not inputs:
            continue
        output = infer_padded(runner, np.concatenate([item.pixels for item in inputs]))[0]
        check_output(output, names, label or runner.name, len(inputs), layout)
        matched += [match_image(raw, item, section, layout) for raw, item in zip(output, inputs, strict=True)]
    measured = split.without(unreadable)
    _check_all_counted(len(matched), measured.left_out, dataset)
    return matched, measured


def _check_all_counted(matched: int, left_out: LeftOut | None, dataset: Dataset) -> None:
    """Each image of the split is measured, or said to be left out.

    Raises:
        ConsistencyError: some are neither.
    """
    listed, missing = len(dataset.val), left_out.images if left_out else 0
    if matched + missing != listed:
        raise ConsistencyError(
            f"{dataset.measure} was counted on {matched} images and {missing} were left out, but '{dataset.source}' "
            f"lists {listed}. No figure is given."
        )


def mean_average_precision(images: Sequence[MatchedImage]) -> tuple[float, float]:
    """mAP50-95 and mAP50 over images, as fractions: the mean over the classes that have a label."""
    per_class = counted(images)[5]
    return float(per_class.mean()), float(per_class[:, 0].mean())


def counted(images: Sequence[MatchedImage]) -> tuple[NDArray[Any], ...]:
    """Everything that Ultralytics' ``ap_per_class`` returns, see there."""
    found: tuple[NDArray[Any], ...] = ap_per_class(
        np.concatenate([image.right for image in images]),
        np.concatenate([image.scores for image in images]),
        np.concatenate([image.class_ids for image in images]),
        np.concatenate([image.target_class_ids for image in images]),
    )
    return found


@dataclass(frozen=True)
class PreparedImage:
    """One image on its way: network input of shape (1, 3, *imgsz), how it was letterboxed, its labels."""

    given: LabelledImage
    pixels: NDArray[np.float32]
    transform: LetterboxTransform


def prepared(batch: Sequence[LabelledImage], imgsz: ImageSize, unreadable: dict[Path, str]) -> Iterator[PreparedImage]:
    """The images that can be read; why the others cannot goes into ``unreadable``."""
    for given in batch:
        try:
            yield PreparedImage(given, *network_input(read_image_bgr(given.image), imgsz))
        except DatasetError as exc:
            unreadable[given.image] = str(exc)


def match_image(
    output: NDArray[np.float32], item: PreparedImage, section: EvaluationSection, layout: Layout = "raw"
) -> MatchedImage:
    """Ultralytics' matching of what is detected in one image, in its pixels.

    Args:
        output: of the network, shape (4 + classes, anchors), or (n, 6) where the layout is rows.
    """
    found = detections_from_output(output, section.conf, section.iou, section.max_det, multi_label=True, layout=layout)
    labels = item.given.labels
    boxes = item.transform.boxes_to_image(found.boxes_xyxy)
    targets = _pixels_xyxy(labels, item.transform.size_wh)
    right = right_at(COCO_IOU, (found.class_ids, boxes), (labels.class_ids, targets))
    return MatchedImage(right, found.scores, found.class_ids, boxes, labels.class_ids, targets)


Boxes = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Class ids, shape (n,), and boxes_xyxy, shape (n, 4)."""


def right_at(thresholds: torch.Tensor, detections: Boxes, labels: Boxes) -> NDArray[np.bool_]:
    """Ultralytics' matching: each detection, best first, takes the label of its class that it overlaps most and that
    none has taken.

    Returns:
        bool, shape (detections, thresholds): whether it got one that it overlaps by at least each threshold.
    """
    # all that match_predictions reads of a validator; a whole one would want a folder and a loader
    validator = SimpleNamespace(iouv=thresholds)
    iou = box_iou(torch.from_numpy(labels[1]), torch.from_numpy(detections[1]))
    right = BaseValidator.match_predictions(
        validator, torch.from_numpy(detections[0]), torch.from_numpy(labels[0]), iou
    )
    return np.asarray(right.numpy(), dtype=np.bool_)


def _pixels_xyxy(labels: Labels, size_wh: tuple[int, int]) -> NDArray[np.float32]:
    centres, halves = labels.boxes_cxcywh[:, :2], labels.boxes_cxcywh[:, 2:] / 2
    fractions = np.concatenate([centres - halves, centres + halves], axis=1)
    return fractions * np.array(size_wh * 2, dtype=np.float32)


def infer_padded(runner: Runner, images: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Run images, shape (n, 3, *imgsz), in batches that the model takes; every output, n images each.

    What is missing to a static batch is filled by repeating the last image, and the padding's output dropped.
    """
    count, size = len(images), runner.input_shape[0] or len(images)
    if count % size:
        images = np.concatenate([images, np.repeat(images[-1:], size - count % size, axis=0)])
    parts = [runner.infer(np.ascontiguousarray(images[first : first + size])) for first in range(0, len(images), size)]
    return [np.concatenate([np.atleast_1d(part) for part in outputs])[:count] for outputs in zip(*parts, strict=True)]
