"""Histograms and the four calibrators, against exact values, measured errors and ModelOpt's own implementation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from modelopt.torch.quantization.calib.histogram import _compute_amax_entropy, _compute_amax_percentile
from modelopt.torch.quantization.tensor_quant import fake_tensor_quant
from numpy.typing import NDArray
from torch import Tensor

from trt_qat.config import Calibrator
from trt_qat.errors import QuantizationError
from trt_qat.quantization.calibrators import amax_from_histogram
from trt_qat.quantization.histogram import ActivationHistogram, HistogramCollector

CALIBRATORS: tuple[Calibrator, ...] = ("max", "percentile", "mse", "entropy")


def sample(kind: str, count: int = 200_003) -> Tensor:
    generator = np.random.default_rng(7)
    values = {
        "normal": generator.normal(size=count),
        "laplace": generator.laplace(size=count),
        "heavy": generator.standard_t(3, size=count),
        "silu": (x := generator.normal(size=count) * 3) / (1 + np.exp(-x)),
    }[kind]
    return torch.from_numpy(values.astype(np.float32))


def histogram_of(values: Tensor, bins: int = 2048) -> ActivationHistogram:
    collector = HistogramCollector(bins)
    collector.add(values)
    return collector.result()


def quantization_error(values: Tensor, amax: float) -> float:
    """Mean squared error of the values themselves, not of a histogram."""
    step = amax / 127
    rounded = torch.clamp(torch.round(values / step), -128, 127) * step
    return float(((rounded - values).double() ** 2).mean())


# the histogram ---------------------------------------------------------------------------------------------------


def test_counts_and_maximum_are_exact() -> None:
    result = histogram_of(torch.tensor([[-4.0, 0.1], [1.1, 2.1]]), bins=4)
    assert (result.limit, result.maximum) == (4.0, 4.0)
    assert result.counts.tolist() == [1, 1, 1, 1]


def test_growing_range_loses_nothing() -> None:
    collector = HistogramCollector(256)
    parts = [sample("normal", 1000) * scale for scale in (0.01, 1.0, 0.5, 37.0)]
    for part in parts:
        collector.add(part)
    result = collector.result()
    everything = torch.cat(parts).abs()
    assert result.counts.sum() == 4000
    assert result.maximum == float(everything.max())
    assert result.limit >= result.maximum
    doublings = np.log2(result.limit / float(parts[0].abs().max()))
    assert doublings == pytest.approx(round(doublings))
    exact = torch.histc(everything, 256, 0.0, result.limit).double().numpy()
    assert np.abs(result.counts - exact).sum() <= 4  # float32 bin edges of different width


def test_order_of_batches_does_not_matter_much() -> None:
    parts = [sample("normal", 5000), sample("laplace", 5000) * 4]
    errors = []
    for order in (parts, parts[::-1]):
        collector = HistogramCollector(512)
        for part in order:
            collector.add(part)
        errors.append(quantization_error(torch.cat(parts), amax_from_histogram(collector.result(), "mse")))
    assert errors[0] == pytest.approx(errors[1], rel=0.1)  # the range of 512 bins ends elsewhere


def test_zeros_before_values_are_harmless() -> None:
    collector = HistogramCollector(128)
    collector.add(torch.zeros(10))
    collector.add(torch.zeros(0))
    collector.add(torch.tensor([2.0, -1.0]))
    assert collector.result().counts.sum() == 2
    assert collector.result().maximum == 2.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_bad_activations_are_refused(bad: float) -> None:
    collector = HistogramCollector(128)
    with pytest.raises(ValueError, match="NaN or infinity"):
        collector.add(torch.tensor([1.0, bad, 2.0]))


def test_odd_bins_are_refused() -> None:
    with pytest.raises(ValueError, match="even"):
        HistogramCollector(129)


def test_result_is_a_snapshot() -> None:
    collector = HistogramCollector(128)
    collector.add(torch.ones(3))
    first = collector.result()
    collector.add(torch.ones(3))
    assert first.counts.sum() == 3


# the calibrators -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_empty_histogram_is_refused(calibrator: Calibrator) -> None:
    for collector in (HistogramCollector(128), HistogramCollector(128)):
        collector.add(torch.zeros(5))
        with pytest.raises(QuantizationError, match="no non-zero activation"):
            amax_from_histogram(collector.result(), calibrator)


@pytest.mark.parametrize("calibrator", CALIBRATORS)
@pytest.mark.parametrize("kind", ["normal", "laplace", "heavy", "silu"])
def test_never_above_the_maximum(calibrator: Calibrator, kind: str) -> None:
    histogram = histogram_of(sample(kind))
    amax = amax_from_histogram(histogram, calibrator)
    assert 0 < amax <= histogram.maximum
    assert amax > float(sample(kind).abs().mean())


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_range_scales_with_the_values(calibrator: Calibrator) -> None:
    values = sample("laplace")
    small, big = (amax_from_histogram(histogram_of(values * scale), calibrator) for scale in (1.0, 1024.0))
    assert big == pytest.approx(1024 * small, rel=1e-6)


def test_max_is_exact() -> None:
    values = sample("heavy")
    assert amax_from_histogram(histogram_of(values), "max") == float(values.abs().max())


@pytest.mark.parametrize(("percentile", "amax"), [(100.0, 100.0), (99.0, 99.0), (90.0, 90.0), (50.5, 51.0)])
def test_percentile_of_a_known_histogram(percentile: float, amax: float) -> None:
    """One value in each of 100 bins of width 1."""
    histogram = ActivationHistogram(np.ones(100), limit=100.0, maximum=100.0)
    assert amax_from_histogram(histogram, "percentile", percentile) == pytest.approx(amax)


def test_percentile_clips_the_given_share() -> None:
    values = sample("laplace")
    amax = amax_from_histogram(histogram_of(values), "percentile", 99.9)
    assert float((values.abs() > amax).double().mean()) == pytest.approx(0.001, rel=0.1)


@pytest.mark.parametrize("kind", ["normal", "laplace", "heavy", "silu"])
def test_mse_is_the_best_of_all(kind: str) -> None:
    """On the values themselves: no other calibrator, and no other range of a fine grid, is better by 1%."""
    values = sample(kind)
    histogram = histogram_of(values)
    error = quantization_error(values, amax_from_histogram(histogram, "mse"))
    others = [amax_from_histogram(histogram, other) for other in ("max", "percentile", "entropy")]
    grid = np.geomspace(0.02, 1.0, 120) * histogram.maximum
    assert error <= 1.01 * min(quantization_error(values, float(amax)) for amax in [*others, *grid])


def test_mse_beats_max_on_a_heavy_tail() -> None:
    values = sample("heavy")
    histogram = histogram_of(values)
    by_mse, by_max = (quantization_error(values, amax_from_histogram(histogram, name)) for name in ("mse", "max"))
    assert by_mse < 0.6 * by_max


def test_entropy_clips_a_tail_and_keeps_a_flat_histogram() -> None:
    heavy = histogram_of(sample("heavy"))
    assert amax_from_histogram(heavy, "entropy") < 0.5 * heavy.maximum
    flat = histogram_of(torch.linspace(0.0, 5.0, 100_000))
    assert amax_from_histogram(flat, "entropy") > 0.9 * flat.maximum


# against NVIDIA Model Optimizer on the same histogram --------------------------------------------------------------


def edges(histogram: ActivationHistogram) -> NDArray[np.float64]:
    return np.linspace(0, histogram.limit, len(histogram.counts) + 1)


@pytest.mark.parametrize("kind", ["normal", "laplace", "heavy", "silu"])
@pytest.mark.parametrize("percentile", [99.0, 99.99])
def test_percentile_agrees_with_modelopt(kind: str, percentile: float) -> None:
    """Theirs is the lower edge of the same bin, ours the upper one."""
    histogram = histogram_of(sample(kind))
    theirs = float(_compute_amax_percentile(histogram.counts, edges(histogram), percentile))
    ours = amax_from_histogram(histogram, "percentile", percentile)
    width = histogram.limit / len(histogram.counts)
    assert ours == pytest.approx(min(theirs + width, histogram.maximum), abs=0.01 * width)


@pytest.mark.parametrize("kind", ["normal", "laplace", "heavy", "silu"])
def test_mse_agrees_with_modelopt(kind: str) -> None:
    """Around the optimum the error is flat, so the errors are compared; the grids differ, hence 1%.

    ModelOpt's search is repeated with its own quantizer: its ``_compute_amax_mse`` hands over num_bits as the bias.
    """
    values = sample(kind)
    histogram = histogram_of(values)
    centers = torch.from_numpy((edges(histogram)[1:] + edges(histogram)[:-1]) / 2).float()
    counts = torch.from_numpy(histogram.counts).float()
    candidates = centers[128::4]
    errors = [float(((fake_tensor_quant(centers, amax) - centers) ** 2 * counts).mean()) for amax in candidates]
    theirs = float(candidates[int(np.argmin(errors))])
    ours = amax_from_histogram(histogram, "mse")
    assert quantization_error(values, ours) == pytest.approx(quantization_error(values, theirs), rel=0.01)
    assert ours == pytest.approx(theirs, rel=0.15)


@pytest.mark.parametrize("kind", ["laplace", "heavy", "silu"])
def test_entropy_agrees_with_modelopt(kind: str) -> None:
    """The same divergence over the same candidates: equal up to ties between neighbouring bins."""
    histogram = histogram_of(sample(kind, 50_000), bins=256)
    theirs = float(_compute_amax_entropy(histogram.counts.copy(), edges(histogram), 8, False, start_bin=128))
    ours = amax_from_histogram(histogram, "entropy")
    assert ours == pytest.approx(theirs, abs=2 * histogram.limit / 256)
