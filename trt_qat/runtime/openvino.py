"""OpenVINO on the CPU: reads the Q/DQ ONNX itself and computes its convolutions in INT8.

The float part stays FP32 (``INFERENCE_PRECISION_HINT``), so results are the same on every CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trt_qat.engine.onnx_file import onnx_metadata
from trt_qat.errors import MissingDependency, RunnerError
from trt_qat.runtime.runner import check_batch, closed_error


class OpenVinoRunner:
    """A :class:`~trt_qat.runtime.runner.Runner` over OpenVINO's CPU plugin.

    Args:
        onnx: the ONNX file, static or dynamic batch.
        threads: 0 leaves the number to OpenVINO.

    Raises:
        ArtifactError: the file is missing, truncated or not ONNX.
        MissingDependency: OpenVINO is not installed.
        RunnerError: OpenVINO cannot run this graph.
    """

    name: str = "openvino"
    suffixes = (".onnx", "_openvino_model")

    def __init__(self, onnx: Path, threads: int = 0) -> None:
        self.metadata: Mapping[str, str] = onnx_metadata(onnx)
        try:
            import openvino
        except ImportError as exc:
            raise MissingDependency(f"Runtime 'openvino' cannot be imported ({exc}): pip install openvino.") from exc
        options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        if threads > 0:
            options["INFERENCE_NUM_THREADS"] = threads
        try:
            core = openvino.Core()
            model = core.read_model(onnx)
            _check_one_input(len(model.inputs), onnx)
            _fuse_quantize_dequantize(model)
            self._compiled: Any = core.compile_model(model, "CPU", options)
            self._request: Any = self._compiled.create_infer_request()
            self.device: str = str(core.get_property("CPU", "FULL_DEVICE_NAME")).strip()
        except RuntimeError as exc:
            raise RunnerError(f"OpenVINO cannot run '{onnx}': {_first_reason(exc)}") from exc
        port = self._compiled.input(0)
        self._input_dtype = np.dtype(port.get_element_type().to_dtype())
        self.input_shape: tuple[int | None, ...] = tuple(
            None if axis.is_dynamic else axis.get_length() for axis in port.partial_shape
        )

    def infer(self, batch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """See :meth:`Runner.infer <trt_qat.runtime.runner.Runner.infer>`."""
        if self._request is None:
            raise closed_error(self.name)
        check_batch(batch, self.input_shape, self.name)
        try:
            results = self._request.infer([batch.astype(self._input_dtype, copy=False)])
        except RuntimeError as exc:
            raise RunnerError(f"OpenVINO failed to run the model: {_first_reason(exc)}") from exc
        # a copy: OpenVINO writes the next result into the same memory
        return [np.array(results[port], dtype=np.float32) for port in self._compiled.outputs]

    def __enter__(self) -> OpenVinoRunner:
        if self._request is None:
            raise closed_error(self.name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._request = None
        self._compiled = None


def _fuse_quantize_dequantize(model: Any) -> None:
    """Turn each imported QuantizeLinear + DequantizeLinear into the one FakeQuantize that it is, in place.

    The ONNX importer makes FakeQuantize -> Convert -> Convert -> Subtract 0 -> Multiply of a pair. For signed INT8
    whose pairs meet in a Concat, the CPU plugin then computes the convolution behind the Concat wrongly (seen with
    2025.4, 2026.3 and 2026.4 on AVX512). One FakeQuantize with equal input and output ranges means the same and is
    computed right.
    """
    from openvino import opset13 as operators

    for quantize in model.get_ordered_ops():
        if quantize.get_type_name() != "FakeQuantize":
            continue
        last = quantize
        while last is not None and last.get_type_name() != "Multiply":
            readers = [target.get_node() for target in last.output(0).get_target_inputs()]
            one = len(readers) == 1 and readers[0].get_type_name() in {"Convert", "Subtract", "Multiply"}
            last = readers[0] if one else None
        if last is None:
            continue  # not a pair: left as the importer made it
        low, high = quantize.input_value(1), quantize.input_value(2)
        levels = quantize.get_attributes()["levels"]
        fused = operators.fake_quantize(quantize.input_value(0), low, high, low, high, levels)
        wanted = last.output(0).get_element_type()
        if fused.output(0).get_element_type() != wanted:  # an FP16 graph quantizes in FP32
            fused = operators.convert(fused, wanted.to_string())
        fused.set_friendly_name(last.get_friendly_name())
        last.output(0).replace(fused.output(0))


def _check_one_input(count: int, onnx: Path) -> None:
    if count != 1:
        raise RunnerError(f"'{onnx}' has {count} inputs; a detector has one, the images.")


def _first_reason(exc: Exception) -> str:
    # OpenVINO's messages are C++ traces: the last line that is not a location says why
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    reasons = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return (reasons or lines or ["no reason given"])[-1]
