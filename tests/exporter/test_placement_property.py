"""Placement and export on random networks: what holds for YOLOv8 holds because of the rules, not by luck."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional
from ultralytics.nn.tasks import DetectionModel

from trt_qat.checkpoint import Model
from trt_qat.config import ExportSection, QuantizationSection, Residual
from trt_qat.exporter.onnx_export import export_onnx
from trt_qat.linter.report import lint
from trt_qat.model.loading import fold_batchnorm, raw_output, rebuild
from trt_qat.quantization.calibrators.max import Max
from trt_qat.quantization.insert import QuantizedModel, quantize_model
from trt_qat.quantization.observe import collect_histograms

Layer = list[Any]  # [from, repeats, module, arguments], as in an Ultralytics architecture
Array = NDArray[np.float32]
CHANNELS = (8, 16, 24)
DEEPEST = 16  # stride
# Outputs of these are the value they were given, in INT8 too.
MOVES = {"Concat", "MaxPool", "Resize", "Slice", "Split", "Reshape", "Transpose", "QuantizeLinear", "DequantizeLinear"}


@st.composite
def architectures(draw: st.DrawFn) -> dict[str, Any]:
    """A detector of random blocks: convolutions, residual blocks, splits, concats, pooling, upsampling."""
    layers: list[Layer] = [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [16, 3, 2]]]
    strides = [2, 4]
    width = 16
    for _ in range(draw(st.integers(3, 6))):
        stride = strides[-1]
        earlier = [i for i, other in enumerate(strides[:-1]) if other == stride]
        kinds = ["Conv", "C2f", "C2f", "C3", "SPPF", "Pool"]
        kinds += ["Down"] if stride < DEEPEST else []
        kinds += ["Upsample"] if stride > 4 else []
        kinds += ["Concat", "Concat"] if earlier else []
        kind = draw(st.sampled_from(kinds))
        width = draw(st.sampled_from(CHANNELS))
        if kind == "Conv":
            layers.append([-1, 1, "Conv", [width, draw(st.sampled_from([1, 3])), 1]])
        elif kind == "Down":
            layers.append([-1, 1, "Conv", [width, 3, 2]])
        elif kind in {"C2f", "C3"}:
            layers.append([-1, draw(st.integers(1, 2)), kind, [width, draw(st.booleans())]])
        elif kind == "SPPF":
            layers.append([-1, 1, "SPPF", [width, draw(st.sampled_from([3, 5]))]])
        elif kind == "Pool":
            layers.append([-1, 1, "nn.MaxPool2d", [3, 1, 1]])
        elif kind == "Upsample":
            layers.append([-1, 1, "nn.Upsample", [None, 2, "nearest"]])
        else:
            layers.append([[-1, draw(st.sampled_from(earlier))], 1, "Concat", [1]])
        strides.append({"Down": stride * 2, "Upsample": stride // 2}.get(kind, stride))
    levels = sorted({draw(st.integers(1, len(layers) - 1)), len(layers) - 1})
    head: list[Layer] = [[levels, 1, "Detect", ["nc"]]]
    return {"nc": 2, "depth_multiple": 1.0, "width_multiple": 1.0, "backbone": layers, "head": head}


RANDOM: dict[str, Any] = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "phases": [Phase.generate],  # shrinking would take minutes
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
}


@settings(max_examples=4, **RANDOM)
@given(architecture=architectures(), residual=st.sampled_from(["none", "skip", "both"]))
def test_random_networks(
    make_unfolded: Callable[..., DetectionModel], architecture: dict[str, Any], residual: Residual
) -> None:
    check_network(make_unfolded, architecture, residual)


@pytest.mark.slow
@settings(max_examples=30, **RANDOM)
@given(architecture=architectures(), residual=st.sampled_from(["none", "skip", "both"]))
def test_more_random_networks(
    make_unfolded: Callable[..., DetectionModel], architecture: dict[str, Any], residual: Residual
) -> None:
    check_network(make_unfolded, architecture, residual)


def check_network(
    make_unfolded: Callable[..., DetectionModel], architecture: dict[str, Any], residual: Residual
) -> None:
    """Placed, calibrated, exported: clean for the lint, one scale per copied group, each input quantized alike."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 64, 64, generator=generator)
    network = fold_batchnorm(rebuild(make_unfolded(architecture, {0: "a", 1: "b"})))
    section = QuantizationSection(residual=residual, calibrator="max")
    model = quantize_model(network, {0: "a", 1: "b"}, section)
    model.load_amax_(Max().ranges(collect_histograms(model, [images], 2048)))
    with TemporaryDirectory() as folder:
        quantized = Model(model.network, model.names, (64, 64), Path("random.yaml"), "ptq", model)
        path = export_onnx(quantized, Path(folder) / "random.onnx", ExportSection(precision="int8+fp32")).path
        report = lint(path)
        assert report.errors == 0, report.as_text()
        warned = {finding.rule for finding in report.findings if finding.severity == "warning"}
        assert warned <= {"channels-not-16"}, report.as_text()  # these networks are narrow on purpose
        assert report.counts.avoidable_round_trips == 0
        exported = onnx.load(path)
    check_one_scale_per_copied_group(exported)
    check_quantized_inputs(exported, model, images[:1])


