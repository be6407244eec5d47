"""Recorded logs of the installed version are read to the numbers counted in them; all else is refused in a line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import prod
from typing import Any

import pytest

from trt_qat.engine.compiled import BITS, FUSED, ROLES, CompiledEngine, CompiledTensor
from trt_qat.engine.compiler_log import engine_from_log
from trt_qat.engine.kernel_work import make_kernel
from trt_qat.engine.onnx_nodes import OnnxNode
from trt_qat.errors import EngineError

VERSION = "1.7.1.116"
# the demo's detector at 320 px, batch 1: kernels, bytes of activations and of weights, convolutions by type, SiLU fused
ROWS: dict[str, tuple[int, int, int, dict[tuple[str, str], int], int]] = {
    "yolov8n_320_fp32": (92, 55_811_600, 12_070_112, {("Float", "Float"): 64}, 57),
    "yolov8n_320_fp16": (95, 30_024_800, 6_261_206, {("Half", "Half"): 63, ("Float", "Float"): 1}, 56),
    "yolov8n_320_int8_fp16": (
        133,
        42_891_360,
        3_234_402,
        {("Int8", "Float"): 55, ("Half", "Half"): 8, ("Float", "Float"): 1},
        0,
    ),
    "yolov8n_320_int8_fp16_sm75": (180, 51_485_488, 4_108_276, {("Half", "Half"): 63, ("Float", "Float"): 1}, 6),
}
ONNX_MACS = 1_011_148_800  # of the network; a compiler that pads 3 channels to 4 computes 3,686,400 more


def read(text: str, **arguments: Any) -> CompiledEngine:
    return engine_from_log(text, **{"version": VERSION, "sm": 89, **arguments})


@pytest.mark.parametrize("name", ROWS)
def test_what_a_recorded_log_says(recorded: Callable[[str], str], name: str) -> None:
    kernels, activations, weights, convolutions, fused = ROWS[name]
    engine = read(recorded(name))
    assert (engine.kernel_count, engine.activation_bytes, engine.weight_bytes) == (kernels, activations, weights)
    assert {pair: len(found) for pair, found in engine.convolutions.items()} == convolutions
    assert sum("activation" in kernel.fused for kernel in engine.kernels) == fused
    assert [(tensor.name, tensor.shape) for tensor in engine.inputs] == [("images", (1, 3, 320, 320))]
    assert [(tensor.name, tensor.shape) for tensor in engine.outputs] == [("output0", (1, 11, 2100))]


@pytest.mark.parametrize("name", ROWS)
def test_totals_are_sums_over_the_kernels(recorded: Callable[[str], str], name: str) -> None:
    engine = read(recorded(name))
    tensors = [tensor for kernel in engine.kernels for tensor in (*kernel.inputs, *kernel.outputs)]
    assert engine.activation_bytes == sum(prod(tensor.shape) * BITS[tensor.dtype] // 8 for tensor in tensors)
    assert engine.macs == sum(kernel.macs for kernel in engine.kernels)
    assert sum(engine.count(role) for role in ROLES) == engine.kernel_count
    said = engine.as_dict()
    for total in ("activation_bytes", "weight_bytes", "macs"):
        assert said[total] == sum(layer[total] for layer in said["layers"])
    assert said["kernels"] == len(said["layers"]) == sum(said["roles"].values())
    fused = Counter(what for layer in said["layers"] for what in layer["fused"])
    assert fused == Counter({what: sum(row["fused"][what] for row in said["convolutions"]) for what in FUSED})


@pytest.mark.parametrize(
    ("name", "padded"),
    [("yolov8n_320_fp32", 0), ("yolov8n_320_fp16", 3_686_400), ("yolov8n_320_int8_fp16", 3_686_400)],
)
def test_work_without_the_file_counts_padding_and_with_it_does_not(
    recorded: Callable[[str], str], name: str, padded: int
) -> None:
    assert read(recorded(name)).macs == ONNX_MACS + padded
    first = {"/model.0/conv/Conv": OnnxNode("Conv", "model.0.conv", 16 * 3 * 9 * 160 * 160)}
    assert read(recorded(name), nodes=first).macs == ONNX_MACS


def test_a_kernel_in_full(recorded: Callable[[str], str]) -> None:
    engine = read(recorded("yolov8n_320_fp16"))
    (kernel,) = [kernel for kernel in engine.kernels if "/model.2/m.0/Add" in kernel.onnx_nodes]
    assert (kernel.name, kernel.kind, kernel.ops) == (
        "__myl_CorrSiluAdd_myl0_10",
        "runtime_fusion",
        ("Corr", "Silu", "Add"),
    )
    assert kernel.onnx_nodes == (
        "/model.2/m.0/cv2/conv/Conv",
        "/model.2/m.0/cv2/act/Sigmoid",
        "/model.2/m.0/cv2/act/Mul",
        "/model.2/m.0/Add",
    )
    assert kernel.module == "model.2.m.0.cv2.conv"
    assert kernel.fused == ("bias", "activation", "add")
    assert kernel.macs == 16 * 16 * 9 * 80 * 80
    assert kernel.activation_bytes == 3 * 16 * 80 * 80 * 2
    assert kernel.weight_bytes == (16 * 16 * 9 + 16) * 2
    assert (kernel.role, kernel.input_type, kernel.output_type) == ("convolution", "Half", "Half")


def test_a_1x1_convolution_done_as_a_matrix_product_is_a_convolution(recorded: Callable[[str], str]) -> None:
    engine = read(recorded("yolov8n_320_fp16"))
    products = [kernel for kernel in engine.kernels if kernel.is_product]
    assert {kernel.name.split("_myl0")[0] for kernel in products} == {"__myl_FcAddSilu", "__myl_FcAdd"}
    assert all(kernel.is_convolution and "bias" in kernel.fused and "add" not in kernel.fused for kernel in products)
    assert products[0].macs == 256 * 256 * 100


def test_int8_convolutions_leave_everything_to_a_kernel_behind_them(recorded: Callable[[str], str]) -> None:
    engine = read(recorded("yolov8n_320_int8_fp16"))
    found = engine.convolutions["Int8", "Float"]
    assert all(kernel.fused == () for kernel in found)
    behind = [kernel for kernel in engine.kernels if kernel.role == "pointwise" and "Silu" in kernel.ops]
    assert len(behind) == 57
    assert behind[0].module == "model.0.act"


def test_bias_without_weights_among_the_constants(recorded: Callable[[str], str]) -> None:
    """On SM 75 a kernel of its own turns INT8 weights into Half: the convolution reads them like data."""
    engine = read(recorded("yolov8n_320_int8_fp16_sm75"))
    (kernel,) = [one for one in engine.kernels if one.name == "/model.1/conv/Conv_myl0_5"]
    assert kernel.weight is kernel.inputs[1]
    assert kernel.fused == ("bias",)
    assert kernel.macs == 32 * 16 * 9 * 80 * 80


def test_transposed_convolution(recorded: Callable[[str], str]) -> None:
    engine = read(recorded("deconvolution_fp16"))
    (kernel,) = [one for one in engine.kernels if one.is_convolution]
    assert kernel.macs == 16 * 32 * 2 * 2 * 32 * 32
    assert kernel.fused == ("bias",)  # the nodes are called "up" and "r": what they are is not in the log
    nodes = {"up": OnnxNode("ConvTranspose", "a", kernel.macs), "r": OnnxNode("Relu", "b", 0)}
    (kernel,) = [one for one in read(recorded("deconvolution_fp16"), nodes=nodes).kernels if one.is_convolution]
    assert (kernel.fused, kernel.module) == (("bias", "activation"), "a")


PRODUCTS = {"k": 2 * 100 * 64 * 64, "q": 2 * 100 * 64 * 64, "out": 2 * 100 * 64 * 128}
ATTENTION = {"qk": 2 * 100 * 100 * 64, "pv": 2 * 100 * 100 * 64}


def test_attention_in_one_kernel_needs_the_file(recorded: Callable[[str], str]) -> None:
    with pytest.raises(EngineError, match=r"matrix product '_gemm_mha_v2_myl0_4' cannot be counted"):
        read(recorded("attention_fp16"))
    nodes = {name: OnnxNode("MatMul", "?", count) for name, count in ATTENTION.items()}
    engine = read(recorded("attention_fp16"), nodes={**nodes, "sm": OnnxNode("Softmax", "?", 0)})
    assert engine.macs == sum(ATTENTION.values()) + sum(PRODUCTS.values())
    assert engine.count("matmul") == 4
    assert {kernel.name.split("_")[0]: kernel.macs for kernel in engine.kernels if kernel.kind == "gemm"} == PRODUCTS


@pytest.mark.parametrize(
    ("left", "right", "result", "macs"),
    [
        ((2, 100, 32), (2, 32, 100), (2, 100, 100), 2 * 100 * 100 * 32),
        ((2, 64, 100), (2, 100, 100), (2, 64, 100), 2 * 64 * 100 * 100),
        ((2, 64, 100), (64, 64), (2, 64, 100), 2 * 100 * 64 * 64),
        ((200, 64), (64, 128), (200, 128), 200 * 64 * 128),
        ((1, 8), (8, 8), (1, 8), 8 * 8),
        ((2, 100, 32), (2, 32, 100), (2, 100, 99), None),
        ((3, 5), (5, 7), (3, 8), None),
        ((64,), (64, 10), (10,), None),
    ],
)
def test_a_product_by_its_operands(
    left: tuple[int, ...], right: tuple[int, ...], result: tuple[int, ...], macs: int | None
) -> None:
    one, two, out = (CompiledTensor(name, "Half", shape) for name, shape in (("a", left), ("b", right), ("c", result)))
    scale = CompiledTensor("alpha", "Float", (1,))
    if macs is None:
        with pytest.raises(EngineError, match="cannot be counted"):
            make_kernel("p", "gemm", ("p",), (one,), (out,), (two, scale), None)
    else:
        assert make_kernel("p", "gemm", ("p",), (one, two), (out,), (scale,), None).macs == macs


TENSOR = (
    "{ Name: %s, Dimensions: [1,8], Strides: [8,1], StrideOrder: [1,0], Datatype: Half, "
    "Format: (Linear) Row major linear format }"
)
LAYER = (
    f"Name: __myl_Relu_myl0_0, LayerType: kgen, Inputs: [ {TENSOR % 'x'}], Constants: [], Outputs: [ {TENSOR % 'y'}], "
    "TacticName: t, StreamId: 0, Metadata: [ONNX Layer: r]"
)
END = (
    "\n\nI/O Tensors:\n Name: x, IOMode: Input, DataType: Half, Dimensions: [1,8], Location: Device, "
    "IsShapeInferenceIO: false, ProfileInfo: []\n\nEngine Metadata:\n"
)


def log(layer: str = LAYER, head: str = "VERBOSE Layers:\n", end: str = END) -> str:
    return f"INFO words\n{head}{layer}{end}"


def test_a_log_without_severities() -> None:
    assert read(log(head="Layers:\n")).activation_bytes == 2 * 8 * 2


@pytest.mark.parametrize("mark", ["\x85", "\u2028", "\x0b", "é"])
def test_a_name_may_hold_what_other_texts_end_lines_with(mark: str) -> None:
    text = log(LAYER.replace("Name: x,", f"Name: x{mark}x,"))
    if mark == "\x0b":  # a control character, which no checked ONNX file has
        with pytest.raises(EngineError, match="not understood"):
            read(text)
    else:
        assert read(text).kernels[0].inputs[0].name == f"x{mark}x"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no list of layers"),
        ("INFO Layers:", "no end"),
        (log() + log(), "2 lists of layers"),
        (log(end=""), "cut off"),
        (log(end="\n\nsomething else"), "cut off"),
        (log(LAYER[:200]), "a layer that is not understood"),
        (log(f"{LAYER}\nsomething"), "a layer that is not understood: 'something'"),
        (log(LAYER.replace("kgen", "kernel_of_1_8")), "type never seen in a compiler's log: 'kernel_of_1_8'"),
        (log(LAYER.replace("Half", "NF4", 1)), "data type never seen: 'NF4'. Known: Float, Half"),
        (log(LAYER.replace("Dimensions: [1,8]", "Dimensions: [1,-1]", 1)), "a tensor that is not understood"),
        (log(LAYER.replace("Dimensions: [1,8]", "Dimensions: [1,,8]", 1)), r"shape that is not understood: '\[1,,8\]'"),
        (log(LAYER.replace("[1,8]", "[1,999999999999999]", 1)), "shape that is not understood"),
        (log(LAYER.replace("Datatype: Half, ", "", 1)), "a tensor that is not understood"),
        (log(LAYER.replace("Strides: [8,1], ", "Padding: 4, Strides: [8,1], ", 1)), "a tensor that is not understood"),
        (log(LAYER.replace(", TacticName", ", Bytes: 3, TacticName")), "a layer that is not understood"),
        (log(LAYER.replace("[ONNX Layer: r]", "ONNX Layer: r")), "metadata that are not understood"),
        (
            log(LAYER.replace("[ONNX Layer: r]", "[ONNX Layer: r][ONNX Layer: s]__new")),
            "metadata that are not understood",
        ),
        (log(LAYER.replace("[ONNX Layer: r]", "[ONNX Layer: r][ONNX Layer: s]")), "metadata that are not understood"),
        (log(LAYER.replace("Name: x", "Name: x, LayerType: wait, Inputs: [", 1)), "a layer that is not understood"),
        (log(end=END.replace("IOMode: Input", "IOMode: Both")), "an input or output that is not understood"),
        (log(LAYER.replace("kgen", "correlation")), "weight of convolution .* is not listed"),
        (log(LAYER[: LAYER.index(" { Name: y")] + "], TacticName: t, StreamId: 0, Metadata: "), "writes nothing"),
    ],
)
def test_what_is_not_known_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(EngineError, match=message) as caught:
        read(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("version", ["1.6.0.1", "1.8.0", "10.13.0", "2", ""])
def test_a_version_that_nobody_looked_at_is_refused(version: str) -> None:
    with pytest.raises(EngineError, match=r"cannot be read: .* looked at for 1.7.\* only. Install one of these"):
        read(log(), version=version)


@pytest.mark.parametrize("patch", ["1.7.0.1", "1.7.2"])
def test_a_patch_of_a_known_release_is_read(patch: str) -> None:
    assert read(log(), version=patch).version == patch


def test_a_long_line_is_refused_at_once() -> None:
    """Marks repeated ten thousand times must not make the expression try every way to match them."""
    with pytest.raises(EngineError, match="a layer that is not understood"):
        read(log("Name: a, LayerType: kgen, Inputs: [" + "], Constants: [" * 10_000))
