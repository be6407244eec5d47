"""Target tensorrt."""

from __future__ import annotations

from trt_qat.targets.base import Target
from trt_qat.targets.onnx_file import write_onnx

TARGET = Target("tensorrt", "tensorrt", "int8+fp16", {"onnx": write_onnx})
