"""TensorRT and TensorRT-RTX on the GPU: set_tensor_address and execute_async_v3, nothing older.

Several requests share one engine, so that one computes while another is copied: TensorRT lets threads run contexts of
one engine at once, and contexts may share an optimization profile (always since TensorRT 10). Everything that holds GPU
memory is released in the order requests, engine, runtime, CUDA context: each needs the ones after it.

A plan that cannot run here is refused by what its side-car says, before TensorRT sees it. Code for the CPU that a plan
may hold (``engine.version_compatible``) runs only where the user trusts it.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trt_qat.engine.compatibility import refusal
from trt_qat.engine.engine_file import EngineDescription, read_engine
from trt_qat.engine.flavor import import_tensorrt, tensorrt_logger
from trt_qat.engine.gpu import compute_capability, gpu_names
from trt_qat.errors import RunnerError
from trt_qat.runtime.cuda_driver import open_cuda
from trt_qat.runtime.cuda_graph import CudaGraphs, open_graphs
from trt_qat.runtime.runner import Mode, check_batch, closed_error
from trt_qat.runtime.tensorrt_request import TensorRtRequest, reason
from trt_qat.runtime.tensorrt_tensors import EngineTensors, read_tensors

TRUST_PLAN = "TRT_QAT_TRUST_PLAN"
"""Environment variable: 1 lets plans with code for the CPU load."""

REQUESTS = 3
"""In flight at once in mode "throughput": one is copied in, one computes, one is copied out and read. Not measured."""


class TensorRtRunner:
    """A :class:`~trt_qat.runtime.runner.Runner` over a plan that ``build_engine`` wrote.

    Args:
        plan: a ``*.plan``, whose side-car names the flavor and the metadata, or an ``*.engine``, whose header does.
        threads: of the CPU; ignored.
        mode: "latency" has one request, "throughput" :data:`REQUESTS`, each with memory of its own.
        device: "auto" and "cuda" are the first GPU, "cuda:N" or "N" another.

    Raises:
        ArtifactError: the plan or its side-car is missing.
        MissingDependency: the TensorRT package, or both pycuda and cuda-python, are missing.
        RunnerError: no such GPU, the plan was built for another GPU or version, it holds code that is not trusted, or
            TensorRT refuses it.
    """

    name: str = "tensorrt"
    suffixes = (".plan", ".engine")

    def __init__(self, plan: Path, threads: int = 0, mode: Mode = "latency", device: str = "auto") -> None:
        del threads
        description, content = read_engine(plan)
        gpus = gpu_names()
        index = _gpu_index(device, gpus)
        self._trt: Any = import_tensorrt(description.flavor)
        _check_runs_here(plan, description, self._trt.__version__, gpus[index], index)
        self.metadata: Mapping[str, str] = description.metadata
        self.device: str = gpus[index]
        self.parallel: int = 1 if mode == "latency" else REQUESTS
        self._logger, self._errors = tensorrt_logger(self._trt)
        self._runtime: Any = None
        self._engine: Any = None
        self._context_settings: Any = None
        self._requests: list[TensorRtRequest] = []
        # the request used last comes first: its memory is there, its graph recorded. None says that all is over
        self._idle: queue.LifoQueue[TensorRtRequest | None] = queue.LifoQueue()
        self._open = True
        self._cuda = open_cuda(index)
        with contextlib.ExitStack() as failed:
            failed.callback(self._release)
            with self._cuda.current():
                self._load(plan, content, description)
                self._add_requests()
            failed.pop_all()

    def infer(self, batch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """See :meth:`Runner.infer <trt_qat.runtime.runner.Runner.infer>`."""
        with self._request(batch) as request:
            return request.infer(batch)

    def gpu_milliseconds(self, batch: NDArray[np.float32], copies: bool = False) -> float:
        """What the GPU takes for a batch, by CUDA events.

        Where the CPU enqueues kernels more slowly than they run, the GPU waits, and that counts.

        Args:
            copies: count the copies between page-locked memory and the GPU as well; else the batch is there already.
        """
        with self._request(batch) as request:
            return request.gpu_milliseconds(batch, copies)

    def __enter__(self) -> TensorRtRunner:
        if not self._open:
            raise closed_error(self.name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._open:
            return
        self._open = False
        for _ in self._requests:  # calls of other threads end first
            self._idle.get()
        self._idle.put(None)
        self._release()

    @contextlib.contextmanager
    def _request(self, batch: NDArray[np.float32]) -> Iterator[TensorRtRequest]:
        """A request of the calling thread's own; a thread more than there are requests waits."""
        if not self._open:
            raise closed_error(self.name)
        check_batch(batch, self.input_shape, self.name)
        request = self._idle.get()
        try:
            if request is None:
                raise closed_error(self.name)
            with self._cuda.current():
                yield request
        finally:
            self._idle.put(request)

    def _load(self, plan: Path, content: bytes, description: EngineDescription) -> None:
        trt = self._trt
        self._runtime = trt.Runtime(self._logger)
        if description.version_compatible:
            self._runtime.engine_host_code_allowed = True  # _check_runs_here has asked
        self._engine = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            built = f"{description.flavor} {description.tensorrt_version}"
            built += f" on {description.gpu.name}" if description.gpu else ""
            raise RunnerError(
                f"TensorRT {trt.__version__} on {self.device} cannot load '{plan}', "
                f"built with {built}{reason(self._errors)}. Build the engine again on this machine."
            )
        self._tensors: EngineTensors = read_tensors(self._engine, trt, plan)
        self.input_shape: tuple[int | None, ...] = self._tensors.input_shape
        self.largest_batch: int | None = self._tensors.largest_batch

    def _add_requests(self) -> None:
        graphs = self._graphs()
        for _ in range(self.parallel):
            request = TensorRtRequest(self._cuda, self._tensors, self._new_context, graphs, self._errors)
            self._requests.append(request)
            self._idle.put(request)

    def _graphs(self) -> CudaGraphs | None:
        """What records the engine; None where the library does that itself.

        TensorRT-RTX compiles kernels for a shape while others run already, and knows when to record (its
        ``CudaGraphStrategy.WHOLE_GRAPH_CAPTURE``: "after the shape-specialized kernels are compiled").
        """
        strategies = getattr(self._trt, "CudaGraphStrategy", None)
        if strategies is None:
            return open_graphs()
        self._context_settings = self._engine.create_runtime_config()
        self._context_settings.cuda_graph_strategy = strategies.WHOLE_GRAPH_CAPTURE
        return None

    def _new_context(self) -> Any:
        if self._context_settings is None:
            return self._engine.create_execution_context()
        return self._engine.create_execution_context(self._context_settings)

    def _release(self) -> None:
        """Last comes first; whatever fails, the rest is released too."""
        with contextlib.ExitStack() as last_first:
            last_first.callback(self._cuda.close)
            last_first.enter_context(self._cuda.current())
            last_first.callback(self._drop_engine)
            for request in self._requests:
                last_first.callback(request.close)

    def _drop_engine(self) -> None:
        self._context_settings = None
        self._engine = None
        self._runtime = None


