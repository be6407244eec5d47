"""LSQ: the activations' ranges are parameters with their own learning rates, and survive saving."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from trt_qat.checkpoint import Model, load, save
from trt_qat.quantization.insert import QuantizedModel
from trt_qat.training.features.lsq import Lsq
from trt_qat.training.qat import _move_

if TYPE_CHECKING:
    from conftest import Calibrated


@pytest.fixture
def model(calibrated: Calibrated) -> QuantizedModel:
    copied = copy.deepcopy(calibrated(residual="both"))
    for parameter in copied.network.parameters():
        parameter.requires_grad_(True)
    Lsq(rate=0.01).prepare_(copied, torch.device("cpu"))
    return copied


def step(model: QuantizedModel, images: Tensor, rate: float) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(model.network.parameters(), lr=1e-5)
    _move_(optimizer, Lsq(rate).param_groups(model))
    predictions = model.network.train()(images)
    (predictions["scores"].square().mean() + predictions["boxes"].square().mean()).backward()
    optimizer.step()
    model.network.eval()
    return optimizer


def test_one_step_changes_each_range_by_the_rate(model: QuantizedModel, batches: tuple[Tensor, ...]) -> None:
    before = {name: amax.detach().clone() for name, amax in model.amax().items()}
    activations = [name for name in before if name.startswith("activation.")]
    optimizer = step(model, batches[0], rate=0.01)
    assert len(optimizer.param_groups) == 1 + len(activations)
    changes = [float((model.amax()[name].detach() - before[name]).abs() / before[name]) for name in activations]
    assert min(changes) > 0
    assert max(changes) == pytest.approx(0.01, rel=0.01)  # Adam's first step is at most as long as the rate
    assert sorted(changes)[len(changes) // 4] == pytest.approx(0.01, rel=0.05)
    assert all(torch.equal(model.amax()[name], before[name]) for name in set(before) - set(activations))


def test_a_range_stays_positive(model: QuantizedModel, batches: tuple[Tensor, ...]) -> None:
    step(model, batches[0], rate=50.0)
    assert any(bool((amax <= 0).any()) for amax in model.amax().values())
    Lsq(rate=50.0).after_step(model)
    assert all(bool((amax > 0).all()) for amax in model.amax().values())


def test_learned_ranges_are_saved(
    model: QuantizedModel, detector: Model, batches: tuple[Tensor, ...], tmp_path: Path
) -> None:
    step(model, batches[0], rate=0.01)
    save(tmp_path / "lsq.safetensors", detector.with_quantized(model, "qat", {}))
    loaded = load(tmp_path / "lsq.safetensors").require_quantized()
    for name, amax in model.amax().items():
        assert torch.equal(loaded.amax()[name], amax.detach())
    with torch.no_grad():
        assert torch.equal(loaded.network(batches[0])[0], model.network(batches[0])[0])
