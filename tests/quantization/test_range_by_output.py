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
