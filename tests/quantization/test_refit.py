"""Weights refitted to INT8: the regression, what it does to a network, and that float stays float."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor

from trt_qat.api import quantize
from trt_qat.checkpoint import load, save
from trt_qat.errors import ArtifactError
from trt_qat.mixed_precision.mixes import float_of
from trt_qat.model.output_error import output_error, raw_predictions
from trt_qat.quantization.refit import RefittedLayer, _Sums, refitted

if TYPE_CHECKING:
    from conftest import Calibrated

    from trt_qat.checkpoint import Model
    from trt_qat.quantization.insert import QuantizedModel

Refitted = tuple["QuantizedModel", list[RefittedLayer], "QuantizedModel"]


@pytest.fixture(scope="module")
def refit(calibrated: Calibrated, batches: tuple[Tensor, ...]) -> Refitted:
    """Refitted on all images, and what it was before."""
    before = calibrated()
    model, layers = refitted(copy.deepcopy(before), torch.cat(batches), rows=100)
    return model, layers, before


def test_regression_is_that_of_least_squares() -> None:
    """Without a ridge to speak of, numpy's ``lstsq`` on inputs with a column of ones; its residual is the error."""
    generator = np.random.default_rng(0)
    inputs, missing = generator.normal(size=(50, 4)), generator.normal(size=(50, 2))
    with_ones = np.concatenate([inputs, np.ones((50, 1))], axis=1)
    sums = _Sums.of(torch.from_numpy(with_ones)[None, None], torch.from_numpy(missing)[None, None])
    expected, residual, _, _ = np.linalg.lstsq(with_ones, missing, rcond=None)
    moved = sums.solved(1e-9)[0]
    assert moved.numpy() == pytest.approx(expected, abs=1e-3)
    assert sums.error(moved[None]) == pytest.approx(residual.sum(), rel=1e-3)
    alone = sums.solved(float("inf"))[0]
    assert not alone[:-1].any()
    assert alone[-1].numpy() == pytest.approx(missing.mean(0))


@torch.no_grad()
def test_network_comes_nearer_to_float(refit: Refitted, batches: tuple[Tensor, ...]) -> None:
    model, layers, before = refit
    images = torch.cat(batches)
    with before.quantizers_off():
        reference = raw_predictions(before.network, images)
    errors = [float(output_error(raw_predictions(m.network, images), reference)) for m in (before, model)]
    assert errors[1] < errors[0]
    assert {layer.name for layer in layers} == set(before.weight_quantizers()) | {
        name for name, reason in before.placement.float_convs.items() if reason == "role head_last"
    }
    assert all(layer.after <= layer.before for layer in layers)
    assert sum(layer.after < layer.before for layer in layers) > len(layers) / 2


@torch.no_grad()
def test_float_stays_the_float_network(refit: Refitted, batches: tuple[Tensor, ...]) -> None:
    """Bit for bit, wherever the float network is asked for; the refitted weights are back afterwards."""
    model, _, before = refit
    with before.quantizers_off():
        reference = raw_predictions(before.network, batches[0])
    int8 = raw_predictions(model.network, batches[0])
    with model.quantizers_off():
        within = raw_predictions(model.network, batches[0])
        teacher = copy.deepcopy(model.network)
    left = model.leave_float([group.name for group in model.placement.groups], "all")
    for found in (within, raw_predictions(teacher, batches[0]), raw_predictions(left.network, batches[0])):
        assert torch.equal(found["scores"], reference["scores"])
        assert torch.equal(found["boxes"], reference["boxes"])
    assert torch.equal(raw_predictions(model.network, batches[0])["scores"], int8["scores"])


def test_a_group_left_float_has_its_weights_of_before(refit: Refitted) -> None:
    model, layers, before = refit
    moved = {layer.name for layer in layers if layer.ridge is not None}
    group, other = [group for group in model.placement.groups if moved & set(group.convs)][:2]
    left = model.leave_float([group.name], "because")
    (conv, still) = (next(conv for conv in g.convs if conv in moved) for g in (group, other))
    weights = left.network.state_dict()
    assert torch.equal(weights[f"{conv}.weight"], before.network.state_dict()[f"{conv}.weight"])
    assert torch.equal(weights[f"{still}.weight"], model.network.state_dict()[f"{still}.weight"])


def test_checkpoint_keeps_both(refit: Refitted, detector: Model, tmp_path: Path) -> None:
    model = detector.with_quantized(refit[0], "ptq", {})
    save(tmp_path / "ptq.safetensors", model)
    loaded = load(tmp_path / "ptq.safetensors")
    again = loaded.require_quantized()
    for name, value in refit[0].network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], value), name
    assert again.float_weights.keys() == refit[0].float_weights.keys()
    assert all(torch.equal(again.float_weights[name], value) for name, value in refit[0].float_weights.items())
    original = detector.network.state_dict()
    for name, value in float_of(loaded).network.state_dict().items():
        if name in original:
            assert torch.equal(value, original[name]), name


def test_weights_of_before_that_fit_nowhere_are_refused(refit: Refitted, detector: Model, tmp_path: Path) -> None:
    file = tmp_path / "ptq.safetensors"
    for moved in ({"nowhere.weight": torch.zeros(1)}, {"model.0.conv.weight": torch.zeros(1)}):
        save(file, detector.with_quantized(replace(refit[0], float_weights=moved), "ptq", {}))
        with pytest.raises(ArtifactError, match=r"float\..*of shape \[1\] is none of the network"):
            load(file)


def test_quantize_says_what_became_of_each_layer(detector: Model, demo_yaml: Path) -> None:
    int8 = quantize(detector, demo_yaml, calibrator="max", range_by_output=True, refit="bias", refit_images=4)
    assert len(int8.provenance["refit"]) == 63
    assert int8.provenance["range_by_output"].keys() == int8.require_quantized().activation_quantizers().keys()
    moved = int8.require_quantized().float_weights
    assert moved
    assert all(name.endswith(".bias") for name in moved)
