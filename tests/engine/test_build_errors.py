"""TensorRT's messages: recorded ones against the table, real ones out of TensorRT-RTX, which parses without a GPU."""
# ruff: noqa: E501  messages are kept as they were

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from trt_qat.config import EngineSection
from trt_qat.engine.build import build_engine
from trt_qat.engine.build_errors import KNOWN, Complaint, advice, explained
from trt_qat.errors import EngineError

# What TensorRT said, from NVIDIA/TensorRT's issues (by number), NVIDIA/Model-Optimizer's, DeepStream-Yolo's, others', and
# from TensorRT-RTX 1.7.1 ("rtx"); then what the advice begins with.
RECORDED: dict[str, tuple[str, str]] = {
    "2774": (
        '[6] Assertion failed: shiftIsAllZeros(zeroPoint) && "TRT only supports symmetric quantization - zeroPt must be '
        'all zeros"',
        "TensorRT takes signed INT8",
    ),
    "4698": (
        "[6] Assertion failed: shiftIsAllZeros(zeroPoint): Non-zero zero point is not supported. Please set "
        "kENABLE_UINT8_AND_ASYMMETRIC_QUANTIZATION_DLAto enable asymmetric quantization if it is on DLA.",
        "TensorRT takes signed INT8",
    ),
    "rtx scale": (
        "Assertion failed: (scaleAllPositive || allowNegativeScale): Scale coefficients must all be positive",
        "A range of it is empty",
    ),
    "rtx scales": (
        "Assertion failed: K == scaleSize: The number of scales is not equal to the number of output channels. Number of "
        "output channels = 8, number of scales = 5.",
        "The scales do not fit",
    ),
    "994": ("In node 8 (importDequantizeLinear): INVALID_NODE: Assertion failed: K == scale.count()", "The scales do"),
    "749": (
        "Internal error: could not find any implementation for node 9_full_with_bias, try increasing the workspace size "
        "with IBuilder::setMaxWorkspaceSize()",
        "Raise engine.workspace_mib",
    ),
    "DeepStream-Yolo 366": (
        "2: [virtualMemoryBuffer.cpp::resizePhysical::160] Error Code 2: OutOfMemory (no further information)",
        "The GPU's memory is full",
    ),
    "948": (
        r"C:\source\rtSafe\safeRuntime.cpp (25) - Cuda Error in nvinfer1::internal::DefaultAllocator::allocate: 2 (out "
        "of memory)",
        "The GPU's memory is full",
    ),
    "2918": (
        "[optimizer.cpp::computeCosts::3728] Error Code 10: Internal Error (Could not find any implementation for node "
        "{ForeignNode[177...Reshape_81 + (Unnamed Layer* 146) [Shuffle]]}.)",
        "Leave it float (--set quantization.exclude=[MODULE])",
    ),
    "3040": (
        "Error[2]: Assertion !n->candidateRequirements.empty() failed. All of the candidates were removed, which points to "
        "the node being incorrectly marked as an int8 node.",
        "Leave it float",
    ),
    "2647": ("Skipping tactic 0x0 due to Myelin error: Autotuner: no tactics to implement operation", "Leave it float"),
    "2285": (
        '[8] Assertion failed: creator && "Plugin not found, are the plugin name, version, and namespace correct?"',
        "TensorRT has no such operator",
    ),
    "rtx NonZero": (
        "Assertion failed: creator && getPluginCreatorVersion(creator) == CreatorVersion::kV3ONE: NonZero plugin creator "
        "version 1 was not found in plugin registry.",
        "TensorRT has no such operator",
    ),
    "rtx type": (
        "ITensor::getDimensions: Error Code 4: API Usage Error (/model.0/conv/Conv: IConvolutionLayer `input` and `kernel` "
        "must be of same type. `input` type is Half but `kernel` is of type Float. In validateTypes at "
        "/_src/optimizer/common/nodes/convolutionNode.cpp:88)",
        "The file mixes FP16 and FP32",
    ),
    "AnimeJaNai 36": (
        "/PRelu_6_lessZero = lt(/Conv_6_output_0', /PRelu_6_zero), name=/PRelu_6_less Error is: Input 0's element type "
        "(half) differs from input 1's element type (float).",
        "The file mixes FP16 and FP32",
    ),
    "rtx concat": (
        "ITensor::getDimensions: Error Code 4: Internal Error (/model.1/Concat: all concat input tensors must have the "
        "same dimensions except on the concatenation axis (1), but dimensions mismatched at index 2.",
        "Its inputs do not fit",
    ),
    "rtx TopK": (
        "IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error (ITopKLayer /model.22/TopK: /model.22/TopK: K "
        "exceeds the maximum value allowed (3840).",
        "TensorRT sorts at most 3840",
    ),
    "rtx profile": (
        "IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error (Network has dynamic or shape inputs, but no "
        "optimization profile has been defined.",
        "Check the sizes and batches",
    ),
    "rtx lean": (
        "IBuilder::buildSerializedNetwork: Error Code 6: API Usage Error (Unable to load library: libnvinfer_lean.so.1: "
        "libnvinfer_lean.so.1: cannot open shared object file: No such file or directory",
        "engine.version_compatible needs",
    ),
    "library": (
        "Error Code 6: API Usage Error (Unable to load library: libnvinfer_builder_resource.so.10.9.0: cannot open shared",
        "TensorRT is not installed completely",
    ),
    "tita_rl 7": (
        "IBuilder::buildSerializedNetwork: Error Code 9: API Usage Error (Target GPU SM 120 is not supported by this "
        "TensorRT release.)",
        "This TensorRT has no kernels for this GPU",
    ),
    "2727": ("Internal Error (Unsupported SM: 0x809)", "This TensorRT has no kernels for this GPU"),
    "rtx driver": (
        "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (In catchCudaError at "
        "/_src/common/dispatch/checkMacros.cpp:250 (cudaError 35: CUDA driver version is insufficient for CUDA runtime "
        "version))",
        "The NVIDIA driver is missing",
    ),
}


