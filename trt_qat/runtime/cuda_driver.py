"""CUDA on one GPU as the TensorRT runner needs it: memory, streams, copies and events, through pycuda or cuda-python.

pycuda comes first because it is the documented way; it has to be compiled, so NVIDIA's ready-made ``cuda-python``
(``cuda.bindings``, which torch's CUDA wheels bring along) serves where it is absent. Both use the device's primary
context, the one that TensorRT uses. An adapter hands out integers and owns nothing: who takes something gives it back.

Threads: what waits or copies lets other threads run. pycuda's ``Stream.synchronize``, ``Event.synchronize`` and
asynchronous copies release the GIL (``CUDAPP_CALL_GUARDED_THREADED`` in its ``src/cpp/cuda.hpp``), cuda-python does for
every call (NVIDIA/cuda-python, issue 1065).
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trt_qat.errors import MissingDependency, NotEnoughMemory, RunnerError
from trt_qat.extras import install_hint

_NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING of cuda.h: neither waits for the default stream, where others may work, nor the reverse."""


class CudaDriver(Protocol):
    """What the runner needs of CUDA. Addresses and handles are plain integers.

    Every method but :meth:`close` is called inside ``with current():``, by any thread; a stream and what runs on it by
    one thread at a time. Copies only enqueue: their host memory comes from :meth:`host_bytes` and stays untouched until
    :meth:`synchronize`. Every method raises RunnerError where CUDA fails; those that give memory raise NotEnoughMemory
    where there is none left.
    """

    def current(self) -> AbstractContextManager[None]:
        """Makes the GPU's primary context the calling thread's, then what was before."""
        ...

    def alloc(self, nbytes: int) -> int:
        """Address of new device memory."""
        ...

    def free(self, address: int) -> None:
        """Give device memory back."""
        ...

    def host_bytes(self, nbytes: int) -> NDArray[np.uint8]:
        """New page-locked memory."""
        ...

    def free_host(self, array: NDArray[np.uint8]) -> None:
        """Give page-locked memory back; it must not be used any more."""
        ...

    def new_stream(self) -> int:
        """Handle of a new stream."""
        ...

    def drop_stream(self, stream: int) -> None:
        """Give a stream back."""
        ...

    def new_event(self) -> int:
        """A new event that notes the GPU's time."""
        ...

    def drop_event(self, event: int) -> None:
        """Give an event back."""
        ...

    def copy_to_device(self, address: int, source: NDArray[Any], stream: int) -> None:
        """Enqueue a copy of the whole array to device memory."""
        ...

    def copy_to_host(self, target: NDArray[Any], address: int, stream: int) -> None:
        """Enqueue a copy from device memory that fills the whole array."""
        ...

    def record(self, event: int, stream: int) -> None:
        """Enqueue the event."""
        ...

    def elapsed_ms(self, start: int, end: int) -> float:
        """Wait for the second event; milliseconds of the GPU between the two."""
        ...

    def synchronize(self, stream: int) -> None:
        """Wait until the stream is empty; other threads run meanwhile."""
        ...

    def close(self) -> None:
        """Let the primary context go."""
        ...


def open_cuda(index: int = 0) -> CudaDriver:
    """CUDA on the GPU of that number, through pycuda or else cuda-python.

    Raises:
        MissingDependency: neither package imports.
        RunnerError: CUDA cannot be initialised.
    """
    try:
        import pycuda.driver as pycuda_driver

        return PycudaDriver(pycuda_driver, index)
    except ImportError:
        pass
    try:
        from cuda.bindings import runtime as cudart

        return CudaPythonDriver(cudart, index)
    except ImportError as exc:
        raise MissingDependency(
            f"Runtime 'tensorrt' needs pycuda ({install_hint('pycuda')}, compiled with the CUDA toolkit) "
            "or cuda-python (pip install cuda-python)."
        ) from exc


