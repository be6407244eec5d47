"""The form for TensorRT-RTX: other operators, the same integers and the same numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from trt_qat.checkpoint import Model
from trt_qat.config import ExportSection, Precision
from trt_qat.exporter.onnx_export import export_onnx
from trt_qat.exporter.tensorrt_rtx import convolve_parts_
from trt_qat.linter.report import lint
from trt_qat.runtime.onnxruntime import OnnxRuntimeRunner
from trt_qat.vision.image import read_image_bgr
from trt_qat.vision.letterbox import network_input

Files = dict[str, Path]


@pytest.fixture(scope="module")
def files(demo_int8: Model, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The shipped detector by precision, plain and in this form; those in FP16, only read, smaller."""
    folder, small = tmp_path_factory.mktemp("rtx"), replace(demo_int8, imgsz=(160, 160))

    def make(precision: Precision, rtx: bool) -> Path:
        path = folder / f"{precision}-{rtx}.onnx"
        return export_onnx(
            small if "fp16" in precision else demo_int8, path, ExportSection(precision=precision), tensorrt_rtx=rtx
        ).path

    floating = ExportSection(precision="fp32")
    return {
        "float": export_onnx(demo_int8, folder / "float.onnx", floating).path,
        "float rtx": export_onnx(demo_int8, folder / "float_rtx.onnx", floating, tensorrt_rtx=True).path,
        "plain": make("int8+fp32", False),
        "rtx": make("int8+fp32", True),
        "plain fp16": make("int8+fp16", False),
        "rtx fp16": make("int8+fp16", True),
    }


def constants(path: Path) -> dict[str, NDArray[np.generic]]:
    return {entry.name: numpy_helper.to_array(entry) for entry in onnx.load(path).graph.initializer}


def weights(path: Path) -> dict[str, tuple[onnx.NodeProto, onnx.NodeProto]]:
    """INT8 convolutions and the DequantizeLinear of their weights, by the weight's name."""
    graph = onnx.load(path).graph
    source = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    convs = [node for node in graph.node if node.op_type == "Conv" and node.input[1] in source]
    return {source[conv.input[1]].input[0]: (conv, source[conv.input[1]]) for conv in convs}


@pytest.mark.parametrize("precision", ["", " fp16"])
def test_integers_stay_and_scale_times_factor_is_the_channels_scale(files: Files, precision: str) -> None:
    plain, rtx = files[f"plain{precision}"], files[f"rtx{precision}"]
    before, after = constants(plain), constants(rtx)
    readers = {name: node for node in onnx.load(rtx).graph.node for name in node.input}
    found = weights(rtx)
    assert found.keys() == weights(plain).keys()
    assert len(found) == 57
    for name, (conv, dequantize) in found.items():
        np.testing.assert_array_equal(after[name], before[name])
        scale, zero_point = after[dequantize.input[1]], after[dequantize.input[2]]
        assert (scale.shape, zero_point.shape, zero_point.dtype) == ((), (), np.int8)
        assert np.frexp(scale.astype(np.float64))[0] == 0.5  # a power of two rounds nothing
        assert len(conv.input) == 2
        multiply = readers[conv.output[0]]
        add = readers[multiply.output[0]]
        assert (multiply.op_type, add.op_type) == ("Mul", "Add")
        factors = after[multiply.input[1]]
        original_conv, original = weights(plain)[name]
        np.testing.assert_array_equal((factors * scale).flatten(), before[original.input[1]])
        np.testing.assert_array_equal(after[add.input[1]].flatten(), before[original_conv.input[2]])


def test_the_sum_of_a_convolution_fits_into_fp16(files: Files) -> None:
    """The convolution's own output, before its factor: its largest possible value on any image."""
    held, graph = constants(files["rtx fp16"]), onnx.load(files["rtx fp16"]).graph
    steps = {node.output[0]: held[node.input[1]] for node in graph.node if node.op_type == "DequantizeLinear"}
    checked = 0
    for name, (conv, dequantize) in weights(files["rtx fp16"]).items():
        if conv.input[0] in steps:
            levels = np.abs(held[name].astype(np.float64)).sum(axis=(1, 2, 3)).max()
            assert levels * 128 * float(steps[conv.input[0]]) * float(held[dequantize.input[1]]) < 65504
            checked += 1
    assert checked >= 30


