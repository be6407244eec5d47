"""CUDA graphs of what a stream was given: recorded once, launched with one call.

They come from the driver library itself: no release of pycuda has them (up to 2026.1, ``src/wrapper/wrap_cudadrv.cpp``
binds no capture), and a stream of cuda-python is a stream of the driver's. Names and types are those of ``cuda.h``,
which maps cuStreamBeginCapture to its ``_v2`` and cuGraphInstantiate to ``cuGraphInstantiateWithFlags``.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from typing import Any

from trt_qat.engine.gpu import driver_library
from trt_qat.errors import RunnerError

_HANDLE = ctypes.c_void_p
FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cuStreamBeginCapture_v2": (_HANDLE, ctypes.c_int),
    "cuStreamEndCapture": (_HANDLE, ctypes.POINTER(_HANDLE)),
    "cuGraphInstantiateWithFlags": (ctypes.POINTER(_HANDLE), _HANDLE, ctypes.c_ulonglong),
    "cuGraphLaunch": (_HANDLE, _HANDLE),
    "cuGraphExecDestroy": (_HANDLE,),
    "cuGraphDestroy": (_HANDLE,),
    "cuGetErrorString": (ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)),
}
"""What is called, with its arguments; each returns a CUresult."""

THREAD_LOCAL = 1
"""CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may allocate meanwhile, as a second request does."""


class CudaGraphs:
    """Graphs of the GPU whose context is current in the calling thread."""

    def __init__(self, library: Any) -> None:
        """Wrap libcuda.

        Raises:
            AttributeError: the driver is too old for one of the functions.
        """
        self._library = library
        for name, arguments in FUNCTIONS.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, ctypes.c_int

    def record(self, stream: int, enqueue: Callable[[], object]) -> int:
        """Record what ``enqueue`` puts into the stream, without running it.

        Returns:
            Handle of the graph, ready to launch.

        Raises:
            RunnerError: something in it cannot be recorded; the stream works on as before.
        """
        graph, executable = _HANDLE(), _HANDLE()
        self._call("cuStreamBeginCapture_v2", stream, THREAD_LOCAL)
        with contextlib.ExitStack() as cleanup:
            cleanup.callback(self._drop_recording, graph)
            try:
                enqueue()
            finally:  # else the stream would go on recording
                self._call("cuStreamEndCapture", stream, ctypes.byref(graph))
            self._call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, 0)
        return int(executable.value or 0)

    def launch(self, graph: int, stream: int) -> None:
        """Enqueue all that was recorded."""
        self._call("cuGraphLaunch", graph, stream)

    def drop(self, graph: int) -> None:
        """Give a graph back; it does not run any more."""
        self._call("cuGraphExecDestroy", graph)

    def _drop_recording(self, graph: ctypes.c_void_p) -> None:
        # what is launched is a copy of it, so that nothing follows from an error here
        if graph.value:
            self._library.cuGraphDestroy(graph)

    def _call(self, name: str, *arguments: object) -> None:
        error = getattr(self._library, name)(*arguments)
        if error:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(error, ctypes.byref(text))
            raise RunnerError(f"CUDA failed: {name}: {(text.value or b'unknown error').decode()}.")


def open_graphs() -> CudaGraphs | None:
    """Graphs by the driver of this machine; None where it is too old for them."""
    try:
        return CudaGraphs(driver_library())
    except AttributeError:
        return None
