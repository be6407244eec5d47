"""An ONNX file compiled by TensorRT-RTX only to see what the compiler makes of it. Needs no GPU, keeps no engine."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path

from trt_qat.engine.child import ask_child
from trt_qat.engine.compiled import CompiledEngine
from trt_qat.engine.compiler_log import engine_from_log
from trt_qat.engine.flavor import INSTALL_HINTS, MODULES
from trt_qat.engine.onnx_nodes import nodes_of_file
from trt_qat.errors import ConfigError, MissingDependency

_CHILD_MODULE = "trt_qat.engine.compile_process"
_FLAVOR = "tensorrt-rtx"


def compile_onnx(onnx: Path, sm: int, batch: int = 1) -> CompiledEngine:
    """Build an ONNX file for a compute capability in a child process and read what the builder says about it.

    Args:
        sm: compute capability without its dot, e.g. 89 (RTX 40), 86 (RTX 30), 120 (RTX 50).
        batch: images per inference, for a file with a free batch axis.

    Raises:
        ArtifactError: the ONNX file is missing or not sound.
        ConfigError: no such compute capability or batch.
        MissingDependency: tensorrt-rtx is not installed.
        EngineError: TensorRT refuses the file, or its log cannot be read.
    """
    if batch < 1:
        raise ConfigError(f"Batch {batch} must be 1 or more.")
    nodes = nodes_of_file(onnx, batch)
    if importlib.util.find_spec(MODULES[_FLAVOR]) is None:
        raise MissingDependency(f"Compiling needs the package '{_FLAVOR}': {INSTALL_HINTS[_FLAVOR]}.")
    with tempfile.TemporaryDirectory(prefix="trt_qat_compile_") as folder:
        log = Path(folder) / "log.txt"
        request = {"onnx": str(onnx), "sm": sm, "batch": batch, "log": str(log)}
        what = f"TensorRT could not build '{onnx.name}'"
        answer = ask_child(_CHILD_MODULE, request, Path(folder) / "report.json", _FLAVOR, what)
        text = log.read_text(encoding="utf-8")
    return engine_from_log(
        text, version=answer["version"], sm=sm, source=str(onnx), plan_bytes=answer["plan_bytes"], nodes=nodes
    )
