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

from trt_qat.linter.view import DEQUANTIZE, FLOAT_TYPES, QUANTIZE, Node, OnnxView, read_model

# Each commutes with a symmetric per-tensor quantizer: copy(dequantize(x)) == dequantize(copy(x)).
COPY_LIKE_OPS: Final = {
    "Concat": "places values side by side; one grid only if all inputs share it",
    "Split": "cuts",
    "Slice": "cuts",
    "Gather": "picks",
    "MaxPool": "picks the largest; rounding is monotonic, so the order of values survives",
    "Resize": "repeats values, in mode 'nearest' only; other modes average and leave the grid",
    "Upsample": "repeats values, in mode 'nearest' only",
    "Pad": "adds zeros, which lie on every symmetric grid, or repeats values",
    "Reshape": "renames positions",
    "Flatten": "renames positions",
    "Squeeze": "renames positions",
    "Unsqueeze": "renames positions",
    "Transpose": "reorders",
    "DepthToSpace": "reorders",
    "SpaceToDepth": "reorders",
    "Expand": "repeats",
    "Tile": "repeats",
    "Identity": "does nothing",
    "Cast": "between float types only; some exporters leave one that does nothing",
}
# The copies that read and write every byte. The others are free, so it does not matter in which type they run.
MOVING_OPS: Final = frozenset({"Concat", "Split", "Slice", "MaxPool", "Resize", "Upsample", "Pad", "Gather"})
CONV_OPS: Final = frozenset({"Conv", "ConvTranspose"})
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
        if self.per_channel:
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
        """All convolutions with a weight in the file."""
        return tuple(node for node in self.nodes if node.op in CONV_OPS and self.is_constant(self.root(node.inputs[1])))

    @cached_property
    def quantizers(self) -> tuple[Node, ...]:
        """The Q nodes on activations."""
        return tuple(node for node in self.nodes if node.op == QUANTIZE and not self.is_weight_side(node))

    def is_weight_side(self, node: Node) -> bool:
        """Whether a Q or DQ node works on a constant: a weight or a bias."""
        return self.is_constant(self.root(node.inputs[0]))

    def quantization(self, node: Node) -> Quantization:
        """The numbers of a Q or DQ node. Without a zero point ONNX means uint8 for Q, zero for both."""
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
        if tensor not in self._grids:
            self._grids[tensor] = self._find_grid(tensor)
        return self._grids[tensor]

    @cached_property
    def _grids(self) -> dict[str, Quantization | None]:
        return {}

    def _find_grid(self, tensor: str) -> Quantization | None:
        node = self.producer(tensor)
        if node is None:
            return None
        if node.is_qdq:
            return self.quantization(node)
        if not self.is_copy(node):
            return None
        grids = [self.grid(name) for name in self.copied(node)]
        first = grids[0]
        if first is None or not all(grid is not None and grid.same_as(first) for grid in grids):
            return None
        return first

    def is_copy(self, node: Node) -> bool:
        """Whether ``node`` leaves the grid of its input as it is; see :data:`COPY_LIKE_OPS`."""
        if node.op not in COPY_LIKE_OPS or not self.is_data(node):
            return False
        if node.op in ("Resize", "Upsample"):
            return bool(node.attributes.get("mode", b"nearest") == b"nearest")
        if node.op == "Cast":
            source = self.dtype(node.inputs[0])
            return node.attributes["to"] in FLOAT_TYPES and (source is None or source in FLOAT_TYPES)
        if node.op == "Pad" and node.attributes.get("mode", b"constant") == b"constant":
            value = self.constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else np.zeros(1)
            return value is not None and not np.any(value)
        return True

    @staticmethod
    def copied(node: Node) -> tuple[str, ...]:
        """The inputs of a copy that carry the data."""
        return node.inputs if node.op == "Concat" else node.inputs[:1]

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
            if name in self.outputs:
                found[None] = None
            for node in self.consumers(name):
                if through(node):
                    names += node.outputs
                else:
                    found[node] = None
        return tuple(found)

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
        """Convolutions that only take an expectation: one output, 1x1, weights 0, 1, 2 ... (YOLOv8's DFL)."""
        return frozenset(conv for conv in self.convs if self._is_expectation(conv))

    def _is_expectation(self, conv: Node) -> bool:
        shape = self.shape(self.root(conv.inputs[1]))
        if shape is None or len(shape) != 4 or shape[0] != 1 or shape[2:] != (1, 1) or (shape[1] or 0) < 3:
            return False
        weight = self.constant(self.root(conv.inputs[1]))
        if weight is None:
            return False
        values = weight.astype(np.float64).ravel()
        # The tolerance admits a ramp that was rounded to int8.
        ramp = np.linspace(0, 1, values.size)
        return bool(values[-1] > 0 and np.allclose(values / values[-1], ramp, rtol=0, atol=0.02))

    @cached_property
    def body(self) -> frozenset[Node]:
        """The nodes from which a learned convolution can still be reached."""
        found: set[Node] = set()
        names = [conv.inputs[0] for conv in self.convs if conv not in self.dfl]
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
            groups[self._joined[node.outputs[0]]].append(node)
        return tuple(tuple(group) for group in groups.values())

    def scale_group(self, tensor: str) -> int | None:
        """The index in :attr:`scale_groups` of the group that ``tensor`` lies in, or None."""
        return self._group_numbers.get(self._joined.get(tensor, ""))

    @cached_property
    def _group_numbers(self) -> dict[str, int]:
        return {self._joined[group[0].outputs[0]]: number for number, group in enumerate(self.scale_groups)}

    @cached_property
    def _joined(self) -> dict[str, str]:
        """Union-find over copies and Q/DQ: every tensor they touch -> the representative of its set."""
        parent: dict[str, str] = {}

        def find(name: str) -> str:
            while parent.setdefault(name, name) != name:
                parent[name] = name = parent[parent[name]]
            return name

        for node in self.nodes:
            if self.is_copy_or_qdq(node):
                for name in (*self.copied(node), *node.outputs):
                    parent[find(name)] = find(node.outputs[0])
        return {name: find(name) for name in list(parent)}


def unlike(grids: Iterable[Quantization | None]) -> bool:
    """Whether two of the grids that are there differ."""
    present = [grid for grid in grids if grid is not None]
    return any(not grid.same_as(present[0]) for grid in present[1:])


def _zero(quantization: Quantization) -> np.ndarray[Any, Any]:
    zero_point = quantization.zero_point
    return np.zeros(1) if zero_point is None else np.unique(zero_point.astype(np.float64))
