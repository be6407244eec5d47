"""OpenVINO on the CPU: reads a Q/DQ ONNX file or OpenVINO's own IR and computes its convolutions in INT8.

The float part stays FP32 (``INFERENCE_PRECISION_HINT``), so results are the same on every CPU.
"""

from __future__ import annotations

import queue
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trt_qat.artifacts import existing_file
from trt_qat.engine.onnx_file import onnx_metadata
from trt_qat.errors import ArtifactError, RunnerError
from trt_qat.memory import check_memory
from trt_qat.runtime.openvino_ir import check_ir
from trt_qat.runtime.packages import import_openvino
from trt_qat.runtime.runner import Mode, check_batch, check_cpu, closed_error


class OpenVinoRunner:
    """A :class:`~trt_qat.runtime.runner.Runner` over OpenVINO's CPU plugin.

    Args:
        model: an ONNX file, an IR (``*.xml`` with its ``*.bin`` beside it), or a folder with one; metadata of an IR
            is read from the ``metadata.yaml`` beside it, as Ultralytics writes it. Static or dynamic batch.
        threads: 0 leaves the number to OpenVINO.
        mode: "latency" gives all cores to one image; "throughput" runs one image per core, or per few of them.

    Raises:
        ArtifactError: the file is missing, truncated or of another kind.
        MissingDependency: OpenVINO is not installed.
        RunnerError: OpenVINO cannot run this graph.
    """

    name: str = "openvino"
    suffixes = (".onnx", "_openvino_model")

    largest_batch: int | None = None

    def __init__(self, model: Path, threads: int = 0, mode: Mode = "latency", device: str = "auto") -> None:
        check_cpu(device, self.name)
        file = _model_file(model)
        self.metadata: Mapping[str, str] = onnx_metadata(file) if file.suffix.lower() == ".onnx" else check_ir(file)
        openvino = import_openvino()
        options: dict[str, Any] = {"PERFORMANCE_HINT": mode.upper(), "INFERENCE_PRECISION_HINT": "f32"}
        if threads > 0:
            options["INFERENCE_NUM_THREADS"] = threads
        try:
            core = openvino.Core()
            network = _read(core, file)
            self._compiled: Any = core.compile_model(network, "CPU", options)
            self.parallel: int = _requests(self._compiled, mode)
            self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
            for _ in range(self.parallel):
                self._requests.put(self._compiled.create_infer_request())
            self.device: str = str(core.get_property("CPU", "FULL_DEVICE_NAME")).strip()
        except RuntimeError as exc:
            check_memory(exc)
            raise RunnerError(f"OpenVINO cannot run '{model}': {_first_reason(exc)}") from exc
        port = self._compiled.input(0)
        self._input_dtype = np.dtype(port.get_element_type().to_dtype())
        if self._input_dtype.kind != "f":  # pixels in [0, 1] would be cut to 0 and 1
            raise RunnerError(f"'{model}' must have a float input, the images in [0, 1]; found {self._input_dtype}.")
        self.input_shape: tuple[int | None, ...] = tuple(
            None if axis.is_dynamic else axis.get_length() for axis in port.partial_shape
        )
        self.largest_batch = self.input_shape[0]

    def infer(self, batch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """See :meth:`Runner.infer <trt_qat.runtime.runner.Runner.infer>`."""
        compiled = self._compiled
        if compiled is None:
            raise closed_error(self.name)
        check_batch(batch, self.input_shape, self.name)
        request = self._requests.get()  # a thread more than there are requests waits here
        try:
            if request is None:
                raise closed_error(self.name)
            # read where it stands; it stays untouched until the results are there
            results = request.infer([batch.astype(self._input_dtype, copy=False)], share_inputs=True)
            # a copy: OpenVINO writes the next result into the same memory
            return [np.array(results[port], dtype=np.float32) for port in compiled.outputs]
        except RuntimeError as exc:
            check_memory(exc)
            raise RunnerError(f"OpenVINO failed to run the model: {_first_reason(exc)}") from exc
        finally:
            self._requests.put(request)

    def __enter__(self) -> OpenVinoRunner:
        if self._compiled is None:
            raise closed_error(self.name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._compiled is None:
            return
        self._compiled = None
        for _ in range(self.parallel):  # calls of other threads end first
            self._requests.get()
        self._requests.put(None)


def _requests(compiled: Any, mode: Mode) -> int:
    """Requests that keep the cores busy: one more than OpenVINO computes at once waits while others are prepared."""
    return 1 if mode == "latency" else int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")) + 1


def read_network(model: Path) -> Any:
    """The network of a file or folder that :class:`OpenVinoRunner` has taken, as it compiles it."""
    return _read(import_openvino().Core(), _model_file(model))


def _read(core: Any, file: Path) -> Any:
    network = core.read_model(file)
    _check_one_input(len(network.inputs), file)
    fuse_quantize_dequantize_(network)
    return network


def fuse_quantize_dequantize_(model: Any) -> None:
    """Turn each imported QuantizeLinear + DequantizeLinear into the one FakeQuantize that it is, in place.

    The ONNX importer makes FakeQuantize -> Convert -> Convert -> Subtract zero point -> Multiply scale of a pair. For
    signed INT8 whose pairs meet in a Concat, the CPU plugin then computes the convolution behind the Concat wrongly
    (seen with 2025.4, 2026.3 and 2026.4 on AVX512). One FakeQuantize means the same and is computed right. A quantizer
    with several dequantizers, whatever their scale and zero point, becomes several.
    """
    from openvino import opset13 as operators

    for quantize in [node for node in model.get_ordered_ops() if node.get_type_name() == "FakeQuantize"]:
        low, high, low_level, high_level = (quantize.input_value(index) for index in range(1, 5))
        for scale in _dequantizers(quantize):
            found = _dequantized(scale, low_level), _dequantized(scale, high_level)
            if found[0] is None or found[1] is None:
                continue  # scale or zero point is computed: left as the importer made it
            out_low, out_high = (operators.constant(value) for value in found)
            count = quantize.get_attributes()["levels"]
            fused = operators.fake_quantize(quantize.input_value(0), low, high, out_low, out_high, count)
            wanted = scale.output(0).get_element_type()
            if fused.output(0).get_element_type() != wanted:  # an FP16 graph quantizes in FP32
                fused = operators.convert(fused, wanted.to_string())
            fused.set_friendly_name(scale.get_friendly_name())
            scale.output(0).replace(fused.output(0))


def _dequantizers(quantize: Any) -> list[Any]:
    """The Multiply that ends each dequantizer behind a FakeQuantize; none if it is not an imported QuantizeLinear."""
    floats = [node for integer in _readers(quantize, "Convert") for node in _readers(integer, "Convert")]
    shifted = [node for value in floats for node in _readers(value, "Subtract")]
    return [node for value in (*floats, *shifted) for node in _readers(value, "Multiply")]


def _readers(node: Any, kind: str) -> list[Any]:
    readers = [target.get_node() for target in node.output(0).get_target_inputs()]
    return [reader for reader in readers if reader.get_type_name() == kind]


def _dequantized(scale: Any, level: Any) -> NDArray[np.float32] | None:
    """What a dequantizer makes of a quantization level; None if one of its inputs is computed."""
    shift = scale.input_value(0).get_node()
    zero_point = _constant(shift.input_value(1)) if shift.get_type_name() == "Subtract" else np.zeros((), np.float32)
    factor, value = _constant(scale.input_value(1)), _constant(level)
    if factor is None or zero_point is None or value is None:
        return None
    return np.asarray((value - zero_point) * factor, dtype=np.float32)


def _constant(value: Any) -> NDArray[np.float32] | None:
    """The value of a constant, behind type conversions or not; None if it is computed."""
    node = value.get_node()
    if node.get_type_name() == "Convert":
        return _constant(node.input_value(0))
    return np.asarray(node.data, dtype=np.float32) if node.get_type_name() == "Constant" else None


def _model_file(model: Path) -> Path:
    if not model.is_dir():
        existing_file(model, "Model")
        if model.suffix.lower() not in (".onnx", ".xml"):
            raise ArtifactError(f"OpenVINO needs an ONNX file, an IR (*.xml) or a folder with one, found '{model}'.")
        return model
    found = sorted(model.glob("*.xml"))
    if len(found) != 1:
        raise ArtifactError(f"Folder '{model}' must hold one OpenVINO IR (*.xml), found {len(found)}.")
    return found[0]


def _check_one_input(count: int, file: Path) -> None:
    if count != 1:
        raise RunnerError(f"'{file}' has {count} inputs; a detector has one, the images.")


def _first_reason(exc: Exception) -> str:
    # OpenVINO's messages are C++ traces: the last line that is not a location says why
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    reasons = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return " ".join((reasons or lines or ["no reason given"])[-1].split())
