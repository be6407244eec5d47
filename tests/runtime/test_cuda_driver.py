"""Both drivers and the graphs: what they call exists in the real libraries, and takes what it is given.

What the calls do together is tests/runtime/test_tensorrt.py's question, what a GPU makes of them tests/gpu's.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
import sys
import threading
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_gpu import FakeCudart, FakeLibcuda, FakePycuda, Gpu, Stream
from test_tensorrt_bindings import attributes

from trt_qat.engine.gpu import gpu_names
from trt_qat.errors import MissingDependency, RunnerError
from trt_qat.runtime import cuda_driver, cuda_graph
from trt_qat.runtime.cuda_driver import CudaDriver, CudaPythonDriver, PycudaDriver
from trt_qat.runtime.cuda_graph import CudaGraphs

SOURCE = Path(cuda_driver.__file__)
FAKES: list[tuple[Callable[[Any], CudaDriver], Callable[[Gpu], Any]]] = [
    (CudaPythonDriver, FakeCudart),
    (PycudaDriver, FakePycuda),
]
# read in pycuda 2026.1: src/wrapper/wrap_cudadrv.cpp, whose names pycuda/driver.py takes over
PYCUDA = {
    "Error", "init", "Device", "Stream", "Event", "mem_alloc", "pagelocked_empty", "memcpy_htod_async",
    "memcpy_dtoh_async",
}  # fmt: skip
PYCUDA_OBJECTS = {
    "self._context": {"push", "pop", "detach"},
    "self._streams[stream]": {"synchronize"},
    "self._events[event]": {"record"},
    "self._events[start]": {"time_till"},
    "self._events[end]": {"synchronize"},
    "stream": {"handle"},
    "self._memory.pop(address)": {"free"},
    "self._host_memory.pop(array.ctypes.data)": {"free"},
}


@pytest.mark.parametrize(("adapter", "library"), FAKES)
def test_bytes_come_back_as_they_went(adapter: Any, library: Any) -> None:
    gpu = Gpu()
    driver: CudaDriver = adapter(library(gpu))
    with driver.current():
        stream, address = driver.new_stream(), driver.alloc(24)
        source, target = (driver.host_bytes(24)[:20].view(np.float32) for _ in range(2))
        source[:] = range(5)
        driver.copy_to_device(address, source, stream)
        driver.copy_to_host(target, address, stream)
        target[:] = 0
        driver.synchronize(stream)
        np.testing.assert_array_equal(target, range(5))
        assert [call[3] for call in gpu.calls if call[0] in ("to device", "to host")] == [20, 20]


@pytest.mark.parametrize(("adapter", "library"), FAKES)
def test_cuda_errors_are_one_line(adapter: Any, library: Any) -> None:
    gpu = Gpu()
    driver: CudaDriver = adapter(library(gpu))
    gpu.failing = {"synchronize", "init", "cudaGetDevice"}
    with pytest.raises(RunnerError, match=r"^CUDA failed: initialisation: .*unspecified launch failure"):
        adapter(library(gpu))
    gpu.failing.remove("cudaGetDevice")
    with driver.current():
        stream = driver.new_stream()
        with pytest.raises(RunnerError, match=r"^CUDA failed: inference: [^\n]*unspecified launch failure\.$"):
            driver.synchronize(stream)
        driver.drop_stream(stream)
    driver.close()
    assert gpu.kinds() == {}


def test_pycuda_leaves_the_context_as_it_was() -> None:
    gpu = Gpu()
    driver = PycudaDriver(FakePycuda(gpu), 1)
    with pytest.raises(KeyError), driver.current():
        raise KeyError
    driver.close()
    assert gpu.steps == ["init", "retain", "push", "pop", "detach"]
    assert gpu.named("retain") == [(1,)]


def test_cuda_python_leaves_the_device_as_it_was() -> None:
    gpu = Gpu()
    driver = CudaPythonDriver(FakeCudart(gpu), 1)
    with pytest.raises(KeyError), driver.current():
        raise KeyError
    assert gpu.named("cudaSetDevice") == [(1,), (0,), (1,), (0,)]


def test_pycuda_comes_first_and_neither_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakePycuda(Gpu())
    monkeypatch.setitem(sys.modules, "pycuda", type(sys)("pycuda"))
    monkeypatch.setattr(sys.modules["pycuda"], "driver", fake, raising=False)
    monkeypatch.setitem(sys.modules, "pycuda.driver", fake)  # type: ignore[arg-type]
    assert isinstance(cuda_driver.open_cuda(), PycudaDriver)
    for name in ("pycuda", "pycuda.driver", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    with pytest.raises(MissingDependency, match=r"pip install 'trt_qat\[gpu\]'.*pip install cuda-python"):
        cuda_driver.open_cuda()


def test_an_error_while_recording_ends_the_recording() -> None:
    gpu = Gpu()
    gpu.pushes[threading.get_ident()] = 1
    graphs = CudaGraphs(FakeLibcuda(gpu))
    stream = gpu.add(Stream())

    def fails() -> None:
        raise RunnerError("no")

    with pytest.raises(RunnerError, match=r"^no$"):
        graphs.record(stream, fails)
    assert gpu.steps == ["begin", "end", "drop recording"]
    gpu.failing = {"instantiate"}
    with pytest.raises(RunnerError, match=r"^CUDA failed: cuGraphInstantiateWithFlags: operation not permitted\.$"):
        graphs.record(stream, lambda: None)
    assert gpu.kinds() == {"Stream": 1}
    assert gpu.recording == {}


def test_no_driver_and_an_old_one_have_no_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    for library in (None, object()):
        monkeypatch.setattr(cuda_graph, "driver_library", lambda library=library: library)
        assert cuda_graph.open_graphs() is None


def test_cuda_python_has_what_is_called() -> None:
    cudart = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    used = attributes(SOURCE, "self._cudart")
    assert len(used) > 15
    for name in used:
        attrgetter(name)(cudart)
    assert cudart.cudaStreamNonBlocking == cuda_driver._NON_BLOCKING


CALLS: dict[str, Callable[[CudaDriver], object]] = {
    "current": lambda cuda: cuda.current().__enter__(),
    "alloc": lambda cuda: cuda.alloc(8),
    "free": lambda cuda: cuda.free(8),
    "host_bytes": lambda cuda: cuda.host_bytes(8),
    "free_host": lambda cuda: cuda.free_host(np.zeros(8, np.uint8)),
    "new_stream": lambda cuda: cuda.new_stream(),
    "drop_stream": lambda cuda: cuda.drop_stream(8),
    "new_event": lambda cuda: cuda.new_event(),
    "drop_event": lambda cuda: cuda.drop_event(8),
    "copy_to_device": lambda cuda: cuda.copy_to_device(8, np.zeros(2, np.float16), 8),
    "copy_to_host": lambda cuda: cuda.copy_to_host(np.zeros(2, np.float16), 8, 8),
    "record": lambda cuda: cuda.record(8, 8),
    "elapsed_ms": lambda cuda: cuda.elapsed_ms(8, 8),
    "synchronize": lambda cuda: cuda.synchronize(8),
}


def test_cuda_python_takes_what_it_is_given() -> None:
    """Arguments of a wrong number or type are another error than a driver that is not there."""
    cudart = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    if gpu_names() or cudart.cudaGetDevice()[0] == cudart.cudaError_t.cudaSuccess:
        pytest.skip("a driver is here: tests/gpu asks it")
    public = {name for name in vars(CudaDriver) if not name.startswith("_")}
    assert CALLS.keys() == public - {"close"}
    driver = object.__new__(CudaPythonDriver)  # its constructor asks the driver
    driver._cudart, driver._index = cudart, 0
    for call in CALLS.values():
        with pytest.raises(RunnerError, match=r"^CUDA failed: [^\n]*\.$"):
            call(driver)
    assert cudart.cudaEventElapsedTime(8, 8)[0] == cudart.cudaGetDevice()[0]


def test_pycuda_has_what_is_called() -> None:
    assert attributes(SOURCE, "driver") | attributes(SOURCE, "self._driver") == PYCUDA | {
        "Device(index).retain_primary_context"
    }
    for receiver, names in PYCUDA_OBJECTS.items():
        assert attributes(SOURCE, receiver) == names, receiver
    if importlib.util.find_spec("pycuda") is not None:
        from pycuda import driver

        assert all(hasattr(driver, name) for name in PYCUDA)


def _header() -> str:
    found = [Path(folder, "nvidia/cu13/include/cuda.h") for folder in sys.path]
    file = next((file for file in found if file.is_file()), None)
    if file is None:
        pytest.skip("cuda.h is not installed (nvidia-cuda-runtime)")
    return file.read_text(encoding="utf-8")


def test_the_driver_library_has_the_functions_of_graphs() -> None:
    header = _header()
    names = {
        exported: public for public, exported in re.findall(r"#define (cu\w+) +(?:__CUDA_API_PTSZ\()?(cu\w+)", header)
    }
    for name, arguments in cuda_graph.FUNCTIONS.items():
        public = names.get(name, name)
        declared = re.search(rf"^CUresult CUDAAPI {public}\(([^)]*)\);", header, re.MULTILINE)
        assert declared is not None, name
        wanted = [_kind(argument) for argument in declared[1].split(",")]
        assert [_passed(argument) for argument in arguments] == wanted, name
    mode = re.search(r"CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = (\d)", header)
    assert mode is not None
    assert int(mode[1]) == cuda_graph.THREAD_LOCAL


def _kind(argument: str) -> str:
    if "*" in argument:
        return "text" if "char" in argument else "handle, written"
    kinds = {"CUstream": "handle", "CUgraph": "handle", "CUgraphExec": "handle", "unsigned long long": "long"}
    return kinds.get(argument.strip().rpartition(" ")[0], "int")


def _passed(argument: Any) -> str:
    kinds = {ctypes.c_void_p: "handle", ctypes.c_int: "int", ctypes.c_ulonglong: "long"}
    kinds[ctypes.POINTER(ctypes.c_void_p)] = "handle, written"
    kinds[ctypes.POINTER(ctypes.c_char_p)] = "text"
    return kinds[argument]
