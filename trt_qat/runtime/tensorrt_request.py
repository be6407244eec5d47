"""One inference on its way: everything that a second one at the same time needs for itself.

An execution context, a stream, page-locked and device memory of each tensor, and a CUDA graph once a shape has come
twice: the first run of a shape lets TensorRT prepare itself, the second is recorded, the others are one launch. So a
shape that changes with each call is never recorded. Where recording fails, the engine is enqueued every time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trt_qat.errors import RunnerError
from trt_qat.runtime.cuda_driver import CudaDriver
from trt_qat.runtime.cuda_graph import CudaGraphs
from trt_qat.runtime.tensorrt_tensors import EngineTensors, Shape


@dataclass(frozen=True)
class _Buffer:
    """Memory of one tensor, as large as its largest shape so far."""

    page_locked: NDArray[np.uint8]
    device: int


def reason(errors: list[str]) -> str:
    """What TensorRT has said last, as the end of a sentence."""
    return f": {errors[-1].rstrip('.')}" if errors else ""


class TensorRtRequest:
    """One inference at a time; every method is called while the GPU's context is current.

    Args:
        cuda: the GPU.
        tensors: of the engine.
        new_context: makes an execution context of it, or None where TensorRT refuses.
        graphs: None enqueues the engine every time.
        errors: what TensorRT has complained of.
    """

    def __init__(
        self,
        cuda: CudaDriver,
        tensors: EngineTensors,
        new_context: Callable[[], Any],
        graphs: CudaGraphs | None,
        errors: list[str],
    ) -> None:
        self._cuda, self._tensors, self._graphs, self._errors = cuda, tensors, graphs, errors
        self._stream = 0  # CUDA's default stream, which is never used: there is none yet
        self._context: Any = None
        self._events: list[int] = []
        self._buffers: dict[str, _Buffer] = {}
        self._views: dict[str, NDArray[Any]] = {}  # page-locked memory in the shape that is bound
        self._shape: Shape | None = None
        self._profile = 0  # of a new context
        self._ran = False  # in the shape that is bound
        self._graph: int | None = None
        with contextlib.ExitStack() as failed:
            failed.callback(self.close)
            self._stream = cuda.new_stream()
            self._context = new_context()
            if self._context is None:
                raise RunnerError(f"TensorRT cannot prepare the engine{reason(errors)}.")
            failed.pop_all()

    def infer(self, batch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """All outputs in the engine's order, in memory of their own.

        Raises:
            RunnerError: no profile holds the shape, or TensorRT or CUDA failed. The request can be used again.
        """
        self._bind(batch.shape)
        self._put(batch)
        with self._emptied():
            self._copy_in()
            self._record_once()
            self._execute()
            self._copy_out()
        return [np.array(self._views[name], dtype=np.float32) for name in self._tensors.outputs]

    def gpu_milliseconds(self, batch: NDArray[np.float32], copies: bool) -> float:
        """What the GPU takes for a batch by its own clock, with or without the copies over the bus."""
        self._bind(batch.shape)
        self._put(batch)
        while len(self._events) < 2:
            self._events.append(self._cuda.new_event())
        start, end = self._events
        with self._emptied():
            self._copy_in()
            self._record_once()
            self._cuda.synchronize(self._stream)
            self._cuda.record(start, self._stream)
            if copies:
                self._copy_in()
            self._execute()
            if copies:
                self._copy_out()
            self._cuda.record(end, self._stream)
            return self._cuda.elapsed_ms(start, end)

    def close(self) -> None:
        """Give all back, each thing before what it needs; whatever fails, the rest is given back too."""
        with contextlib.ExitStack() as last_first:
            stream, self._stream = self._stream, 0
            if stream:
                last_first.callback(self._cuda.drop_stream, stream)
            while self._events:
                last_first.callback(self._cuda.drop_event, self._events.pop())
            for name in list(self._buffers):
                last_first.callback(self._free, name)
            last_first.callback(self._drop_context)
            last_first.callback(self._drop_graph)
            if stream:
                last_first.callback(self._cuda.synchronize, stream)

    def _bind(self, shape: Shape) -> None:
        """Make the context ready for a shape of the input: profile, sizes, memory."""
        if shape == self._shape:
            return
        profile = self._tensors.profile_for(shape)
        self._shape, self._ran = None, False
        self._drop_graph()
        if profile != self._profile:
            if not self._context.set_optimization_profile_async(profile, self._stream):
                raise RunnerError(f"TensorRT refuses optimization profile {profile}{reason(self._errors)}.")
            self._profile = profile
        if not self._context.set_input_shape(self._tensors.input, shape):
            raise RunnerError(f"TensorRT refuses input shape {shape}{reason(self._errors)}.")
        for name in (self._tensors.input, *self._tensors.outputs):
            self._bind_tensor(name, tuple(map(int, self._context.get_tensor_shape(name))))
        self._shape = shape

    def _bind_tensor(self, name: str, shape: Shape) -> None:
        if -1 in shape:
            raise RunnerError(f"The size of tensor '{name}' depends on the image. Export without built-in NMS.")
        dtype = self._tensors.dtypes[name]
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if name not in self._buffers or self._buffers[name].page_locked.nbytes < nbytes:
            self._free(name)
            self._buffers[name] = self._new_buffer(nbytes)
        buffer = self._buffers[name]
        self._views[name] = buffer.page_locked[:nbytes].view(dtype).reshape(shape)
        if not self._context.set_tensor_address(name, buffer.device):
            raise RunnerError(f"TensorRT refuses the memory of tensor '{name}'{reason(self._errors)}.")

    def _new_buffer(self, nbytes: int) -> _Buffer:
        device = self._cuda.alloc(nbytes)
        with contextlib.ExitStack() as failed:
            failed.callback(self._cuda.free, device)
            page_locked = self._cuda.host_bytes(nbytes)
            failed.pop_all()
        return _Buffer(page_locked, device)

    def _free(self, name: str) -> None:
        self._views.pop(name, None)
        buffer = self._buffers.pop(name, None)
        if buffer is not None:
            with contextlib.ExitStack() as both:
                both.callback(self._cuda.free_host, buffer.page_locked)
                both.callback(self._cuda.free, buffer.device)

    @contextlib.contextmanager
    def _emptied(self) -> Iterator[None]:
        """Wait for the stream at the end, after an error too: the next call writes into the same memory."""
        try:
            yield
        finally:
            self._cuda.synchronize(self._stream)

    def _put(self, batch: NDArray[np.float32]) -> None:
        """The one copy of the images on the host; it makes them FP16 where the engine takes that."""
        np.copyto(self._views[self._tensors.input], batch, casting="same_kind")

    def _copy_in(self) -> None:
        name = self._tensors.input
        self._cuda.copy_to_device(self._buffers[name].device, self._views[name], self._stream)

    def _copy_out(self) -> None:
        for name in self._tensors.outputs:
            self._cuda.copy_to_host(self._views[name], self._buffers[name].device, self._stream)

    def _execute(self) -> None:
        if self._graphs is not None and self._graph is not None:
            self._graphs.launch(self._graph, self._stream)
        else:
            self._enqueue()
            self._ran = True

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream):
            raise RunnerError(f"TensorRT failed to run the engine{reason(self._errors)}.")

    def _record_once(self) -> None:
        if self._graphs is None or self._graph is not None or not self._ran:
            return
        try:
            self._graph = self._graphs.record(self._stream, self._enqueue)
        except RunnerError:
            self._graphs = None  # this engine does something that a graph cannot hold
            self._errors.clear()  # what TensorRT said of it explains nothing that comes later

    def _drop_graph(self) -> None:
        graph, self._graph = self._graph, None
        if graph is not None and self._graphs is not None:
            self._graphs.drop(graph)

    def _drop_context(self) -> None:
        self._context = None
