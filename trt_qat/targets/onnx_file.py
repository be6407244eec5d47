"""The ONNX files that several targets share, and ONNX Runtime as a user opens one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trt_qat.config import ExportSection
from trt_qat.runtime.packages import import_onnxruntime
from trt_qat.targets.base import Arrays

if TYPE_CHECKING:
    from trt_qat.checkpoint import Model


def write_signed(model: Model, out: Path, section: ExportSection) -> None:
    """Activations as int8 with zero point 0, the only form that TensorRT takes."""
    from trt_qat.exporter.onnx_export import export_onnx  # loads torch

    export_onnx(model, out, section)


def write_tensorrt_rtx(model: Model, out: Path, section: ExportSection) -> None:
    """The same in the form of :mod:`trt_qat.exporter.tensorrt_rtx`."""
    from trt_qat.exporter.onnx_export import export_onnx  # loads torch

    export_onnx(model, out, section, tensorrt_rtx=True)


def write_unsigned(model: Model, out: Path, section: ExportSection) -> None:
    """Activations as uint8, zero point 128 for 0: the same numbers in the form that CPU runtimes compute right."""
    from trt_qat.exporter.onnx_export import export_onnx  # loads torch

    export_onnx(model, out, section, unsigned=True)


def compute_onnxruntime(file: Path, batches: Arrays) -> Arrays:
    """A plain ``onnxruntime.InferenceSession`` at its default optimization level."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # failures arrive as exceptions
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return [np.asarray(session.run(None, {name: batch})[0], dtype=np.float32) for batch in batches]


def compute_ultralytics(model: Path, batches: Arrays) -> Arrays:
    """What ``YOLO(model)`` loads and runs, without its letterbox and NMS."""
    import torch
    from ultralytics.nn.autobackend import AutoBackend

    from trt_qat.training.detection_trainer import quiet_ultralytics

    with quiet_ultralytics():
        backend = AutoBackend(str(model), device=torch.device("cpu"))
        # an engine's device is the GPU; it writes its next result into the same memory
        outputs = [backend(torch.from_numpy(batch).to(backend.device)).cpu().numpy().copy() for batch in batches]
    return [np.asarray(output, dtype=np.float32) for output in outputs]
