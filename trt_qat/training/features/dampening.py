"""Dampening: weights are pulled to the INT8 grid, so that they stop jumping between two neighbouring levels.

A weight near the edge between two levels is pushed over it and back, step after step: what is validated and saved then
depends on which side the last step left it.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from trt_qat.config import QatSection
from trt_qat.model.output_error import Predictions
from trt_qat.quantization.fake_quant import HIGHEST, LOWEST
from trt_qat.quantization.insert import QuantizedModel
from trt_qat.training.features.base import Feature, Start, Step


class Dampening(Feature):
    """Mean squared distance of every quantized weight from its grid point, in steps, as a term of the loss.

    The dampening loss of Nagel et al. 2022, "Overcoming Oscillations in Quantization-Aware Training" (section 4.1),
    with its rising cosine weight; in steps instead of weight units, so that one factor fits every layer.

    Args:
        weight: factor at the end of the run; it rises from 0.
    """

    name: ClassVar[str] = "dampening"
    terms: ClassVar[tuple[str, ...]] = ("dampening",)

    def __init__(self, weight: float) -> None:
        self._weight = weight
        self._share_done = 0.0

    @classmethod
    @override
    def configured(cls, section: QatSection, start: Start) -> Dampening | None:
        return cls(section.dampening) if section.dampening else None

    @override
    def prepare_(self, model: QuantizedModel, device: torch.device) -> None:
        self._convs = [model.network.get_submodule(name) for name in model.weight_quantizers()]
        self._toolkit = model.toolkit

    @override
    def before_step(self, step: Step, optimizer: Optimizer) -> None:
        self._share_done = step.share

    @override
    def loss(self, predictions: Predictions, images: Tensor) -> dict[str, Tensor]:
        # from nothing: at the start a weight must still be free to find another level
        factor = self._weight * (1 - math.cos(math.pi * self._share_done)) / 2
        return {"dampening": factor * torch.stack([self._distance(conv) for conv in self._convs]).mean()}

    def _distance(self, conv: torch.nn.Module) -> Tensor:
        weight: Tensor = conv.weight  # type: ignore[assignment]
        steps = weight / (self._toolkit.amax(self._toolkit.weight_quantizer(conv)).detach() / HIGHEST)
        inside = steps.clamp(LOWEST, HIGHEST)  # a clipped weight is pulled nowhere
        # detached, for the grid point is a target: rounding has no useful gradient of its own
        return (inside - inside.detach().round()).square().mean()
