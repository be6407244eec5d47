"""TensorRT's build errors in the user's words: which PyTorch module they are about, and what to try.

The message is TensorRT's own; a table says what helps. The module comes from the names of nodes and weights that stand
in the message, through the ONNX file: TensorRT knows its layers by them, fused ones by the first and the last.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trt_qat.errors import TrtQatError
from trt_qat.linter.view import UNKNOWN_MODULE, Node, OnnxView, read_model

_SHOWN_MODULES: Final = 3


@dataclass(frozen=True)
class Complaint:
    """What TensorRT said.

    Args:
        message: one line without the full stop.
        node: name of the ONNX node, if the parser named it.
        operator: of that node.
    """

    message: str
    node: str = ""
    operator: str = ""

    @classmethod
    def of_parser(cls, description: str, node: str, operator: str, code: str) -> Complaint:
        """An error of the ONNX parser; where it only says that a check failed, its code says more."""
        lines = [line for line in map(_one_line, description.splitlines()) if not _is_noise(line)]
        told = [line for line in lines if not line.startswith("Invalid Node - ")] or lines
        message = told[0] if told and told[0] != "false" else code
        return cls(message.rstrip("."), node, operator)

    @classmethod
    def of_log(cls, logged: Sequence[str], otherwise: str) -> Complaint:
        """The last logged error that says why; TensorRT logs consequences behind their cause."""
        lines = [line for line in map(_one_line, logged) if line]
        told = [line for line in lines if not _is_noise(line)] or lines or [_one_line(otherwise)]
        return cls(told[-1].rstrip("."))


@dataclass(frozen=True)
class _Row:
    """A known message: a pattern of it, and what helps.

    Args:
        advice: ``{modules}`` stands for a list of modules as a setting has it.
        float_advice: for a file without Q/DQ, where that is something else.
    """

    pattern: re.Pattern[str]
    advice: str
    float_advice: str = ""


def _row(pattern: str, advice: str, float_advice: str = "") -> _Row:
    return _Row(re.compile(pattern, re.IGNORECASE), advice, float_advice)


# Checked in this order. tests/engine/test_build_errors.py has a recorded message for each.
KNOWN: Final = (
    _row(
        r"zero.?point.*not supported|only supports symmetric|shiftIsAllZeros",
        "TensorRT takes signed INT8 with zero point 0 only: write the file with `trt-qat export --target tensorrt`",
    ),
    _row(
        r"scale coefficients must all be positive",
        "A range of it is empty: calibrate again with images that reach this layer",
    ),
    _row(r"number of scales is not equal|K == scale", "The scales do not fit the weight's channels: export it again"),
    _row(r"try increasing the workspace", "Raise engine.workspace_mib"),
    _row(
        r"out ?of ?memory|could not be allocated|try decreasing the workspace",
        "The GPU's memory is full: end what else runs there, or lower engine.max_batch and engine.workspace_mib",
    ),
    _row(
        r"could not find any implementation|no tactics to implement|candidateRequirements|marked as an int8 node",
        "Leave it float (--set quantization.exclude={modules}) and export again, or raise engine.workspace_mib; "
        "`trt-qat lint` names Q/DQ pairs that stand wrong",
        "Raise engine.workspace_mib; if that does not help, another version of TensorRT may have a kernel for it",
    ),
    _row(
        r"plugin not found|no importer registered|getPluginCreator|plugin creator|^UNSUPPORTED_NODE",
        "TensorRT has no such operator: export raw detection (no built-in NMS) in plain ONNX operators; of quantized "
        "files it takes QuantizeLinear and DequantizeLinear only",
    ),
    _row(
        r"must be of same type|differs from input 1's element type|first input has type",
        "The file mixes FP16 and FP32, and a strongly typed network converts nothing by itself: write it with "
        "`trt-qat export --precision int8+fp16`",
    ),
    _row(
        r"concat input tensors must have the same dim|failed to broadcast",
        "Its inputs do not fit each other: sizes must be multiples of the stride, or the file is to be exported again",
    ),
    _row(r"K exceeds the maximum", "TensorRT sorts at most 3840 values: export raw detection, without built-in NMS"),
    _row(
        r"optimization profile|in profile \d+",
        "Check the sizes and batches in the engine section against the ONNX file's input",
    ),
    _row(
        r"libnvinfer_lean",
        "engine.version_compatible needs TensorRT's lean runtime: put the folder with libnvinfer_lean, of the package "
        "tensorrt-lean in the same version, into LD_LIBRARY_PATH, or set it to false",
    ),
    _row(r"unable to load library", "TensorRT is not installed completely: install the package again"),
    _row(
        r"SM.*not supported by this TensorRT|unsupported SM",
        "This TensorRT has no kernels for this GPU: install a version that supports it",
    ),
    _row(
        r"cudaError 35|CUDA driver version is insufficient|CUDA initialization failure",
        "The NVIDIA driver is missing or too old for this TensorRT: update it, or build with --flavor tensorrt-rtx",
    ),
)
_OTHERWISE: Final = "`trt-qat lint` may name the cause; quantization.exclude leaves a module float"
# Consequences of another error, which stand behind it in the log; no reason by themselves.
_NOISE: Final = re.compile(
    r"catchCudaError.*cudaError 35|engine(Ptr)? != nullptr|Build engine failed|Output shape can not be computed|"
    r"^Thread context has not been set|^Invalid Engine\b"
)


def explained(complaint: Complaint, onnx: Path) -> str:
    """TensorRT's message, the PyTorch module that it is about, and what to try; ends with a full stop."""
    view = _view(onnx)
    nodes = _nodes(complaint, view) if view else []
    modules = _modules(nodes, view) if view else []
    where = f"node '{complaint.node}' ({complaint.operator}): " if complaint.node else ""
    named = f" It comes from {_listed(modules)}." if modules else ""
    quantized = view is None or any(node.is_qdq for node in view.nodes)
    convolutions = _modules([node for node in nodes if node.op == "Conv"], view) if view else []
    return f"{where}{complaint.message}.{named} {advice(complaint.message, convolutions or modules, quantized)}."


