"""A penalty that pulls weights to the INT8 grid, so that they stop jumping between two neighbouring levels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trt_qat.quantization.fake_quant import HIGHEST, LOWEST
from trt_qat.quantization.insert import QuantizedModel


class DampeningLoss:
    """Mean squared distance of every quantized weight from its grid point, in steps.

    The dampening loss of Nagel et al. 2022, "Overcoming Oscillations in Quantization-Aware Training" (section 4.1),
    with its rising cosine weight; in steps instead of weight units, so that one factor fits every layer.

    Args:
        model: its network is the one in training.
        weight: factor at the end of the run; it rises from 0.
    """

    def __init__(self, model: QuantizedModel, weight: float) -> None:
        self._convs = [model.network.get_submodule(name) for name in model.weight_quantizers()]
        self._toolkit = model.toolkit
        self._weight = weight
        self.progress = 0.0  # share of the run that is done; the trainer keeps it

    def __call__(self) -> Tensor:
        """The weighted penalty, a scalar with a gradient to every quantized weight."""
        factor = self._weight * (1 - math.cos(math.pi * self.progress)) / 2
        return factor * torch.stack([self._distance(conv) for conv in self._convs]).mean()

    def _distance(self, conv: torch.nn.Module) -> Tensor:
        weight: Tensor = conv.weight  # type: ignore[assignment]
        steps = weight / (self._toolkit.amax(self._toolkit.weight_quantizer(conv)).detach() / HIGHEST)
        inside = steps.clamp(LOWEST, HIGHEST)  # a clipped weight is pulled nowhere
        return (inside - inside.detach().round()).square().mean()
