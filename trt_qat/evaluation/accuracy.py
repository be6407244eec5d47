"""mAP of an exported file: Ultralytics' DetectionValidator matches and counts, a Runner infers."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ultralytics.models.yolo.detect import DetectionValidator

from trt_qat.config import EvaluationSection
from trt_qat.data.dataset import Dataset, check_class_count, ultralytics_data
from trt_qat.progress import SILENT, Progress
from trt_qat.runtime.runner import Runner, class_names, image_size
from trt_qat.training.detection_trainer import quiet_ultralytics


@dataclass(frozen=True)
class Accuracy:
    """Mean average precision as fractions, and on how many images."""

    map50_95: float
    map50: float
    images: int


def measure_accuracy(
    runner: Runner,
    dataset: Dataset,
    section: EvaluationSection,
    progress: Progress = SILENT,
    label: str = "",
) -> Accuracy:
    """Evaluate on the dataset's val split, letterboxed to the model's square input exactly as in deployment.

    Args:
        label: what a progress bar calls the model.

    Raises:
        DatasetError: the dataset has other classes than the model.
    """
    imgsz = image_size(runner.metadata, runner.input_shape)
    names = class_names(runner.metadata) or dict(dataset.names)
    check_class_count(dataset, names)
    fixed = runner.input_shape[0]
    with tempfile.TemporaryDirectory() as folder, quiet_ultralytics():
        validator = _validator(dataset, section, imgsz, fixed or section.batch, names, Path(folder))
        for images in progress.over(validator.dataloader, f"evaluating {label or runner.name}"):
            content = validator.preprocess(images)
            output = _infer(runner, content["img"].numpy(), fixed)
            validator.update_metrics(validator.postprocess(torch.from_numpy(output)), content)
        validator.gather_stats()
        stats: Mapping[str, float] = validator.get_stats()
    return Accuracy(
        float(stats["metrics/mAP50-95(B)"]), float(stats["metrics/mAP50(B)"]), len(validator.dataloader.dataset)
    )


def _validator(
    dataset: Dataset, section: EvaluationSection, imgsz: int, batch: int, names: Mapping[int, str], folder: Path
) -> Any:
    arguments = {
        "task": "detect",
        "mode": "val",
        "data": str(dataset.source),
        "imgsz": imgsz,
        "batch": batch,
        "conf": section.conf,
        "iou": section.iou,
        "max_det": section.max_det,
        "rect": False,
        "plots": False,
        "save_json": False,
        "workers": 0,
        "device": "cpu",
        "split": "val",
    }
    validator: Any = DetectionValidator(args=arguments, save_dir=folder)
    validator.data = ultralytics_data(dataset)
    validator.device = torch.device("cpu")
    validator.training = False
    validator.stride = 32
    validator.dataloader = validator.get_dataloader(validator.data["val"], batch)
    validator.init_metrics(SimpleNamespace(names=dict(names), end2end=False))
    validator.jdict = []
    return validator


def _infer(runner: Runner, images: NDArray[np.float32], fixed: int | None) -> NDArray[np.float32]:
    """Run a batch; a static batch is padded by repeating the last image, and the padding's output dropped."""
    count = len(images)
    if fixed is not None and count < fixed:
        images = np.concatenate([images, np.repeat(images[-1:], fixed - count, axis=0)])
    return runner.infer(np.ascontiguousarray(images))[0][:count]
