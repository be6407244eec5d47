"""FP32 training: the ordinary detector that quantization starts from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ultralytics.nn.tasks import DetectionModel

from trt_qat.config import ModelSection, TrainSection
from trt_qat.data.progress import Report, no_report
from trt_qat.training.detection_trainer import DatasetTrainer, common_overrides, quiet_ultralytics


def train_fp32(
    network: DetectionModel,
    data: Mapping[str, Any],
    out: Path,
    model: ModelSection,
    section: TrainSection,
    report: Report = no_report,
) -> Path:
    """Train and return the path of the best Ultralytics checkpoint, ``out/weights/best.pt``.

    Args:
        network: unfolded detector with as many classes as the dataset; trained in place.
        data: what ``trt_qat.data.dataset.ultralytics_data`` returns.
    """
    overrides = common_overrides(model, out, section.epochs, section.batch, section.seed)
    overrides |= {"optimizer": section.optimizer, "lr0": section.lr0, "close_mosaic": min(10, section.epochs // 4)}
    with quiet_ultralytics():
        trainer = DatasetTrainer(network, data, overrides, report)
        trainer.train()
    return Path(trainer.best)
