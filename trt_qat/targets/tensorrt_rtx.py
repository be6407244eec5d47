"""TensorRT for RTX: TensorRT's file, in the form that this compiler makes the least of float data of.

Read from its engines, see docs/compiler.md: a weight with a scale per channel makes it write every convolution's sum as
FP32, one with a single scale as FP16.
"""

from __future__ import annotations

from dataclasses import replace

from trt_qat.targets.base import Form
from trt_qat.targets.onnx_file import write_tensorrt_rtx
from trt_qat.targets.tensorrt import TARGET as TENSORRT
from trt_qat.targets.tensorrt import compute

TARGET = replace(
    TENSORRT,
    name="tensorrt-rtx",
    client="TensorRT-RTX",
    summary="TensorRT for RTX GPUs: one scale per weight, the channels' factors behind the convolution.",
    forms={"onnx": Form(".onnx", write_tensorrt_rtx, compute)},
    nms_operator=False,  # 1.7: "has no runners that implement it"
)
