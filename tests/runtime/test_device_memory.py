"""Both back-ends against stand-ins for their libraries that keep "device" memory in the process."""

from __future__ import annotations

import ctypes
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from trt_qat.errors import MissingDependency, RunnerError
from trt_qat.runtime import device_memory
from trt_qat.runtime.device_memory import CudaPythonMemory, DeviceMemory, PycudaMemory


class FakeCudart:
    """cuda.bindings.runtime: every call returns (error, *values)."""

    cudaError_t = SimpleNamespace(cudaSuccess=0)  # noqa: N815
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N815

    def __init__(self) -> None:
        self.live: dict[int, Any] = {}
        self.streams = 0
        self.fail = 0

    def _new(self, nbytes: int) -> tuple[int, int]:
        buffer = ctypes.create_string_buffer(nbytes)
        self.live[ctypes.addressof(buffer)] = buffer
        return self.fail, ctypes.addressof(buffer)

    def _drop(self, address: int) -> tuple[int]:
        del self.live[address]
        return (0,)

    cudaMalloc = cudaMallocHost = _new  # noqa: N815
    cudaFree = cudaFreeHost = _drop  # noqa: N815

    def cudaSetDevice(self, index: int) -> tuple[int]:  # noqa: N802
        return (self.fail,)

    def cudaStreamCreate(self) -> tuple[int, int]:  # noqa: N802
        self.streams += 1
        return 0, 77

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:  # noqa: N802
        self.streams -= 1
        return (0,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:  # noqa: N802
        return (self.fail,)

    def cudaEventCreate(self) -> tuple[int, int]:  # noqa: N802
        self.clock: dict[int, float] = getattr(self, "clock", {})
        self.clock[len(self.clock)] = 0.0
        self.now = getattr(self, "now", 0.0)
        return self.fail, len(self.clock) - 1

    def cudaEventRecord(self, event: int, stream: int) -> tuple[int]:  # noqa: N802
        assert stream == 77
        self.clock[event] = self.now
        return (self.fail,)

    def cudaEventSynchronize(self, event: int) -> tuple[int]:  # noqa: N802
        return (0,)

    def cudaEventElapsedTime(self, start: int, end: int) -> tuple[int, float]:  # noqa: N802
        return 0, self.clock[end] - self.clock[start]

    def cudaEventDestroy(self, event: int) -> tuple[int]:  # noqa: N802
        del self.clock[event]
        return (0,)

    def cudaMemcpyAsync(self, target: int, source: int, count: int, kind: int, stream: int) -> tuple[int]:  # noqa: N802
        ctypes.memmove(target, source, count)
        return (0,)

    def cudaGetErrorString(self, error: int) -> tuple[int, bytes]:  # noqa: N802
        return 0, b"out of memory"


class FakeEvent:
    """pycuda.driver.Event."""

    def __init__(self, driver: FakePycuda) -> None:
        self._driver = driver
        self._at = 0.0

    def record(self, stream: Any) -> None:
        assert stream.handle == 77
        self._driver._synchronize()  # fails where the driver does
        self._at = self._driver.now

    def synchronize(self) -> None:
        """Nothing is asynchronous here."""

    def time_till(self, end: FakeEvent) -> float:
        return end._at - self._at


class FakePycuda:
    """pycuda.driver."""

    Error = type("Error", (Exception,), {})

    def __init__(self) -> None:
        self.live: dict[int, Any] = {}
        self.calls: list[str] = []
        self.streams = 1
        context = SimpleNamespace(
            push=lambda: self.calls.append("push"),
            pop=lambda: self.calls.append("pop"),
            detach=lambda: self.calls.append("detach"),
        )
        self.Device = lambda index: SimpleNamespace(retain_primary_context=lambda: context)
        self.Stream = lambda: SimpleNamespace(handle=77, synchronize=self._synchronize)
        self.Event = lambda: FakeEvent(self)
        self.now = 0.0
        self.fail = 0

    def init(self) -> None:
        if self.fail:
            raise self.Error("no device")

    def _synchronize(self) -> None:
        if self.fail:
            raise self.Error("out of memory")

    def _allocation(self, nbytes: int) -> Any:
        live = self.live
        buffer = ctypes.create_string_buffer(nbytes)
        address = ctypes.addressof(buffer)
        live[address] = buffer

        class Allocation:
            def __init__(self) -> None:
                data = (address, False)
                self.__array_interface__ = {"shape": (nbytes,), "typestr": "|u1", "data": data, "version": 3}

            def __int__(self) -> int:
                return address

            def free(self) -> None:
                del live[address]

        return Allocation()

    def mem_alloc(self, nbytes: int) -> Any:
        return self._allocation(nbytes)

    def pagelocked_empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        owner = self._allocation(nbytes)
        base = np.asarray(owner)

        class Pagelocked(np.ndarray):
            base = owner  # pycuda's arrays have the allocation as their base

        return base.view(dtype).reshape(shape).view(Pagelocked)

    def memcpy_htod_async(self, target: int, source: np.ndarray, stream: Any) -> None:
        ctypes.memmove(target, source.ctypes.data, source.nbytes)

    def memcpy_dtoh_async(self, target: np.ndarray, source: int, stream: Any) -> None:
        ctypes.memmove(target.ctypes.data, source, target.nbytes)


@pytest.mark.parametrize(("backend", "library"), [(CudaPythonMemory, FakeCudart), (PycudaMemory, FakePycuda)])
def test_round_trip_and_release(backend: Any, library: Any) -> None:
    fake = library()
    memory: DeviceMemory = backend(fake)
    assert memory.stream == 77
    source = memory.host_array((2, 3), np.float32)
    target = memory.host_array((2, 3), np.float32)
    source[:] = np.arange(6).reshape(2, 3)
    address = memory.alloc(source.nbytes)
    spare = memory.alloc(16)
    memory.free(spare)
    memory.copy_to_device(address, source)
    memory.copy_to_host(target, address)
    memory.synchronize()
    np.testing.assert_array_equal(target, np.arange(6).reshape(2, 3))
    memory.free_host(target)
    assert len(fake.live) == 2
    memory.close()
    assert fake.live == {}
    memory.close()


@pytest.mark.parametrize(("backend", "library"), [(CudaPythonMemory, FakeCudart), (PycudaMemory, FakePycuda)])
def test_cuda_errors_are_runner_errors(backend: Any, library: Any) -> None:
    fake = library()
    memory = backend(fake)
    fake.fail = 2
    with pytest.raises(RunnerError, match="CUDA failed: inference: out of memory"):
        memory.synchronize()
    with pytest.raises(RunnerError, match="CUDA failed: initialisation"):
        backend(fake)


def test_pycuda_leaves_the_context_as_it_was() -> None:
    fake = FakePycuda()
    PycudaMemory(fake).close()
    assert fake.calls == ["push", "pop", "detach"]


def test_pycuda_comes_first_and_neither_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakePycuda()
    monkeypatch.setitem(sys.modules, "pycuda", SimpleNamespace(driver=fake))
    monkeypatch.setitem(sys.modules, "pycuda.driver", fake)
    assert isinstance(device_memory.open_device_memory(), PycudaMemory)
    for name in ("pycuda", "pycuda.driver", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependency, match=r"pip install 'trt_qat\[gpu\]'.*pip install cuda-python"):
        device_memory.open_device_memory()


@pytest.mark.parametrize(("backend", "library"), [(CudaPythonMemory, FakeCudart), (PycudaMemory, FakePycuda)])
def test_time_between_two_events(backend: Any, library: Any) -> None:
    fake = library()
    memory: DeviceMemory = backend(fake)

    def takes(milliseconds: float) -> None:
        fake.now += milliseconds

    fake.now = 100.0
    assert memory.elapsed_ms(lambda: takes(2.5)) == 2.5
    assert memory.elapsed_ms(lambda: takes(0.5)) == 0.5
    fake.fail = 2
    with pytest.raises(RunnerError, match="CUDA failed: timing: out of memory"):
        memory.elapsed_ms(lambda: None)
    fake.fail = 0
    memory.close()
    assert getattr(fake, "clock", {}) == {}
