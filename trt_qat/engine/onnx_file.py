"""What an ONNX file says about itself, and one clear message when it is not an ONNX file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Final

import onnx
from onnx import TensorProto

from trt_qat.onnx_reading import metadata_texts, read_detector

_FLOATS: Final[dict[int, str]] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.DOUBLE: "fp64",
}
_QUANTIZED: Final[dict[int, str]] = {
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "int8",
    TensorProto.INT16: "int16",
    TensorProto.UINT16: "int16",
    TensorProto.INT4: "int4",
    TensorProto.UINT4: "int4",
    TensorProto.FLOAT8E4M3FN: "fp8",
    TensorProto.FLOAT8E4M3FNUZ: "fp8",
    TensorProto.FLOAT8E5M2: "fp8",
    TensorProto.FLOAT8E5M2FNUZ: "fp8",
}
# ONNX's own operators that compute in 8 bits; ONNX Runtime's are called QLinear... too, or are the others
_INT8_OPERATORS: Final = frozenset(
    {"DynamicQuantizeLinear", "ConvInteger", "MatMulInteger"}
    | {"QGemm", "QAttention", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "ConvIntegerToFloat"}
)


def onnx_metadata(path: Path) -> dict[str, str]:
    """The file's ``metadata_props`` (Ultralytics: names, imgsz, stride, task ...), and ``precision`` in any case.

    Raises:
        ArtifactError: the file is missing, empty, truncated, not sound ONNX, or its input or metadata are not a
            detector's.
    """
    model = read_detector(path)
    said = metadata_texts(model)
    return said if "precision" in said else {**said, "precision": graph_precision(model)}


def graph_precision(model: onnx.ModelProto) -> str:
    """What a graph computes in: its quantized type, if any, and the type of most of its float numbers.

    Q/DQ pairs on activations, operators that take 8-bit integers and dynamic quantization all count as quantized;
    weights alone in 8 bits (DequantizeLinear without QuantizeLinear) do not, for they are computed in float.

    Returns:
        Such as "int8+fp32", "int8+fp16", "fp32" or "fp16".
    """
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    constants = dict(_constants(model, nodes))
    floats: Counter[str] = Counter()
    for tensor in constants.values():
        if tensor.data_type in _FLOATS:
            floats[_FLOATS[tensor.data_type]] += prod(tensor.dims)
    base = floats.most_common(1)[0][0] if floats else "fp32"
    quantized = _quantized_type(nodes, constants)
    return f"{quantized}+{base}" if quantized else base


def _quantized_type(nodes: list[onnx.NodeProto], constants: dict[str, onnx.TensorProto]) -> str | None:
    found: Counter[str] = Counter()
    for node in nodes:
        if node.op_type in _INT8_OPERATORS or node.op_type.startswith("QLinear"):
            found["int8"] += 1
        elif node.op_type == "QuantizeLinear" and node.input[0] not in constants:
            found[_QUANTIZED.get(_stored_type(node, constants), "int8")] += 1
    return found.most_common(1)[0][0] if found else None


def _stored_type(quantize: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> int:
    """The element type that a QuantizeLinear makes: its zero point's, or the one it names; uint8 without either."""
    for attribute in quantize.attribute:
        if attribute.name == "output_dtype" and attribute.i:
            return int(attribute.i)
    has_zero_point = len(quantize.input) > 2 and quantize.input[2] in constants
    return int(constants[quantize.input[2]].data_type) if has_zero_point else int(TensorProto.UINT8)


def _constants(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> Iterator[tuple[str, onnx.TensorProto]]:
    for tensor in model.graph.initializer:
        yield tensor.name, tensor
    for node in nodes:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "value":
                yield node.output[0], attribute.t
