"""Learned rounding: nearer to float, on the grid, and never more than one level away."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trt_qat.quantization.fake_quant import fake_quantize
from trt_qat.quantization.rounding import choose_rounding_

if TYPE_CHECKING:
    from conftest import Calibrated


def test_rounding_is_chosen_on_the_grid(calibrated: Calibrated, batches: tuple[Tensor, ...]) -> None:
    before = calibrated()
    model = copy.deepcopy(before)
    layers = choose_rounding_(model, torch.cat(batches), steps=8, batch=4)
    assert all(layer.after <= layer.before for layer in layers)
    assert sum(layer.after < 0.98 * layer.before for layer in layers) > len(layers) / 3
    moved = 0
    for name, quantizer in model.weight_quantizers().items():
        weight, original = model.network.get_submodule(name).weight, before.network.get_submodule(name).weight
        amax = model.toolkit.amax(quantizer)
        assert torch.equal(amax, before.toolkit.amax(before.weight_quantizers()[name]))
        assert torch.allclose(fake_quantize(weight, amax), weight, atol=1e-6), name
        assert float(((weight - original).abs() / (amax / 127)).max()) <= 1.001, name
        moved += int(((weight - fake_quantize(original, amax)).abs() > amax / 254).sum())
    assert moved > 100
    for name, value in model.network.state_dict().items():
        if not name.endswith(".weight"):
            assert torch.equal(value, before.network.state_dict()[name]), name
