"""Dampening: zero on the grid, pulls to the nearest level, rises over the run."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from trt_qat.quantization.fake_quant import fake_quantize
from trt_qat.quantization.insert import QuantizedModel
from trt_qat.training.features.base import Step
from trt_qat.training.features.dampening import Dampening

if TYPE_CHECKING:
    from conftest import Calibrated


@pytest.fixture
def model(calibrated: Calibrated) -> QuantizedModel:
    copied = copy.deepcopy(calibrated())
    for parameter in copied.network.parameters():
        parameter.requires_grad_(True)
    return copied


def dampening(model: QuantizedModel, weight: float = 1.0, done: int = 4) -> Dampening:
    """After ``done`` of 4 steps."""
    feature = Dampening(weight)
    feature.prepare_(model, torch.device("cpu"))
    feature.before_step(Step(done, per_epoch=2, epochs=2), torch.optim.SGD(model.network.parameters()))
    return feature


def term(feature: Dampening) -> Tensor:
    (value,) = feature.loss({}, torch.zeros(1)).values()
    return value


def conv_weights(model: QuantizedModel) -> list[torch.nn.Parameter]:
    return [model.network.get_submodule(name).weight for name in model.weight_quantizers()]  # type: ignore[misc]


def test_zero_on_the_grid(model: QuantizedModel) -> None:
    feature = dampening(model)
    assert 0.01 < float(term(feature).detach()) < 0.25  # random weights: 1/12 of a squared step on average
    quantizers = model.weight_quantizers()
    with torch.no_grad():
        for name, quantizer in quantizers.items():
            weight = model.network.get_submodule(name).weight
            weight.copy_(fake_quantize(weight, model.toolkit.amax(quantizer)))  # type: ignore[operator,arg-type]
    assert float(term(feature).detach()) == pytest.approx(0.0, abs=1e-6)


def test_gradient_points_to_the_nearest_level(model: QuantizedModel) -> None:
    feature = dampening(model)
    term(feature).backward()
    for weight, quantizer in zip(conv_weights(model), model.weight_quantizers().values(), strict=True):
        assert weight.grad is not None
        towards = fake_quantize(weight, model.toolkit.amax(quantizer)).detach() - weight.detach()
        assert float((weight.grad * towards).max()) < 1e-6  # a tie may point either way
        assert float((weight.grad * towards).mean()) < 0


def test_rises_from_nothing(model: QuantizedModel) -> None:
    values = [float(term(dampening(model, 2.0, done)).detach()) for done in (0, 1, 2, 4)]
    assert values[0] == 0
    assert values == sorted(values)
    assert values[2] == pytest.approx(values[3] / 2, rel=1e-5)
    assert values[3] == pytest.approx(2 * float(term(dampening(model)).detach()))