class PycudaDriver:
    """:class:`CudaDriver` through ``pycuda.driver``.

    A stream, an event and a piece of memory are objects there, which live as long as somebody holds them: this class
    does, so that no traceback keeps one alive. Dropping one needs the context that it was made in to be current.
    """

    def __init__(self, driver: Any, index: int = 0) -> None:
        self._driver = driver
        self._memory: dict[int, Any] = {}
        self._host_memory: dict[int, Any] = {}
        self._streams: dict[int, Any] = {}
        self._events: dict[int, Any] = {}
        with self._mapped("initialisation"):
            driver.init()
            self._context: Any = driver.Device(index).retain_primary_context()

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """See :class:`CudaDriver`. Undone in any case: pycuda aborts a process whose thread ends without."""
        with self._mapped("choice of the GPU"):
            self._context.push()
        try:
            yield
        finally:
            with self._mapped("choice of the GPU"):
                self._context.pop()

    def alloc(self, nbytes: int) -> int:
        """See :class:`CudaDriver`."""
        with self._mapped(f"allocation of {nbytes} bytes"):
            allocation = self._driver.mem_alloc(nbytes)
        self._memory[int(allocation)] = allocation
        return int(allocation)

    def free(self, address: int) -> None:
        """See :class:`CudaDriver`."""
        with self._mapped("free"):
            self._memory.pop(address).free()

    def host_bytes(self, nbytes: int) -> NDArray[np.uint8]:
        """See :class:`CudaDriver`."""
        with self._mapped(f"page-locked allocation of {nbytes} bytes"):
            array: NDArray[np.uint8] = self._driver.pagelocked_empty(nbytes, np.uint8)
        self._host_memory[array.ctypes.data] = array.base  # the allocation; it outlives the array
        return array

    def free_host(self, array: NDArray[np.uint8]) -> None:
        """See :class:`CudaDriver`."""
        with self._mapped("page-locked free"):
            self._host_memory.pop(array.ctypes.data).free()

    def new_stream(self) -> int:
        """See :class:`CudaDriver`."""
        with self._mapped("creation of a stream"):
            stream = self._driver.Stream(_NON_BLOCKING)
        self._streams[int(stream.handle)] = stream
        return int(stream.handle)

    def drop_stream(self, stream: int) -> None:
        """See :class:`CudaDriver`."""
        del self._streams[stream]

    def new_event(self) -> int:
        """See :class:`CudaDriver`."""
        with self._mapped("creation of an event"):
            event = self._driver.Event()
        self._events[id(event)] = event
        return id(event)

    def drop_event(self, event: int) -> None:
        """See :class:`CudaDriver`."""
        del self._events[event]

    def copy_to_device(self, address: int, source: NDArray[Any], stream: int) -> None:
        """See :class:`CudaDriver`."""
        with self._mapped("copy to the device"):
            self._driver.memcpy_htod_async(address, source, self._streams[stream])

    def copy_to_host(self, target: NDArray[Any], address: int, stream: int) -> None:
        """See :class:`CudaDriver`."""
        with self._mapped("copy to the host"):
            self._driver.memcpy_dtoh_async(target, address, self._streams[stream])

    def record(self, event: int, stream: int) -> None:
        """See :class:`CudaDriver`."""
        with self._mapped("timing"):
            self._events[event].record(self._streams[stream])

    def elapsed_ms(self, start: int, end: int) -> float:
        """See :class:`CudaDriver`."""
        with self._mapped("timing"):
            self._events[end].synchronize()
            return float(self._events[start].time_till(self._events[end]))

    def synchronize(self, stream: int) -> None:
        """See :class:`CudaDriver`."""
        with self._mapped("inference"):
            self._streams[stream].synchronize()

    def close(self) -> None:
        """See :class:`CudaDriver`. Elsewhere than in the thread that opened it, pycuda waits for the process to end."""
        with self._mapped("release of the context"):
            self._context.detach()

    @contextlib.contextmanager
    def _mapped(self, what: str) -> Iterator[None]:
        try:
            yield
        except self._driver.Error as exc:
            raise _failure(what, " ".join(str(exc).split())) from exc


