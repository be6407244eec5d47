"""The learning rate of a short fine-tuning: warm-up and cosine per step, scaled to the run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trt_qat.training.detection_trainer import DatasetTrainer

_LONGEST_WARMUP = 0.25  # of the run: a run of one epoch must not spend half of it warming up


class QATLearningRateScheduler:
    """Linear warm-up, then a cosine down to a share of the first learning rate, changed before every step.

    Ultralytics' own schedule changes once per epoch, which leaves a run of two epochs with two learning rates.

    Args:
        warmup_epochs: length of the warm-up, at most a quarter of the run.
        final: last learning rate as a share of the first.
    """

    def __init__(self, warmup_epochs: float, final: float) -> None:
        self._warmup_epochs = warmup_epochs
        self._final = final

    def attach(self, trainer: DatasetTrainer) -> None:
        """Take over the trainer's learning rates."""
        trainer.add_callback("on_train_batch_start", self._set)

    def factor(self, step: int, steps_per_epoch: int, epochs: int) -> float:
        """Learning rate at a step (from 0) as a share of the first learning rate."""
        total = steps_per_epoch * epochs
        warmup = int(min(self._warmup_epochs * steps_per_epoch, _LONGEST_WARMUP * total))
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = (step - warmup) / max(1, total - warmup - 1)
        return self._final + (1 - self._final) * (1 + math.cos(math.pi * min(1.0, progress))) / 2

    def _set(self, trainer: Any) -> None:
        factor = self.factor(trainer.steps_done, len(trainer.train_loader), trainer.epochs)
        for group in trainer.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
