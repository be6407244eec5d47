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
from trt_qat.quantization.refit import RefittedLayer, _Fit, _Sums, refitted

if TYPE_CHECKING:
    from conftest import Calibrated

    from trt_qat.checkpoint import Model
    from trt_qat.quantization.insert import QuantizedModel

Refitted = tuple["QuantizedModel", list[RefittedLayer], "QuantizedModel"]


@pytest.fixture(scope="module")
def refit(calibrated: Calibrated, batches: tuple[Tensor, ...]) -> Refitted:
    """Refitted on all images, and what it was before: ranges that clip a lot, so that there is much to make up for."""
    before = copy.deepcopy(calibrated())
    ranges = {name: amax / 2 for name, amax in before.amax().items() if name.startswith("activation.")}
    before.load_amax_(ranges)
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
def test_a_convolution_makes_up_for_clipped_inputs(calibrated: Calibrated) -> None:
    """Inputs that are clipped and alike: what one of them lost, the others say. Judged on images not fitted on."""
    generator = torch.Generator().manual_seed(0)
    common = torch.rand(16, 1, 60, 1, generator=generator)
    given = common + 0.1 * torch.rand(16, 1, 60, 6, generator=generator)
    conv = torch.nn.Conv2d(6, 3, 1)
    targets = (given @ conv.weight.reshape(3, 6).T + conv.bias)[:, 0]
    reads = torch.cat([given[..., :3].clamp(max=0.5), given[..., 3:]], dim=3)
    before = conv.weight.clone()
    layer = _Fit(reads, targets, conv).apply_(calibrated(), "conv", weights=True)
    assert layer.ridge == 0.01  # there is plenty to learn from
    assert layer.after < 0.5 * layer.before
    said = (reads @ conv.weight.reshape(3, 6).T + conv.bias)[:, 0]
    error = float(((said - targets) ** 2)[::4].sum() / ((targets[::4] - targets[::4].mean((0, 1))) ** 2).sum())
    assert error == pytest.approx(layer.after, rel=0.3)  # the weights kept are fitted to all images
    assert not torch.equal(conv.weight, before)


@torch.no_grad()
def test_nothing_moves_where_nothing_is_wrong(calibrated: Calibrated) -> None:
    reads, conv = torch.rand(8, 2, 30, 9), torch.nn.Conv2d(2, 4, 3, groups=2)
    weight = conv.weight.reshape(2, 2, 9)
    targets = (reads @ weight.transpose(1, 2)).permute(0, 2, 1, 3).flatten(2) + conv.bias
    before = conv.weight.clone()
    layer = _Fit(reads, targets, conv).apply_(calibrated(), "conv", weights=True)
    assert layer.before == pytest.approx(0, abs=1e-9)
    assert torch.allclose(conv.weight, before, atol=1e-5)


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
    assert any(layer.after < 0.95 * layer.before for layer in layers)


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