@pytest.mark.parametrize(("message", "helps"), RECORDED.values(), ids=RECORDED)
def test_recorded_messages(message: str, helps: str) -> None:
    assert advice(message).startswith(helps)


def test_each_row_has_a_recorded_message_and_an_unknown_one_gets_advice_too() -> None:
    met = {next(row for row in KNOWN if row.pattern.search(message)).pattern for message, _ in RECORDED.values()}
    assert met == {row.pattern for row in KNOWN}
    assert advice("Error Code 4: Internal Error (something new)").startswith("`trt-qat lint` may name the cause")


def _conv(name: str, source: str, result: str, weight: str | None = None) -> onnx.NodeProto:
    return helper.make_node("Conv", [source, weight or "w"], [result], name, pads=[1] * 4)


def _write(
    path: Path, nodes: Sequence[onnx.NodeProto], constants: dict[str, Any], type_of_output: int = TensorProto.FLOAT
) -> Path:
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 64, 64])
    out = helper.make_tensor_value_info("y", type_of_output, None)
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(list(nodes), "g", [images], [out], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), path)
    return path


WEIGHT = np.ones((3, 3, 3, 3), np.float32)


@pytest.fixture
def quantized(tmp_path: Path) -> Path:
    """Two convolutions with names as torch.onnx gives them, Q/DQ before the first."""
    nodes = [
        helper.make_node(
            "QuantizeLinear", ["images", "s", "z"], ["q"], "/model.0/conv/_input_quantizer/QuantizeLinear"
        ),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "/model.0/conv/_input_quantizer/DequantizeLinear"),
        _conv("/model.0/conv/Conv", "d", "a"),
        helper.make_node("Sigmoid", ["a"], ["b"], "/model.0/act/Sigmoid"),
        helper.make_node("Mul", ["a", "b"], ["c"], "/model.0/act/Mul"),
        _conv("/model.2/m.0/cv1/conv/Conv", "c", "e", "model.2.m.0.cv1.conv.weight"),
        helper.make_node("Relu", ["e"], ["y"], "/model.2/m.0/cv1/conv/Conv_1"),
    ]
    constants = {"w": WEIGHT, "model.2.m.0.cv1.conv.weight": WEIGHT, "s": np.float32(0.1), "z": np.int8(0)}
    return _write(tmp_path / "x.onnx", nodes, constants)


@pytest.mark.parametrize(
    ("named", "said", "excluded"),
    [
        ("/model.0/conv/Conv", "the PyTorch module model.0.conv.", "[model.0.conv]"),
        (  # issue 3640
            "/model.0/conv/Conv + PWN(PWN(/model.0/act/Sigmoid), /model.0/act/Mul)",
            "the PyTorch modules model.0.conv, model.0.act.",
            "[model.0.conv]",
        ),
        (
            "{ForeignNode[/model.0/act/Mul.../model.2/m.0/cv1/conv/Conv]}",
            "the PyTorch modules model.0.act, model.2.m.0.cv1.conv.",
            "[model.2.m.0.cv1.conv]",
        ),
        (  # as in Model-Optimizer issue 50
            "model.2.m.0.cv1.conv.weight + model.2.m.0.cv1.conv.weight_QuantizeLinear",
            "the PyTorch module model.2.m.0.cv1.conv.",
            "[model.2.m.0.cv1.conv]",
        ),
        ("(Unnamed Layer* 146) [Shuffle]", None, "[MODULE]"),
    ],
)
def test_the_module_of_a_layer_without_a_kernel(quantized: Path, named: str, said: str | None, excluded: str) -> None:
    logged = [
        f"10: Could not find any implementation for node {named}.",
        f"Error Code 10: Internal Error (Could not find any implementation for node {named}.)",
        "2: [builder.cpp::buildSerializedNetwork::751] Error Code 2: Internal Error (Assertion engine != nullptr failed. )",
    ]
    text = explained(
        Complaint.of_log(logged, "Invalid Engine. Please ensure the engine was built correctly"), quantized
    )
    assert text.startswith(f"Error Code 10: Internal Error (Could not find any implementation for node {named}.).")
    assert ("It comes from" in text) == (said is not None)
    assert (said or "") in text
    assert f"Leave it float (--set quantization.exclude={excluded}) and export again" in text
    assert "\n" not in text


