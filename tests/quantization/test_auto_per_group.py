"""``auto_per_group``: what it changes lowers the output error, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from trt_qat.errors import QuantizationError
from trt_qat.model.output_error import output_error, raw_predictions
from trt_qat.quantization.auto import CANDIDATES, choose_calibrator
from trt_qat.quantization.auto_per_group import choose_per_group
from trt_qat.quantization.calibration import Calibration
from trt_qat.quantization.calibrators.max import Max
from trt_qat.quantization.histogram import Histograms
from trt_qat.quantization.insert import QuantizedModel
from trt_qat.quantization.observe import collect_histograms

if TYPE_CHECKING:
    from conftest import Calibrated


def given(images: Tensor) -> Tensor:
    return images


@pytest.fixture
def model(calibrated: Calibrated) -> QuantizedModel:
    """With 6 groups in INT8, so that few ranges are tried."""
    model = calibrated()
    return model.leave_float([group.name for group in model.placement.groups[6:]], "test")


@pytest.fixture
def histograms(model: QuantizedModel, batches: tuple[Tensor, ...]) -> Histograms:
    return collect_histograms(model, batches, 4096)


@torch.no_grad()
def error(model: QuantizedModel, images: Tensor) -> float:
    with model.quantizers_off():
        reference = raw_predictions(model.network.eval(), images)
    return float(output_error(raw_predictions(model.network.eval(), images), reference))


def chosen(model: QuantizedModel, histograms: Histograms, inputs: list[Callable[[], Tensor]]) -> Calibration:
    return choose_per_group(model, histograms, choose_calibrator(model, histograms, inputs), inputs)


def test_its_error_is_that_of_its_ranges_and_lower(
    model: QuantizedModel, histograms: Histograms, batches: tuple[Tensor, ...]
) -> None:
    """The short second batch counts by its images."""
    images = [batches[0], batches[1][:1]]
    result = chosen(model, histograms, [partial(given, part) for part in images])
    (start,) = [candidate for candidate in result.candidates if candidate.chosen]
    assert result.groups_error is not None
    assert result.groups_error < start.error
    assert 0 < len(result.groups) < len(histograms)
    assert all(choice in CANDIDATES for choice in result.groups.values())

    after = {name: amax for name, amax in model.amax().items() if name.startswith("activation.")}
    assert after == result.ranges(histograms)
    model.load_amax_(result.ranges(histograms))
    found = (4 * error(model, images[0]) + error(model, images[1])) / 5
    assert result.groups_error == pytest.approx(found, rel=1e-5)


def test_ranges_of_the_groups_and_of_all_others(
    model: QuantizedModel, histograms: Histograms, batches: tuple[Tensor, ...]
) -> None:
    result = chosen(model, histograms, [partial(given, batches[0])])
    start = result.calibrator.ranges(histograms)
    for name in histograms:
        (value,) = result.groups.get(name, result.calibrator).ranges({name: histograms[name]}).values()
        assert result.ranges(histograms)[f"activation.{name}"] == value
        # a range that is nearly the present one is not worth a trial
        assert (name in result.groups) == (abs(value / start[f"activation.{name}"] - 1) > 0.019)


def test_weights_ranges_and_mode_are_left(
    model: QuantizedModel, histograms: Histograms, batches: tuple[Tensor, ...]
) -> None:
    weights = {name: amax.clone() for name, amax in model.amax().items() if name.startswith("weight.")}
    for training in (True, False):
        model.network.train(training)
        chosen(model, histograms, [partial(given, batches[0][:1])])
        assert all(module.training == training for module in model.network.modules() if list(module.children()))
    assert all(torch.equal(model.amax()[name], amax) for name, amax in weights.items())
    assert all(model.toolkit.enabled(quantizer) for quantizer in model.activation_quantizers().values())


def test_an_error_restores_the_mode(model: QuantizedModel, histograms: Histograms, batches: tuple[Tensor, ...]) -> None:
    def broken() -> Tensor:
        raise QuantizationError("no image")

    model.network.train()
    with pytest.raises(QuantizationError):
        choose_per_group(model, histograms, Calibration(Max()), [partial(given, batches[0]), broken])
    assert model.network.training
