"""Quantization-aware fine-tuning: Ultralytics' training loop on a calibrated network, best kept by fake-quant mAP.

Each idea has a file of its own and a key in the ``qat`` section; this module puts together what is configured.
"""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer
from ultralytics.nn.tasks import DetectionModel

from trt_qat import distributed
from trt_qat.artifacts import CheckpointArtifact
from trt_qat.checkpoint import Model, save
from trt_qat.config import QatSection
from trt_qat.data.dataset import Dataset
from trt_qat.progress import SILENT, Progress
from trt_qat.quantization.insert import QuantizedModel
from trt_qat.training.criterion import QATCriterion
from trt_qat.training.detection_trainer import DatasetTrainer, common_overrides, quiet_ultralytics
from trt_qat.training.features.batchnorm import folded, freeze_statistics_, unfolded
from trt_qat.training.features.dampening import DampeningLoss
from trt_qat.training.features.distillation import Distillation
from trt_qat.training.features.error_monitor import QuantizationErrorMonitor
from trt_qat.training.features.learning_rate import QATLearningRateScheduler
from trt_qat.training.features.lsq import keep_ranges_positive_, learn_scales_, move_ranges_
from trt_qat.training.features.progressive import ProgressiveQuantization
from trt_qat.training.resume import load_state, run_fingerprint, save_state

LOG = logging.getLogger(__name__)
_GRADIENT_NORM = 10.0  # Ultralytics' own limit
_LEARNING_RATES = {"lr/pg0", "lr/pg1", "lr/pg2"}  # Ultralytics' groups: weights, norms, biases


