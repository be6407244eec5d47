"""Every TensorRT, pycuda-free CUDA and parser attribute that the code names exists in the real bindings.

The code that drives a GPU cannot run here; what it calls can still be looked up: in TensorRT-RTX's module, and what is
needed at run time in that of the lean runtime, whose API is TensorRT 11's. The attributes are read from the source with
``ast``, so that a new call cannot be forgotten, and every object on which the source reads one is listed, with its
class or as something else, so that a new object cannot be forgotten either.

Each package is asked in a process of its own: a process that has loaded TensorRT and its lean runtime mixes them up.
"""

from __future__ import annotations

import ast
import builtins
import json
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

import trt_qat
import trt_qat.engine as engine_package
import trt_qat.runtime as runtime_package

PACKAGE = Path(trt_qat.__file__).parent
ENGINE = Path(engine_package.__file__).parent
RUNTIME = Path(runtime_package.__file__).parent
MODULE = ""
# how the sources call an object of TensorRT -> its class in the bindings
DRIVERS: list[tuple[Path, dict[str, str]]] = [
    (
        RUNTIME / "tensorrt.py",
        {
            "trt": MODULE,
            "self._trt": MODULE,
            "strategies": "CudaGraphStrategy",
            "self._runtime": "Runtime",
            "self._engine": "ICudaEngine",
            "self._context_settings": "IRuntimeConfig",
        },
    ),
    (RUNTIME / "tensorrt_tensors.py", {"trt": MODULE, "engine": "ICudaEngine"}),
    (RUNTIME / "tensorrt_request.py", {"self._context": "IExecutionContext"}),
    (
        ENGINE / "inspect.py",
        {
            "trt": MODULE,
            "runtime": "Runtime",
            "engine": "ICudaEngine",
            "context": "IExecutionContext",
            "inspector": "EngineInspector",
        },
    ),
    (
        ENGINE / "build_process.py",
        {
            "trt": MODULE,
            "parser": "OnnxParser",
            "error": "ParserError",
            "error.code()": "ErrorCode",
            "network": "INetworkDefinition",
            "network.get_input(0)": "ITensor",
            "tensor": "ITensor",
            "dtype": "DataType",
        },
    ),
    (
        ENGINE / "compile_process.py",
        {
            "trt": MODULE,
            "builder": "Builder",
            "config": "IBuilderConfig",
            "network": "INetworkDefinition",
            "parser": "OnnxParser",
            "plan": "IHostMemory",
            "profile": "IOptimizationProfile",
            "tensor": "ITensor",
        },
    ),
    (ENGINE / "flavor.py", {"trt": MODULE}),
    (ENGINE / "flags.py", {"trt": MODULE}),
]
# what else these sources read attributes from: nothing of TensorRT's
OTHERS: dict[str, set[str]] = {
    "tensorrt.py": {
        "self", "self._cuda", "self._idle", "self._requests", "self._tensors", "description", "failed", "last_first",
        "request",
    },
    "tensorrt_tensors.py": {"_AXES", "self"},
    "tensorrt_request.py": {
        "self", "self._buffers", "self._buffers[name]", "self._cuda", "self._errors", "self._events", "self._graphs",
        "self._tensors", "self._views", "batch", "both", "buffer", "buffer.page_locked[:nbytes]",
        "buffer.page_locked[:nbytes].view(dtype)", "cuda", "dtype", "errors[-1]", "failed", "last_first",
    },
    "inspect.py": {
        "_NODE", "_TYPE", "activation", "content", "described", "entry", "found", "kernel", "listed", "tensor", "what",
        "word",
    },
    "compile_process.py": {
        "line", "log", "name", "onnx", "said", "severity",
    },
    "build_process.py": {
        "cache", "collected", "name", "names", "onnx", "plan", "profile", "profiles", "section", "shapes",
        "trt.nptype(dtype)",
    },
    "flavor.py": {"errors", "msg"},
    "flags.py": {"flag", "section"},
}  # fmt: skip
AT_RUN_TIME = ("tensorrt.py", "tensorrt_tensors.py", "tensorrt_request.py", "inspect.py", "flavor.py")
PACKAGES = ("tensorrt_rtx", "tensorrt_lean", "tensorrt")
NOT_IN = {
    ("tensorrt_lean", "EngineInspector"): "its engines make such objects, its module does not name their class",
    ("tensorrt", "ComputeCapability"): "TensorRT builds for the GPU of the machine; the code asks TensorRT-RTX alone",
    **{
        (package, name): "TensorRT-RTX records graphs by itself, and is asked to where its module has the class"
        for package in ("tensorrt_lean", "tensorrt")
        for name in ("CudaGraphStrategy", "IRuntimeConfig.cuda_graph_strategy")
    },
}


