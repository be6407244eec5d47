"""Device memory, page-locked host memory, one CUDA stream and its clock, through pycuda or cuda-python.

pycuda comes first because it is the documented way; it has to be compiled, so NVIDIA's ready-made
``cuda-python`` (``cuda.bindings``, which torch's CUDA wheels bring along) serves where it is absent.
Both use the device's primary context, the one that TensorRT uses.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from trt_qat.errors import MissingDependency, RunnerError
from trt_qat.extras import install_hint


class DeviceMemory(Protocol):
    """What a runner needs of CUDA. Addresses and the stream handle are plain integers.

    Copies are asynchronous: host arrays come from :meth:`host_array` and stay untouched until
    :meth:`synchronize`. :meth:`close` frees what is left. Every method raises RunnerError when CUDA fails.
    """

    @property
    def stream(self) -> int:
        """Handle of the stream on which everything runs."""
        ...

    def alloc(self, nbytes: int) -> int:
        """Address of new device memory."""
        ...

    def free(self, address: int) -> None:
        """Give device memory back."""
        ...

    def host_array(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """A new page-locked array."""
        ...

    def free_host(self, array: NDArray[Any]) -> None:
        """Give a page-locked array back; it must not be used any more."""
        ...

    def copy_to_device(self, address: int, source: NDArray[Any]) -> None:
        """Enqueue a copy of the whole array to device memory."""
        ...

    def copy_to_host(self, target: NDArray[Any], address: int) -> None:
        """Enqueue a copy from device memory that fills the whole array."""
        ...

    def synchronize(self) -> None:
        """Wait until the stream is empty."""
        ...

    def elapsed_ms(self, enqueue: Callable[[], object]) -> float:
        """Milliseconds that the GPU takes for what ``enqueue`` puts into the stream, between two CUDA events. Waits."""
        ...

    def close(self) -> None:
        """Free all memory, then the stream, then the context."""
        ...


def open_device_memory() -> DeviceMemory:
    """CUDA on device 0, through pycuda or else cuda-python.

    Raises:
        MissingDependency: neither package imports.
        RunnerError: CUDA cannot be initialised.
    """
    try:
        import pycuda.driver as pycuda_driver

        return PycudaMemory(pycuda_driver)
    except ImportError:
        pass
    try:
        from cuda.bindings import runtime as cudart

        return CudaPythonMemory(cudart)
    except ImportError as exc:
        raise MissingDependency(
            f"Runtime 'tensorrt' needs pycuda ({install_hint('pycuda')}, compiled with the CUDA toolkit) "
            "or cuda-python (pip install cuda-python)."
        ) from exc


class PycudaMemory:
    """:class:`DeviceMemory` through ``pycuda.driver``."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self._allocations: dict[int, Any] = {}
        self._host_arrays: dict[int, NDArray[Any]] = {}
        with self._mapped("initialisation"):
            driver.init()
            self._context: Any = driver.Device(0).retain_primary_context()
            self._context.push()
            self._stream: Any = driver.Stream()
            self._events: Any = (driver.Event(), driver.Event())

    @property
    def stream(self) -> int:
        """See :class:`DeviceMemory`."""
        return int(self._stream.handle)

    def alloc(self, nbytes: int) -> int:
        """See :class:`DeviceMemory`."""
        with self._mapped(f"allocation of {nbytes} bytes"):
            allocation = self._driver.mem_alloc(nbytes)
        self._allocations[int(allocation)] = allocation
        return int(allocation)

    def free(self, address: int) -> None:
        """See :class:`DeviceMemory`."""
        with self._mapped("free"):
            self._allocations.pop(address).free()

    def host_array(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """See :class:`DeviceMemory`."""
        with self._mapped("page-locked allocation"):
            array: NDArray[Any] = self._driver.pagelocked_empty(shape, dtype)
        self._host_arrays[array.ctypes.data] = array
        return array

    def free_host(self, array: NDArray[Any]) -> None:
        """See :class:`DeviceMemory`."""
        owner: Any = self._host_arrays.pop(array.ctypes.data).base
        with self._mapped("page-locked free"):
            owner.free()

    def copy_to_device(self, address: int, source: NDArray[Any]) -> None:
        """See :class:`DeviceMemory`."""
        with self._mapped("copy to the device"):
            self._driver.memcpy_htod_async(address, source, self._stream)

    def copy_to_host(self, target: NDArray[Any], address: int) -> None:
        """See :class:`DeviceMemory`."""
        with self._mapped("copy to the host"):
            self._driver.memcpy_dtoh_async(target, address, self._stream)

    def synchronize(self) -> None:
        """See :class:`DeviceMemory`."""
        with self._mapped("inference"):
            self._stream.synchronize()

    def elapsed_ms(self, enqueue: Callable[[], object]) -> float:
        """See :class:`DeviceMemory`."""
        start, end = self._events
        with self._mapped("timing"):
            start.record(self._stream)
        enqueue()
        with self._mapped("timing"):
            end.record(self._stream)
            end.synchronize()
            return float(start.time_till(end))

    def close(self) -> None:
        """See :class:`DeviceMemory`."""
        if self._context is None:
            return
        for address in list(self._allocations):
            self.free(address)
        for array in list(self._host_arrays.values()):
            self.free_host(array)
        self._stream = self._events = None
        with self._mapped("release of the context"):
            self._context.pop()
            self._context.detach()
        self._context = None

    @contextlib.contextmanager
    def _mapped(self, what: str) -> Iterator[None]:
        try:
            yield
        except self._driver.Error as exc:
            raise RunnerError(f"CUDA failed: {what}: {exc}.") from exc


class CudaPythonMemory:
    """:class:`DeviceMemory` through ``cuda.bindings.runtime``."""

    def __init__(self, cudart: Any) -> None:
        self._cudart = cudart
        self._addresses: set[int] = set()
        self._host_addresses: set[int] = set()
        self._call("initialisation", cudart.cudaSetDevice(0))
        self._stream: Any = self._call("creation of a stream", cudart.cudaStreamCreate())
        self._events: list[Any] = []

    @property
    def stream(self) -> int:
        """See :class:`DeviceMemory`."""
        return int(self._stream)

    def alloc(self, nbytes: int) -> int:
        """See :class:`DeviceMemory`."""
        address = int(self._call(f"allocation of {nbytes} bytes", self._cudart.cudaMalloc(nbytes)))
        self._addresses.add(address)
        return address

    def free(self, address: int) -> None:
        """See :class:`DeviceMemory`."""
        self._addresses.discard(address)
        self._call("free", self._cudart.cudaFree(address))

    def host_array(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """See :class:`DeviceMemory`."""
        nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        address = int(self._call("page-locked allocation", self._cudart.cudaMallocHost(nbytes)))
        self._host_addresses.add(address)
        raw = (ctypes.c_byte * nbytes).from_address(address)
        array: NDArray[Any] = np.ctypeslib.as_array(raw).view(dtype).reshape(shape)
        return array

    def free_host(self, array: NDArray[Any]) -> None:
        """See :class:`DeviceMemory`."""
        self._free_host_address(array.ctypes.data)

    def copy_to_device(self, address: int, source: NDArray[Any]) -> None:
        """See :class:`DeviceMemory`."""
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        done = self._cudart.cudaMemcpyAsync(address, source.ctypes.data, source.nbytes, kind, self._stream)
        self._call("copy to the device", done)

    def copy_to_host(self, target: NDArray[Any], address: int) -> None:
        """See :class:`DeviceMemory`."""
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        done = self._cudart.cudaMemcpyAsync(target.ctypes.data, address, target.nbytes, kind, self._stream)
        self._call("copy to the host", done)

    def synchronize(self) -> None:
        """See :class:`DeviceMemory`."""
        self._call("inference", self._cudart.cudaStreamSynchronize(self._stream))

    def elapsed_ms(self, enqueue: Callable[[], object]) -> float:
        """See :class:`DeviceMemory`."""
        while len(self._events) < 2:
            self._events.append(self._call("creation of an event", self._cudart.cudaEventCreate()))
        start, end = self._events
        self._call("timing", self._cudart.cudaEventRecord(start, self._stream))
        enqueue()
        self._call("timing", self._cudart.cudaEventRecord(end, self._stream))
        self._call("timing", self._cudart.cudaEventSynchronize(end))
        return float(self._call("timing", self._cudart.cudaEventElapsedTime(start, end)))

    def close(self) -> None:
        """See :class:`DeviceMemory`. The primary context belongs to the CUDA runtime and stays."""
        if self._stream is None:
            return
        for address in list(self._addresses):
            self.free(address)
        for address in list(self._host_addresses):
            self._free_host_address(address)
        while self._events:
            self._call("release of an event", self._cudart.cudaEventDestroy(self._events.pop()))
        stream, self._stream = self._stream, None
        self._call("release of the stream", self._cudart.cudaStreamDestroy(stream))

    def _free_host_address(self, address: int) -> None:
        self._host_addresses.discard(address)
        self._call("page-locked free", self._cudart.cudaFreeHost(address))

    def _call(self, what: str, result: tuple[Any, ...]) -> Any:
        error, *values = result
        if error != self._cudart.cudaError_t.cudaSuccess:
            _, text = self._cudart.cudaGetErrorString(error)
            raise RunnerError(f"CUDA failed: {what}: {text.decode()}.")
        return values[0] if values else None
