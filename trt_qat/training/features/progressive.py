"""Progressive quantization: scale groups are switched on one after the other while training goes on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch.optim import Optimizer
from typing_extensions import override

from trt_qat.config import QatSection
from trt_qat.quantization.insert import QuantizedModel
from trt_qat.training.features.base import Feature, Start, Step


class ProgressiveQuantization(Feature):
    """Starts with few quantized groups and ends with all of them.

    Validation always sees the fully quantized network: the averaged copy, which keeps every quantizer on.

    Args:
        order: every group of the placement, the first to be quantized first.
        end: share of the run after which all are on.
    """

    name: ClassVar[str] = "progressive"

    def __init__(self, order: Sequence[str], end: float) -> None:
        self.order = order
        self._end = end
        self._on = -1  # nothing is known yet: a resumed run starts with all of them on

    @classmethod
    @override
    def configured(cls, section: QatSection, start: Start) -> ProgressiveQuantization | None:
        if section.progressive == "none":
            return None
        by_depth = [group.name for group in start.model.require_quantized().placement.groups]
        return cls(start.order or by_depth, section.progressive_end)

    @override
    def prepare_(self, model: QuantizedModel, device: torch.device) -> None:
        # the quantizers are only looked up here: the averaged copy is made of this network with all of them on
        groups = {group.name: group for group in model.placement.groups}
        if sorted(self.order) != sorted(groups):
            raise ValueError("order must name every group of the placement once")
        activations, weights = model.activation_quantizers(), model.weight_quantizers()
        self._toolkit = model.toolkit
        self._quantizers = [[activations[name], *(weights[conv] for conv in groups[name].convs)] for name in self.order]

    @override
    def before_step(self, step: Step, optimizer: Optimizer) -> None:
        count = self.count(step.number, step.total)
        if count == self._on:
            return
        self._on = count
        for index, quantizers in enumerate(self._quantizers):
            for quantizer in quantizers:
                self._toolkit.set_enabled(quantizer, index < count)

    def count(self, step: int, total: int) -> int:
        """How many groups are quantized at a step (from 0) of a run."""
        return min(len(self.order), math.ceil(len(self.order) * (step + 1) / max(1.0, total * self._end)))
