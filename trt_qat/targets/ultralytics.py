"""Ultralytics' own loader: ``YOLO("x.onnx")``, with ONNX Runtime behind it, or ``YOLO("x.engine")``, with TensorRT."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from trt_qat.config import EngineSection, ExportSection, Flavor
from trt_qat.errors import ConfigError, MissingDependency
from trt_qat.targets.base import Form, Target
from trt_qat.targets.onnx_file import compute_ultralytics, write_signed, write_unsigned

if TYPE_CHECKING:
    from trt_qat.checkpoint import Model


def write_engine(model: Model, out: Path, section: ExportSection, flavor: Flavor = "tensorrt") -> None:
    """An engine behind Ultralytics' header, built on this machine; Ultralytics runs it with TensorRT proper.

    Settings of the build (workspace, timing cache) are those of ``trt-qat engine``, which writes ``*.engine`` too.
    """
    from trt_qat.engine.build import build_engine
    from trt_qat.engine.flavor import MODULES

    if section.dynamic_size:
        raise ConfigError(
            "An engine needs the smallest and the largest size of its images. Export export.dynamic_size to *.onnx, "
            "and build that with `trt-qat engine --set engine.min_size=[H,W] --set engine.max_size=[H,W]`."
        )
    if section.dynamic_batch:
        raise ConfigError(
            "Ultralytics takes an engine with a dynamic batch for one of any height and width, and hands it images "
            "that are not letterboxed. Use export.batch=N instead of export.dynamic_batch."
        )
    if importlib.util.find_spec(MODULES[flavor]) is None:
        raise MissingDependency(
            f"Ultralytics runs *.engine files with the package '{flavor}', which is not installed here. "
            f"pip install {flavor}, on the machine with the GPU that will run the engine."
        )
    with tempfile.TemporaryDirectory() as folder:
        onnx = Path(folder) / f"{out.stem}.onnx"
        write_signed(model, onnx, section)
        build_engine(onnx, out, EngineSection(flavor=flavor, timing_cache=""))


TARGET = Target(
    name="ultralytics",
    client="Ultralytics",
    summary='YOLO("x.onnx"), on ONNX Runtime, or YOLO("x.engine"), on TensorRT.',
    precision="int8+fp32",
    forms={
        "onnx": Form(".onnx", write_unsigned, compute_ultralytics),
        "engine": Form(".engine", write_engine, compute_ultralytics, precision="int8+fp16"),
    },
)
