"""Asymmetric grids: hand-computed, as ONNX Runtime computes them, with gradients, from two-sided histograms."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor

from trt_qat.config import Config
from trt_qat.errors import ConfigError, QuantizationError
from trt_qat.quantization.auto import choose_calibrator
from trt_qat.quantization.auto_per_group import choose_per_group
from trt_qat.quantization.calibrators.base import Calibrator
from trt_qat.quantization.calibrators.entropy import Entropy
from trt_qat.quantization.calibrators.max import Max
from trt_qat.quantization.calibrators.mse import Mse
from trt_qat.quantization.calibrators.percentile import Percentile
from trt_qat.quantization.fake_quant import fake_quantize
from trt_qat.quantization.histogram import ActivationHistogram, HistogramCollector
from trt_qat.quantization.observe import collect_histograms
from trt_qat.quantization.toolkits.modelopt import ModelOptToolkit
from trt_qat.quantization.zero_point import Grid, grid_between

if TYPE_CHECKING:
    from trt_qat.checkpoint import Model

BINS = 4096


def two_sided(values: Tensor, parts: int = 1) -> ActivationHistogram:
    collector = HistogramCollector(BINS, two_sided=True)
    for part in values.chunk(parts):
        collector.add(part)
    return collector.result()


@pytest.fixture(scope="module")
def silu() -> Tensor:
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(3)) * 3
    return torch.nn.functional.silu(x).reshape(4, -1)


# the grid ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "step", "zero_point"),
    [
        (0.0, 1.0, 1 / 255, 0),  # an image: its own 256 levels
        (-1.0, 0.0, 1 / 255, 255),
        (-2.0, 2.0, 2 / 127, 128),  # the symmetric grid
        (-1.0, 4.1, 4.1 / 205, 50),  # 5.1 / 255 = 0.02 and 1 / 0.02 = 50: both ends on the grid
        (-0.278, 8.0, 8 / 246, 9),  # SiLU: 8.278 / 255 = 0.03246, 0.278 / 0.03246 = 8.56
        (-6.0, 3.0, 6 / 170, 170),
    ],
)
def test_hand_computed(low: float, high: float, step: float, zero_point: int) -> None:
    grid = grid_between(low, high)
    assert grid.step == pytest.approx(step, rel=1e-12)
    assert grid.zero_point == zero_point
    assert grid.low <= low * (1 - 1e-12)
    assert grid.high >= high * (1 - 1e-12)
    assert grid.amax == pytest.approx(127 * step)


def test_every_range_is_spanned_with_hardly_a_larger_step() -> None:
    for low, high in -np.random.default_rng(0).exponential(size=(500, 2)) * [1, -1]:
        grid = grid_between(low, high)
        assert 0 <= grid.zero_point <= 255
        assert grid.low <= low + 1e-9
        assert grid.high >= high - 1e-9
        assert grid.step <= 1.004 * (high - low) / 255


# the fake quantizer ------------------------------------------------------------------------------------------------


def by_onnxruntime(values: Tensor, scale: np.float32, zero_point: int) -> np.ndarray:
    constants = [
        onnx.numpy_helper.from_array(np.asarray(scale, np.float32), "scale"),
        onnx.numpy_helper.from_array(np.array(zero_point, np.uint8), "zero"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None]) for name in "xy"]
    graph = helper.make_graph(nodes, "pair", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": values.numpy()})[0])


@pytest.mark.parametrize(("amax", "zero_point"), [(4.13, 9), (0.498, 0), (1.7, 128), (3.3, 255), (0.0123, 61)])
def test_it_rounds_bit_for_bit_as_onnx_runtime(amax: float, zero_point: int) -> None:
    range_ = torch.tensor(amax)
    values = torch.randn(300_000, generator=torch.Generator().manual_seed(zero_point)) * amax
    expected = by_onnxruntime(values, (range_ / 127).numpy(), zero_point)
    assert np.array_equal(fake_quantize(values, range_, zero_point).numpy(), expected)
    assert len(np.unique(expected)) > 100


def test_values_inside_pass_the_gradient_and_the_range_learns() -> None:
    amax, zero_point = torch.tensor(1.27, requires_grad=True), 10  # step 0.01: from -0.1 to 2.45
    values = torch.tensor([[-0.3, -0.101, -0.099, 0.0, 0.123, 2.449, 2.451, 9.0]], requires_grad=True)
    output = fake_quantize(values, amax, zero_point)
    assert torch.allclose(output, torch.tensor([[-0.1, -0.1, -0.1, 0.0, 0.12, 2.45, 2.45, 2.45]]), atol=1e-6)
    output.sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[0, 0, 1, 1, 1, 1, 0, 0]]
    # LSQ, equation 3, for a step of amax / 127: rounded - scaled inside, the end's step outside
    steps = (-10, -10, -10 + 9.9, 0, 12 - 12.3, 245 - 244.9, 245, 245)
    assert amax.grad is not None
    assert float(amax.grad) == pytest.approx(sum(steps) / 127 / (8 * 127) ** 0.5, rel=1e-4)


def test_a_range_for_each_channel_of_a_shifted_grid() -> None:
    amax = torch.tensor([1.27, 2.54]).reshape(2, 1, 1, 1)
    values = torch.tensor([-1.0, 0.013, 5.0]).expand(2, 3).reshape(2, 3, 1, 1).clone().requires_grad_()
    output = fake_quantize(values, amax, 10)
    assert torch.allclose(output.flatten(1), torch.tensor([[-0.1, 0.01, 2.45], [-0.2, 0.02, 4.9]]), atol=1e-6)
    output.sum().backward()
    assert values.grad is not None
    assert values.grad.flatten(1).tolist() == [[0, 1, 0], [0, 1, 0]]


# what calibration makes of values ----------------------------------------------------------------------------------


def test_both_sides_count_every_value_in_any_order(silu: Tensor) -> None:
    found = two_sided(silu)
    assert found.below is not None
    assert (found.maximum, found.below.maximum) == (float(silu.max()), float(-silu.min()))
    assert (found.limit, found.below.limit) == (16.0, 0.5)
    assert found.counts.sum() == found.below.counts.sum() == silu.numel()
    edge = 0.25
    assert found.below.counts[int(edge / 0.5 * BINS) :].sum() == int((silu <= -edge).sum())
    assert found.counts[0] >= int((silu <= 0).sum())
    again = two_sided(silu.flip(0), parts=4)
    assert again.below is not None
    assert np.array_equal(again.counts, found.counts)
    assert np.array_equal(again.below.counts, found.below.counts)


def test_max_spans_what_was_seen(silu: Tensor) -> None:
    assert Max().grid(two_sided(silu)) == grid_between(float(silu.min()), float(silu.max()))
    assert Max().grid(two_sided(silu.relu())) == grid_between(0.0, float(silu.max()))
    assert Max().grid(two_sided(-silu.relu())).zero_point == 255


def test_percentile_clips_its_share_on_either_side() -> None:
    values = torch.linspace(-1.0, 3.0, 400_000).reshape(8, -1)
    grid = Percentile(99.0).grid(two_sided(values))
    assert grid.low == pytest.approx(-1.0 + 0.04, abs=2 * grid.step)
    assert grid.high == pytest.approx(3.0 - 0.04, abs=2 * grid.step)


def test_mse_has_less_error_than_its_neighbours_and_than_the_symmetric_range(silu: Tensor) -> None:
    heavy = silu.clone()
    heavy[0, 0] = 60.0  # an outlier

    def error(grid: Grid) -> float:
        return float((fake_quantize(heavy, torch.tensor(grid.amax), grid.zero_point) - heavy).double().square().mean())

    found = Mse().grid(two_sided(heavy))
    assert found.high < 60
    assert all(error(found) <= error(grid_between(found.low, found.high * factor)) for factor in (0.8, 0.9, 1.1, 1.3))
    collector = HistogramCollector(BINS)
    collector.add(heavy)
    symmetric = Grid(Mse().amax(collector.result()), 128)
    assert error(found) < 0.5 * error(symmetric)  # half the step is a quarter of the rounding error


@pytest.mark.parametrize("calibrator", [Max(), Percentile(99.99), Mse(), Entropy()])
def test_every_calibrator_keeps_silus_floor(calibrator: Calibrator, silu: Tensor) -> None:
    histogram = two_sided(silu)
    grid = calibrator.grid(histogram)
    assert -0.4 < grid.low < -0.2
    assert 2.0 < grid.high <= 1.01 * float(silu.max())
    ranges = calibrator.ranges({"a": histogram})
    assert float(ranges["activation.a"]) == pytest.approx(grid.amax)
    assert int(ranges["zero_point.a"]) == grid.zero_point


def test_an_empty_histogram_is_refused() -> None:
    with pytest.raises(QuantizationError, match="no non-zero activation"):
        Max().grid(two_sided(torch.zeros(2, 8)))


# in a network ------------------------------------------------------------------------------------------------------


def test_each_group_gets_a_grid_that_fits_its_values(tiny_asymmetric: Model, batches: tuple[Tensor, ...]) -> None:
    model = tiny_asymmetric.require_quantized()
    grids = model.grids()
    image = next(iter(grids.values()))
    assert image.zero_point == 0
    assert image.step == pytest.approx(max(float(batch.max()) for batch in batches) / 255)
    assert all(grid.zero_point < 128 for grid in grids.values())
    # zero is exact, so is every value of an image that has all 256 levels
    pixels = torch.arange(256, dtype=torch.float32) * image.step
    quantizer = next(iter(model.activation_quantizers().values()))
    assert torch.allclose(quantizer(pixels), pixels, rtol=1e-6)
    assert float(quantizer(torch.zeros(1))) == 0.0


def test_auto_chooses_among_grids(tiny_asymmetric: Model, batches: tuple[Tensor, ...]) -> None:
    model = copy.deepcopy(tiny_asymmetric.require_quantized())
    histograms = collect_histograms(model, batches, 512)
    makers = [lambda: batches[0]]
    chosen = choose_calibrator(model, histograms, makers)
    assert len({candidate.error for candidate in chosen.candidates}) > 3
    found = choose_per_group(model, histograms, chosen, makers)
    wanted = found.ranges(histograms)
    assert {f"zero_point.{name}" for name in model.grids()} <= wanted.keys()
    for name, grid in model.grids().items():
        assert grid.zero_point == int(wanted[f"zero_point.{name}"])
        assert grid.amax == float(wanted[f"activation.{name}"])


def test_a_copy_without_some_groups_keeps_the_others(tiny_asymmetric: Model) -> None:
    model = tiny_asymmetric.require_quantized()
    first, *rest = model.grids()
    left = model.leave_float([first], "a test")
    assert left.placement.scheme == "asymmetric"
    assert left.grids() == {name: model.grids()[name] for name in rest}


def test_a_quantizer_is_symmetric_until_it_is_told() -> None:
    toolkit = ModelOptToolkit()
    quantizer = toolkit.activation_quantizer()
    assert toolkit.zero_point(quantizer) == 128
    toolkit.set_zero_point(quantizer, 9)
    assert toolkit.zero_point(quantizer) == 9


def test_the_other_toolkit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"asymmetric needs quantization\.toolkit=modelopt") as raised:
        Config.load(overrides=["quantization.toolkit=pytorch-quantization", "quantization.scheme=asymmetric"])
    assert "\n" not in str(raised.value)
