"""The FP32 model's confident detections as labels.

They are computed, thresholded and suppressed as mAP's are (:mod:`trt_qat.evaluation.accuracy`), so that the model
agrees with itself wholly: any other suppression would count some of its own boxes as false.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from trt_qat.checkpoint import Model
from trt_qat.config import EvaluationSection
from trt_qat.data.labelled import LabelledImage
from trt_qat.data.labels import Labels
from trt_qat.errors import DatasetError
from trt_qat.evaluation.accuracy import PreparedImage, infer_padded, prepared
from trt_qat.evaluation.torch_runner import TorchRunner
from trt_qat.halving import halving
from trt_qat.metadata import Layout, output_layout
from trt_qat.progress import Progress
from trt_qat.runtime.runner import Runner, check_output, class_names, image_size
from trt_qat.vision.postprocess import detections_from_output

_NOTHING = Labels(np.zeros(0, np.int64), np.zeros((0, 4), np.float32))


@contextmanager
def float_runner(model: Model, device: torch.device) -> Iterator[Runner]:
    """The float network behind a model: that of calibrated weights is the same, with its quantizers off.

    Raises:
        DatasetError: the weights are fine-tuned: what the float model would detect is not known any more.
    """
    if model.stage == "qat":
        raise DatasetError(
            f"'{model.source}' is fine-tuned and cannot label images: agreement is with the float model that it came "
            "from. Give the data.yaml in the folder footage/ of its run."
        )
    if model.quantized is None:
        with TorchRunner(model, 0, device) as runner:
            yield runner
        return
    with model.quantized.quantizers_off(), TorchRunner(model, 0, device) as runner:
        yield runner


def detected_labels(
    runner: Runner, images: Sequence[Path], conf: float, section: EvaluationSection, progress: Progress
) -> Iterator[tuple[Path, Labels | DatasetError]]:
    """What the model detects with a score above ``conf`` on each image, or why the image cannot be read, in order.

    Args:
        section: of the suppression, and the images per forward pass.

    Raises:
        RunnerError: the output is not raw YOLOv8 detection, or not finite.
    """

    def all_in(batch: int) -> list[tuple[Path, Labels | DatasetError]]:
        size = runner.input_shape[0] or batch
        groups = [images[first : first + size] for first in range(0, len(images), size)]
        shown = progress.over(groups, "labelling with the FP32 model")
        return [found for group in shown for found in _detected(runner, group, conf, section)]

    yield from halving(all_in, section.batch, "evaluation.batch", progress)


def _detected(
    runner: Runner, images: Sequence[Path], conf: float, section: EvaluationSection
) -> Iterator[tuple[Path, Labels | DatasetError]]:
    unreadable: dict[Path, str] = {}
    imgsz = image_size(runner.metadata, runner.input_shape)
    items = list(prepared([LabelledImage(path, _NOTHING) for path in images], imgsz, unreadable))
    yield from ((path, DatasetError(reason)) for path, reason in unreadable.items())
    if not items:
        return
    output = infer_padded(runner, np.concatenate([item.pixels for item in items]))[0]
    layout = output_layout(runner.metadata)
    check_output(output, class_names(runner.metadata), runner.name, len(items), layout)
    labels = partial(_labels, conf=conf, section=section, layout=layout)
    yield from ((item.given.image, labels(raw, item)) for raw, item in zip(output, items, strict=True))


def _labels(
    output: NDArray[np.float32], item: PreparedImage, conf: float, section: EvaluationSection, layout: Layout
) -> Labels:
    found = detections_from_output(output, conf, section.iou, section.max_det, multi_label=True, layout=layout)
    boxes = item.transform.boxes_to_image(found.boxes_xyxy) / np.array(item.transform.size_wh * 2, dtype=np.float32)
    centres, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    there = (sizes > 1e-6).all(axis=1)  # a box outside of the image is cut to nothing
    return Labels(found.class_ids[there], np.concatenate([centres, sizes], axis=1)[there])


def label_text(labels: Labels) -> str:
    """The content of a label file: a row "class x y width height" each, fractions of the image."""
    rows = zip(labels.class_ids.tolist(), labels.boxes_cxcywh.tolist(), strict=True)
    return "".join(f"{class_id} {' '.join(f'{value:.7f}' for value in box)}\n" for class_id, box in rows)
