"""TensorRT for RTX: today the file of TensorRT, under a name of its own."""

from __future__ import annotations

from dataclasses import replace

from trt_qat.targets.tensorrt import TARGET as TENSORRT

TARGET = replace(
    TENSORRT,
    name="tensorrt-rtx",
    client="TensorRT-RTX",
    summary="TensorRT for RTX GPUs: today the same file as tensorrt.",
)
