"""Quantization-aware fine-tuning: Ultralytics' training loop on a calibrated network, best kept by fake-quant mAP."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ultralytics.nn.tasks import DetectionModel

from trt_qat.artifacts import CheckpointArtifact
from trt_qat.config import ModelSection, QatSection
from trt_qat.data.progress import Report, no_report
from trt_qat.quantization.insert import QuantizedModel
from trt_qat.training.checkpoint import save_checkpoint
from trt_qat.training.detection_trainer import DatasetTrainer, common_overrides, quiet_ultralytics
from trt_qat.training.distillation import DistillationCriterion


class QATTrainer(DatasetTrainer):
    """Fine-tunes a calibrated network in place.

    Args:
        model: calibrated; BatchNorm is folded already, so no statistics move.
        teacher: the float network for distillation, None for the detection loss alone.
        data: what ``trt_qat.data.dataset.ultralytics_data`` returns.
        out: folder for ``best.safetensors``, ``last.safetensors``, ``results.csv``.
    """

    def __init__(
        self,
        model: QuantizedModel,
        teacher: DetectionModel | None,
        data: Mapping[str, Any],
        out: Path,
        model_section: ModelSection,
        section: QatSection,
        provenance: Mapping[str, Any],
        report: Report = no_report,
    ) -> None:
        self._quantized = model
        self._teacher = teacher
        self._section = section
        self._provenance = provenance
        self.start_fitness = 0.0
        super().__init__(model.network, data, _overrides(model_section, section, out), report)
        self.best, self.last = out / "best.safetensors", out / "last.safetensors"
        self.add_callback("on_train_start", _validate_start)

    stage = "QAT"

    def _setup_train(self) -> None:
        for parameter in self._quantized.network.parameters():
            parameter.requires_grad_(True)
        super()._setup_train()
        network = self._quantized.network
        if self._teacher is not None and self._section.loss != "detection":
            network.criterion = DistillationCriterion(
                network.init_criterion(),
                self._teacher.to(self.device),
                with_labels=self._section.loss == "both",
                weight=self._section.distill_weight,
            )
            self.ema.ema.criterion = network.criterion

    def save_model(self) -> bool:
        """Write ``last``, and ``best`` when this epoch is the best so far."""
        quantized = replace(self._quantized, network=self.ema.ema)
        fitness = {"epoch": self.epoch + 1, "fake_quant_map50_95": float(self.fitness)}
        provenance = {**self._provenance, "training": fitness}
        save_checkpoint(self.last, quantized, "qat", self.args.imgsz, provenance)
        if self.best_fitness == self.fitness:
            save_checkpoint(self.best, quantized, "qat", self.args.imgsz, provenance)
        return True

    def final_eval(self) -> None:
        """Nothing: the exported file is what gets evaluated."""


def _validate_start(trainer: QATTrainer) -> None:
    """Epoch 0: the calibrated network itself is a candidate, so QAT never returns something worse."""
    trainer.epoch = -1
    batch = trainer.preprocess_batch(next(iter(trainer.train_loader)))
    with torch.no_grad():
        trainer.loss, trainer.loss_items = trainer.model(batch)
    trainer.metrics, trainer.fitness = trainer.validate()
    trainer.start_fitness = float(trainer.fitness)
    trainer.save_model()
    trainer.epoch = 0


def _overrides(model: ModelSection, section: QatSection, out: Path) -> dict[str, Any]:
    overrides = common_overrides(model, out, section.epochs, section.batch, section.seed)
    # no mosaic, mixup or strong colour: activation statistics stay those of deployment
    return overrides | {
        "optimizer": section.optimizer,
        "lr0": section.lr0,
        "lrf": section.lrf,
        "cos_lr": True,
        "weight_decay": section.weight_decay,
        "warmup_epochs": section.warmup_epochs,
        "warmup_bias_lr": 0.0,
        "nbs": section.batch,
        "mosaic": 0.0,
        "close_mosaic": 0,
        "erasing": 0.0,
        "hsv_h": section.hsv * 0.05,
        "hsv_s": section.hsv,
        "hsv_v": section.hsv,
        "scale": section.scale,
        "translate": section.translate,
        "fliplr": section.fliplr,
        "fraction": section.fraction,
        "pretrained": False,
    }


def train_qat(
    model: QuantizedModel,
    teacher: DetectionModel | None,
    data: Mapping[str, Any],
    out: Path,
    model_section: ModelSection,
    section: QatSection,
    provenance: Mapping[str, Any],
    report: Report = no_report,
) -> CheckpointArtifact:
    """Fine-tune and return the best checkpoint, ``out/best.safetensors``. ``model`` is left as it was."""
    trained = replace(model, network=copy.deepcopy(model.network))
    with quiet_ultralytics():
        trainer = QATTrainer(trained, teacher, data, out, model_section, section, provenance, report)
        trainer.train()
    (out / "weights").rmdir()  # Ultralytics' folder for its own checkpoints, which QAT does not write
    return CheckpointArtifact(Path(trainer.best))
