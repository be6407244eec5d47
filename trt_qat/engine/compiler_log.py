"""The words of a TensorRT-RTX build, read: one line per layer of the finished engine.

With a VERBOSE logger and detailed profiling the builder says what IEngineInspector would say on a GPU, without one.
The format is NVIDIA's own business and may change with any release. So this reader knows the versions whose words are
recorded as tests (``tests/engine/logs``), takes every line whole, and refuses what it does not know: a number that
might be wrong is worse than none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from trt_qat.engine.compiled import BITS, CompiledEngine, CompiledTensor, Kernel
from trt_qat.engine.kernel_work import make_kernel
from trt_qat.engine.onnx_nodes import OnnxNode
from trt_qat.errors import EngineError

READ_VERSIONS: Final = ("1.7",)
"""Releases of tensorrt-rtx whose log was recorded and read; a patch of one of them says the same."""

_EVENTS: Final = frozenset({"signal", "wait"})  # between streams; nothing is launched for them
_KINDS: Final = _EVENTS | {
    "correlation", "deconv", "gemm", "kgen", "maxpool", "avgpool", "runtime_fusion", "runtime_function",
}  # fmt: skip
_BETWEEN_NODES: Final = "\x1f"
_FROM_CONVOLUTION: Final = "__gemm_from_conv1x1"  # behind the nodes of a 1x1 convolution done as a matrix product
_NAME = r"[^{}\x00-\x1f\x7f]*?"
_LAYER: Final = re.compile(
    rf"Name: (?P<name>{_NAME}), LayerType: (?P<kind>[A-Za-z_0-9]+), Inputs: \[(?P<inputs>.*?)\], "
    rf"Constants: \[(?P<constants>.*?)\], Outputs: \[(?P<outputs>.*?)\], TacticName: [^,]*, "
    rf"StreamId: \d+,(?: EventId: \d+,)? Metadata: (?P<metadata>.*)"
)
_NODE: Final = re.compile(r"\[ONNX Layer: ((?:(?!\[ONNX Layer: )[^{}\x00-\x1f\x7f])*)\]")
_TENSOR: Final = re.compile(
    rf"\{{ Name: (?P<name>{_NAME}), Dimensions: \[(?P<shape>[0-9,]*)\], Strides: \[[0-9,]*\], "
    rf"StrideOrder: \[[0-9,]*\], Datatype: (?P<dtype>[A-Za-z0-9]+), Format: (?P<format>[^{{}}]*?) \}}"
)
_BINDING: Final = re.compile(
    rf" Name: (?P<name>{_NAME}), IOMode: (?P<mode>Input|Output), DataType: (?P<dtype>[A-Za-z0-9]+), "
    rf"Dimensions: \[(?P<shape>[-0-9,]*)\], .*"
)
_HEAD: Final = re.compile(r"^(?:[A-Z_]+ )?Layers:$", re.MULTILINE)
_ONCE: Final = (", LayerType: ", "], Constants: [", "], Outputs: [", ", TacticName: ", ", StreamId: ", ", Metadata: ")


def engine_from_log(
    text: str,
    *,
    version: str,
    sm: int | None,
    source: str = "log",
    plan_bytes: int = 0,
    nodes: Mapping[str, OnnxNode] | None = None,
) -> CompiledEngine:
    """Read the layers that a build of TensorRT-RTX said.

    Args:
        text: the log at verbosity VERBOSE, a message per line, with or without its severity before it.
        version: of the tensorrt-rtx that said it.
        sm: compute capability of the build.
        source: the file that was compiled, for the report.
        nodes: what the ONNX file says about its nodes; without, operators and modules are guessed from names of
            torch.onnx, and padded channels count as work.

    Raises:
        EngineError: a version whose words were never seen, no layers, or a line, layer type or data type not known.
    """
    check_version(version)
    layers, bindings = _blocks(text)
    kernels = tuple(_kernel(line, nodes) for line in layers)
    inputs, outputs = _bindings(bindings)
    return CompiledEngine(
        source, "tensorrt-rtx", version, sm, tuple(filter(None, kernels)), plan_bytes, inputs, outputs
    )


def check_version(version: str) -> None:
    """Refuse a release whose log nobody has looked at.

    Raises:
        EngineError: it is not among :data:`READ_VERSIONS`.
    """
    if ".".join(version.split(".")[:2]) not in READ_VERSIONS:
        known = ", ".join(f"{entry}.*" for entry in READ_VERSIONS)
        raise EngineError(
            f"The log of tensorrt-rtx {version[:40]} cannot be read: its format is not documented, and was looked at "
            f"for {known} only. Install one of these, or inspect the *.plan on a GPU."
        )


def _blocks(text: str) -> tuple[list[str], list[str]]:
    """The lines between "Layers:" and the blank line behind it, and those of "I/O Tensors:"."""
    heads = list(_HEAD.finditer(text))
    if len(heads) != 1:
        raise EngineError(
            f"The log has {len(heads) or 'no'} list{'s' if len(heads) > 1 else ''} of layers, one is needed. "
            "Log at VERBOSE with profiling verbosity DETAILED."
        )
    # not splitlines(): it also splits at characters that may stand in a name
    lines = text[heads[0].end() + 1 :].split("\n")
    if "" not in lines or lines[lines.index("") + 1 :][:1] != ["I/O Tensors:"]:
        raise EngineError("The log's list of layers has no end: it was cut off.")
    end = lines.index("")
    rest = lines[end + 2 :]
    return lines[:end], rest[: rest.index("")] if "" in rest else rest


def _kernel(line: str, nodes: Mapping[str, OnnxNode] | None) -> Kernel | None:
    """The kernel of a line; None for an event of streams."""
    # counted first: with every mark there once, the expression has one way to match, however long the line
    found = _LAYER.fullmatch(line) if all(line.count(mark) == 1 for mark in _ONCE) else None
    if found is None:
        raise EngineError(f"The compiler's log has a layer that is not understood: '{line[:120]}'.")
    kind = found["kind"]
    if kind not in _KINDS:
        raise EngineError(f"Layer '{found['name'][:80]}' is of a type never seen in a compiler's log: '{kind}'.")
    inputs, constants, outputs = (_tensors(found[what]) for what in ("inputs", "constants", "outputs"))
    if kind in _EVENTS:
        return None
    if not outputs:
        raise EngineError(f"Layer '{found['name'][:80]}' writes nothing: the compiler's log is not understood.")
    names = _onnx_nodes(found["metadata"])
    return make_kernel(found["name"], kind, names, inputs, outputs, constants, nodes)


def _tensors(text: str) -> tuple[CompiledTensor, ...]:
    """The tensors between the brackets of a list: nothing, or ``{ .. }, { .. }`` and a blank around them."""
    return tuple(_split(text)) if text else ()


def _split(text: str) -> Iterator[CompiledTensor]:
    position = 1 if text.startswith(" ") else len(text) + 1
    while found := _TENSOR.match(text, position):
        yield CompiledTensor(found["name"], _dtype(found["dtype"]), _shape(found["shape"]), found["format"])
        if found.end() == len(text):
            return
        if not text.startswith(", ", found.end()):
            break
        position = found.end() + 2
    raise EngineError(f"The compiler's log has a tensor that is not understood: '{text[max(position, 0) :][:120]}'.")


def _dtype(name: str) -> str:
    if name not in BITS:
        raise EngineError(f"The compiler's log names a data type never seen: '{name}'. Known: {', '.join(BITS)}.")
    return name


def _shape(text: str) -> tuple[int, ...]:
    sizes = text.split(",") if text else []
    if not all(size.isdigit() and len(size) < 12 for size in sizes):
        raise EngineError(f"The compiler's log has a shape that is not understood: '[{text[:60]}]'.")
    return tuple(int(size) for size in sizes)


def _onnx_nodes(metadata: str) -> tuple[str, ...]:
    if not metadata:
        return ()
    nodes = [_NODE.fullmatch(part) for part in metadata.removesuffix(_FROM_CONVOLUTION).split(_BETWEEN_NODES)]
    if None in nodes:
        raise EngineError(f"The compiler's log has metadata that are not understood: '{metadata[:120]}'.")
    return tuple(node[1] for node in nodes if node is not None)


def _bindings(lines: list[str]) -> tuple[tuple[CompiledTensor, ...], tuple[CompiledTensor, ...]]:
    found = {"Input": [], "Output": []}  # type: dict[str, list[CompiledTensor]]
    for line in lines:
        binding = _BINDING.fullmatch(line)
        if binding is None:
            raise EngineError(f"The compiler's log has an input or output that is not understood: '{line[:120]}'.")
        shape = _shape(binding["shape"].replace("-", ""))
        found[binding["mode"]].append(CompiledTensor(binding["name"], _dtype(binding["dtype"]), shape))
    return tuple(found["Input"]), tuple(found["Output"])
