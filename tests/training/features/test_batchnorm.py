"""Quantizing before folding, and folding afterwards: the same function, the same INT8 levels."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn
from ultralytics.nn.tasks import DetectionModel

from trt_qat.evaluation.parity import cosine
from trt_qat.model.loading import raw_output
from trt_qat.quantization.insert import QuantizedModel
from trt_qat.training.features.batchnorm import folded, freeze_statistics_, unfolded

if TYPE_CHECKING:
    from conftest import Calibrated


@pytest.fixture(scope="module")
def model(calibrated: Calibrated, unfolded_network: DetectionModel) -> QuantizedModel:
    return unfolded(calibrated(residual="both"), unfolded_network)


@pytest.fixture(scope="module")
def unfolded_network(unfolded: DetectionModel) -> DetectionModel:
    network = copy.deepcopy(unfolded)
    with torch.no_grad():  # a negative factor turns a channel's weights round
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight[::7] *= -1
    return network


@torch.no_grad()
def test_folding_keeps_levels_and_output(model: QuantizedModel, batches: tuple[Tensor, ...]) -> None:
    after = folded(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in after.network.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.network.modules())
    for name, quantizer in model.weight_quantizers().items():
        levels = [
            (fq(m.network.get_submodule(name).weight) / (m.toolkit.amax(fq) / 127)).round()  # type: ignore[operator]
            for m, fq in ((model, quantizer), (after, after.weight_quantizers()[name]))
        ]
        norm = model.network.get_submodule(name.removesuffix(".conv")).bn
        sign = norm.weight.sign().reshape(-1, 1, 1, 1)  # type: ignore[operator, union-attr]
        assert float((levels[0] * sign - levels[1]).abs().max()) <= 1  # a tie may round either way
        assert float((levels[0] * sign != levels[1]).float().mean()) < 1e-3
    before_output, after_output = (raw_output(m.network, batches[0]).numpy() for m in (model, after))
    assert cosine(before_output, after_output) > 0.9999


@torch.no_grad()
def test_folding_equals_ultralytics_in_float(
    calibrated: Calibrated, unfolded: DetectionModel, batches: tuple[Tensor, ...]
) -> None:
    reference = calibrated()
    after = folded(unfolded_of(reference, unfolded))
    with reference.quantizers_off(), after.quantizers_off():
        expected, found = raw_output(reference.network, batches[0]), raw_output(after.network, batches[0])
    assert torch.allclose(expected, found, atol=1e-3, rtol=1e-4)
    ranges = after.amax()
    for name, amax in reference.amax().items():
        assert torch.allclose(amax, ranges[name], rtol=1e-4), name


def unfolded_of(reference: QuantizedModel, network: DetectionModel) -> QuantizedModel:
    return unfolded(reference, copy.deepcopy(network))


def test_frozen_statistics_do_not_move(unfolded: DetectionModel, batches: tuple[Tensor, ...]) -> None:
    for freeze in (True, False):
        network = copy.deepcopy(unfolded).train()
        if freeze:
            freeze_statistics_(network)
        before = {k: v.clone() for k, v in network.state_dict().items() if "running" in k}
        with torch.no_grad():
            network(batches[0])
        after = network.state_dict()
        assert all(torch.equal(value, after[name]) for name, value in before.items()) == freeze
