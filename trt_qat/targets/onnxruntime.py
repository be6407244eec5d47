"""ONNX Runtime on the CPU: a file that loads and computes right at its default level, in every opset.

It is the reference, not a fast runtime: its INT8 convolution wants Q/DQ behind each of Conv, Sigmoid and Mul, where
TensorRT wants none, so the convolutions stay float here (docs/targets.md has the figures).
"""

from __future__ import annotations

from trt_qat.targets.base import Form, Target
from trt_qat.targets.onnx_file import compute_onnxruntime, write_unsigned

TARGET = Target(
    name="onnxruntime",
    client="ONNX Runtime",
    summary="right at its default level, but slower than FP32 there: docs/targets.md.",
    precision="int8+fp32",
    zero_points=True,
    forms={"onnx": Form(".onnx", write_unsigned, compute_onnxruntime)},
)
