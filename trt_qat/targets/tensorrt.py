"""TensorRT: Q/DQ that its parser takes, everything else FP16 in the file itself.

Networks are strongly typed since TensorRT 11, so precision is what the ONNX file says: a float part left in FP32 makes
an INT8 engine that is slower than FP16.
"""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path

import onnx

from trt_qat.config import EngineSection
from trt_qat.targets.base import Arrays, Form, Target
from trt_qat.targets.onnx_file import write_signed


def compute(file: Path, batches: Arrays) -> Arrays:
    """TensorRT-RTX, where it is installed, must build the file, which needs no GPU as running it would.

    It is not asked where it differs from TensorRT: it has no NonMaxSuppression.

    The numbers are those of ONNX Runtime with every optimization off, which computes the graph as it is written.
    """
    from trt_qat.engine.build import build_engine
    from trt_qat.engine.flavor import MODULES
    from trt_qat.runtime.onnxruntime import OnnxRuntimeRunner

    differs = any(node.op_type == "NonMaxSuppression" for node in onnx.load(file).graph.node)
    if importlib.util.find_spec(MODULES["tensorrt-rtx"]) is not None and not differs:
        with tempfile.TemporaryDirectory() as folder:
            build_engine(file, Path(folder) / "check.plan", _section(batches))
    with OnnxRuntimeRunner(file, optimize=False) as runner:
        return [runner.infer(batch)[0] for batch in batches]


def _section(batches: Arrays) -> EngineSection:
    """With a profile for every size that is to be computed, where there is more than one."""
    heights, widths = [batch.shape[2] for batch in batches], [batch.shape[3] for batch in batches]
    section = EngineSection(flavor="tensorrt-rtx", timing_cache="")
    if len({batch.shape[2:] for batch in batches}) == 1:
        return section
    return section.replace(min_size=(min(heights), min(widths)), max_size=(max(heights), max(widths)))


TARGET = Target(
    name="tensorrt",
    client="TensorRT",
    summary="TensorRT 10 and 11: signed symmetric int8, the rest in FP16.",
    precision="int8+fp16",
    forms={"onnx": Form(".onnx", write_signed, compute)},
)
