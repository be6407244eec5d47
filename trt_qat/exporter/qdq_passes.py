"""graphsurgeon passes on the raw exporter's graph, from "one Q/DQ per consumer" to "one per tensor, at its source".

Each pass changes the graph in place and keeps its result bit for bit: Q/DQ commutes with operators that only move
values.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from trt_qat.operators import Copy, onnx_copy
from trt_qat.vision.quiet import NO_STDERR


def clean_(graph: gs.Graph) -> None:
    """Fold constants, drop dead nodes, sort."""
    with NO_STDERR:  # ONNX Runtime, which computes the constants, warns of patterns that it does not simplify
        graph.cleanup().toposort().fold_constants().cleanup().toposort()


def drop_idle_casts_(graph: gs.Graph) -> None:
    """Remove casts to the type a tensor has already; ModelOpt puts one before a quantizer of a split's output."""
    for node in graph.nodes:
        if node.op == "Cast" and node.inputs[0].dtype is not None:
            source = node.inputs[0]
            if node.attrs["to"] == onnx.helper.np_dtype_to_tensor_dtype(np.dtype(source.dtype)):
                redirect(node.outputs[0], source)
    clean_(graph)


def flatten_scales_(graph: gs.Graph) -> None:
    """A single scale becomes a scalar; a toolkit may export a weight's as (1, 1, 1, 1), which ONNX does not know."""
    for node in graph.nodes:
        if node.op in {"QuantizeLinear", "DequantizeLinear"}:
            for tensor in node.inputs[1:3]:
                if isinstance(tensor, gs.Constant) and tensor.values.size == 1:
                    tensor.values = tensor.values.reshape(())


def fold_weights_(graph: gs.Graph) -> None:
    """Float weight -> QuantizeLinear becomes an int8 initializer, a quarter of the size."""
    for node in graph.nodes:
        if node.op != "QuantizeLinear" or not isinstance(node.inputs[0], gs.Constant):
            continue
        weight, scale, zero_point = (tensor.values for tensor in node.inputs[:3])
        axis = node.attrs.get("axis", 1)
        shape = [-1 if i == axis else 1 for i in range(weight.ndim)] if scale.ndim else []
        limits = np.iinfo(zero_point.dtype)
        levels = np.rint(weight / scale.reshape(shape)) + zero_point.reshape(shape).astype(np.float64)
        quantized = np.clip(levels, limits.min, limits.max).astype(zero_point.dtype)
        folded = gs.Constant(f"{node.inputs[0].name}.int8", quantized)
        for consumer in list(node.outputs[0].outputs):
            consumer.inputs[0] = folded
        node.outputs.clear()
    clean_(graph)


def merge_equal_quantizers_(graph: gs.Graph) -> None:
    """One tensor quantized several times with the same scale keeps one Q and one DQ."""
    for tensor in list(graph.tensors().values()):
        first: dict[bytes, gs.Node] = {}
        for quantize in _quantizers_of(tensor):
            kept = first.setdefault(_scale_key(quantize), quantize)
            if kept is not quantize:
                redirect(_dequantize_of(quantize).outputs[0], _dequantize_of(kept).outputs[0])
                quantize.inputs.clear()
    clean_(graph)


def quantize_at_source_(graph: gs.Graph) -> None:
    """Move Q/DQ from behind copy-like operators to their inputs, as far up as every reader agrees.

    A concat whose result is read in INT8 then joins INT8 tensors of one scale: a pointer move in an engine.
    """
    graph.toposort()
    for node in reversed(list(graph.nodes)):
        copy = copy_of(node)
        quantize = _common_quantizer(graph, node) if copy else None
        if copy is None or quantize is None:
            continue
        for index in range(len(copy.carried(node.inputs))):
            if not isinstance(node.inputs[index], gs.Constant):
                node.inputs[index] = _quantized(graph, node.inputs[index], quantize)
        for output in node.outputs:  # values are on the grid already
            for reader in _value_readers(output):
                redirect(_dequantize_of(reader).outputs[0], output)
                reader.inputs.clear()
    merge_equal_quantizers_(graph)