class CudaPythonDriver:
    """:class:`CudaDriver` through ``cuda.bindings.runtime``."""

    def __init__(self, cudart: Any, index: int = 0) -> None:
        self._cudart = cudart
        self._index = index
        with self.current():
            pass

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """See :class:`CudaDriver`. The runtime makes a context current by the number of its GPU."""
        before = self._call("initialisation", self._cudart.cudaGetDevice())
        self._call("initialisation", self._cudart.cudaSetDevice(self._index))
        try:
            yield
        finally:
            if before != self._index:
                self._call("choice of the GPU", self._cudart.cudaSetDevice(before))

    def alloc(self, nbytes: int) -> int:
        """See :class:`CudaDriver`."""
        return int(self._call(f"allocation of {nbytes} bytes", self._cudart.cudaMalloc(nbytes)))

    def free(self, address: int) -> None:
        """See :class:`CudaDriver`."""
        self._call("free", self._cudart.cudaFree(address))

    def host_bytes(self, nbytes: int) -> NDArray[np.uint8]:
        """See :class:`CudaDriver`."""
        address = int(self._call(f"page-locked allocation of {nbytes} bytes", self._cudart.cudaMallocHost(nbytes)))
        return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))

    def free_host(self, array: NDArray[np.uint8]) -> None:
        """See :class:`CudaDriver`."""
        self._call("page-locked free", self._cudart.cudaFreeHost(array.ctypes.data))

    def new_stream(self) -> int:
        """See :class:`CudaDriver`."""
        return int(self._call("creation of a stream", self._cudart.cudaStreamCreateWithFlags(_NON_BLOCKING)))

    def drop_stream(self, stream: int) -> None:
        """See :class:`CudaDriver`."""
        self._call("release of a stream", self._cudart.cudaStreamDestroy(stream))

    def new_event(self) -> int:
        """See :class:`CudaDriver`."""
        return int(self._call("creation of an event", self._cudart.cudaEventCreate()))

    def drop_event(self, event: int) -> None:
        """See :class:`CudaDriver`."""
        self._call("release of an event", self._cudart.cudaEventDestroy(event))

    def copy_to_device(self, address: int, source: NDArray[Any], stream: int) -> None:
        """See :class:`CudaDriver`."""
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        done = self._cudart.cudaMemcpyAsync(address, source.ctypes.data, source.nbytes, kind, stream)
        self._call("copy to the device", done)

    def copy_to_host(self, target: NDArray[Any], address: int, stream: int) -> None:
        """See :class:`CudaDriver`."""
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        done = self._cudart.cudaMemcpyAsync(target.ctypes.data, address, target.nbytes, kind, stream)
        self._call("copy to the host", done)

    def record(self, event: int, stream: int) -> None:
        """See :class:`CudaDriver`."""
        self._call("timing", self._cudart.cudaEventRecord(event, stream))

    def elapsed_ms(self, start: int, end: int) -> float:
        """See :class:`CudaDriver`."""
        self._call("timing", self._cudart.cudaEventSynchronize(end))
        return float(self._call("timing", self._cudart.cudaEventElapsedTime(start, end)))

    def synchronize(self, stream: int) -> None:
        """See :class:`CudaDriver`."""
        self._call("inference", self._cudart.cudaStreamSynchronize(stream))

    def close(self) -> None:
        """See :class:`CudaDriver`. The CUDA runtime keeps the primary context for the life of the process."""

    def _call(self, what: str, result: tuple[Any, ...]) -> Any:
        error, *values = result
        if error != self._cudart.cudaError_t.cudaSuccess:
            _, text = self._cudart.cudaGetErrorString(error)
            raise _failure(what, text.decode())
        return values[0] if values else None


def _failure(what: str, said: str) -> RunnerError | NotEnoughMemory:
    if "allocation" in what and "out of memory" in said:  # what opens a GPU does not take less with a smaller batch
        return NotEnoughMemory(f"CUDA failed: {what}: {said}. Lower the batch or model.imgsz.")
    return RunnerError(f"CUDA failed: {what}: {said}.")
