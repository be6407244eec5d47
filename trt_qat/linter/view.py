"""An ONNX graph as lookups: who makes a tensor, who reads it, which values are constants, which types are known.

Two kinds of nodes of an exported network carry no image data and would drown every rule: constants in any disguise
(an initializer, a Constant node, a Cast of one) and shape arithmetic (``Shape -> Gather -> Mul`` behind a
``chunk``). They are found once, here; :meth:`OnnxView.consumers` never returns them.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, inliner, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from trt_qat.errors import ArtifactError
from trt_qat.limits import CONSTANT_VALUES, LINT_STEPS
from trt_qat.onnx_reading import read_onnx

QUANTIZE: Final = "QuantizeLinear"
DEQUANTIZE: Final = "DequantizeLinear"
FLOAT_TYPES: Final = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE})
UNKNOWN_MODULE: Final = "?"

# Operators that exporters leave on constants and whose result is bounded by their inputs.
_SPREADING: Final = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Mod"})
_FOLDED: Final = _SPREADING | {
    "Constant", "Identity", "Cast", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Concat", "Slice",
    "Split", "Neg", "Abs", "Sqrt", "Reciprocal", "Exp", "Log", "Floor", "Ceil", "Round", "Clip", "Shape", "Size",
    "ReduceMax", "ReduceMin", "ReduceSum", "ReduceMean", "ReduceProd",
}  # fmt: skip

Shape = tuple[int | None, ...]


@dataclass(frozen=True, eq=False)
class Node:
    """One ONNX node, hashed by identity. ``name`` is never empty: a nameless node is called after its output."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    proto: onnx.NodeProto

    @property
    def is_qdq(self) -> bool:
        """Whether this is a QuantizeLinear or a DequantizeLinear."""
        return self.op in (QUANTIZE, DEQUANTIZE)


