"""Histograms and the calibrators, against exact values, measured errors and ModelOpt's own implementation."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace

import numpy as np
import pytest
import torch
from modelopt.torch.quantization.calib.histogram import _compute_amax_entropy, _compute_amax_percentile
from modelopt.torch.quantization.tensor_quant import fake_tensor_quant
from numpy.typing import NDArray
from torch import Tensor

from trt_qat.config import QuantizationSection
from trt_qat.errors import ConfigError, QuantizationError
from trt_qat.quantization.calibrators.base import Calibrator, calibrator_from_dict, calibrator_from_section
from trt_qat.quantization.calibrators.entropy import Entropy
from trt_qat.quantization.calibrators.max import Max
from trt_qat.quantization.calibrators.mse import Mse
from trt_qat.quantization.calibrators.percentile import Percentile
from trt_qat.quantization.histogram import SAMPLES_PER_IMAGE, ActivationHistogram, HistogramCollector, _sampled
from trt_qat.registry import CALIBRATORS

ALL: tuple[Calibrator, ...] = (Max(), Percentile(99.99), Mse(), Entropy())


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
    result = histogram_of(torch.tensor([[-3.9, 0.1], [1.1, 2.1]]), bins=4)
    assert (result.limit, result.maximum) == (4.0, pytest.approx(3.9))
    assert result.counts.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("maximum", "limit"), [(3.0, 4.0), (4.0, 8.0), (0.25, 0.5), (1e-30, 2.0**-99), (1e30, 2.0**100)]
)
def test_limit_is_the_power_of_two_above_the_maximum(maximum: float, limit: float) -> None:
    assert histogram_of(torch.tensor([0.0, -maximum])).limit == limit


def test_growing_range_loses_nothing() -> None:
    collector = HistogramCollector(256)
    parts = [sample("normal", 1000) * scale for scale in (0.01, 1.0, 0.5, 37.0)]
    for part in parts:
        collector.add(part)
    result = collector.result()
    everything = torch.cat(parts).abs()
    assert result.counts.sum() == 4000
    assert result.maximum == float(everything.max())
    exact = torch.histc(everything, 256, 0.0, result.limit).double().numpy()
    np.testing.assert_array_equal(result.counts, exact)


@pytest.mark.parametrize("bins", [128, 300, 4096])
def test_order_of_batches_does_not_matter(bins: int) -> None:
    """Bit for bit, with values on bin edges and at a limit, and with a batch of zeros first or last."""
    edges = torch.tensor([0.25, 0.5, 1.0, 2.0, 4.0, 64.0])
    parts = [torch.zeros(7), sample("normal", 5000) * 0.01, edges[:3], edges, sample("laplace", 5000) * 4, edges[:4]]
    results = []
    for order in (parts, parts[::-1], [torch.cat(parts)]):
        collector = HistogramCollector(bins)
        for part in order:
            collector.add(part)
        results.append(collector.result())
    for result in results[1:]:
        assert (result.limit, result.maximum) == (results[0].limit, results[0].maximum)
        np.testing.assert_array_equal(result.counts, results[0].counts)


@pytest.mark.parametrize("shape", [(3, 640, 640), (16, 320, 320), (80, 80, 80), (70_001,)])
def test_large_images_are_sampled_whatever_stands_beside_them(shape: tuple[int, ...]) -> None:
    images = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    images[1].view(-1)[-1] = 99.0  # the maximum is exact even if this value is not sampled
    together, apart = HistogramCollector(4096), HistogramCollector(4096)
    together.add(images)
    for image in images.flip(0):
        apart.add(image[None])
    result = together.result()
    assert result.maximum == 99.0
    np.testing.assert_array_equal(result.counts, apart.result().counts)
    assert 0.4 * SAMPLES_PER_IMAGE < result.counts.sum() / 3 <= SAMPLES_PER_IMAGE
    whole = torch.histc(images.abs(), 4096, 0.0, 128.0).double().numpy()
    gap = np.cumsum(result.counts) / result.counts.sum() - np.cumsum(whole) / whole.sum()
    assert np.abs(gap).max() < 0.01


def test_samples_visit_every_row_column_and_channel() -> None:
    position = torch.arange(16 * 320 * 320).view(1, 16, 320, 320)
    seen = _sampled(position)[0]
    assert len(set((seen % 320).tolist())) == 320
    assert len(set((seen // 320 % 320).tolist())) == 320
    assert len(set((seen // 320**2).tolist())) == 16


def test_zeros_before_values_are_counted() -> None:
    collector = HistogramCollector(128)
    collector.add(torch.zeros(10))
    collector.add(torch.zeros(0))
    collector.add(torch.tensor([2.0, -1.0]))
    assert collector.result().counts.sum() == 12
    assert collector.result().counts[0] == 10
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


@pytest.mark.parametrize("calibrator", ALL, ids=repr)
def test_empty_histogram_is_refused(calibrator: Calibrator) -> None:
    for collector in (HistogramCollector(128), HistogramCollector(128)):
        collector.add(torch.zeros(5))
        with pytest.raises(QuantizationError, match="no non-zero activation"):
            calibrator.amax(collector.result())


@pytest.mark.parametrize("calibrator", ALL, ids=repr)
@pytest.mark.parametrize("kind", ["normal", "laplace", "heavy", "silu"])
def test_never_above_the_maximum(calibrator: Calibrator, kind: str) -> None:
    histogram = histogram_of(sample(kind))
    amax = calibrator.amax(histogram)
    assert 0 < amax <= histogram.maximum
    assert amax > float(sample(kind).abs().mean())


@pytest.mark.parametrize("kind", ["normal", "laplace", "heavy"])
@pytest.mark.parametrize("calibrator", ALL, ids=repr)
def test_unused_upper_bins_do_not_move_the_range(calibrator: Calibrator, kind: str) -> None:
    """A limit twice as high over twice as many bins is the same histogram with an empty upper half."""
    histogram = histogram_of(sample(kind), 2048)
    padded = ActivationHistogram(
        np.concatenate([histogram.counts, np.zeros(2048)]), 2 * histogram.limit, histogram.maximum
    )
    assert calibrator.amax(padded) == pytest.approx(calibrator.amax(histogram))


@pytest.mark.parametrize("calibrator", ALL, ids=repr)
def test_range_scales_with_the_values(calibrator: Calibrator) -> None:
    values = sample("laplace")
    small, big = (calibrator.amax(histogram_of(values * scale)) for scale in (1.0, 1024.0))
    assert big == pytest.approx(1024 * small, rel=1e-6)


def test_max_is_exact() -> None:
    values = sample("heavy")
    assert Max().amax(histogram_of(values)) == float(values.abs().max())


@pytest.mark.parametrize(("percentile", "amax"), [(100.0, 100.0), (99.0, 99.0), (90.0, 90.0), (50.5, 51.0)])
def test_percentile_of_a_known_histogram(percentile: float, amax: float) -> None:
    """One value in each of 100 bins of width 1."""
    histogram = ActivationHistogram(np.ones(100), limit=100.0, maximum=100.0)
    assert Percentile(percentile).amax(histogram) == pytest.approx(amax)


def test_percentile_clips_the_given_share() -> None:
    values = sample("laplace")
    amax = Percentile(99.9).amax(histogram_of(values))
    assert float((values.abs() > amax).double().mean()) == pytest.approx(0.001, rel=0.1)


@pytest.mark.parametrize("kind", ["normal", "laplace", "heavy", "silu"])
def test_mse_is_the_best_of_all(kind: str) -> None:
    """On the values themselves: no other calibrator, and no other range of a fine grid, is better by 1%."""
    values = sample(kind)
    histogram = histogram_of(values)
    error = quantization_error(values, Mse().amax(histogram))
    others = [other.amax(histogram) for other in ALL if other != Mse()]
    grid = np.geomspace(0.02, 1.0, 120) * histogram.maximum
    assert error <= 1.01 * min(quantization_error(values, float(amax)) for amax in [*others, *grid])


def test_mse_beats_max_on_a_heavy_tail() -> None:
    values = sample("heavy")
    histogram = histogram_of(values)
    by_mse, by_max = (quantization_error(values, calibrator.amax(histogram)) for calibrator in (Mse(), Max()))
    assert by_mse < 0.6 * by_max


def test_entropy_clips_a_tail_and_keeps_a_flat_histogram() -> None:
    heavy = histogram_of(sample("heavy"))
    assert Entropy().amax(heavy) < 0.5 * heavy.maximum
    flat = histogram_of(torch.linspace(0.0, 5.0, 100_000))
    assert Entropy().amax(flat) > 0.9 * flat.maximum


# as values -------------------------------------------------------------------------------------------------------


def test_every_row_of_the_registry_is_tested_here() -> None:
    assert {calibrator.name for calibrator in ALL} == set(CALIBRATORS.rows)
    for name in CALIBRATORS.rows:
        kind = CALIBRATORS.load(name)
        assert kind.name == name
        assert is_dataclass(kind)


def test_a_calibrator_is_a_value() -> None:
    assert Percentile(99.9) == Percentile(99.9) != Percentile(99.99) == Percentile()
    assert len({*ALL, *map(replace, ALL), Percentile(99.9)}) == len(ALL) + 1
    assert Mse() != Max()
    with pytest.raises(FrozenInstanceError):
        Percentile(99.9).percentile = 50  # type: ignore[misc]


@pytest.mark.parametrize("percentile", [50.0, 100.1, -1.0, float("nan")])
def test_a_percentile_that_keeps_too_few_values_or_more_than_all_is_refused(percentile: float) -> None:
    with pytest.raises(ConfigError, match=r"above 50 and at most 100"):
        Percentile(percentile)


@pytest.mark.parametrize("name", CALIBRATORS.rows)
def test_json_form_and_back(name: str) -> None:
    section = QuantizationSection(calibrator=name, percentile=98.5)
    calibrator = calibrator_from_section(section)
    assert type(calibrator) is CALIBRATORS.load(name)
    settings = {field.name: getattr(calibrator, field.name) for field in fields(calibrator)}
    assert settings == ({"percentile": 98.5} if name == "percentile" else {})
    content = json.loads(json.dumps(calibrator.as_dict()))
    assert content["calibrator"] == name
    assert calibrator_from_dict(content) == calibrator
    assert calibrator_from_dict({**content, "error": 0.5}) == calibrator  # other keys belong to whoever keeps it


def test_json_form_of_no_calibrator_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Unknown calibrator 'mes'\. Did you mean 'mse'\?"):
        calibrator_from_dict({"calibrator": "mes"})


def test_ranges_are_named_by_group() -> None:
    histograms = {"a": histogram_of(sample("normal")), "b": histogram_of(sample("heavy"))}
    ranges = Percentile(99.0).ranges(histograms)
    assert ranges.keys() == {"activation.a", "activation.b"}
    assert float(ranges["activation.b"]) == pytest.approx(Percentile(99.0).amax(histograms["b"]))
    assert ranges["activation.b"].shape == ()


# against NVIDIA Model Optimizer on the same histogram --------------------------------------------------------------


def edges(histogram: ActivationHistogram) -> NDArray[np.float64]:
    return np.linspace(0, histogram.limit, len(histogram.counts) + 1)


@pytest.mark.parametrize("kind", ["normal", "laplace", "heavy", "silu"])
@pytest.mark.parametrize("percentile", [99.0, 99.99])
def test_percentile_agrees_with_modelopt(kind: str, percentile: float) -> None:
    """Theirs is the lower edge of the same bin, ours the upper one."""
    histogram = histogram_of(sample(kind))
    theirs = float(_compute_amax_percentile(histogram.counts, edges(histogram), percentile))
    ours = Percentile(percentile).amax(histogram)
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
    ours = Mse().amax(histogram)
    assert quantization_error(values, ours) == pytest.approx(quantization_error(values, theirs), rel=0.01)
    assert ours == pytest.approx(theirs, rel=0.15)


@pytest.mark.parametrize("kind", ["laplace", "heavy", "silu"])
def test_entropy_agrees_with_modelopt(kind: str) -> None:
    """The same divergence over the same candidates: equal up to ties between neighbouring bins."""
    histogram = histogram_of(sample(kind, 50_000), bins=512)
    theirs = float(_compute_amax_entropy(histogram.counts.copy(), edges(histogram), 8, False, start_bin=128))
    ours = Entropy().amax(histogram)
    assert ours == pytest.approx(theirs, abs=2 * histogram.limit / 512)
