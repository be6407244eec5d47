"""The demo's INT8 file with deliberately bad placement, one kind of defect each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs

Defect = Callable[[gs.Graph], None]


def write_bad(source: Path, defect: Defect, out: Path) -> Path:
    graph = gs.import_onnx(onnx.load(source))
    defect(graph)
    onnx.save(gs.export_onnx(graph.cleanup().toposort()), out)
    return out


def q_before_silu(graph: gs.Graph) -> None:
    """A quantizer between every convolution and its activation."""
    for gate in _nodes(graph, "Sigmoid", "/act/"):
        tensor = gate.inputs[0]
        _qdq(
            graph,
            tensor,
            0.1,
            f"{gate.name}/before",
            [reader for reader in tensor.outputs if reader.op == "Mul"] + [gate],
        )


def unequal_concats(graph: gs.Graph) -> None:
    """Every quantized input of a Concat but the first is quantized again with another scale."""
    for concat in _nodes(graph, "Concat"):
        for number, tensor in enumerate(list(concat.inputs)[1:]):
            if _maker(tensor) == "DequantizeLinear" and _maker(concat.inputs[0]) in ("DequantizeLinear", "Split"):
                scale = float(tensor.inputs[0].inputs[1].values)
                _qdq(graph, tensor, 1.7 * scale, f"{concat.name}/again{number}", [concat])


def requantized_splits(graph: gs.Graph) -> None:
    """What a convolution reads of a Split gets a scale of its own."""
    for split in _nodes(graph, "Split"):
        for number, tensor in enumerate(split.outputs):
            _qdq(graph, tensor, 0.013, f"{split.name}/{number}", [one for one in tensor.outputs if one.op == "Conv"])


def two_scales(graph: gs.Graph) -> None:
    """Of the convolutions that read one tensor, all but the first get a quantizer of their own."""
    for pair in _nodes(graph, "DequantizeLinear"):
        convolutions = [one for one in pair.outputs[0].outputs if one.op == "Conv"]
        if _maker(pair.inputs[0]) == "QuantizeLinear" and len(convolutions) > 1:
            quantizer = pair.inputs[0].inputs[0]
            scale = 1.3 * float(quantizer.inputs[1].values)
            again = _qdq(graph, quantizer.inputs[0], scale, f"{pair.name}/second", [])
            for convolution in convolutions[1:]:
                convolution.inputs[0] = again


def pool_scales(graph: gs.Graph) -> None:
    """Every max-pool has another scale behind than before."""
    for pool in _nodes(graph, "MaxPool"):
        tensor = pool.outputs[0]
        _qdq(graph, tensor, 0.07, f"{pool.name}/again", list(tensor.outputs))


def _nodes(graph: gs.Graph, op: str, part: str = "") -> list[gs.Node]:
    return [node for node in graph.nodes if node.op == op and part in node.name]


def _maker(tensor: gs.Tensor) -> str:
    return tensor.inputs[0].op if tensor.inputs else ""


def _qdq(graph: gs.Graph, tensor: gs.Variable, scale: float, name: str, readers: Iterable[gs.Node]) -> gs.Variable:
    """A new pair behind ``tensor``, read by ``readers`` in its place."""
    numbers = [
        gs.Constant(f"{name}/scale", np.array(scale, dtype=tensor.dtype)),
        gs.Constant(f"{name}/zero", np.zeros((), np.int8)),
    ]
    quantized, result = gs.Variable(f"{name}/q", np.int8), gs.Variable(f"{name}/dq", tensor.dtype)
    for reader in readers:
        for index, read in enumerate(reader.inputs):
            if read is tensor:
                reader.inputs[index] = result
    graph.nodes.append(gs.Node("QuantizeLinear", f"{name}/Q", inputs=[tensor, *numbers], outputs=[quantized]))
    graph.nodes.append(gs.Node("DequantizeLinear", f"{name}/DQ", inputs=[quantized, *numbers], outputs=[result]))
    return result
