"""LSQ: the activations' ranges become parameters (the gradient is in ``quantization/fake_quant.py``).

Esser et al. 2020, "Learned Step Size Quantization". The weights' ranges stay: a weight can move to the grid by itself,
an activation cannot.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn
from typing_extensions import override

from trt_qat.config import QatSection
from trt_qat.quantization.insert import QuantizedModel
from trt_qat.training.features.base import Feature, ParamGroup, Start

_SMALLEST_RANGE = 1e-6


class Lsq(Feature):
    """Learns the range of every activation quantizer.

    Args:
        rate: share by which one step may change a range.
    """

    name: ClassVar[str] = "lsq"

    def __init__(self, rate: float) -> None:
        self._rate = rate

    @classmethod
    @override
    def configured(cls, section: QatSection, start: Start) -> Lsq | None:
        return cls(section.lsq_lr) if section.lsq else None

    @override
    def prepare_(self, model: QuantizedModel, device: torch.device) -> None:
        learn_scales_(model)

    @override
    def param_groups(self, model: QuantizedModel) -> list[ParamGroup]:
        """A group for every range: no weight decay, and a learning rate relative to the range itself.

        Adam's step is as large as the learning rate, whatever the gradient: ranges from 0.1 to 100 need each their own.
        """
        return [ParamGroup([range_], self._rate * float(range_.detach())) for range_ in _ranges(model)]

    @override
    def after_step(self, model: QuantizedModel) -> None:
        # a step as long as the range itself would leave a scale of 0 or less, which has no grid
        for range_ in _ranges(model):
            range_.data.clamp_(min=_SMALLEST_RANGE)


def learn_scales_(model: QuantizedModel) -> None:
    """Make every activation's range a parameter, in place.

    Raises:
        QuantizationError: the toolkit has no gradient for its ranges.
    """
    for quantizer in model.activation_quantizers().values():
        model.toolkit.learn_range(quantizer)


def _ranges(model: QuantizedModel) -> list[nn.Parameter]:
    ranges = [model.toolkit.amax(quantizer) for quantizer in model.activation_quantizers().values()]
    return [amax for amax in ranges if isinstance(amax, nn.Parameter)]
