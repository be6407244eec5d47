"""Progressive quantization: which groups are on when."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest

from trt_qat.quantization.insert import QuantizedModel
from trt_qat.training.features.progressive import ProgressiveQuantization

if TYPE_CHECKING:
    from conftest import Calibrated


@pytest.fixture
def model(calibrated: Calibrated) -> QuantizedModel:
    return copy.deepcopy(calibrated())


def names(model: QuantizedModel) -> list[str]:
    return [group.name for group in model.placement.groups]


class Trainer:
    """The part of a trainer that the callback reads."""

    def __init__(self, steps_per_epoch: int, epochs: int) -> None:
        self.train_loader = list(range(steps_per_epoch))
        self.epochs = epochs
        self.steps_done = 0
        self.callbacks: dict[str, Any] = {}

    def add_callback(self, event: str, callback: Any) -> None:
        self.callbacks[event] = callback


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
    trainer = Trainer(steps_per_epoch=30, epochs=2)
    ProgressiveQuantization(model, order, end=0.5).attach(trainer)  # type: ignore[arg-type]
    counts = []
    for step in range(60):
        trainer.steps_done = step
        trainer.callbacks["on_train_batch_start"](trainer)
        states = on(model)[::-1]
        assert states == sorted(states, reverse=True)  # the first of the order are on
        counts.append(sum(states))
    assert counts == sorted(counts)
    assert 1 <= counts[0] <= len(order) // 10
    assert counts[14] == pytest.approx(len(order) / 2, abs=1)
    assert counts[29] == len(order)


def test_order_must_name_every_group(model: QuantizedModel) -> None:
    with pytest.raises(ValueError, match="every group"):
        ProgressiveQuantization(model, names(model)[1:], end=0.5)
