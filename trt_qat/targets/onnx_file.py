"""The writer that all targets share which take a plain ONNX file."""

from __future__ import annotations

from pathlib import Path

from trt_qat.checkpoint import Model
from trt_qat.config import ExportSection
from trt_qat.exporter.onnx_export import export_onnx


def write_onnx(model: Model, out: Path, section: ExportSection) -> None:
    """Signed INT8 Q/DQ, as TensorRT takes it."""
    export_onnx(model, out, section)
