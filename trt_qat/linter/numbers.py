"""Rules on the numbers of a quantizer: type, zero point, scale. Most are refusals of TensorRT.

ONNX Runtime and OpenVINO take more; which of the two takes what was tried with 1.32 and 2026.4.

What TensorRT does with each defect was tried with the TensorRT-RTX 1.7 ONNX parser and builder, strongly typed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import TensorProto

from trt_qat.linter.finding import Place
from trt_qat.linter.graph import CONV_OPS, QdqGraph, Quantization
from trt_qat.linter.view import DEQUANTIZE, FLOAT_TYPES, QUANTIZE, Node

# INT4 and the FP8/FP4 types are TensorRT types too; they are not INT8, but they are no defect.
_ACCEPTED_TYPES = frozenset(
    {TensorProto.INT8, TensorProto.INT4, TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT4E2M1, TensorProto.UNDEFINED}
)
_ONE_FLOAT_TYPE_OPS = CONV_OPS | {"Add", "Sub", "Mul", "Div", "Concat", "MatMul", "Gemm"}
# Beside those whose name begins with QLinear.
_QOPERATOR_OPS = frozenset({"ConvInteger", "MatMulInteger", "QGemm", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"})


def qoperator(graph: QdqGraph) -> Iterator[Place]:
    """Operators with built-in quantization (ONNX Runtime's QOperator format); TensorRT's parser knows none of them."""
    nodes = [node for node in graph.nodes if _is_qoperator(node)]
    if nodes:
        yield Place(
            nodes[0],
            f"{len(nodes)} operators with built-in quantization, first a {nodes[0].op}: this is not a Q/DQ file",
            "Quantize again in Q/DQ format (ONNX Runtime: quant_format=QuantFormat.QDQ).",
        )


def no_qdq(graph: QdqGraph) -> Iterator[Place]:
    """No quantizer at all: an engine of this file has no INT8 layer."""
    if not any(node.is_qdq or _is_qoperator(node) for node in graph.nodes):
        message = f"no QuantizeLinear or DequantizeLinear among {len(graph.nodes)} nodes: a float model"
        advice = "Quantize it first, then export the quantized model."
        yield Place(graph.nodes[0], message, advice)


def not_int8(graph: QdqGraph) -> Iterator[Place]:
    """Quantized types other than INT8.

    uint8 with zero point 0 is the worst: TensorRT-RTX 1.7 builds it and clamps to [-128, 127] as if it were int8, so
    every value above half the range saturates. int16 and int32 (ONNX Runtime's biases) are refused.
    """
    for node in _one_per_pair(graph):
        quantization = graph.quantization(node)
        if quantization.dtype in _ACCEPTED_TYPES:
            continue
        dtype = TensorProto.DataType.Name(quantization.dtype).lower()
        if quantization.dtype == TensorProto.INT32:
            message = "int32 DequantizeLinear (a quantized bias): TensorRT refuses the file"
            advice = "Keep biases in float (ONNX Runtime: extra_options={'QuantizeBias': False})."
        elif node.op == QUANTIZE and len(node.inputs) < 3:
            message = "no zero point: ONNX then means uint8, TensorRT int8, so runtimes disagree on negative values"
            advice = "Give Q and DQ an int8 zero point of 0."
        else:
            message = f"quantized to {dtype}: TensorRT takes signed INT8 only (uint8 is refused or read as int8)"
            advice = "Quantize to int8 with zero point 0 (ONNX Runtime: activation_type=QuantType.QInt8)."
        yield Place(node, message, advice)


def asymmetric(graph: QdqGraph) -> Iterator[Place]:
    """A zero point other than 0. TensorRT: "Non-zero zero point is not supported"."""
    for node in _one_per_pair(graph):
        zero_point = graph.quantization(node).zero_point
        if zero_point is not None and np.any(zero_point):
            shown = f"{int(zero_point.reshape(-1)[0])}" if zero_point.size == 1 else f"{zero_point.size} values"
            message = f"asymmetric: zero point {shown}, TensorRT refuses any but 0"
            advice = (
                "Calibrate symmetrically (trt_qat: quantization.scheme=symmetric; ONNX Runtime: ActivationSymmetric; "
                "NNCF: preset PERFORMANCE, device GPU)."
            )
            yield Place(node, message, advice)


def non_constant_scale(graph: QdqGraph) -> Iterator[Place]:
    """A scale or zero point that is computed at run time. TensorRT needs build-time constants (RTX 1.7 crashes)."""
    for node in graph.nodes:
        if node.op == "DynamicQuantizeLinear":
            message = "DynamicQuantizeLinear computes its scale at run time"
        elif node.is_qdq and not all(graph.is_constant(name) for name in node.inputs[1:] if name):
            message = "scale or zero point is computed at run time"
        else:
            continue
        advice = "Calibrate once and store the scale as an initializer (static quantization)."
        yield Place(node, message, advice)


def bad_scale(graph: QdqGraph) -> Iterator[Place]:
    """A scale that is no positive number, or empty. TensorRT: "Scale coefficients must all be positive"."""
    for node in _one_per_pair(graph):
        scale = graph.quantization(node).scale
        if scale is not None and not (scale.size and np.all(np.isfinite(scale)) and np.all(scale > 0)):
            shown = f"scale {float(scale.min()):.6g}" if scale.size else "an empty scale"
            message = f"{shown} is not a positive number"
            advice = "Calibrate again: the range of this tensor was empty, or a weight channel is all zero."
            yield Place(node, message, advice)


def pair_mismatch(graph: QdqGraph) -> Iterator[Place]:
    """A DQ that undoes another Q than the one before it: all values are multiplied by the ratio, silently."""
    for node in graph.nodes:
        source = graph.producer(node.inputs[0]) if node.op == DEQUANTIZE else None
        if source is None or source.op != QUANTIZE:
            continue
        before, after = graph.quantization(source), graph.quantization(node)
        if not before.same_as(after):
            message = f"quantized with {before} but dequantized with {after} (or another zero point)"
            yield Place(node, message, "Let Q and DQ share scale and zero point.")


def type_mismatch(graph: QdqGraph) -> Iterator[Place]:
    """Scale and tensor, or the operands of one operator, of different float types.

    A strongly typed network never inserts a cast: TensorRT stops with "must be of same type", or the layers behind
    run in the type of the scale.
    """
    for node in graph.nodes:
        if node.op == QUANTIZE:
            names: tuple[str, ...] = node.inputs[:2]
        elif node.op in _ONE_FLOAT_TYPE_OPS:
            names = node.inputs
        else:
            continue
        types = {name: dtype for name in names if (dtype := graph.dtype(name)) in FLOAT_TYPES}
        if len(set(types.values())) > 1:
            shown = ", ".join(f"'{name}' {TensorProto.DataType.Name(dtype).lower()}" for name, dtype in types.items())
            advice = "Write scales in the type of the tensor, and one float type per operator (FP16 needs opset >= 19)."
            yield Place(node, f"{node.op} mixes float types: {shown}", advice)


def per_channel_activation(graph: QdqGraph) -> Iterator[Place]:
    """Several scales on an activation. TensorRT: per-channel quantization is for constants only."""
    for node in graph.quantizers:
        quantization = graph.quantization(node)
        if quantization.per_channel:
            message = f"activation quantized per channel ({quantization} on axis {quantization.axis}): no INT8 layer"
            advice = "Quantize activations per tensor; keep per-channel scales for weights."
            yield Place(node, message, advice)


def weight_axis(graph: QdqGraph) -> Iterator[Place]:
    """Per-channel weight scales on another axis than the output channels. ONNX's default axis is 1."""
    for conv in graph.convs:
        quantization = graph.grid(conv.inputs[1])
        expected = 1 if conv.op == "ConvTranspose" else 0
        if quantization is None or not quantization.per_channel:
            continue
        if quantization.axis % _rank(quantization, graph) != expected:
            message = f"weight has {quantization} on axis {quantization.axis}, output channels are axis {expected}"
            advice = f"Set axis={expected} on the weight's Q and DQ."
            yield Place(conv, message, advice)


def _is_qoperator(node: Node) -> bool:
    return node.op.startswith("QLinear") or node.op in _QOPERATOR_OPS


def _rank(quantization: Quantization, graph: QdqGraph) -> int:
    shape = graph.shape(quantization.node.inputs[0])
    return len(shape) if shape else 4


def _one_per_pair(graph: QdqGraph) -> Iterator[Node]:
    """Every Q, and every DQ whose input no Q made (an int8 initializer, a copied int8 tensor is its Q's matter)."""
    for node in graph.nodes:
        if node.op == QUANTIZE or (node.op == DEQUANTIZE and graph.is_constant(node.inputs[0])):
            yield node
