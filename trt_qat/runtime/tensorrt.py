"""TensorRT and TensorRT-RTX on the GPU: set_tensor_address and execute_async_v3, nothing older.

Everything that holds GPU memory is released in the order context, engine, runtime, buffers, stream,
CUDA context: each needs the ones after it.

A plan that cannot run here is refused by what its side-car says, before TensorRT sees it. Code for the CPU that a plan
may hold (``engine.version_compatible``) runs only where the user trusts it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
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
from trt_qat.runtime.device_memory import DeviceMemory, open_device_memory
from trt_qat.runtime.runner import Mode, check_batch, closed_error

TRUST_PLAN = "TRT_QAT_TRUST_PLAN"
"""Environment variable: 1 lets plans with code for the CPU load."""
_AXES = {0: ("batches", "batch"), 2: ("heights", "size"), 3: ("widths", "size")}  # in words, and in settings


@dataclass(frozen=True)
class _Buffer:
    """One tensor of the engine, in page-locked host memory and on the device."""

    host: NDArray[Any]
    device: int


class TensorRtRunner:
    """A :class:`~trt_qat.runtime.runner.Runner` over a plan that ``build_engine`` wrote.

    Args:
        plan: a ``*.plan``, whose side-car names the flavor and the metadata, or an ``*.engine``, whose header does.

    Raises:
        ArtifactError: the plan or its side-car is missing.
        MissingDependency: the TensorRT package, or both pycuda and cuda-python, are missing.
        RunnerError: no GPU, the plan was built for another GPU or version, it holds code that is not trusted, or
            TensorRT refuses it.
    """

    name: str = "tensorrt"
    suffixes = (".plan", ".engine")

    parallel: int = 1
    largest_batch: int | None = None

    def __init__(self, plan: Path, threads: int = 0, mode: Mode = "latency", device: str = "auto") -> None:
        del threads, mode, device  # every runtime takes them
        description, content = read_engine(plan)
        gpus = gpu_names()
        if not gpus:
            raise RunnerError(
                "No NVIDIA GPU found: a TensorRT plan cannot run here. Use --runtime openvino on the ONNX file."
            )
        self._trt: Any = import_tensorrt(description.flavor)
        _check_runs_here(plan, description, self._trt.__version__, gpus[0])
        self.metadata: Mapping[str, str] = description.metadata
        self.device: str = gpus[0]
        self._buffers: dict[str, _Buffer] = {}
        self._bound_shape: tuple[int, ...] | None = None
        with contextlib.ExitStack() as cleanup:
            self._memory: DeviceMemory = cleanup.enter_context(contextlib.closing(open_device_memory()))
            cleanup.callback(self._drop_engine)
            self._load(plan, content, description)
            self._resources: contextlib.ExitStack | None = cleanup.pop_all()

    def infer(self, batch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """See :meth:`Runner.infer <trt_qat.runtime.runner.Runner.infer>`."""
        self._take(batch)
        self._execute()
        results = [self._buffers[name] for name in self._outputs]
        for result in results:
            self._memory.copy_to_host(result.host, result.device)
        self._memory.synchronize()
        # a copy: the next call writes into the same host memory
        return [np.array(result.host, dtype=np.float32) for result in results]

    def gpu_milliseconds(self, batch: NDArray[np.float32]) -> float:
        """What the GPU takes for a batch that it has already, by CUDA events: no copy of images or results is in it.

        Where the CPU enqueues kernels more slowly than they run, the GPU waits, and that counts.
        """
        self._take(batch)
        self._memory.synchronize()
        return self._memory.elapsed_ms(self._execute)

    def __enter__(self) -> TensorRtRunner:
        if self._resources is None:
            raise closed_error(self.name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        resources, self._resources = self._resources, None
        if resources is not None:
            resources.close()

    def _take(self, batch: NDArray[np.float32]) -> None:
        """Enqueue the copy of a batch to the device."""
        if self._resources is None:
            raise closed_error(self.name)
        check_batch(batch, self.input_shape, self.name)
        if batch.shape != self._bound_shape:
            self._bind(batch.shape)
        source = self._buffers[self._input]
        np.copyto(source.host, batch, casting="same_kind")
        self._memory.copy_to_device(source.device, source.host)

    def _execute(self) -> None:
        """Enqueue the engine."""
        if not self._context.execute_async_v3(self._memory.stream):
            raise RunnerError(f"TensorRT failed to run the engine{self._reason()}.")

    def _load(self, plan: Path, content: bytes, description: EngineDescription) -> None:
        trt = self._trt
        self._logger, self._errors = tensorrt_logger(trt)
        self._runtime: Any = trt.Runtime(self._logger)
        if description.version_compatible:
            self._runtime.engine_host_code_allowed = True  # _check_runs_here has asked
        self._engine: Any = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            built = f"{description.flavor} {description.tensorrt_version}"
            built += f" on {description.gpu.name}" if description.gpu else ""
            raise RunnerError(
                f"TensorRT {trt.__version__} on {self.device} cannot load '{plan}', "
                f"built with {built}{self._reason()}. Build the engine again on this machine."
            )
        self._context: Any = self._engine.create_execution_context()
        if self._context is None:
            raise RunnerError(f"TensorRT cannot prepare '{plan}' for {self.device}{self._reason()}.")
        self._read_tensors(plan)

    def _read_tensors(self, plan: Path) -> None:
        engine, trt = self._engine, self._trt
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        if len(inputs) != 1:
            raise RunnerError(f"'{plan}' has {len(inputs)} inputs; a detector has one, the images.")
        self._input: str = inputs[0]
        self._outputs: list[str] = [name for name in names if name != self._input]
        shape = tuple(engine.get_tensor_shape(self._input))
        self.input_shape: tuple[int | None, ...] = tuple(None if axis == -1 else int(axis) for axis in shape)
        self._ranges: dict[int, tuple[int, int]] = {}  # of each free axis
        if None in self.input_shape:
            smallest, _, largest = engine.get_tensor_profile_shape(self._input, 0)
            free = [axis for axis, size in enumerate(self.input_shape) if size is None]
            self._ranges = {axis: (int(smallest[axis]), int(largest[axis])) for axis in free}

    def _bind(self, shape: tuple[int, ...]) -> None:
        """Fresh buffers of the right size for this input shape."""
        for axis, (smallest, largest) in self._ranges.items():
            if not smallest <= shape[axis] <= largest:
                name, setting = _AXES.get(axis, ("channels", "size"))
                end = "min" if shape[axis] < smallest else "max"
                raise RunnerError(
                    f"The engine takes {name} of {smallest} to {largest}, found {shape[axis]}. "
                    f"Build it with another engine.{end}_{setting}."
                )
        self._unbind()
        if not self._context.set_input_shape(self._input, shape):
            raise RunnerError(f"TensorRT refuses input shape {shape}{self._reason()}.")
        for name in (self._input, *self._outputs):
            self._buffers[name] = self._new_buffer(name)
            if not self._context.set_tensor_address(name, self._buffers[name].device):
                raise RunnerError(f"TensorRT refuses the buffer of tensor '{name}'{self._reason()}.")
        self._bound_shape = shape

    def _new_buffer(self, name: str) -> _Buffer:
        try:
            dtype = np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name)))
        except TypeError as exc:
            raise RunnerError(f"Tensor '{name}' has a type that NumPy lacks. Export it as float32.") from exc
        host = self._memory.host_array(tuple(self._context.get_tensor_shape(name)), dtype)
        return _Buffer(host, self._memory.alloc(host.nbytes))

    def _unbind(self) -> None:
        self._bound_shape = None
        while self._buffers:
            _, buffer = self._buffers.popitem()
            self._memory.free(buffer.device)
            self._memory.free_host(buffer.host)

    def _drop_engine(self) -> None:
        self._context = None
        self._engine = None
        self._runtime = None
        self._buffers.clear()  # the memory itself is freed by DeviceMemory.close

    def _reason(self) -> str:
        return f": {self._errors[-1].rstrip('.')}" if self._errors else ""


def _check_runs_here(plan: Path, description: EngineDescription, version: str, gpu: str) -> None:
    why = refusal(description, version, gpu, compute_capability())
    if why is not None:
        raise RunnerError(f"'{plan}' does not run here: {why}")
    if description.version_compatible and os.environ.get(TRUST_PLAN) != "1":
        raise RunnerError(
            f"'{plan}' holds a TensorRT runtime (engine.version_compatible): code that runs on this machine when the "
            f"plan is loaded. If you trust whoever built it, set {TRUST_PLAN}=1."
        )