class OnnxView:
    """Read-only index over an ONNX model. Subgraphs (If, Loop) are opaque; local functions are inlined."""

    def __init__(self, model: onnx.ModelProto) -> None:
        """``model`` is not changed. Shape inference may fail on a stranger's file: then fewer types are known."""
        if model.functions:
            model = inliner.inline_local_functions(model)
        inferred = _inferred(model)
        graph = inferred.graph
        self.metadata: Mapping[str, str] = {entry.key: entry.value for entry in model.metadata_props}
        self.opsets: Mapping[str, int] = {entry.domain: entry.version for entry in model.opset_import}
        self.nodes: tuple[Node, ...] = tuple(_node(proto) for proto in graph.node)
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        self._infos = {info.name: info for info in (*graph.input, *graph.output, *graph.value_info)}
        self._producers = {name: node for node in self.nodes for name in node.outputs if name}
        self._values: dict[str, np.ndarray[Any, Any] | None] = {}
        self._steps = 0
        self.inputs = tuple(info.name for info in graph.input if info.name not in self._initializers)
        self.outputs = tuple(info.name for info in graph.output)

    def producer(self, tensor: str) -> Node | None:
        """The node that makes ``tensor``; None for graph inputs and initializers."""
        return self._producers.get(tensor)

    def consumers(self, tensor: str) -> tuple[Node, ...]:
        """The nodes that read ``tensor`` as data, once each; shape arithmetic is left out."""
        return tuple(self._consumers.get(tensor, ()))

    def is_constant(self, tensor: str) -> bool:
        """Whether the value is fixed in the file (Q/DQ of a constant is not folded)."""
        return tensor in self._constants

    def is_shape(self, tensor: str) -> bool:
        """Whether ``tensor`` is shape arithmetic: computed from shapes and constants only."""
        return tensor in self._shapes

    def is_data(self, node: Node) -> bool:
        """Whether ``node`` computes something from the network's input."""
        return not all(self.is_constant(name) or self.is_shape(name) for name in node.outputs if name)

    def constant(self, tensor: str) -> np.ndarray[Any, Any] | None:
        """The array of a constant, or None if it is not one or cannot be evaluated."""
        if not self.is_constant(tensor):
            return None
        left = [tensor]
        while left:  # not by recursion: a constant may be the end of a long chain
            name = left[-1]
            node = self.producer(name)
            missing = [entry for entry in node.inputs if entry and entry not in self._values] if node else []
            if name not in self._values and not missing:
                self._values[name] = self._evaluate(name)
            if name in self._values:
                left.pop()
            left += missing
        return self._values[tensor]

    def dtype(self, tensor: str) -> int | None:
        """The ``onnx.TensorProto`` element type, or None if inference could not tell."""
        while tensor not in self._initializers:
            info = self._infos.get(tensor)
            if info is not None and info.type.tensor_type.elem_type:
                return int(info.type.tensor_type.elem_type)
            node = self.producer(tensor)
            if node is not None and node.op == DEQUANTIZE:
                tensor = node.inputs[1]
            elif node is not None and node.op == QUANTIZE and len(node.inputs) > 2:
                tensor = node.inputs[2]
            else:
                value = self.constant(tensor)
                return None if value is None else int(helper.np_dtype_to_tensor_dtype(value.dtype))
        return int(self._initializers[tensor].data_type)

    def shape(self, tensor: str) -> Shape | None:
        """Sizes, None for a free dimension; None as a whole if unknown."""
        if tensor in self._initializers:
            return tuple(self._initializers[tensor].dims)
        info = self._infos.get(tensor)
        if info is not None and info.type.tensor_type.HasField("shape"):
            dims = info.type.tensor_type.shape.dim
            return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)
        value = self.constant(tensor)
        return None if value is None else value.shape

    def root(self, tensor: str) -> str:
        """``tensor`` before any quantization: walks back over Q and DQ nodes only."""
        return self._roots.get(tensor, tensor)

    @cached_property
    def _roots(self) -> dict[str, str]:
        roots: dict[str, str] = {}
        for node in self.nodes:  # in order, so that what a node reads is known
            if node.is_qdq:
                roots |= {name: roots.get(node.inputs[0], node.inputs[0]) for name in node.outputs}
        return roots

    def step(self, steps: int = 1) -> None:
        """Count the work of a walk through the graph: a file made for it could take hours.

        Raises:
            ArtifactError: the lint has walked further than the limit.
        """
        self._steps += steps
        LINT_STEPS.check(self._steps, "This lint", ArtifactError)

    def module_of(self, node: Node) -> str:
        """The PyTorch module a node came from, such as ``model.2.m.0.cv1.conv``; ``?`` if the file does not say.

        A quantizer belongs to the module that makes the tensor it quantizes (its reader, for a graph input).
        Sources: the scope path of torch.onnx's node names, its ``name_scopes`` metadata, the weight's name.
        """
        if node.is_qdq:
            return self._module_of_tensor(self.root(node.inputs[0]))
        found = self._called_once(module_from_path(node.name)) or _module_from_metadata(node.proto)
        if not found and len(node.inputs) > 1:
            found = _module_from_weight(self.root(node.inputs[1]))
        return found or UNKNOWN_MODULE

    def _called_once(self, module: str) -> str:
        """``model.9.m_1``, the exporter's name for the second call of ``model.9.m``, is that module too."""
        base = re.sub(r"_\d+(?=\.|$)", "", module)
        return base if base in self._scopes else module

    @cached_property
    def _scopes(self) -> frozenset[str]:
        return frozenset(module_from_path(node.name) for node in self.nodes)

    def _module_of_tensor(self, tensor: str) -> str:
        if module := _module_from_weight(tensor):
            return module
        node = self.producer(tensor)
        if node is not None and not node.is_qdq:
            return self.module_of(node)
        readers = [reader for name in self._through_qdq(tensor) for reader in self.consumers(name)]
        modules = (self.module_of(reader) for reader in readers if not reader.is_qdq)
        return next((module for module in modules if module != UNKNOWN_MODULE), UNKNOWN_MODULE)

    def _through_qdq(self, tensor: str) -> list[str]:
        names = [tensor]
        for name in names:
            names += [reader.outputs[0] for reader in self.consumers(name) if reader.is_qdq]
        return names

    @cached_property
    def _constants(self) -> frozenset[str]:
        names = set(self._initializers)
        for node in self.nodes:
            fixed = node.op == "Constant" or (node.inputs and all(name in names for name in node.inputs if name))
            if fixed and not node.is_qdq:
                names.update(node.outputs)
        return frozenset(names)

    @cached_property
    def _shapes(self) -> frozenset[str]:
        names: set[str] = set()
        for node in self.nodes:
            inputs = [name for name in node.inputs if name]
            derived = any(name in names for name in inputs) and all(
                name in names or name in self._constants for name in inputs
            )
            if node.op in ("Shape", "Size") or derived:
                names.update(node.outputs)
        return frozenset(names)

    @cached_property
    def _consumers(self) -> dict[str, list[Node]]:
        readers: dict[str, list[Node]] = defaultdict(list)
        for node in self.nodes:
            if self.is_data(node):
                for name in dict.fromkeys(node.inputs):
                    readers[name].append(node)
        return readers

    def _evaluate(self, tensor: str) -> np.ndarray[Any, Any] | None:
        """The value of an initializer, or of a node whose inputs are known."""
        if tensor in self._initializers:
            return numpy_helper.to_array(self._initializers[tensor])
        node = self._producers[tensor]
        feeds = {name: self._values[name] for name in node.inputs if name}
        if node.op not in _FOLDED or any(value is None for value in feeds.values()):
            return None
        try:
            _check_size(node.op, [np.asarray(value) for value in feeds.values()])
            results: Any = ReferenceEvaluator(node.proto, opsets=dict(self.opsets)).run(None, feeds)
        except (RuntimeError, TypeError, ValueError, NotImplementedError, IndexError, AttributeError, KeyError):
            return None  # an operator the reference evaluator lacks, or values that do not fit: constant but unknown
        return np.asarray(results[node.outputs.index(tensor)])


