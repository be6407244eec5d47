"""What the lint predicts, looked up in the engine that the compiler made.

A rule on placement says that something costs speed: data that goes through float, a tensor quantized twice, a
convolution that stays float or alone. Each such finding names an ONNX node, and the compiled engine says which kernels
compute that node and how. So every finding is either seen there or not; a rule whose findings are never seen is wrong
for that compiler.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from trt_qat.engine.compiled import FLOATS, MOVES, CompiledEngine, Kernel
from trt_qat.linter.finding import Finding
from trt_qat.linter.graph import CONV_OPS, QdqGraph
from trt_qat.linter.rules import RULES
from trt_qat.linter.view import DEQUANTIZE, QUANTIZE, Node

_TARGET: Final = "tensorrt-rtx"
_SHOWN: Final = 3
_REQUANTIZING: Final = (
    ("Roun", "Cast", "Cast", "Mul"),
    ("Cast", "Mul", "Mul", "Min", "Max", "Roun"),
)


@dataclass(frozen=True)
class CheckedFinding:
    """A finding and the kernels in which it was seen; none: the compiler did away with it."""

    finding: Finding
    kernels: tuple[str, ...]


@dataclass(frozen=True)
class LintCheck:
    """The findings of a file that a compiled engine can show.

    Args:
        checked: in the order of the rule table.
        left_float: the other way round: convolutions with Q/DQ on input and weight, as the lint counts INT8, that the
            engine computes in float all the same.
    """

    checked: tuple[CheckedFinding, ...]
    left_float: tuple[str, ...]

    @property
    def seen(self) -> int:
        """Findings that the engine shows."""
        return sum(bool(entry.kernels) for entry in self.checked)

    @property
    def unseen(self) -> tuple[Finding, ...]:
        """Findings that the engine does not show."""
        return tuple(entry.finding for entry in self.checked if not entry.kernels)

    def lines(self) -> list[str]:
        """What to say: the count, what was not seen (the first three), and convolutions that the lint took for INT8."""
        lines = [f"lint: {self.seen} of {len(self.checked)} findings seen in the engine"]
        lines += [f"lint: not seen: {finding.rule} at {finding.node}" for finding in self.unseen[:_SHOWN]]
        if len(self.unseen) > _SHOWN:
            lines.append(f"lint: not seen: {len(self.unseen) - _SHOWN} more (--json lists all)")
        if self.left_float:
            shown = ", ".join(self.left_float[:_SHOWN])
            lines.append(f"in INT8 for the lint, in float in the engine: {len(self.left_float)} convolutions ({shown})")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """The object of ``--json``."""
        rows = [
            {"rule": entry.finding.rule, "node": entry.finding.node, "kernels": list(entry.kernels)}
            for entry in self.checked
        ]
        return {
            "findings": len(self.checked),
            "seen": self.seen,
            "rows": rows,
            "int8_left_float": list(self.left_float),
        }


def check_lint(onnx: Path, engine: CompiledEngine) -> LintCheck:
    """Look up in an engine what the lint says about its ONNX file for TensorRT-RTX.

    Findings that are no matter of kernels (zero points, names, numbers) and deliberate ones are left out.

    Args:
        engine: compiled from ``onnx``.

    Raises:
        ArtifactError: the file is missing or no sound ONNX graph.
    """
    graph = QdqGraph.read(onnx)
    nodes = {node.name: node for node in graph.nodes}
    checked = []
    for rule in RULES:
        look = _LOOKS.get(rule.name)
        for finding in rule.findings(graph, _TARGET) if look else ():
            if look is not None and finding.severity != "info":
                kernels = look(nodes[finding.node], graph, engine)
                checked.append(CheckedFinding(finding, tuple(kernel.name for kernel in kernels)))
    left_float = tuple(
        conv.name for conv in graph.convs if graph.is_int8(conv) and _float_convolution(conv, graph, engine)
    )
    return LintCheck(tuple(checked), left_float)


def _round_trip(node: Node, graph: QdqGraph, engine: CompiledEngine) -> list[Kernel]:
    """Kernels at this place that requantize, or that copy in float."""
    copies, quantizers = _around(node, graph)
    return [
        kernel
        for kernel in engine.kernels
        if (_requantizes(kernel) and (copies | quantizers).intersection(kernel.onnx_nodes))
        or (_copies_in_float(kernel) and copies.intersection(kernel.onnx_nodes))
    ]


def _around(node: Node, graph: QdqGraph) -> tuple[set[str], set[str]]:
    """The copies that join a place, itself included, and the Q nodes at their ends."""
    copies, quantizers = {node.name}, set[str]()

    def through(other: Node) -> bool:
        if graph.is_copy(other):
            copies.add(other.name)
        return graph.is_copy(other)

    for name in node.outputs:
        quantizers |= {
            taker.name for taker in graph.takers(name, through) if taker is not None and taker.op == QUANTIZE
        }
    for name in node.inputs:
        for maker in graph.sources(name, through):
            source = graph.producer(maker.inputs[0]) if maker.op == DEQUANTIZE else maker
            quantizers |= {source.name} if source is not None and source.op == QUANTIZE else set()
    return copies, quantizers


def _requantizes(kernel: Kernel) -> bool:
    """It goes from INT8 to INT8 by a multiplication: rounds and multiplies again, or multiplies twice and rounds."""
    return any(
        kernel.ops[start : start + len(steps)] == steps for steps in _REQUANTIZING for start in range(len(kernel.ops))
    )


def _copies_in_float(kernel: Kernel) -> bool:
    moves = bool(MOVES.intersection(kernel.ops)) or kernel.role == "pool"
    return moves and any(tensor.dtype in FLOATS for tensor in kernel.outputs)


def _quantized_again(node: Node, graph: QdqGraph, engine: CompiledEngine) -> list[Kernel]:
    """Kernels that compute the second quantizer of a tensor."""
    del graph
    return [kernel for kernel in engine.kernels if node.name in kernel.onnx_nodes and "Roun" in kernel.ops]


def _unfused_activation(node: Node, graph: QdqGraph, engine: CompiledEngine) -> list[Kernel]:
    """The convolution's kernel, if it is without its activation."""
    del graph
    return [kernel for kernel in _convolutions(node, engine) if "activation" not in kernel.fused]


