"""Progressive quantization: scale groups are switched on one after the other while training goes on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trt_qat.quantization.insert import QuantizedModel

if TYPE_CHECKING:
    from trt_qat.training.detection_trainer import DatasetTrainer


class ProgressiveQuantization:
    """Callback that starts with few quantized groups and ends with all of them.

    Validation always sees the fully quantized network: the EMA copy, which keeps every quantizer on.

    Args:
        model: its network is the one in training.
        order: every group of the placement, the first to be quantized first.
        end: share of the run after which all are on.
    """

    def __init__(self, model: QuantizedModel, order: Sequence[str], end: float) -> None:
        groups = {group.name: group for group in model.placement.groups}
        if sorted(order) != sorted(groups):
            raise ValueError("order must name every group of the placement once")
        activations, weights = model.activation_quantizers(), model.weight_quantizers()
        self._toolkit = model.toolkit
        self._quantizers = [[activations[name], *(weights[conv] for conv in groups[name].convs)] for name in order]
        self._end = end
        self._on = -1

    def attach(self, trainer: DatasetTrainer) -> None:
        """Switch before every step."""
        trainer.add_callback("on_train_batch_start", self._switch)

    def count(self, step: int, total: int) -> int:
        """How many groups are quantized at a step (from 0) of a run."""
        return min(len(self._quantizers), math.ceil(len(self._quantizers) * (step + 1) / max(1.0, total * self._end)))

    def _switch(self, trainer: Any) -> None:
        count = self.count(trainer.steps_done, len(trainer.train_loader) * trainer.epochs)
        if count == self._on:
            return
        self._on = count
        for index, quantizers in enumerate(self._quantizers):
            for quantizer in quantizers:
                self._toolkit.set_enabled(quantizer, index < count)
