"""Quantization dropped at random: at every step each scale group's activations stay float with some probability.

Wei et al. 2022, "QDrop: Randomly Dropping Quantization for Extremely Low-bit Post-Training Quantization" (there element
by element and in calibration). A network that must do well with any part of its rounding leans on none of it.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch.optim import Optimizer
from typing_extensions import override

from trt_qat.config import QatSection
from trt_qat.quantization.insert import QuantizedModel
from trt_qat.training.features.base import Feature, Start, Step


class QuantizationDrop(Feature):
    """Switches activation quantizers off and on before every step. Validation always sees all of them on.

    Args:
        probability: that a group's activations are float in a step.
    """

    name: ClassVar[str] = "quantization_drop"

    def __init__(self, probability: float) -> None:
        self._probability = probability

    @classmethod
    @override
    def configured(cls, section: QatSection, start: Start) -> QuantizationDrop | None:
        return cls(section.drop) if section.drop else None

    @override
    def prepare_(self, model: QuantizedModel, device: torch.device) -> None:
        self._toolkit, self._quantizers = model.toolkit, list(model.activation_quantizers().values())

    @override
    def before_step(self, step: Step, optimizer: Optimizer) -> None:
        # by the step's number, so that a resumed run drops what the unbroken one drops
        generator = torch.Generator().manual_seed(step.number)
        kept = torch.rand(len(self._quantizers), generator=generator) >= self._probability
        for quantizer, on in zip(self._quantizers, kept.tolist(), strict=True):
            self._toolkit.set_enabled(quantizer, on)
