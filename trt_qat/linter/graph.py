"""What Q/DQ mean in a graph: which tensors lie on an INT8 grid, where a grid travels, where it is lost.

Operators that only move or compare values leave the grid of their input untouched, so INT8 data passes through them
without arithmetic. A tensor *has a grid* if it comes from a quantizer, possibly through such copies. All rules are
questions about grids.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from onnx import TensorProto

from trt_qat.disjoint_sets import DisjointSets
from trt_qat.linter.view import DEQUANTIZE, FLOAT_TYPES, QUANTIZE, Node, OnnxView, read_model
from trt_qat.operators import Copy, is_dfl_weight, onnx_copy

CONV_OPS: Final = frozenset({"Conv", "ConvTranspose"})
# Convolutions that hold their quantization themselves, with the place of the weight among their inputs.
QOPERATOR_CONV_OPS: Final = {"QLinearConv": 3, "ConvInteger": 1}
# What an INT8 engine can do with a quantized tensor other than move it.
INT8_OPS: Final = CONV_OPS | {"Gemm", "MatMul", "Add", "AveragePool", "GlobalAveragePool"}
ACTIVATION_OPS: Final = frozenset(
    {"Relu", "LeakyRelu", "PRelu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Swish", "Mish", "Elu", "Gelu"}
    | {"Tanh", "Softplus"}
)


@dataclass(frozen=True, eq=False)
class Quantization:
    """The numbers of one Q or DQ node. ``scale`` and ``zero_point`` are None if not constant; axis as written."""

    node: Node
    scale: np.ndarray[Any, Any] | None
    zero_point: np.ndarray[Any, Any] | None
    axis: int
    dtype: int

    @property
    def per_channel(self) -> bool:
        """More than one scale (or one that is unknown but not a scalar)."""
        return self.scale is not None and self.scale.size > 1

    def same_as(self, other: Quantization) -> bool:
        """Equal scale, zero point and type, so that going from one to the other changes nothing."""
        if self.node is other.node:
            return True
        if self.scale is None or other.scale is None:
            return self.node.inputs[1] == other.node.inputs[1]
        if self.dtype != other.dtype or self.scale.size != other.scale.size:
            return False
        # FP16 scales of the two sides may come from one FP32 number; equal numbers are exactly equal otherwise.
        mixed = self.scale.dtype != other.scale.dtype
        scales = (self.scale.astype(np.float64).ravel(), other.scale.astype(np.float64).ravel())
        same_scale = np.allclose(*scales, rtol=1e-3 if mixed else 1e-6, atol=0)
        return bool(same_scale) and np.array_equal(_zero(self), _zero(other))

    def __str__(self) -> str:
        if self.scale is None:
            return "a scale that is not constant"
        if self.scale.size != 1:  # a file may hold an empty one
            return f"{self.scale.size} scales"
        return f"scale {float(self.scale.reshape(-1)[0]):.6g}"


class QdqGraph(OnnxView):
    """An ONNX model seen as convolutions, copies and INT8 grids."""

    @classmethod
    def read(cls, path: Path) -> QdqGraph:
        """Open a file.

        Raises:
            ArtifactError: it is missing or is no ONNX graph.
        """
        return cls(read_model(path))

    @cached_property
    def convs(self) -> tuple[Node, ...]:
        """All convolutions with a weight in the file, in float or between Q/DQ; see also :attr:`qoperator_convs`."""
        return tuple(node for node in self.nodes if node.op in CONV_OPS and self.is_constant(self.root(node.inputs[1])))

    @cached_property
    def qoperator_convs(self) -> tuple[Node, ...]:
        """The convolutions with built-in quantization: ONNX Runtime's QOperator format and its dynamic one."""
        return tuple(
            node
            for node in self.nodes
            if node.op in QOPERATOR_CONV_OPS and self.is_constant(node.inputs[QOPERATOR_CONV_OPS[node.op]])
        )

    @cached_property
    def pairs(self) -> tuple[Node, ...]:
        """The Q nodes on activations that a DQ undoes, directly or behind copies of the INT8 tensor."""
        return tuple(
            node
            for node in self.quantizers
            if any(taker is not None and taker.op == DEQUANTIZE for taker in self.takers(node.outputs[0], self.is_copy))
        )

    @cached_property
    def quantized_weights(self) -> frozenset[str]:
        """The constants that are stored in INT8, or quantized by a Q in the file; biases (int32) are none."""
        dequantized = [node for node in self.nodes if node.op == DEQUANTIZE and self.is_weight_side(node)]
        found = {self.root(node.inputs[0]) for node in dequantized if self.dtype(node.inputs[0]) != TensorProto.INT32}
        return frozenset(found | {node.inputs[QOPERATOR_CONV_OPS[node.op]] for node in self.qoperator_convs})

    @cached_property
    def quantizers(self) -> tuple[Node, ...]:
        """The Q nodes on activations."""
        return tuple(node for node in self.nodes if node.op == QUANTIZE and not self.is_weight_side(node))

    def is_weight_side(self, node: Node) -> bool:
        """Whether a Q or DQ node works on a constant: a weight or a bias."""
        return self.is_constant(self.root(node.inputs[0]))

    def quantization(self, node: Node) -> Quantization:
        """The numbers of a Q or DQ node. Without a zero point ONNX means uint8 for Q, zero for both."""
        if node not in self._quantizations:
            self._quantizations[node] = self._find_quantization(node)
        found = self._quantizations[node]
        self.step(0 if found.scale is None else found.scale.size // 1024)
        return found

    @cached_property
    def _quantizations(self) -> dict[Node, Quantization]:
        return {}

    def _find_quantization(self, node: Node) -> Quantization:
        has_zero = len(node.inputs) > 2 and bool(node.inputs[2])
        zero_point = self.constant(node.inputs[2]) if has_zero else np.zeros((), np.uint8)
        if node.op == DEQUANTIZE:
            dtype = self.dtype(node.inputs[0])
        else:
            dtype = self.dtype(node.inputs[2]) if has_zero else node.attributes.get("output_dtype")
        default = TensorProto.UINT8 if node.op == QUANTIZE else TensorProto.UNDEFINED
        scale = self.constant(node.inputs[1])
        return Quantization(node, scale, zero_point, int(node.attributes.get("axis", 1)), dtype or default)

    def grid(self, tensor: str) -> Quantization | None:
        """The quantization on whose grid the values of ``tensor`` lie, or None for free float values."""
        left = [tensor]
        while left:  # not by recursion: copies come in chains of any length
            name = left[-1]
            missing = [entry for entry in self._carried(name) if entry not in self._grids]
            if name not in self._grids and not missing:
                self._grids[name] = self._find_grid(name)
            if name in self._grids:
                left.pop()
            left += missing
        return self._grids[tensor]

    @cached_property
    def _grids(self) -> dict[str, Quantization | None]:
        return {}

    def _carried(self, tensor: str) -> tuple[str, ...]:
        """The tensors whose values ``tensor`` holds, if a copy makes it."""
        node = self.producer(tensor)
        copy = self.copy(node) if node is not None and not node.is_qdq else None
        return tuple(copy.carried(node.inputs)) if node is not None and copy is not None else ()

    def _find_grid(self, tensor: str) -> Quantization | None:
        """The grid of ``tensor``; those of what it copies are known."""
        node = self.producer(tensor)
        if node is not None and node.is_qdq:
            return self.quantization(node)
        grids = [self._grids[name] for name in self._carried(tensor)]
        first = grids[0] if grids else None
        return None if None in grids or unlike(grids) else first

    def copy(self, node: Node) -> Copy | None:
        """What ``node`` copies and how, if it leaves the grid of its input as it is."""
        if node not in self._copies:
            self._copies[node] = self._find_copy(node)
        return self._copies[node]

    @cached_property
    def _copies(self) -> dict[Node, Copy | None]:
        return {}

    def _find_copy(self, node: Node) -> Copy | None:
        found = onnx_copy(node.op, node.attributes, lambda: self._filling(node))
        if found is None or not self.is_data(node):
            return None
        if node.op == "Cast":
            source = self.dtype(node.inputs[0])
            floats = node.attributes["to"] in FLOAT_TYPES and (source is None or source in FLOAT_TYPES)
            return found if floats else None
        return found

    def _filling(self, pad: Node) -> np.ndarray[Any, Any] | None:
        given = pad.inputs[2] if len(pad.inputs) > 2 else ""
        return self.constant(given) if given else np.zeros(1)

    def is_copy(self, node: Node) -> bool:
        """Whether ``node`` is a copy, see :data:`trt_qat.operators.COPIES`."""
        return self.copy(node) is not None

    def takers(self, tensor: str, through: Callable[[Node], bool]) -> tuple[Node | None, ...]:
        """The nodes that finally read ``tensor`` after any chain of nodes ``through``; None stands for an output."""
        found: dict[Node | None, None] = {}
        names = [tensor]
        seen: set[str] = set()
        while names:
            name = names.pop()
            if name in seen:
                continue
            seen.add(name)
            self.step()
            if name in self._output_names:
                found[None] = None
            for node in self.consumers(name):
                if through(node):
                    names += node.outputs
                else:
                    found[node] = None
        return tuple(found)

    @cached_property
    def _output_names(self) -> frozenset[str]:
        return frozenset(self.outputs)

    def sources(self, tensor: str, through: Callable[[Node], bool]) -> tuple[Node, ...]:
        """The first nodes met going back from ``tensor`` that are not ``through``."""
        found: dict[Node, None] = {}
        names, seen = [tensor], set[str]()
        while names:
            name = names.pop()
            node = self.producer(name)
            if node is None or name in seen:
                continue
            seen.add(name)
            self.step()
            if through(node):
                names += [entry for entry in node.inputs if entry and not self.is_constant(entry)]
            else:
                found[node] = None
        return tuple(found)

    def is_copy_or_qdq(self, node: Node) -> bool:
        """For walks that look through everything that keeps values (almost) as they are."""
        return node.is_qdq or self.is_copy(node)

    def is_int8(self, conv: Node) -> bool:
        """Whether both the input and the weight of a convolution lie on a grid."""
        return self.grid(conv.inputs[0]) is not None and self.grid(conv.inputs[1]) is not None

    @cached_property
    def dfl(self) -> frozenset[Node]:
        """Convolutions that have learned nothing, see :func:`trt_qat.operators.is_dfl_weight`."""
        weights = {conv: self.root(conv.inputs[1]) for conv in self.convs}
        # The shape first: reading every weight of a large network takes a second.
        ones = {conv: self.constant(name) for conv, name in weights.items() if (self.shape(name) or (0,))[0] == 1}
        return frozenset(conv for conv, weight in ones.items() if weight is not None and is_dfl_weight(weight))

    @cached_property
    def body(self) -> frozenset[Node]:
        """The nodes from which a learned convolution can still be reached."""
        found: set[Node] = set()
        names = [conv.inputs[0] for conv in (*self.convs, *self.qoperator_convs) if conv not in self.dfl]
        while names:
            node = self.producer(names.pop())
            if node is not None and node not in found:
                found.add(node)
                names += node.inputs
        return frozenset(found)

    def is_last(self, conv: Node) -> bool:
        """Whether ``conv`` predicts: no learned convolution follows it (the DFL included)."""
        return conv not in self.body

    def is_silu(self, node: Node) -> bool:
        """Whether a Mul is ``x * sigmoid(x)``, with or without quantizers on either side."""
        if node.op != "Mul" or len(node.inputs) != 2:
            return False
        for value, gate in (node.inputs, node.inputs[::-1]):
            sigmoid = self.producer(self.root(gate))
            if sigmoid is not None and sigmoid.op == "Sigmoid":
                return self.root(sigmoid.inputs[0]) == self.root(value)
        return False

    @cached_property
    def scale_groups(self) -> tuple[tuple[Node, ...], ...]:
        """Activation quantizers joined by copies, in graph order: the sets that should share one scale.

        Two quantizers belong together if they read the same tensor, or tensors that differ only by copies.
        """
        groups: dict[str, list[Node]] = defaultdict(list)
        for node in self.quantizers:
            groups[self._joined.find(node.outputs[0])].append(node)
        return tuple(tuple(group) for group in groups.values())

    def scale_group(self, tensor: str) -> int | None:
        """The index in :attr:`scale_groups` of the group that ``tensor`` lies in, or None."""
        return self._group_numbers.get(self._joined.find(tensor)) if tensor in self._joined else None

    @cached_property
    def _group_numbers(self) -> dict[str, int]:
        return {self._joined.find(group[0].outputs[0]): number for number, group in enumerate(self.scale_groups)}

    @cached_property
    def _joined(self) -> DisjointSets:
        """Every tensor that copies and Q/DQ touch, with those it shares its values with."""
        sets = DisjointSets()
        for node in self.nodes:
            if node.is_qdq:
                sets.unite((node.outputs[0], node.inputs[0]))
            elif (copy := self.copy(node)) is not None:
                sets.unite(name for name in (*node.outputs, *copy.carried(node.inputs)) if name)
        return sets


def unlike(grids: Iterable[Quantization | None]) -> bool:
    """Whether two of the grids that are there differ."""
    present = [grid for grid in grids if grid is not None]
    return any(not grid.same_as(present[0]) for grid in present[1:])


def _zero(quantization: Quantization) -> np.ndarray[Any, Any]:
    zero_point = quantization.zero_point
    return np.zeros(1) if zero_point is None else np.unique(zero_point.astype(np.float64))