class Moved(nn.Identity):
    """Moves values in a way that no YOLO block does."""

    def __init__(self, like: nn.Module, operator: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.i, self.f, self.type, self.np = like.i, like.f, like.type, 0
        self.operator = operator

    def forward(self, x: Tensor) -> Tensor:
        return self.operator(x)


MOVED: dict[str, Callable[[Tensor], Tensor]] = {
    "pad": lambda x: functional.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:],
    "index_select": lambda x: x.index_select(1, torch.arange(15, -1, -1)),
    "select": lambda x: torch.stack((x[:, 1], x[:, 0], *x.unbind(1)[2:]), 1),
    "repeat": lambda x: x[:, :8].repeat(1, 2, 1, 1),
    "expand": lambda x: x[:, :, :1].expand(-1, -1, x.shape[2], -1),
    "pixel_shuffle": lambda x: functional.pixel_unshuffle(functional.pixel_shuffle(x, 2), 2),
}


@pytest.mark.parametrize("name", MOVED)
def test_every_copy_is_placed_exported_and_linted_alike(
    make_unfolded: Callable[..., DetectionModel], name: str
) -> None:
    """Between two INT8 convolutions: one scale on both sides, quantized where the tensor is made."""
    layers: list[Layer] = [[-1, 1, "Conv", [16, 3, 2]], [-1, 1, "Conv", [16, 3, 2]], [-1, 1, "nn.Identity", []]]
    layers += [[-1, 1, "Conv", [16, 3, 1]], [1, 1, "Conv", [16, 1, 1]]]
    head: list[Layer] = [[[3, 4], 1, "Detect", ["nc"]]]
    architecture = {"nc": 2, "depth_multiple": 1.0, "width_multiple": 1.0, "backbone": layers, "head": head}
    network = fold_batchnorm(rebuild(make_unfolded(architecture, {0: "a", 1: "b"})))
    network.model[2] = Moved(network.model[2], MOVED[name])
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    model = quantize_model(network, {0: "a", 1: "b"}, QuantizationSection(calibrator="max"))
    (group,) = (group for group in model.placement.groups if "model.3.conv" in group.convs)
    assert "model.4.conv" in group.convs
    model.load_amax_(Max().ranges(collect_histograms(model, [images], 2048)))
    with TemporaryDirectory() as folder:
        quantized = Model(model.network, model.names, (64, 64), Path("moved.yaml"), "ptq", model)
        path = export_onnx(quantized, Path(folder) / "moved.onnx", ExportSection(precision="int8+fp32")).path
        report = lint(path)
        exported = onnx.load(path)
    assert report.errors == 0, report.as_text()
    assert report.counts.avoidable_round_trips == 0
    check_quantized_inputs(exported, model, images[:1])


def check_one_scale_per_copied_group(model: onnx.ModelProto) -> None:
    """Tensors joined by operators that only move values are quantized with one scale."""
    values = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for node in model.graph.node:
        carried = node.input if node.op_type == "Concat" else node.input[:1]
        if node.op_type in MOVES:
            for name in carried:
                for output in node.output:
                    parent[root(name)] = root(output)
    scales: dict[str, set[float]] = defaultdict(set)
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            scales[root(node.input[0])].add(float(values[node.input[1]]))
    assert scales
    assert all(len(found) == 1 for found in scales.values()), scales


def check_quantized_inputs(exported: onnx.ModelProto, model: QuantizedModel, image: Tensor) -> None:
    """Each INT8 convolution reads the same integers in ONNX Runtime and in PyTorch, one step apart at most.

    PyTorch is led along: a convolution that was compared goes on with ONNX Runtime's input. Sums of another order may
    end on the other side of a rounding edge, and what followed from that step would be compared too.
    """
    read = int8_inputs(exported)
    assert read.keys() == model.weight_quantizers().keys()
    found = run_with_outputs(exported, [*dict.fromkeys(read.values()), "output0"], image)
    sizes: list[int] = []
    unequal: list[int] = []
    for name, tensor in read.items():

        def lead(
            module: torch.nn.Module, inputs: tuple[Tensor], name: str = name, theirs: Array = found[tensor]
        ) -> Any:
            quantizer = model.toolkit.input_quantizer(module)
            step = float(model.toolkit.amax(quantizer)) / 127
            levels = np.rint(theirs / step)
            assert np.abs(theirs / step - levels).max() < 1e-2, f"{name} reads values that are not on its grid"
            steps = np.abs(levels - np.rint(quantizer(inputs[0]).detach().numpy() / step))
            assert steps.max() <= 1, f"{name}: {steps.max()} steps apart"
            sizes.append(steps.size)
            unequal.append(int((steps > 0).sum()))
            return (torch.from_numpy(theirs),)

        model.network.get_submodule(name).register_forward_pre_hook(lead)
    output = raw_output(model.network, image).numpy()
    assert len(sizes) == len(read)
    assert sum(unequal) <= 1e-3 * sum(sizes)
    np.testing.assert_allclose(output, found["output0"], rtol=1e-3, atol=1e-2)


def int8_inputs(model: onnx.ModelProto) -> dict[str, str]:
    """Name of each INT8 convolution (its weight says it) to the tensor it reads."""
    source = {output: node for node in model.graph.node for output in node.output}
    convs = [node for node in model.graph.node if node.op_type == "Conv" and node.input[1] in source]
    return {source[conv.input[1]].input[0].partition(".weight")[0]: conv.input[0] for conv in convs}


def run_with_outputs(model: onnx.ModelProto, outputs: list[str], image: Tensor) -> dict[str, Array]:
    """Inner tensors of the graph, computed exactly as written."""
    del model.graph.output[:]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in outputs)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(outputs, session.run(outputs, {"images": image.numpy()}), strict=True))