class QATTrainer(DatasetTrainer):
    """Fine-tunes a calibrated network in place.

    Args:
        detector: calibrated; its BatchNorm is folded unless ``section.bn`` is ``freeze``.
        teacher: the float network for distillation, None for the detection loss alone.
        dataset: trained on, and validated on its val split.
        out: folder for ``best.safetensors``, ``last.safetensors``, ``results.csv``, ``resume.pt``.
        order: scale groups in the order in which progressive quantization switches them on.
        state: what ``resume.pt`` held, None for a new run.
    """

    stage = "QAT"

    def __init__(
        self,
        detector: Model,
        teacher: DetectionModel | None,
        dataset: Dataset,
        out: Path,
        section: QatSection,
        provenance: Mapping[str, Any],
        progress: Progress = SILENT,
        order: Sequence[str] = (),
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self._detector = detector
        self._quantized = model = detector.require_quantized()
        self._teacher = teacher
        self._section = section
        self._provenance = provenance
        self._state = state
        self._out = out
        self.start_fitness = 0.0
        super().__init__(model.network, dataset, _overrides(detector.imgsz, section, out), progress)
        self.best, self.last = out / "best.safetensors", out / "last.safetensors"
        self._penalty = DampeningLoss(model, section.dampening) if section.dampening else None
        self._monitor = QuantizationErrorMonitor(out, section.collapse) if section.monitor else None
        if section.scheduler == "qat":
            QATLearningRateScheduler(section.warmup_epochs, section.lrf).attach(self)
        self.add_callback("on_train_epoch_start", QATTrainer._seed_epoch)
        self.add_callback("on_train_batch_start", QATTrainer._batch_starts)
        if state is None:
            self.add_callback("on_train_start", QATTrainer._validate_start)
        if self._monitor is not None and distributed.is_main():
            self._monitor.attach(self)
        if section.progressive != "none":  # after the EMA copy is made, which keeps every quantizer on
            ProgressiveQuantization(model, order, section.progressive_end).attach(self)
        self.add_callback("on_fit_epoch_end", QATTrainer._save_state)

    def evaluated_model(self) -> QuantizedModel:
        """The EMA network that is validated and saved."""
        return replace(self._quantized, network=self.ema.ema)

    def _setup_train(self) -> None:
        for parameter in self._quantized.network.parameters():
            parameter.requires_grad_(True)
        if self._section.lsq:
            learn_scales_(self._quantized)
        super()._setup_train()
        network = self._quantized.network
        network.criterion = QATCriterion(
            network.init_criterion(), self._section.loss != "distill", self._distillation(), self._penalty
        )
        self.ema.ema.criterion = network.criterion

    def _distillation(self) -> Distillation | None:
        if self._teacher is None or self._section.loss == "detection":
            return None
        section = self._section
        return Distillation(
            self._teacher.to(self.device), section.distill_score, section.distill_box, section.distill_feature
        )

    def build_optimizer(self, model: nn.Module, *args: Any, **keys: Any) -> Optimizer:
        """Ultralytics' optimizer; learned ranges get groups of their own."""
        optimizer: Optimizer = super().build_optimizer(model, *args, **keys)
        if self._section.lsq:
            move_ranges_(optimizer, self._quantized, self._section.lsq_lr)
        return optimizer

    def optimizer_step(self) -> None:
        """One step with clipped gradients; a step that is not finite is left out and ends the run."""
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), _GRADIENT_NORM)
        if torch.isfinite(norm):
            self.optimizer.step()
            if self._section.lsq:
                keep_ranges_positive_(self._quantized)
            self.ema.update(self.model)
        else:
            LOG.warning(
                "QAT diverged: the gradient of step %d is not finite. Stopped; the best checkpoint is kept. "
                "Lower qat.lr0.",
                self.steps_done,
            )
            self.stop = True
        self.optimizer.zero_grad()

    def _model_train(self) -> None:
        super()._model_train()
        if self._section.bn == "freeze" and self.epoch >= self._section.bn_freeze_epochs:
            freeze_statistics_(self.model)

    def save_metrics(self, metrics: Mapping[str, float]) -> None:
        """Ultralytics' results.csv, without the learning rate of every learned range."""
        super().save_metrics({k: v for k, v in metrics.items() if not k.startswith("lr/pg") or k in _LEARNING_RATES})

    def save_model(self) -> bool:
        """Write ``last``, and ``best`` when this epoch is the best so far."""
        model = self.evaluated_model()
        if self._section.bn == "freeze":
            model = folded(model)
        fitness = {"epoch": self.epoch + 1, "fake_quant_map50_95": float(self.fitness)}
        detector = self._detector.with_quantized(model, "qat", {**self._provenance, "training": fitness})
        save(self.last, detector)
        if self.best_fitness == self.fitness:
            save(self.best, detector)
        return True

    def final_eval(self) -> None:
        """Nothing: the exported file is what gets evaluated."""

    def resume_training(self, ckpt: Any) -> None:
        """Go on from the state of an interrupted run."""
        del ckpt  # Ultralytics' own kind of checkpoint
        if self._state is None:
            return
        state = self._state
        self._quantized.network.load_state_dict(state["model"])
        self.ema.ema.load_state_dict(state["ema"])
        self.ema.updates = state["updates"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.best_fitness, self.start_fitness = state["best_fitness"], state["start_fitness"]
        self.stopper.best_fitness, self.stopper.best_epoch = state["stopper"]
        self.start_epoch = state["epoch"] + 1
        if distributed.is_main():
            self.csv.write_text(state["results_csv"], encoding="utf-8")
            if self._monitor is not None:
                self._monitor.load_state(state["monitor"], self.start_epoch)

    def _handle_nan_recovery(self, epoch: int) -> bool:
        """Never: a step that is not finite was left out."""
        del epoch
        return False

    def _seed_epoch(self) -> None:
        """Order and augmentation depend on seed and epoch alone, so that an interrupted epoch can be done again."""
        seed = self.args.seed + 7919 * (self.epoch + 1) + distributed.rank()
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        self.train_loader.reset()
        self.train_loader.generator.manual_seed(seed)

    def _batch_starts(self) -> None:
        if self._penalty is not None:
            self._penalty.progress = self.steps_done / (len(self.train_loader) * self.epochs)

    def _validate_start(self) -> None:
        """Epoch 0: the calibrated network itself is a candidate, so QAT never returns something worse."""
        self.epoch = -1
        batch = self.preprocess_batch(next(iter(self.train_loader)))
        with torch.no_grad():
            self.loss, self.loss_items = self.ema.ema(batch)
        self.metrics, self.fitness = self.validate()
        if distributed.is_main():
            self.start_fitness = float(self.fitness)
            self.save_model()
        self.epoch = 0

    def _save_state(self) -> None:
        if not distributed.is_main():
            return
        fingerprint = run_fingerprint(self._provenance)
        if self.stop:
            save_state(self._out, fingerprint, {"finished": True})
            return
        state = {
            "epoch": self.epoch,
            "finished": False,
            "model": self._quantized.network.state_dict(),
            "ema": self.ema.ema.state_dict(),
            "updates": self.ema.updates,
            "optimizer": self.optimizer.state_dict(),
            "best_fitness": float(self.best_fitness),
            "start_fitness": self.start_fitness,
            "stopper": (float(self.stopper.best_fitness), int(self.stopper.best_epoch)),
            "results_csv": self.csv.read_text(encoding="utf-8"),
            "monitor": self._monitor.state() if self._monitor is not None else {},
        }
        save_state(self._out, fingerprint, state)


def _overrides(imgsz: int, section: QatSection, out: Path) -> dict[str, Any]:
    overrides = common_overrides(imgsz, out, section.epochs, section.batch, section.seed)
    # the images as calibration saw them, but for what the section asks for
    return overrides | {
        "optimizer": section.optimizer,
        "lr0": section.lr0,
        "lrf": section.lrf,
        "cos_lr": True,
        "weight_decay": section.weight_decay,
        "warmup_epochs": section.warmup_epochs if section.scheduler == "ultralytics" else 0.0,
        "warmup_bias_lr": 0.0,
        "nbs": section.batch,
        "mosaic": 0.0,
        "close_mosaic": 0,
        "erasing": 0.0,
        "augmentations": [],  # Ultralytics would use Albumentations wherever it happens to be installed
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
    model: Model,
    dataset: Dataset,
    out: Path,
    section: QatSection,
    provenance: Mapping[str, Any],
    progress: Progress = SILENT,
    *,
    order: Sequence[str] = (),
    resume: bool = False,
) -> CheckpointArtifact:
    """Fine-tune and return the best checkpoint, ``out/best.safetensors``. ``model`` is left as it was.

    Args:
        model: calibrated; the float network that it came from is the teacher.
        order: scale groups in the order of progressive quantization; by depth if empty.
        resume: go on with the run in ``out`` where it was interrupted; begin if there is none.

    Raises:
        QuantizationError: the model is float.
        ArtifactError: ``bn: freeze`` of folded weights; ``resume`` with other weights, data,
            versions or settings than the interrupted run's.
    """
    state = load_state(out, run_fingerprint(provenance)) if resume else None
    if state is not None and state["finished"]:
        return CheckpointArtifact(out / "best.safetensors")
    quantized = model.require_quantized()
    with quantized.quantizers_off():  # the copy stays float: it is the teacher
        teacher = copy.deepcopy(quantized.network)
    if section.bn == "freeze":
        trained = unfolded(quantized, model.unfolded())
    else:
        trained = replace(quantized, network=copy.deepcopy(quantized.network))
    detector = replace(model, network=trained.network, quantized=trained)
    depth = [group.name for group in quantized.placement.groups]
    with quiet_ultralytics():
        trainer = QATTrainer(detector, teacher, dataset, out, section, provenance, progress, order or depth, state)
        trainer.train()
    if distributed.is_main():
        (out / "weights").rmdir()  # Ultralytics' folder for its own checkpoints, which QAT does not write
    return CheckpointArtifact(Path(trainer.best))