def attributes(source: Path, receiver: str) -> set[str]:
    """Dotted attributes that the source reads from expressions spelled like ``receiver``."""
    found = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            text = ast.unparse(node)
            if text.startswith(f"{receiver}."):
                found.add(text.removeprefix(f"{receiver}."))
    return found


CASES = [
    (package, source, receiver, owner)
    for package in PACKAGES
    for source, names in DRIVERS
    for receiver, owner in names.items()
    if package != "tensorrt_lean" or source.name in AT_RUN_TIME
]


# prints those of the dotted names on stdin that are not there
_LOOK_UP = """
import importlib, json, operator, sys
def is_there(name):
    try:
        operator.attrgetter(name)(trt)
    except AttributeError:
        return False
    return True
trt = importlib.import_module(sys.argv[1])
print(json.dumps([name for name in json.load(sys.stdin) if not is_there(name)]))
"""


@cache
def _missing(package: str) -> frozenset[str]:
    """What the sources use and the package lacks, as ``Class.attribute``."""
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    used = {name for _, source, receiver, owner in CASES for name in _used(source, receiver, owner)}
    child = subprocess.run(
        [sys.executable, "-c", _LOOK_UP, package],
        input=json.dumps(sorted({*used, *(owner for _, owner in NOT_IN), "Nothing.such"})),
        capture_output=True,
        text=True,
        check=True,
    )
    missing = frozenset(json.loads(child.stdout))
    assert "Nothing.such" in missing
    return missing


def _used(source: Path, receiver: str, owner: str) -> set[str]:
    prefix = f"{owner}." if owner else ""
    return {prefix + name for name in attributes(source, receiver) if "(" not in name}


@pytest.mark.parametrize(
    ("package", "source", "receiver", "owner"), CASES, ids=[f"{p}-{s.name}:{r}" for p, s, r, _ in CASES]
)
def test_attributes_exist(package: str, source: Path, receiver: str, owner: str) -> None:
    used = _used(source, receiver, owner)
    assert used, f"{source.name} no longer uses '{receiver}': remove it from DRIVERS"
    known = {name for name in used if {(package, name), (package, name.partition(".")[0])} & NOT_IN.keys()}
    assert used & _missing(package) == known


@pytest.mark.parametrize(("package", "owner"), NOT_IN)
def test_what_a_package_lacks_is_lacking(package: str, owner: str) -> None:
    assert owner in _missing(package), f"{package} has {owner}: remove it from NOT_IN"


def _receivers(source: Path) -> set[str]:
    """The expressions that a source reads attributes from, its own and imported names and plain values apart."""
    tree = ast.parse(source.read_text(encoding="utf-8"))
    known = set(dir(builtins))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            known |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    known |= {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner = node.value
            while isinstance(owner, ast.Attribute) and ast.unparse(owner.value) != "self":
                owner = owner.value
            called = owner.func if isinstance(owner, ast.Call) else owner
            if not isinstance(owner, ast.Constant | ast.JoinedStr) and ast.unparse(called) not in known:
                found.add(ast.unparse(owner))
    return found


@pytest.mark.parametrize(("source", "names"), DRIVERS, ids=[source.name for source, _ in DRIVERS])
def test_no_object_is_forgotten(source: Path, names: dict[str, str]) -> None:
    assert _receivers(source) == set(names) | OTHERS[source.name], "list what is new in DRIVERS or in OTHERS"


def test_no_source_is_forgotten() -> None:
    """One that has TensorRT's module in its hands."""
    using = set()
    for source in PACKAGE.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(source.read_text(encoding="utf-8"))))
        names = {node.id for node in nodes if isinstance(node, ast.Name)}
        names |= {node.arg for node in nodes if isinstance(node, ast.arg)}
        imported = [getattr(node, "module", None) or "" for node in nodes if isinstance(node, ast.ImportFrom)]
        imported += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        if names & {"trt", "import_tensorrt"} or any(name.partition(".")[0] in PACKAGES for name in imported):
            using.add(source)
    using.add(RUNTIME / "tensorrt_request.py")  # is given a context, and needs nothing else of the module
    assert using == {source for source, _ in DRIVERS}, "list the objects of the new one in DRIVERS"


def test_the_execution_api_is_the_one_that_tensorrt_11_kept() -> None:
    used = attributes(RUNTIME / "tensorrt_request.py", "self._context")
    kept = {"set_input_shape", "set_tensor_address", "execute_async_v3", "get_tensor_shape"}
    assert used == {*kept, "set_optimization_profile_async"}
