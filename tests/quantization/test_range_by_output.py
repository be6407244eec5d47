"""Ranges by output: the best of the ladder for what the readers say."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trt_qat.model.output_error import output_error, raw_predictions
from trt_qat.quantization.range_by_output import _FACTORS, choose_ranges_

if TYPE_CHECKING:
    from conftest import Calibrated

    from trt_qat.checkpoint import Model


@torch.no_grad()
def test_ranges_far_too_wide_come_back(calibrated: Calibrated, batches: tuple[Tensor, ...]) -> None:
    model, images = copy.deepcopy(calibrated()), torch.cat(batches)
    before = {name: float(model.toolkit.amax(q)) for name, q in model.activation_quantizers().items()}
    with model.quantizers_off():
        reference = raw_predictions(model.network, images)
    model.load_amax_({f"activation.{name}": torch.tensor(3 * amax) for name, amax in before.items()})
    wide = float(output_error(raw_predictions(model.network, images), reference))
    factors = choose_ranges_(model, images, rows=50)
    assert factors.keys() == before.keys()
    assert set(factors.values()) <= set(_FACTORS)
    assert max(factors.values()) < 1
    after = {name: float(model.toolkit.amax(q)) for name, q in model.activation_quantizers().items()}
    assert all(abs(after[name] - 3 * before[name] * factors[name]) < 1e-4 * after[name] for name in before)
    assert float(output_error(raw_predictions(model.network, images), reference)) < 0.5 * wide


def test_zero_points_stay(tiny_asymmetric: Model, batches: tuple[Tensor, ...]) -> None:
    model = copy.deepcopy(tiny_asymmetric.require_quantized())
    before = model.grids()
    model.load_amax_({f"activation.{name}": torch.tensor(3 * grid.amax) for name, grid in before.items()})
    factors = choose_ranges_(model, torch.cat(batches), rows=50)
    assert max(factors.values()) < 1
    assert [grid.zero_point for grid in model.grids().values()] == [grid.zero_point for grid in before.values()]
