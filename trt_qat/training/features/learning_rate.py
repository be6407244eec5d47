"""The learning rate of a short fine-tuning: warm-up and cosine per step, scaled to the run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from torch.optim import Optimizer
from typing_extensions import override

from trt_qat.config import QatSection
from trt_qat.training.features.base import Feature, Start, Step

_LONGEST_WARMUP = 0.25  # of the run: a run of one epoch must not spend half of it warming up


class QATLearningRateScheduler(Feature):
    """Linear warm-up, then a cosine down to a share of the first learning rate, changed before every step.

    Ultralytics' own schedule changes once per epoch, which leaves a run of two epochs with two learning rates.

    Args:
        warmup_epochs: length of the warm-up, at most a quarter of the run.
        final: last learning rate as a share of the first.
    """

    name: ClassVar[str] = "learning_rate"

    def __init__(self, warmup_epochs: float, final: float) -> None:
        self._warmup_epochs = warmup_epochs
        self._final = final

    @classmethod
    @override
    def configured(cls, section: QatSection, start: Start) -> QATLearningRateScheduler | None:
        return cls(section.warmup_epochs, section.lrf) if section.scheduler == "qat" else None

    @override
    def ultralytics_arguments(self) -> Mapping[str, Any]:
        return {"warmup_epochs": 0.0}  # its warm-up is applied after before_step and would overwrite ours

    @override
    def before_step(self, step: Step, optimizer: Optimizer) -> None:
        factor = self.factor(step.number, step.per_epoch, step.epochs)
        for group in optimizer.param_groups:  # relative, so that learned ranges keep their own rates
            group["lr"] = group["initial_lr"] * factor

    def factor(self, step: int, steps_per_epoch: int, epochs: int) -> float:
        """Learning rate at a step (from 0) as a share of the first learning rate."""
        total = steps_per_epoch * epochs
        warmup = int(min(self._warmup_epochs * steps_per_epoch, _LONGEST_WARMUP * total))
        if step < warmup:
            return (step + 1) / (warmup + 1)  # never 0: such a step would be thrown away
        progress = (step - warmup) / max(1, total - warmup - 1)
        return self._final + (1 - self._final) * (1 + math.cos(math.pi * min(1.0, progress))) / 2
