"""Progressive quantization: which groups are on when."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from trt_qat.checkpoint import Model
from trt_qat.config import QatSection
from trt_qat.quantization.insert import QuantizedModel
from trt_qat.training.features.base import Start, Step
from trt_qat.training.features.progressive import ProgressiveQuantization

if TYPE_CHECKING:
    from conftest import Calibrated


@pytest.fixture
def model(calibrated: Calibrated) -> QuantizedModel:
    return copy.deepcopy(calibrated())


def names(model: QuantizedModel) -> list[str]:
    return [group.name for group in model.placement.groups]


def on(model: QuantizedModel) -> list[bool]:
    weights = model.weight_quantizers()
    states = []
    for group, quantizer in zip(model.placement.groups, model.activation_quantizers().values(), strict=True):
        members = [quantizer, *(weights[conv] for conv in group.convs)]
        enabled = {bool(member.is_enabled) for member in members}
        assert len(enabled) == 1, f"{group.name} is half on"
        states.append(enabled.pop())
    return states


def test_switches_on_in_order_and_all_before_the_last_third(model: QuantizedModel) -> None:
    order = names(model)[::-1]
    feature = ProgressiveQuantization(order, end=0.5)
    feature.prepare_(model, torch.device("cpu"))
    assert all(on(model))  # the averaged copy is made now
    optimizer = torch.optim.SGD(model.network.parameters())
    counts = []
    for step in range(60):
        feature.before_step(Step(step, per_epoch=30, epochs=2), optimizer)
        states = on(model)[::-1]
        assert states == sorted(states, reverse=True)  # the first of the order are on
        counts.append(sum(states))
    assert counts == sorted(counts)
    assert 1 <= counts[0] <= len(order) // 10
    assert counts[14] == pytest.approx(len(order) / 2, abs=1)
    assert counts[29] == len(order)


def test_order_must_name_every_group(model: QuantizedModel) -> None:
    with pytest.raises(ValueError, match="every group"):
        ProgressiveQuantization(names(model)[1:], end=0.5).prepare_(model, torch.device("cpu"))


def test_by_depth_unless_an_order_is_given(int8: Model, tmp_path: Path) -> None:
    by_depth = names(int8.require_quantized())
    section = QatSection(progressive="depth")
    for order, expected in (([], by_depth), (by_depth[::-1], by_depth[::-1])):
        feature = ProgressiveQuantization.configured(section, Start(int8, tmp_path, order))
        assert feature is not None
        assert list(feature.order) == expected
