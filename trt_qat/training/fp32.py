"""FP32 training: the ordinary detector that quantization starts from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from typing_extensions import override
from ultralytics.nn.tasks import DetectionModel

from trt_qat.checkpoint import Model
from trt_qat.config import TrainSection
from trt_qat.data.dataset import Dataset
from trt_qat.halving import halving
from trt_qat.model.device import CPU
from trt_qat.model.loading import ARCHITECTURE_SUFFIXES, network_from_architecture
from trt_qat.progress import SILENT, Progress
from trt_qat.training.criterion import QATCriterion
from trt_qat.training.detection_trainer import DatasetTrainer, common_overrides, quiet_ultralytics
from trt_qat.training.precision import Precision
from trt_qat.vision.size import shown_size


class FP32Trainer(DatasetTrainer):
    """Ultralytics' training of a float network; of an end-to-end head it trains both branches."""

    @override
    def _setup_train(self) -> None:
        network = self.model
        super()._setup_train()
        self._precision.forward_in_16_bit_(network)
        network.criterion = QATCriterion(network.init_criterion(), with_labels=True)  # in float32


def train_fp32(
    model: Model,
    dataset: Dataset,
    out: Path,
    section: TrainSection,
    progress: Progress = SILENT,
    device: torch.device = CPU,
) -> Path:
    """Train and return the path of the best Ultralytics checkpoint, ``out/weights/best.pt``.

    The images are square, at the longer side of the model's input: Ultralytics makes its mosaics so.

    Args:
        model: where to start from; left as it is.

    Raises:
        ArtifactError: the weights have their BatchNorm folded.
    """
    side = max(model.imgsz)
    if min(model.imgsz) != side:
        progress.note(f"FP32 training is at {side} pixels square; what follows it is at {shown_size(model.imgsz)}.")
    own = {
        "optimizer": section.optimizer,
        "lr0": section.lr0,
        "nbs": section.nominal_batch,
        "close_mosaic": min(10, section.epochs // 4),
        "nms": False,  # Ultralytics then validates the branch of an end-to-end head that is deployed
    }
    precision = Precision(section.amp, device, "train.amp")

    def attempt(batch: int) -> Path:
        torch.manual_seed(section.seed)
        network = trainable_network(model, dataset.names)
        overrides = common_overrides(out, section.epochs, batch, section.seed, device) | own
        with quiet_ultralytics():
            trainer = FP32Trainer(network, dataset, (side, side), overrides, progress, precision)
            trainer.train()
        return Path(trainer.best)

    return halving(attempt, section.batch, "train.batch", progress)


def trainable_network(model: Model, names: Mapping[int, str]) -> DetectionModel:
    """An unfolded detector for the given classes: the model's weights where shapes fit, else random ones.

    Raises:
        ArtifactError: the weights have their BatchNorm folded.
    """
    if model.source.suffix in ARCHITECTURE_SUFFIXES:  # its weights are random, and these follow the seed
        return network_from_architecture(model.network.yaml, names)
    start = model.as_trained()
    fresh = network_from_architecture(start.yaml, names)
    fresh.load(start, verbose=False)
    return fresh