def copy_of(node: gs.Node) -> Copy | None:
    """What this node copies and how; None if it computes.

    A Cast never counts here: a quantizer moved above it would need a scale of another type.
    """

    def filling() -> NDArray[np.generic] | None:
        given = node.inputs[2] if len(node.inputs) > 2 else gs.Variable.empty()
        if given.is_empty():
            return np.zeros(1)
        return given.values if isinstance(given, gs.Constant) else None

    return None if node.op == "Cast" else onnx_copy(node.op, node.attrs, filling)


def _common_quantizer(graph: gs.Graph, node: gs.Node) -> gs.Node | None:
    """The quantizer that all readers of all outputs are equal to; None if anything reads a float."""
    readers = [reader for output in node.outputs for reader in _value_readers(output)]
    if not readers or any(output in graph.outputs for output in node.outputs):
        return None
    if any(reader.op != "QuantizeLinear" or not _per_tensor(reader) for reader in readers):
        return None
    return readers[0] if len({_scale_key(reader) for reader in readers}) == 1 else None


def _value_readers(tensor: gs.Tensor) -> list[gs.Node]:
    """Without those that only ask how large it is, as the anchors of a file of any size do."""
    return [reader for reader in tensor.outputs if reader.op != "Shape"]


def _quantized(graph: gs.Graph, tensor: gs.Tensor, like: gs.Node) -> gs.Tensor:
    """``tensor`` behind a Q/DQ with the scale of ``like``; an equal one that is there already is used."""
    for reader in _quantizers_of(tensor):
        if _scale_key(reader) == _scale_key(like):
            return _dequantize_of(reader).outputs[0]
    if tensor.inputs and tensor.inputs[0].op == "DequantizeLinear" and _scale_key(tensor.inputs[0]) == _scale_key(like):
        return tensor
    scale, zero_point = like.inputs[1], like.inputs[2]
    number = len(_quantizers_of(tensor))  # a placement without groups quantizes one tensor with several scales
    quantized = gs.Variable(f"{tensor.name}.q{number}", dtype=zero_point.dtype, shape=tensor.shape)
    restored = gs.Variable(f"{tensor.name}.dq{number}", dtype=scale.dtype, shape=tensor.shape)
    source = f"{tensor.inputs[0].name if tensor.inputs else tensor.name}/{number}"
    graph.nodes.append(
        gs.Node("QuantizeLinear", f"{source}/QuantizeLinear", {}, [tensor, scale, zero_point], [quantized])
    )
    graph.nodes.append(
        gs.Node("DequantizeLinear", f"{source}/DequantizeLinear", {}, [quantized, scale, zero_point], [restored])
    )
    return restored


def _quantizers_of(tensor: gs.Tensor) -> list[gs.Node]:
    """QuantizeLinear nodes that quantize this tensor (and do not merely use it as their scale)."""
    return [node for node in tensor.outputs if node.op == "QuantizeLinear" and node.inputs[0] is tensor]


def _dequantize_of(quantize: gs.Node) -> gs.Node:
    return quantize.outputs[0].outputs[0]


def weight_dequantizer(conv: gs.Node) -> gs.Node | None:
    """The DequantizeLinear that makes a convolution's weight; None if it is float."""
    above = conv.inputs[1].inputs
    return above[0] if above and above[0].op == "DequantizeLinear" else None


def redirect(old: gs.Tensor, new: gs.Tensor) -> None:
    """Let every reader of one tensor read another, in place."""
    for consumer in list(old.outputs):
        for index, tensor in enumerate(consumer.inputs):
            if tensor is old:
                consumer.inputs[index] = new


def _per_tensor(node: gs.Node) -> bool:
    return isinstance(node.inputs[1], gs.Constant) and node.inputs[1].values.size == 1


def _scale_key(node: gs.Node) -> bytes:
    """Equal for Q and DQ nodes with equal scale, zero point and axis."""
    scale, zero_point = node.inputs[1], node.inputs[2]
    if not isinstance(scale, gs.Constant):
        return str(scale.name).encode()
    values: NDArray[np.float32] = np.asarray(scale.values)
    zeros: NDArray[np.int8] = np.asarray(zero_point.values)
    axis = node.attrs.get("axis", 1) if values.ndim else None
    return values.tobytes() + zeros.tobytes() + f"{values.dtype}{zeros.dtype}{axis}".encode()