def _gpu_index(device: str, gpus: Sequence[str]) -> int:
    named = re.fullmatch(r"auto|cuda|(?:cuda:)?(\d{1,3})", device)
    if named is None:
        raise RunnerError(
            f"A TensorRT plan runs on a GPU ('auto', 'cuda' or 'cuda:N'), not on '{device}'. "
            "Use --runtime openvino on the ONNX file for the CPU."
        )
    if not gpus:
        raise RunnerError(
            "No NVIDIA GPU found: a TensorRT plan cannot run here. Use --runtime openvino on the ONNX file."
        )
    index = int(named[1] or 0)
    if index >= len(gpus):
        known = ", ".join(f"cuda:{number} ({name})" for number, name in enumerate(gpus))
        raise RunnerError(f"There is no cuda:{index} here, only {known}.")
    return index


def _check_runs_here(plan: Path, description: EngineDescription, version: str, gpu: str, index: int) -> None:
    why = refusal(description, version, gpu, compute_capability(index))
    if why is not None:
        raise RunnerError(f"'{plan}' does not run here: {why}")
    if description.version_compatible and os.environ.get(TRUST_PLAN) != "1":
        raise RunnerError(
            f"'{plan}' holds a TensorRT runtime (engine.version_compatible): code that runs on this machine when the "
            f"plan is loaded. If you trust whoever built it, set {TRUST_PLAN}=1."
        )