def _check_size(op: str, values: list[np.ndarray[Any, Any]]) -> None:
    """The result of an operator of :data:`_FOLDED` is no larger than its inputs together, spread over each other.

    Raises:
        ValueError: their sizes do not fit.
        ArtifactError: the result would be larger than the limit.
    """
    shape = np.broadcast_shapes(*(value.shape for value in values)) if op in _SPREADING else ()
    CONSTANT_VALUES.check(max(math.prod(shape), sum(value.size for value in values)), "The file", ArtifactError)


def read_model(path: Path) -> onnx.ModelProto:
    """Load an ONNX file with its external data.

    Raises:
        ArtifactError: missing, empty, truncated, or not a sound ONNX graph.
    """
    return read_onnx(path, external_data=True)


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return shape_inference.infer_shapes(model, data_prop=True)
    except (shape_inference.InferenceError, RuntimeError, ValueError):
        return model


def _node(proto: onnx.NodeProto) -> Node:
    name = proto.name or proto.output[0]
    attributes = {entry.name: _text(helper.get_attribute_value(entry)) for entry in proto.attribute}
    return Node(proto.op_type, name, tuple(proto.input), tuple(proto.output), attributes, proto)


def _text(value: Any) -> Any:
    """An attribute's value; ONNX stores strings as bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def module_from_path(name: str) -> str:
    """``/model.22/cv2.0/cv2.0.0/conv/Conv`` -> ``model.22.cv2.0.0.conv``; empty if ``name`` is no scope path."""
    if not name.startswith("/"):
        return ""
    parts: list[str] = []
    for part in name.strip("/").split("/")[:-1]:
        # A child of a ModuleList or Sequential repeats its parent's name: cv2.0 / cv2.0.0.
        if parts and part.startswith(f"{parts[-1]}."):
            parts.pop()
        parts.append(part)
    return ".".join(parts)


def _module_from_metadata(proto: onnx.NodeProto) -> str:
    """The innermost module of torch.export's ``pkg.torch.onnx.name_scopes``: a printed list, the node itself last."""
    for entry in proto.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            scopes = re.findall(r"'([^']*)'", entry.value)
            return scopes[-2] if len(scopes) > 1 else ""
    return ""


def _module_from_weight(name: str) -> str:
    match = re.match(r"((?:\w+\.)*\w+)\.(?:weight|bias)", name)
    return match.group(1) if match else ""