def test_a_float_file_has_nothing_to_leave_float(tmp_path: Path) -> None:
    path = _write(tmp_path / "x.onnx", [_conv("/model.0/conv/Conv", "images", "y")], {"w": WEIGHT})
    text = explained(Complaint("Could not find any implementation for node /model.0/conv/Conv"), path)
    assert "It comes from the PyTorch module model.0.conv. Raise engine.workspace_mib" in text
    assert "exclude" not in text


def test_of_the_log_the_cause_counts() -> None:
    driver = RECORDED["rtx driver"][0]
    assert Complaint.of_log(["the cause.", driver], "x").message == "the cause"
    assert Complaint.of_log([driver], "x").message == driver.rstrip(".")
    assert Complaint.of_log([], "Invalid Engine.\n Please").message == "Invalid Engine. Please"


def test_a_file_that_cannot_be_read_any_more_still_gets_advice(tmp_path: Path) -> None:
    text = explained(Complaint("Could not find any implementation for node x", "x", "Conv"), tmp_path / "gone.onnx")
    assert text.startswith("node 'x' (Conv): Could not find any implementation for node x. Leave it float")


def _qdq(scale: Any, zero: Any) -> tuple[list[onnx.NodeProto], dict[str, Any]]:
    nodes = [
        helper.make_node(
            "QuantizeLinear", ["images", "s", "z"], ["q"], "/model.0/conv/_input_quantizer/QuantizeLinear"
        ),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "/model.0/conv/_input_quantizer/DequantizeLinear"),
        _conv("/model.0/conv/Conv", "d", "y"),
    ]
    return nodes, {"s": scale, "z": zero, "w": WEIGHT}


TOPK = [
    helper.make_node("Reshape", ["images", "flat"], ["f"], "/model.22/Reshape"),
    helper.make_node("TopK", ["f", "k"], ["y", "i"], "/model.22/TopK"),
]
INTEGER = [
    helper.make_node("DynamicQuantizeLinear", ["images"], ["q", "s", "z"], "/model.0/conv/DynamicQuantizeLinear"),
    helper.make_node("ConvInteger", ["q", "w", "z"], ["y"], "/model.0/conv/ConvInteger"),
]
PROVOKED: dict[str, tuple[Any, str, str]] = {
    "zero point": (
        _qdq(np.float32(0.1), np.uint8(128)),
        r"node '/model.0/conv/_input_quantizer/QuantizeLinear' \(QuantizeLinear\): .*zero point is not supported",
        "module model.0.conv. TensorRT takes signed INT8",
    ),
    "scale 0": (
        _qdq(np.float32(0), np.int8(0)),
        "Scale coefficients must all be positive",
        "module model.0.conv. A range of it is empty",
    ),
    "types": (
        ([_conv("/model.0/conv/Conv", "images", "y")], {"w": WEIGHT.astype(np.float16)}),
        r"'/model.0/conv/Conv' \(Conv\): .*must be of same type",
        "module model.0.conv. The file mixes FP16 and FP32",
    ),
    "operator": (
        (INTEGER, {"w": WEIGHT.astype(np.uint8)}, TensorProto.INT32),
        r"\(DynamicQuantizeLinear\): UNSUPPORTED_NODE",
        "module model.0.conv. TensorRT has no such operator",
    ),
    "sorting": (
        (TOPK, {"flat": np.array([1, -1]), "k": np.array([4000])}),
        "K exceeds the maximum",
        "module model.22. TensorRT sorts at most 3840",
    ),
}


@pytest.mark.parametrize(("graph", "said", "helps"), PROVOKED.values(), ids=PROVOKED)
def test_tensorrt_rtx_itself(graph: Any, said: str, helps: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    path = _write(tmp_path / "x.onnx", *graph)
    with pytest.raises(EngineError, match=said) as caught:
        build_engine(path, tmp_path / "x.plan", EngineSection(flavor="tensorrt-rtx", timing_cache=""))
    assert f"It comes from the PyTorch {helps}" in str(caught.value)
    assert "cudaError 35" not in str(caught.value)  # no GPU is here, which is not why
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x.plan").exists()
