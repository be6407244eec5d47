"""Every TensorRT, pycuda-free CUDA and parser attribute that the code names exists in the real bindings.

The code that drives a GPU cannot run here; what it calls can still be looked up. The attributes are
read from the source with ``ast``, so that a new call cannot be forgotten.
"""

from __future__ import annotations

import ast
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

import trt_qat.engine as engine_package
import trt_qat.runtime as runtime_package

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")

ENGINE = Path(engine_package.__file__).parent
RUNTIME = Path(runtime_package.__file__).parent
# how the sources call an object -> the binding's class or module
DRIVERS: list[tuple[Path, dict[str, Any]]] = [
    (
        RUNTIME / "tensorrt.py",
        {
            "trt": trt,
            "self._trt": trt,
            "self._runtime": trt.Runtime,
            "engine": trt.ICudaEngine,
            "self._engine": trt.ICudaEngine,
            "self._context": trt.IExecutionContext,
        },
    ),
    (
        ENGINE / "inspect.py",
        {
            "trt": trt,
            "runtime": trt.Runtime,
            "engine": trt.ICudaEngine,
            "context": trt.IExecutionContext,
            "inspector": trt.EngineInspector,
        },
    ),
    (
        ENGINE / "build_process.py",
        {"trt": trt, "parser": trt.OnnxParser, "error": trt.ParserError, "network": trt.INetworkDefinition},
    ),
    (ENGINE / "flavor.py", {"trt": trt}),
]


def attributes(source: Path, receiver: str) -> set[str]:
    """Dotted attributes that the source reads from expressions spelled like ``receiver``."""
    found = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            text = ast.unparse(node)
            if text.startswith(f"{receiver}."):
                found.add(text.removeprefix(f"{receiver}."))
    return found


CASES = [(source, receiver, target) for source, names in DRIVERS for receiver, target in names.items()]


@pytest.mark.parametrize(("source", "receiver", "target"), CASES, ids=[f"{s.name}:{r}" for s, r, _ in CASES])
def test_attributes_exist(source: Path, receiver: str, target: Any) -> None:
    used = {name for name in attributes(source, receiver) if "(" not in name}
    assert used, f"{source.name} no longer uses '{receiver}': remove it from DRIVERS"
    for name in used:
        attrgetter(name)(target)


def test_the_execution_api_is_the_one_that_tensorrt_11_kept() -> None:
    used = attributes(RUNTIME / "tensorrt.py", "self._context")
    assert {"set_input_shape", "set_tensor_address", "execute_async_v3", "get_tensor_shape"} <= used


def test_cuda_python_attributes_exist() -> None:
    cudart = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    source = RUNTIME / "device_memory.py"
    used = attributes(source, "cudart") | attributes(source, "self._cudart")
    assert len(used) > 8
    for name in used:
        attrgetter(name)(cudart)