def test_same_numbers(files: Files, demo_set: Path, tmp_path: Path) -> None:
    """Equal to float precision behind the first layer; at the end nearer than INT8 is to float.

    Where float32 products in another order end on the other side of a rounding edge, one value moves by a whole step.
    """
    image = network_input(read_image_bgr(sorted((demo_set.parent / "images" / "val").iterdir())[0]), (320, 320))[0]
    first, last = (
        [np.asarray(value) for value in run(files[name], image, "/model.0/conv/Conv_output_0", tmp_path)]
        for name in ("plain", "rtx")
    )
    np.testing.assert_allclose(last[0], first[0], rtol=1e-5, atol=1e-5)
    exact = run(files["float"], image, "/model.0/conv/Conv_output_0", tmp_path)[1]
    moved, quantized = np.abs(last[1] - first[1]).mean(axis=2), np.abs(first[1] - exact).mean(axis=2)
    assert (moved < 0.5 * quantized).all()


def run(path: Path, image: NDArray[np.float32], tensor: str, folder: Path) -> list[NDArray[np.float32]]:
    """A tensor inside a graph and its output."""
    model = onnx.load(path)
    model.graph.output.insert(0, onnx.helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, None))
    onnx.save(model, str(folder / path.name))
    with OnnxRuntimeRunner(folder / path.name, optimize=False) as runner:
        return runner.infer(image)


def test_a_pair_stands_behind_each_enlargement(files: Files) -> None:
    graph = onnx.load(files["rtx"]).graph
    readers = {name: node for node in graph.node for name in node.input}
    source = {node.output[0]: node for node in graph.node}
    enlargements = [node for node in graph.node if node.op_type == "Resize"]
    assert len(enlargements) == 2
    for node in enlargements:
        before, behind = source[node.input[0]], readers[node.output[0]]
        assert (before.op_type, behind.op_type) == ("DequantizeLinear", "QuantizeLinear")
        assert list(before.input[1:]) == list(behind.input[1:])


def test_a_split_convolution_is_one_per_part(files: Files, demo_set: Path) -> None:
    graph = onnx.load(files["float rtx"]).graph
    kinds = Counter(node.op_type for node in graph.node)
    before = Counter(node.op_type for node in onnx.load(files["float"]).graph.node)
    assert (before["Split"] - kinds["Split"], kinds["Conv"] - before["Conv"]) == (8, 8)  # 8 C2f in two parts each
    image = network_input(read_image_bgr(sorted((demo_set.parent / "images" / "val").iterdir())[0]), (320, 320))[0]
    with (
        OnnxRuntimeRunner(files["float"], optimize=False) as whole,
        OnnxRuntimeRunner(files["float rtx"], False) as parts,
    ):
        np.testing.assert_allclose(parts.infer(image)[0], whole.infer(image)[0], rtol=1e-4, atol=1e-3)


def test_what_else_reads_keeps_the_convolution_whole() -> None:
    """A split result that something reads as a whole, or an activation with numbers of its own, is left alone."""
    for change in ("reader", "constant", "none"):
        images = gs.Variable("images", np.float32, (1, 3, 8, 8))
        conv, half, whole = (gs.Variable(name, np.float32, (1, 4, 8, 8)) for name in ("conv", "sigmoid", "product"))
        parts = [gs.Variable(f"part{index}", np.float32, (1, 2, 8, 8)) for index in range(2)]
        weight = gs.Constant("m.weight", np.arange(12, dtype=np.float32).reshape(4, 3, 1, 1))
        factor = gs.Constant("factor", np.ones((1, 4, 1, 1), np.float32)) if change == "constant" else conv
        nodes = [
            gs.Node("Conv", "/m/Conv", {}, [images, weight], [conv]),
            gs.Node("Sigmoid", "/m/Sigmoid", {}, [conv], [half]),
            gs.Node("Mul", "/m/Mul", {}, [half, factor], [whole]),
            gs.Node("Split", "/m/Split", {"axis": 1, "num_outputs": 2}, [whole], parts),
        ]
        outputs = [*parts, whole] if change == "reader" else parts
        if change == "reader":
            read = gs.Variable("read", np.float32, (1, 4, 8, 8))
            nodes.append(gs.Node("Relu", "/m/Relu", {}, [whole], [read]))
            outputs = [*parts, read]
        graph = gs.Graph(nodes, [images], outputs, opset=19)
        convolve_parts_(graph)
        assert sum(node.op == "Split" for node in graph.nodes) == (change != "none")
        assert sum(node.op == "Conv" for node in graph.nodes) == 1 + (change == "none")


def test_lint_names_what_the_form_mends(files: Files) -> None:
    found = Counter(finding.rule for finding in lint(files["plain fp16"], "tensorrt-rtx").findings)
    assert (found["rtx-channel-scales"], found["rtx-enlarged"]) == (55, 2)
    assert not {"rtx-channel-scales", "rtx-enlarged"} & {f.rule for f in lint(files["plain fp16"]).findings}


def test_lint_has_nothing_to_say(files: Files) -> None:
    report = lint(files["rtx fp16"], "tensorrt-rtx")
    assert (report.errors, report.warnings) == (0, 0), report.as_text()
    assert report.counts.int8_convs == 57
