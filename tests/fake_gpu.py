"""A GPU that is not there, with its drivers and a TensorRT that doubles its input: every call is written down.

It is as strict as the real one: work in a stream is done when somebody waits for it and not before, so memory that is
overwritten or given back too early shows; a graph replays the addresses that it was recorded with; a call from a thread
in which the GPU is not current, a copy beyond the end of memory and a second release are errors of the test.

Whether the real libraries have these functions is tests/runtime/test_tensorrt_bindings.py's question.
"""

from __future__ import annotations

import ctypes
import itertools
import sys
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from trt_qat.runtime import cuda_graph, tensorrt

Work = Callable[[], None]
COPY_MS, COMPUTE_MS = 0.25, 2.0


class Gpu:
    """What has happened, and what is there.

    Attributes:
        steps: every call that may fail, in order.
        calls: the same with their arguments, and what was dropped.
        live: memory, streams, events, graphs, contexts ... by handle.
        fail_at: number of the step that fails, once.
        failing: names of steps that always fail, or (name, last argument), which for most is the stream.
        pushes: how often each thread has made the GPU current, less how often it has undone that.
        waiting: called in each synchronize, before the work is done.
    """

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.calls: list[tuple[Any, ...]] = []
        self.live: dict[int, Any] = {}
        self.fail_at: int | None = None
        self.failing: set[str | tuple[str, Any]] = set()
        self.pushes: Counter[int] = Counter()
        self.waiting: Work = lambda: None
        self.now = 0.0
        self.recording: dict[int, list[Work]] = {}
        self.handles = itertools.count(1000)
        self.engine: dict[str, Any] = {"batch": -1, "profiles": [((1, 3, 2, 2), (1, 3, 2, 2), (4, 3, 2, 2))]}
        self.loads = True
        self.lock = threading.Lock()

    def step(self, name: str, *arguments: Any, current: bool = True) -> bool:
        """Write a call down; whether it works."""
        with self.lock:
            assert not current or self.pushes[threading.get_ident()] > 0, f"{name}: the GPU is not current"
            number = len(self.steps)
            self.steps.append(name)
            self.calls.append((name, *arguments))
            return number != self.fail_at and not self.failing & {name, (name, *arguments[-1:])}

    def add(self, thing: Any) -> int:
        handle = next(self.handles)
        self.live[handle] = thing
        return handle

    def remove(self, handle: int) -> None:
        with self.lock:
            self.calls.append(("removed", type(self.live.pop(handle)).__name__))  # a KeyError: it was not there

    def memory(self, nbytes: int) -> int:
        buffer = ctypes.create_string_buffer(nbytes)
        self.live[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    def array(self, address: int, nbytes: int) -> np.ndarray:
        """Device or page-locked memory, from its start, that is still there and large enough."""
        buffer = self.live[address]
        assert nbytes <= len(buffer), "beyond the end of the memory"
        return np.frombuffer(buffer, np.uint8, nbytes)

    def enqueue(self, stream: int, work: Work) -> None:
        assert stream in self.live, "no such stream"
        self.recording.get(stream, self.live[stream].queue).append(work)

    def copy(self, target: int, source: int, nbytes: int, stream: int) -> None:
        assert stream not in self.recording, "copies stand outside the graph"

        def work() -> None:
            self.array(target, nbytes)[:] = self.array(source, nbytes)
            self.now += COPY_MS

        self.array(target, nbytes)
        self.array(source, nbytes)
        self.enqueue(stream, work)

    def drain(self, stream: int) -> None:
        self.waiting()
        queue, self.live[stream].queue = self.live[stream].queue, []
        for work in queue:
            work()

    def named(self, name: str) -> list[tuple[Any, ...]]:
        return [call[1:] for call in self.calls if call[0] == name]

    def kinds(self) -> Counter[str]:
        return Counter(type(thing).__name__ for thing in self.live.values())


class Stream:
    def __init__(self) -> None:
        self.queue: list[Work] = []


class Event:
    at: float | None = None


class Graph:
    def __init__(self, work: list[Work]) -> None:
        self.work = work


class FakeCudart:
    """cuda.bindings.runtime: every call returns (error, *values)."""

    cudaError_t = SimpleNamespace(cudaSuccess=0)  # noqa: N815
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N815

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._devices: dict[int, int] = {}

    def _made(self, name: str, make: Callable[[], Any], *arguments: Any) -> tuple[int, Any]:
        return (0, make()) if self._gpu.step(name, *arguments) else (2, None)  # cudaErrorMemoryAllocation

    def _removed(self, name: str, handle: int) -> tuple[int]:
        worked = self._gpu.step(name, handle)
        self._gpu.remove(handle)  # an error that a release reports is one of earlier work
        return (0 if worked else 719,)

    def cudaGetDevice(self) -> tuple[int, int]:  # noqa: N802
        worked = self._gpu.step("cudaGetDevice", current=False)
        return (0, self._devices.get(threading.get_ident(), 0)) if worked else (719, 0)

    def cudaSetDevice(self, index: int) -> tuple[int]:  # noqa: N802
        worked = self._gpu.step("cudaSetDevice", index, current=False)
        if worked:
            self._devices[threading.get_ident()] = index
            self._gpu.pushes[threading.get_ident()] = 1  # it stays so
        return (0 if worked else 719,)

    def cudaMalloc(self, nbytes: int) -> tuple[int, Any]:  # noqa: N802
        return self._made("alloc", lambda: self._gpu.memory(nbytes), nbytes)

    def cudaMallocHost(self, nbytes: int) -> tuple[int, Any]:  # noqa: N802
        return self._made("host", lambda: self._gpu.memory(nbytes), nbytes)

    def cudaFree(self, address: int) -> tuple[int]:  # noqa: N802
        return self._removed("free", address)

    def cudaFreeHost(self, address: int) -> tuple[int]:  # noqa: N802
        return self._removed("free host", address)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[int, Any]:  # noqa: N802
        return self._made("stream", lambda: self._gpu.add(Stream()), flags)

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:  # noqa: N802
        return self._removed("drop stream", stream)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:  # noqa: N802
        worked = self._gpu.step("synchronize", stream)
        self._gpu.drain(stream)
        return (0 if worked else 719,)

    def cudaEventCreate(self) -> tuple[int, Any]:  # noqa: N802
        return self._made("event", lambda: self._gpu.add(Event()))

    def cudaEventDestroy(self, event: int) -> tuple[int]:  # noqa: N802
        return self._removed("drop event", event)

    def cudaEventRecord(self, event: int, stream: int) -> tuple[int]:  # noqa: N802
        if not self._gpu.step("record", event, stream):
            return (719,)
        self._gpu.enqueue(stream, lambda: setattr(self._gpu.live[event], "at", self._gpu.now))
        return (0,)

    def cudaEventSynchronize(self, event: int) -> tuple[int]:  # noqa: N802
        worked = self._gpu.step("wait for event", event)
        _drain_all(self._gpu)
        return (0 if worked else 719,)

    def cudaEventElapsedTime(self, start: int, end: int) -> tuple[int, float]:  # noqa: N802
        worked = self._gpu.step("elapsed", start, end)
        return (0, self._gpu.live[end].at - self._gpu.live[start].at) if worked else (719, 0.0)

    def cudaMemcpyAsync(self, target: int, source: int, count: int, kind: int, stream: int) -> tuple[int]:  # noqa: N802
        if not self._gpu.step({1: "to device", 2: "to host"}[kind], target, source, count, stream):
            return (719,)
        self._gpu.copy(target, source, count, stream)
        return (0,)

    def cudaGetErrorString(self, error: int) -> tuple[int, bytes]:  # noqa: N802
        return 0, {2: b"out of memory", 719: b"unspecified launch failure"}[error]


def _drain_all(gpu: Gpu) -> None:
    for handle, thing in list(gpu.live.items()):
        if isinstance(thing, Stream):
            gpu.drain(handle)


class FakePycuda:
    """pycuda.driver: what it makes lives as long as somebody holds it, and dies where the context is current.

    pycuda is C++: a call of it that fails holds nothing in a traceback, hence the ``del`` here.
    """

    class Error(Exception):
        """pycuda.driver.Error."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self.Device = self._device

    def _checked(self, worked: bool, said: str = "unspecified launch failure") -> None:
        if not worked:
            raise self.Error(f"cuCall failed: {said}")

    def init(self) -> None:
        self._checked(self._gpu.step("init", current=False))

    def _device(self, index: int) -> SimpleNamespace:
        gpu, checked = self._gpu, self._checked

        def push() -> None:
            checked(gpu.step("push", current=False))
            gpu.pushes[threading.get_ident()] += 1

        def pop() -> None:
            worked = gpu.step("pop")
            gpu.pushes[threading.get_ident()] -= 1
            checked(worked)

        def retain() -> SimpleNamespace:
            checked(gpu.step("retain", index, current=False))
            context = gpu.add(SimpleNamespace())
            return SimpleNamespace(push=push, pop=pop, detach=lambda: detach(context))

        def detach(context: int) -> None:
            worked = gpu.step("detach", current=False)
            gpu.remove(context)
            checked(worked)

        return SimpleNamespace(retain_primary_context=retain)

    def Stream(self, flags: int = 0) -> Any:  # noqa: N802
        self._checked(self._gpu.step("stream", flags))
        return _PycudaStream(self)

    def Event(self) -> Any:  # noqa: N802
        self._checked(self._gpu.step("event"))
        return _PycudaEvent(self)

    def mem_alloc(self, nbytes: int) -> Any:
        self._checked(self._gpu.step("alloc", nbytes), "out of memory")
        return _PycudaMemory(self, self._gpu.memory(nbytes), "free")

    def pagelocked_empty(self, shape: int, dtype: Any) -> Any:
        assert np.dtype(dtype) == np.uint8
        self._checked(self._gpu.step("host", shape), "out of memory")
        owner = _PycudaMemory(self, self._gpu.memory(shape), "free host")

        class Pagelocked(np.ndarray):
            base = owner  # pycuda's arrays have the allocation as their base

        return self._gpu.array(int(owner), shape).view(Pagelocked)

    def memcpy_htod_async(self, target: int, source: np.ndarray, stream: Any) -> None:
        handle = stream.handle
        del stream
        self._checked(self._gpu.step("to device", target, source.ctypes.data, source.nbytes, handle))
        self._gpu.copy(target, source.ctypes.data, source.nbytes, handle)

    def memcpy_dtoh_async(self, target: np.ndarray, source: int, stream: Any) -> None:
        handle = stream.handle
        del stream
        self._checked(self._gpu.step("to host", target.ctypes.data, source, target.nbytes, handle))
        self._gpu.copy(target.ctypes.data, source, target.nbytes, handle)


class _PycudaThing:
    def __init__(self, driver: FakePycuda, thing: Any) -> None:
        self.driver, self.gpu = driver, driver._gpu
        self.handle = self.gpu.add(thing)

    def __del__(self) -> None:
        if self.gpu.pushes[threading.get_ident()] > 0:  # else pycuda leaves it behind
            self.gpu.remove(self.handle)


class _PycudaStream(_PycudaThing):
    def __init__(self, driver: FakePycuda) -> None:
        super().__init__(driver, Stream())

    def synchronize(self) -> None:
        gpu, handle, checked = self.gpu, self.handle, self.driver._checked
        del self
        worked = gpu.step("synchronize", handle)
        gpu.drain(handle)
        checked(worked)


class _PycudaEvent(_PycudaThing):
    def __init__(self, driver: FakePycuda) -> None:
        super().__init__(driver, Event())

    def record(self, stream: Any) -> None:
        gpu, event, handle, checked = self.gpu, self.handle, stream.handle, self.driver._checked
        del self, stream
        checked(gpu.step("record", event, handle))
        gpu.enqueue(handle, lambda: setattr(gpu.live[event], "at", gpu.now))

    def synchronize(self) -> None:
        gpu, event, checked = self.gpu, self.handle, self.driver._checked
        del self
        worked = gpu.step("wait for event", event)
        _drain_all(gpu)
        checked(worked)

    def time_till(self, end: _PycudaEvent) -> float:
        gpu, first, last, checked = self.gpu, self.handle, end.handle, self.driver._checked
        del self, end
        checked(gpu.step("elapsed", first, last))
        return float(gpu.live[last].at - gpu.live[first].at)


class _PycudaMemory:
    def __init__(self, driver: FakePycuda, address: int, free: str) -> None:
        self._driver, self._address, self._free = driver, address, free

    def __int__(self) -> int:
        return self._address

    def free(self) -> None:
        worked = self._driver._gpu.step(self._free, self._address)
        self._driver._gpu.remove(self._address)
        self._driver._checked(worked)


class FakeLibcuda:
    """What cuda_graph.py calls of the driver library, with pointers as ctypes passes them."""

    def __init__(self, gpu: Gpu) -> None:
        for name in cuda_graph.FUNCTIONS:  # a function, as ctypes has it, takes attributes; a method does not
            setattr(self, name, partial(getattr(self, f"_{name}")))
        self._gpu = gpu

    def _cuStreamBeginCapture_v2(self, stream: int, mode: int) -> int:  # noqa: N802
        if not self._gpu.step("begin", stream, mode):
            return 2
        assert stream not in self._gpu.recording
        self._gpu.recording[stream] = []
        return 0

    def _cuStreamEndCapture(self, stream: int, graph: Any) -> int:  # noqa: N802
        work = self._gpu.recording.pop(stream)
        if not self._gpu.step("end", stream):
            return 2
        graph._obj.value = self._gpu.add(Graph(work))
        return 0

    def _cuGraphInstantiateWithFlags(self, executable: Any, graph: Any, flags: int) -> int:  # noqa: N802
        if not self._gpu.step("instantiate", flags):
            return 2
        executable._obj.value = self._gpu.add(Graph(self._gpu.live[graph.value].work))
        return 0

    def _cuGraphLaunch(self, executable: int, stream: int) -> int:  # noqa: N802
        if not self._gpu.step("launch", executable, stream):
            return 2
        for work in self._gpu.live[executable].work:
            self._gpu.enqueue(stream, work)
        return 0

    def _cuGraphExecDestroy(self, executable: int) -> int:  # noqa: N802
        worked = self._gpu.step("drop graph", executable)
        self._gpu.remove(executable)
        return 0 if worked else 2

    def _cuGraphDestroy(self, graph: Any) -> int:  # noqa: N802
        worked = self._gpu.step("drop recording")
        self._gpu.remove(graph.value)
        return 0 if worked else 2

    def _cuGetErrorString(self, error: int, text: Any) -> int:  # noqa: N802
        text._obj.value = b"operation not permitted"
        return 0


def fake_tensorrt(gpu: Gpu) -> SimpleNamespace:
    """A TensorRT whose engine doubles FP16 images, and adds the numbers of each up in FP32."""

    class ILogger:
        ERROR, INTERNAL_ERROR = 1, 0

    class Part:
        def __init__(self) -> None:
            self.handle = gpu.add(self)
            gpu.live[self.handle] = SimpleNamespace()  # the GPU keeps nothing alive

        def __del__(self) -> None:
            gpu.calls.append((f"{type(self).__name__} dropped", gpu.pushes[threading.get_ident()] > 0))
            del gpu.live[self.handle]

    class Context(Part):
        def __init__(self, engine: Any) -> None:
            super().__init__()
            self.engine = engine
            self.addresses: dict[str, int] = {}
            self.shape: tuple[int, ...] = ()
            self.profile = 0

        def set_optimization_profile_async(self, index: int, stream: int) -> bool:
            self.profile = index
            return gpu.step("profile", index, stream)

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            if gpu.engine["batch"] == -1:
                low, _, high = gpu.engine["profiles"][self.profile]
                assert all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True)), "not in this profile"
            self.shape = shape
            return gpu.step("shape", shape)

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            if name == "sums":
                return (-1 if "nms" in gpu.engine else self.shape[0],)
            return self.shape

        def set_tensor_address(self, name: str, address: int) -> bool:
            self.addresses[name] = address
            return gpu.step("address", name, address)

        def execute_async_v3(self, stream: int) -> bool:
            if not gpu.step("execute", stream):
                return False
            addresses, shape = dict(self.addresses), self.shape
            count = int(np.prod(shape))

            def work() -> None:
                images = gpu.array(addresses["images"], 2 * count).view(np.float16)
                gpu.array(addresses["out"], 2 * count).view(np.float16)[:] = images * 2
                sums = images.astype(np.float32).reshape(shape[0], -1).sum(1)
                gpu.array(addresses["sums"], 4 * shape[0]).view(np.float32)[:] = sums
                gpu.now += COMPUTE_MS

            gpu.enqueue(stream, work)
            return True

    class Engine(Part):
        num_io_tensors = 3

        def __init__(self, runtime: Any) -> None:
            super().__init__()
            self.runtime = runtime
            self.num_optimization_profiles = len(gpu.engine["profiles"])

        def get_tensor_name(self, index: int) -> str:
            return ("images", "out", "sums")[index]

        def get_tensor_mode(self, name: str) -> str:
            return "in" if name == "images" else "out"

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return gpu.engine.get("shape", (gpu.engine["batch"], 3, 2, 2))

        def get_tensor_dtype(self, name: str) -> str:
            return "float" if name == "sums" else "half"

        def get_tensor_profile_shape(self, name: str, profile: int) -> Any:
            return gpu.engine["profiles"][profile]

        def create_runtime_config(self) -> SimpleNamespace:
            return SimpleNamespace(cuda_graph_strategy=None)

        def create_execution_context(self, settings: Any = None) -> Context | None:
            strategy = settings and settings.cuda_graph_strategy
            return Context(self) if gpu.step("context", strategy) else None

    class Runtime(Part):
        def __init__(self, logger: Any) -> None:
            super().__init__()
            self.logger = logger

        def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
            if not gpu.step("deserialize"):
                self.logger.log(ILogger.ERROR, "incompatible\nversion.")
                return None
            return Engine(self)

    return SimpleNamespace(
        ILogger=ILogger,
        Runtime=Runtime,
        TensorIOMode=SimpleNamespace(INPUT="in"),
        nptype={"half": np.float16, "float": np.float32}.__getitem__,
        __version__="11.0",
    )


def install(monkeypatch: pytest.MonkeyPatch, driver: str, gpu: Gpu) -> SimpleNamespace:
    """Put the fakes where the runner looks for the real ones; returns the TensorRT."""
    fake = FakePycuda(gpu) if driver == "pycuda" else None
    monkeypatch.setitem(sys.modules, "pycuda", SimpleNamespace(driver=fake) if fake else None)
    monkeypatch.setitem(sys.modules, "pycuda.driver", fake)
    if fake is None:
        cudart = FakeCudart(gpu)
        monkeypatch.setitem(sys.modules, "cuda.bindings", SimpleNamespace(runtime=cudart))
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cudart)
    trt = fake_tensorrt(gpu)
    monkeypatch.setattr(tensorrt, "gpu_names", lambda: ("NVIDIA Fake", "NVIDIA Other"))
    monkeypatch.setattr(tensorrt, "import_tensorrt", lambda flavor: trt)
    monkeypatch.setattr(cuda_graph, "driver_library", lambda: FakeLibcuda(gpu))
    return trt
