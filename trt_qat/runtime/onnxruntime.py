"""ONNX Runtime on the CPU: the reference that other runtimes are compared with.

With ``optimize=False`` it computes the graph exactly as written, Q/DQ nodes included.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trt_qat.engine.onnx_file import onnx_metadata
from trt_qat.errors import RunnerError
from trt_qat.memory import check_memory
from trt_qat.runtime.packages import import_onnxruntime
from trt_qat.runtime.runner import Mode, check_batch, check_cpu, closed_error

_INPUT_DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
}
_FATAL_ONLY = 4


class OnnxRuntimeRunner:
    """A :class:`~trt_qat.runtime.runner.Runner` over ONNX Runtime's CPU provider.

    Args:
        onnx: the ONNX file, static or dynamic batch.
        threads: 0 leaves the number to ONNX Runtime.
        mode: "latency" and "throughput" are the same here but for how many threads may call at once.
        optimize: False switches every graph optimization off.

    Raises:
        ArtifactError: the file is missing, truncated or not ONNX.
        MissingDependency: ONNX Runtime is not installed.
        RunnerError: ONNX Runtime cannot run this graph.
    """

    name: str = "onnxruntime"
    suffixes = (".onnx",)

    def __init__(
        self,
        onnx: Path,
        threads: int = 0,
        mode: Mode = "latency",
        device: str = "auto",
        optimize: bool = True,
    ) -> None:
        check_cpu(device, self.name)
        self.metadata: Mapping[str, str] = onnx_metadata(onnx)
        self.device: str = "CPU"
        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _FATAL_ONLY  # failures arrive as exceptions
        options.intra_op_num_threads = threads
        levels = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
        try:
            self._session: Any = open_session(onnxruntime, str(onnx), options)
        except Exception as exc:  # its exceptions share no base class below Exception
            check_memory(exc)
            raise RunnerError(f"ONNX Runtime cannot run '{onnx}': {_one_line(exc)}") from exc
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type not in _INPUT_DTYPES:
            found = ", ".join(f"{entry.name}: {entry.type}" for entry in inputs)
            raise RunnerError(f"'{onnx}' must have one float input, the images; found {found or 'none'}.")
        self._input_name = inputs[0].name
        self._input_dtype = _INPUT_DTYPES[inputs[0].type]
        self.input_shape: tuple[int | None, ...] = tuple(
            axis if isinstance(axis, int) else None for axis in inputs[0].shape
        )
        self.largest_batch: int | None = self.input_shape[0]
        self.parallel: int = 1 if mode == "latency" else 2  # one session serves any number of threads

    def infer(self, batch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """See :meth:`Runner.infer <trt_qat.runtime.runner.Runner.infer>`."""
        session = self._session
        if session is None:
            raise closed_error(self.name)
        check_batch(batch, self.input_shape, self.name)
        feed = {self._input_name: batch.astype(self._input_dtype, copy=False)}
        try:
            outputs = session.run(None, feed)
        except Exception as exc:  # as above
            check_memory(exc)
            raise RunnerError(f"ONNX Runtime failed to run the model: {_one_line(exc)}") from exc
        return [np.asarray(output, dtype=np.float32) for output in outputs]

    def __enter__(self) -> OnnxRuntimeRunner:
        if self._session is None:
            raise closed_error(self.name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session = None


def open_session(onnxruntime: Any, onnx: str | bytes, options: Any) -> Any:
    """An ``InferenceSession`` on the CPU of a file or of its content."""
    providers = ["CPUExecutionProvider"]
    try:
        return onnxruntime.InferenceSession(onnx, options, providers=providers)
    except Exception as exc:
        if "y_zero_point" not in str(exc):
            raise
        # ONNX Runtime 1.32 inserts a uint8 quantizer into signed INT8 files of opset 21 and above, then refuses its
        # own type; without that one optimizer it computes them
        return onnxruntime.InferenceSession(
            onnx, options, providers=providers, disabled_optimizers=["QDQPropagationTransformer"]
        )


def _one_line(exc: Exception) -> str:
    return " ".join(str(exc).split())
