"""Learned scales: the activations' ranges become parameters (LSQ; the gradient is in ``quantization/fake_quant.py``).

The weights' ranges stay: a weight can move to the grid by itself, an activation cannot.
"""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

from trt_qat.quantization.insert import QuantizedModel


def learn_scales_(model: QuantizedModel) -> None:
    """Make every activation's range a parameter, in place.

    Raises:
        QuantizationError: the toolkit has no gradient for its ranges.
    """
    for quantizer in model.activation_quantizers().values():
        model.toolkit.learn_range(quantizer)


def move_ranges_(optimizer: Optimizer, model: QuantizedModel, rate: float) -> None:
    """Give every range its own group: no weight decay, and a learning rate relative to the range itself, in place.

    Adam's step is as large as the learning rate, whatever the gradient: ranges from 0.1 to 100 need each their own.

    Args:
        rate: share by which one step may change a range.
    """
    ranges = _ranges(model)
    ids = {id(parameter) for parameter in ranges}
    for group in optimizer.param_groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in ids]
    for parameter in ranges:
        optimizer.add_param_group({"params": [parameter], "lr": rate * float(parameter.detach()), "weight_decay": 0.0})


def keep_ranges_positive_(model: QuantizedModel) -> None:
    """Undo what a step may have done to a range near zero, in place."""
    for parameter in _ranges(model):
        parameter.data.clamp_(min=1e-6)


def _ranges(model: QuantizedModel) -> list[nn.Parameter]:
    ranges = [model.toolkit.amax(quantizer) for quantizer in model.activation_quantizers().values()]
    return [amax for amax in ranges if isinstance(amax, nn.Parameter)]
