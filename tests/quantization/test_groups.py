"""Scale groups switched one by one and left float: exactly the named quantizers, and all as before afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from trt_qat.checkpoint import Model
from trt_qat.config import Residual
from trt_qat.errors import QuantizationError
from trt_qat.model.loading import raw_output
from trt_qat.quantization.insert import QuantizedModel

if TYPE_CHECKING:
    from conftest import Calibrated


def _on(model: QuantizedModel) -> tuple[set[str], set[str]]:
    """Groups whose activation quantizer is on, and convolutions whose weight quantizer is."""
    enabled = model.toolkit.enabled
    activations, weights = model.activation_quantizers(), model.weight_quantizers()
    return {k for k, q in activations.items() if enabled(q)}, {k for k, q in weights.items() if enabled(q)}


@pytest.mark.parametrize("residual", ["none", "skip", "both"])
def test_only_switches_the_named_groups_alone(calibrated: Calibrated, residual: Residual) -> None:
    model = calibrated(residual=residual)
    everything = _on(model)
    assert len(everything[0]) == len(model.placement.groups) > 10
    for group in model.placement.groups[:5]:
        with model.only([group.name]):
            assert _on(model) == ({group.name}, set(group.convs))
            with model.only([]):
                assert _on(model) == (set(), set())
            assert _on(model) == ({group.name}, set(group.convs))
    assert _on(model) == everything


def test_only_restores_after_an_error_and_names_an_unknown_group(calibrated: Calibrated) -> None:
    model = calibrated()
    everything = _on(model)
    with pytest.raises(RuntimeError, match="stop"), model.only([model.placement.groups[0].name]):
        raise RuntimeError("stop")
    assert _on(model) == everything
    with pytest.raises(QuantizationError, match="has no group 'nowhere'"), model.only(["nowhere"]):
        pass
    with pytest.raises(QuantizationError, match="has no group 'nowhere'"):
        model.leave_float(["nowhere"], "test")


@pytest.mark.parametrize("residual", ["skip", "both"])
def test_left_float_equals_switched_off(
    calibrated: Calibrated, detector: Model, batches: tuple[Tensor, ...], residual: Residual
) -> None:
    model = calibrated(residual=residual)
    everything = _on(model)
    names = [group.name for group in model.placement.groups]
    removed = names[3:20:4]
    mixed = model.leave_float(removed, "a test")
    assert _on(model) == everything
    assert [group.name for group in mixed.placement.groups] == [name for name in names if name not in removed]
    convs = {conv for group in model.placement.groups if group.name in removed for conv in group.convs}
    assert {conv for conv, reason in mixed.placement.float_convs.items() if reason == "a test"} == convs
    assert model.placement.float_convs.items() <= mixed.placement.float_convs.items()
    assert set(mixed.weight_quantizers()) == set(model.weight_quantizers()) - convs
    found = raw_output(mixed.network, batches[0])
    with model.only([name for name in names if name not in removed]):
        assert torch.equal(found, raw_output(model.network, batches[0]))
    assert not torch.equal(found, raw_output(model.network, batches[0]))
    with mixed.quantizers_off():
        assert torch.equal(raw_output(mixed.network, batches[0]), raw_output(detector.network, batches[0]))