def _float_convolution(node: Node, graph: QdqGraph, engine: CompiledEngine) -> list[Kernel]:
    """The convolution, or those that read a quantizer, computed in float."""
    convs = [node] if node.op in CONV_OPS else []
    if not convs:
        takers = [taker for name in node.outputs for taker in graph.takers(name, graph.is_copy_or_qdq)]
        convs = [taker for taker in takers if taker is not None and taker.op in CONV_OPS]
    return [kernel for conv in convs for kernel in _convolutions(conv, engine) if kernel.input_type != "Int8"]


def _float_sums(node: Node, graph: QdqGraph, engine: CompiledEngine) -> list[Kernel]:
    """The INT8 convolution, if it writes FP32."""
    del graph
    return [kernel for kernel in _convolutions(node, engine) if kernel.is_int8 and kernel.output_type == "Float"]


def _no_int8(node: Node, graph: QdqGraph, engine: CompiledEngine) -> list[Kernel]:
    """All convolutions, if none is in INT8."""
    del node, graph
    found = [kernel for kernel in engine.kernels if kernel.is_convolution]
    return [] if any(kernel.is_int8 for kernel in found) else found


def _convolutions(conv: Node, engine: CompiledEngine) -> list[Kernel]:
    return [kernel for kernel in engine.kernels if kernel.is_convolution and conv.name in kernel.onnx_nodes]


_Look = Callable[[Node, QdqGraph, CompiledEngine], list[Kernel]]
_LOOKS: Final[Mapping[str, _Look]] = {
    "no-qdq": _no_int8,
    "per-channel-activation": _float_convolution,
    "weight-axis": _float_convolution,
    "rtx-channel-scales": _float_sums,
    "rtx-enlarged": _float_convolution,
    "q-between-conv-and-activation": _unfused_activation,
    "two-scales-one-tensor": _quantized_again,
    "unequal-scales": _round_trip,
    "float-round-trip": _round_trip,
    "conv-not-int8": _float_convolution,
}
"""How a finding of a rule is looked up."""
