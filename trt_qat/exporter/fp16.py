"""FP16 for the float part of a graph, in the graph itself: TensorRT 11 takes precision from the ONNX types alone.

Everything up to the detection head's last learned layers becomes FP16; the box decoding behind them stays FP32, because
FP16 resolves pixel coordinates above 512 only to half a pixel. So there are exactly two casts: one at the input, one
per tensor that enters the decoding.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from trt_qat.operators import is_dfl_weight

SMALLEST_SCALE = float(np.finfo(np.float16).tiny)
"""FP16's smallest normal number: a scale must stay positive, and this is far below any useful one."""

# These inputs are FP32 by the ONNX specification whatever the data type.
_FLOAT32_INPUTS = {"Resize": (1, 2)}


def to_float16_(graph: gs.Graph) -> None:
    """Convert in place. Inputs and outputs of the graph keep their types."""
    graph.toposort()
    decoding = _decoding_nodes(graph)
    body = [node for node in graph.nodes if id(node) not in decoding]
    _convert_constants(body)
    for node in body:
        if node.op == "Cast" and node.attrs.get("to") == onnx.TensorProto.FLOAT:
            node.attrs["to"] = onnx.TensorProto.FLOAT16
        for output in node.outputs:
            if output.dtype == np.float32:
                output.dtype = np.dtype(np.float16)
    _cast_inputs(graph, body)
    _cast_into_decoding(graph, decoding)
    graph.cleanup().toposort()


def round_scales_(graph: gs.Graph) -> None:
    """Round every constant scale to a value that FP16 holds; it stays FP32.

    Weights that are divided by their scale afterwards are then quantized with the scale that the file has. A scale
    below FP16's smallest normal number becomes that number, which is no rounding: the weights must know it.
    """
    for node in graph.nodes:
        if node.op in {"QuantizeLinear", "DequantizeLinear"} and isinstance(node.inputs[1], gs.Constant):
            scale = node.inputs[1]
            scale.values = _half(scale.values, is_scale=True).astype(np.float32)


def _decoding_nodes(graph: gs.Graph) -> set[int]:
    """Nodes from which no learned convolution follows and which follow one: the tail that turns outputs into boxes."""
    ahead: dict[int, bool] = {}
    for node in reversed(graph.nodes):
        consumers = [c for output in node.outputs for c in output.outputs]
        ahead[id(node)] = any(_is_learned_convolution(c) or ahead[id(c)] for c in consumers)
    return {
        id(node)
        for node in graph.nodes
        if not ahead[id(node)] and not _is_learned_convolution(node) and not _only_constants_above(node)
    }


def _is_learned_convolution(node: gs.Node) -> bool:
    """Any convolution but the box decoding's fixed one (DFL).

    An INT8 DFL counts as learned: its weight's DequantizeLinear writes FP16, as all others do, and a cast to the
    decoding's FP32 behind it would end the INT8 convolution.
    """
    if node.op != "Conv":
        return False
    weight = node.inputs[1]
    return not (isinstance(weight, gs.Constant) and is_dfl_weight(weight.values))


def _only_constants_above(node: gs.Node) -> bool:
    """A weight's DequantizeLinear belongs to the convolution it feeds."""
    return bool(node.inputs) and all(isinstance(tensor, gs.Constant) for tensor in node.inputs)


def _convert_constants(body: list[gs.Node]) -> None:
    converted: dict[int, gs.Constant] = {}
    for node in body:
        for index, tensor in enumerate(node.inputs):
            if not isinstance(tensor, gs.Constant) or index in _FLOAT32_INPUTS.get(node.op, ()):
                continue
            if tensor.values.dtype != np.float32:
                continue
            if id(tensor) not in converted:
                is_scale = node.op in {"QuantizeLinear", "DequantizeLinear"} and index == 1
                converted[id(tensor)] = gs.Constant(f"{tensor.name}.fp16", _half(tensor.values, is_scale))
            node.inputs[index] = converted[id(tensor)]


def _half(values: NDArray[np.float32], is_scale: bool) -> NDArray[np.float16]:
    limit = np.finfo(np.float16)
    half = np.clip(values, limit.min, limit.max).astype(np.float16)
    return np.asarray(np.maximum(half, SMALLEST_SCALE) if is_scale else half, dtype=np.float16)


def _cast_inputs(graph: gs.Graph, body: list[gs.Node]) -> None:
    for tensor in graph.inputs:
        if tensor.dtype != np.float32:
            continue
        half = gs.Variable(f"{tensor.name}.fp16", dtype=np.float16, shape=tensor.shape)
        for node in body:
            for index, read in enumerate(node.inputs):
                if read is tensor:
                    node.inputs[index] = half
        graph.nodes.append(gs.Node("Cast", f"{tensor.name}/Cast", {"to": onnx.TensorProto.FLOAT16}, [tensor], [half]))


def _cast_into_decoding(graph: gs.Graph, decoding: set[int]) -> None:
    full: dict[str, gs.Tensor] = {}
    for node in [n for n in graph.nodes if id(n) in decoding]:
        for index, tensor in enumerate(node.inputs):
            if isinstance(tensor, gs.Constant) or not tensor.inputs or id(tensor.inputs[0]) in decoding:
                continue
            if node.op == "Shape":  # reads no value
                continue
            if tensor.dtype != np.float16:
                continue
            if tensor.name not in full:
                full[tensor.name] = gs.Variable(f"{tensor.name}.fp32", dtype=np.float32, shape=tensor.shape)
                cast = gs.Node(
                    "Cast", f"{tensor.name}/Cast", {"to": onnx.TensorProto.FLOAT}, [tensor], [full[tensor.name]]
                )
                graph.nodes.append(cast)
            node.inputs[index] = full[tensor.name]
