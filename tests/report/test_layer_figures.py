from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trt_qat.evaluation.group_sensitivity import GroupSensitivity
from trt_qat.quantization.insert import QuantizedModel
from trt_qat.report.layer_figures import BINS, placement_record
from trt_qat.report.record import Placement

Calibrated = Callable[..., QuantizedModel]


@pytest.fixture(scope="module")
def placement(calibrated: Calibrated, batches: tuple[Tensor, ...]) -> Placement:
    model = calibrated()
    groups = model.placement.groups
    ranking = [GroupSensitivity(groups[1].name, groups[1].convs, 0.25, 0.01)]
    return placement_record(calibrated(calibrator="max"), model, batches[:2], ranking)


def test_every_group_has_its_figures_at_both_steps(placement: Placement, calibrated: Calibrated) -> None:
    model = calibrated()
    assert [group.name for group in placement.groups] == [group.name for group in model.placement.groups]
    assert placement.measured_on == 8
    assert {layer.name: layer.reason for layer in placement.float_layers} == dict(model.placement.float_convs)
    for step, of_step in (("ptq", calibrated(calibrator="max")), ("qat", model)):
        amax = of_step.amax()
        for group in placement.groups:
            quantizer = group.at(step)
            assert quantizer is not None
            assert quantizer.amax == pytest.approx(float(amax[f"activation.{group.name}"]), rel=1e-5)


def test_the_first_group_is_the_image_itself(placement: Placement, batches: tuple[Tensor, ...]) -> None:
    """Its histogram can be counted by hand."""
    first = placement.groups[0]
    images = torch.cat(batches[:2])
    histogram, quantizer = first.histogram, first.at("qat")
    assert histogram is not None
    assert quantizer is not None
    assert (histogram.low, histogram.high) == (float(images.min()), float(images.max()))
    assert sum(histogram.counts) == images.numel()
    assert len(histogram.counts) == BINS
    assert histogram.images == 8
    assert histogram.clipped == pytest.approx(float((images.abs() > quantizer.amax).float().mean()), abs=1e-6)
    half = quantizer.amax / 127 / 2
    nonzero = images[images != 0]
    assert histogram.below_one_step == pytest.approx(float((nonzero < half).float().mean()), abs=1e-6)
    step = quantizer.amax / 127
    rounded = (images / step).round().clamp(-128, 127) * step
    sqnr = 10 * math.log10(float(images.square().sum() / (images - rounded).square().sum()))
    assert quantizer.sqnr_db == pytest.approx(sqnr, abs=0.01)


def test_what_each_member_of_a_group_reaches(placement: Placement, batches: tuple[Tensor, ...]) -> None:
    """A convolution never reads more than its group holds, and one of the group's reads the most."""
    assert placement.groups[0].convs[0].input_max == pytest.approx(float(torch.cat(batches[:2]).abs().max()))
    for group in placement.groups:
        assert group.histogram is not None
        most = max(-group.histogram.low, group.histogram.high)
        reached = [conv.input_max for conv in group.convs if conv.input_max is not None]
        assert len(reached) == len(group.convs)
        assert max(reached) <= most
        if not group.adds:
            assert max(reached) == pytest.approx(most)


def test_work_of_a_convolution(placement: Placement) -> None:
    (stem,) = placement.groups[0].convs
    assert (stem.name, stem.kernel, stem.input_channels, stem.output_channels) == ("model.0.conv", (3, 3), 3, 16)
    assert stem.macs == 32 * 32 * 16 * 3 * 9  # stride 2 of 64 pixels
    assert not stem.depthwise
    assert [weight.step for weight in stem.weights] == ["ptq", "qat"]


def test_sensitivity_stands_where_it_was_measured(placement: Placement) -> None:
    assert [(group.error, group.map50_95_drop) for group in placement.groups[:2]] == [(None, None), (0.25, 0.01)]
