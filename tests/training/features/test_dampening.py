"""The penalty: zero on the grid, pulls to the nearest level, rises over the run."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch

from trt_qat.quantization.fake_quant import fake_quantize
from trt_qat.quantization.insert import QuantizedModel
from trt_qat.training.features.dampening import DampeningLoss

if TYPE_CHECKING:
    from conftest import Calibrated


@pytest.fixture
def model(calibrated: Calibrated) -> QuantizedModel:
    copied = copy.deepcopy(calibrated())
    for parameter in copied.network.parameters():
        parameter.requires_grad_(True)
    return copied


def conv_weights(model: QuantizedModel) -> list[torch.nn.Parameter]:
    return [model.network.get_submodule(name).weight for name in model.weight_quantizers()]  # type: ignore[misc]


def test_zero_on_the_grid(model: QuantizedModel) -> None:
    penalty = DampeningLoss(model, weight=1.0)
    penalty.progress = 1.0
    assert 0.01 < float(penalty().detach()) < 0.25  # random weights: 1/12 of a squared step on average
    quantizers = model.weight_quantizers()
    with torch.no_grad():
        for name, quantizer in quantizers.items():
            weight = model.network.get_submodule(name).weight
            weight.copy_(fake_quantize(weight, model.toolkit.amax(quantizer)))  # type: ignore[operator,arg-type]
    assert float(penalty().detach()) == pytest.approx(0.0, abs=1e-6)


def test_gradient_points_to_the_nearest_level(model: QuantizedModel) -> None:
    penalty = DampeningLoss(model, weight=1.0)
    penalty.progress = 1.0
    penalty().backward()
    for weight, quantizer in zip(conv_weights(model), model.weight_quantizers().values(), strict=True):
        assert weight.grad is not None
        towards = fake_quantize(weight, model.toolkit.amax(quantizer)).detach() - weight.detach()
        assert float((weight.grad * towards).max()) < 1e-6  # a tie may point either way
        assert float((weight.grad * towards).mean()) < 0


def test_rises_from_nothing(model: QuantizedModel) -> None:
    penalty = DampeningLoss(model, weight=2.0)
    values = []
    for penalty.progress in (0.0, 0.25, 0.5, 1.0):
        values.append(float(penalty().detach()))
    assert values[0] == 0
    assert values == sorted(values)
    assert values[2] == pytest.approx(values[3] / 2, rel=1e-5)
