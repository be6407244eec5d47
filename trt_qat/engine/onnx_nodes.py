"""What an ONNX file knows about its nodes and the compiler's log does not: operator, module, multiply-accumulates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Final

import onnx

from trt_qat.errors import EngineError
from trt_qat.linter.view import Node, OnnxView, module_from_path, read_model

# Each listed by how the multiply-accumulates of one node are counted, see _macs.
_CONVOLUTIONS: Final = frozenset({"Conv", "ConvInteger", "QLinearConv"})
_PRODUCTS: Final = frozenset({"MatMul", "MatMulInteger", "Gemm"})
WORK: Final = _CONVOLUTIONS | _PRODUCTS | {"ConvTranspose"}
"""Operators that multiply and accumulate."""


@dataclass(frozen=True)
class OnnxNode:
    """One node.

    Args:
        macs: multiply-accumulates of one inference; None where the shapes are not known.
    """

    op: str
    module: str
    macs: int | None


def nodes_of_file(path: Path, batch: int) -> dict[str, OnnxNode]:
    """The nodes of an ONNX file by name, their work counted for this batch size.

    Raises:
        ArtifactError: missing, truncated, or not a sound ONNX graph.
        EngineError: a name that would garble the compiler's log.
    """
    model = read_model(path)
    _set_batch(model, batch)
    view = OnnxView(model)
    _check_names([name for node in view.nodes for name in (node.name, *node.inputs, *node.outputs)], path)
    return {node.name: OnnxNode(node.op, view.module_of(node), _macs(node, view)) for node in view.nodes}


def node_by_name(name: str) -> OnnxNode:
    """The same from a name alone, as torch.onnx makes it: ``/model.2/cv1/conv/Conv`` is a Conv of model.2.cv1.conv."""
    last = name.rsplit("/", 1)[-1]
    return OnnxNode(last.split("_")[0], module_from_path(name), None)


def _set_batch(model: onnx.ModelProto, batch: int) -> None:
    stored = {tensor.name for tensor in model.graph.initializer}
    for info in model.graph.input:
        dims = info.type.tensor_type.shape.dim
        if info.name not in stored and dims and not dims[0].HasField("dim_value"):
            dims[0].dim_value = batch
            # what the exporter wrote about inner tensors names the free axis: it is inferred anew
            del model.graph.value_info[:]
            for output in model.graph.output:
                output.type.tensor_type.ClearField("shape")


def _check_names(names: Iterable[str], path: Path) -> None:
    for name in names:
        if not name.isprintable() or any(mark in name for mark in ("{", "}", "LayerType: ", "ONNX Layer: ")):
            raise EngineError(
                f"'{path.name}' has a node or tensor called {name[:60]!r}, which cannot be told apart in the "
                "compiler's log. Rename it."
            )


def _macs(node: Node, view: OnnxView) -> int | None:
    if node.op not in WORK:
        return 0
    data = _known(view.shape(node.inputs[0]))
    weight = _known(view.shape(node.inputs[3 if node.op == "QLinearConv" else 1]))
    result = _known(view.shape(node.outputs[0]))
    if data is None or weight is None or result is None:
        return None
    if node.op in _CONVOLUTIONS:  # each output pixel meets each weight once, whatever the groups
        return prod(weight) * result[0] * prod(result[2:])
    if node.op == "ConvTranspose":  # each input pixel does
        return prod(weight) * data[0] * prod(data[2:])
    transposed = node.op == "Gemm" and bool(node.attributes.get("transA", 0))
    return prod(result) * data[-2 if transposed else -1]


def _known(shape: tuple[int | None, ...] | None) -> tuple[int, ...] | None:
    known = tuple(size for size in shape or () if size is not None)
    return known if shape is not None and len(known) == len(shape) else None