def advice(message: str, modules: Sequence[str] = (), quantized: bool = True) -> str:
    """What to try against a message of TensorRT, without the full stop.

    Args:
        message: TensorRT's; an unknown one gets general advice.
        modules: of PyTorch, that it is about.
        quantized: the file holds Q/DQ pairs.
    """
    row = next((row for row in KNOWN if row.pattern.search(message)), None)
    if row is None:
        return _OTHERWISE
    text = row.advice if quantized or not row.float_advice else row.float_advice
    return text.replace("{modules}", f"[{','.join(modules[:_SHOWN_MODULES])}]" if modules else "[MODULE]")


def named_nodes(message: str, nodes: Iterable[Node]) -> list[Node]:
    """The nodes whose name stands in a message as a whole, in the graph's order.

    Fused layers stand there as ``{ForeignNode[first...last]}``, ``a + b`` or ``PWN(a)``.
    """
    return [node for node in nodes if node.name and _stands_in(node.name, message)]


def _view(onnx: Path) -> OnnxView | None:
    try:
        return OnnxView(read_model(onnx))
    except TrtQatError:  # the build has failed already: its message counts, not this one
        return None


def _nodes(complaint: Complaint, view: OnnxView) -> list[Node]:
    text = f"{complaint.node} {complaint.message}"
    # fused layers may go by the name of a weight
    return named_nodes(text, view.nodes) or [node for node in view.nodes if _reads_named(node, text)]


def _modules(nodes: Sequence[Node], view: OnnxView) -> list[str]:
    found = dict.fromkeys(view.module_of(node) for node in nodes)
    return [module for module in found if module != UNKNOWN_MODULE]


def _reads_named(node: Node, text: str) -> bool:
    return any(name and _stands_in(name, text) for name in node.inputs[1:])


def _stands_in(name: str, text: str) -> bool:
    return name in text and re.search(rf"(?<![\w/]){re.escape(name)}(?![\w/])", text) is not None


def _listed(modules: Sequence[str]) -> str:
    if len(modules) > _SHOWN_MODULES:
        return f"the PyTorch modules {modules[0]} to {modules[-1]}"
    return f"the PyTorch module{'s' if len(modules) > 1 else ''} {', '.join(modules)}"


def _is_noise(line: str) -> bool:
    return not line or _NOISE.search(line) is not None


def _one_line(text: str) -> str:
    return " ".join(text.split())
