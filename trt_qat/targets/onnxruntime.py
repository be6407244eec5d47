"""Target onnxruntime."""

from __future__ import annotations

from trt_qat.targets.base import Target
from trt_qat.targets.onnx_file import write_onnx

TARGET = Target("onnxruntime", "onnxruntime", "int8+fp32", {"onnx": write_onnx})
