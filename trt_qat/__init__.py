"""From a trained YOLOv8 checkpoint to an INT8 TensorRT engine, with the accuracy measured on the exported file.

>>> import trt_qat
>>> model = trt_qat.load("best.pt")
>>> int8 = trt_qat.quantize(model, "data.yaml")
>>> tuned = trt_qat.finetune(int8, "data.yaml", out="runs/x", epochs=2)
>>> trt_qat.export(tuned, "best_int8.onnx", target="tensorrt")
>>> trt_qat.build("best_int8.onnx", "best_int8.plan")
>>> rows = trt_qat.evaluate(["best_int8.onnx"], "data.yaml")
>>> report = trt_qat.lint("best_int8.onnx")
>>> with trt_qat.Detector("best_int8.onnx") as detect:
...     detections = detect(frame_bgr)

Importing this package loads neither torch nor TensorRT; the names do when they are first used, and ``Detector`` and
``lint`` load no torch at all.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from trt_qat.config import Config
from trt_qat.errors import TrtQatError
from trt_qat.extras import extras_named

if TYPE_CHECKING:
    from trt_qat.api import (
        advise,
        build,
        evaluate,
        export,
        finetune,
        keep_budget,
        label,
        parity,
        quantize,
        replace_activation,
        sensitivity,
        train,
    )
    from trt_qat.checkpoint import Model, load, save
    from trt_qat.linter.report import lint
    from trt_qat.runtime.detector import Detector
    from trt_qat.vision.detections import Detections

# Ultralytics, when a stage imports it, must neither install packages by itself nor look for a network (which is also
# its telemetry), must not evaluate what an architecture says, and not tell the terminal what it does, which is a
# traceback where nothing can be written there. It reads these once, at its import.
os.environ.setdefault("YOLO_AUTOINSTALL", "false")
os.environ.setdefault("YOLO_OFFLINE", "true")
os.environ.setdefault("ULTRALYTICS_SAFE_LOAD", "true")
os.environ.setdefault("YOLO_VERBOSE", "false")

# Nor may the runtimes report: `import onnxruntime` (which other packages do as well) writes a device id and a database
# of events into the home folder; a Ray that is started here reports; `import openvino` starts a process that reports,
# unless it finds no package to do so.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: importing it is an ImportError

__version__ = "0.2.0"
__all__ = [
    "Config",
    "Detections",
    "Detector",
    "Model",
    "TrtQatError",
    "__version__",
    "advise",
    "build",
    "evaluate",
    "export",
    "finetune",
    "keep_budget",
    "label",
    "lint",
    "load",
    "parity",
    "quantize",
    "replace_activation",
    "save",
    "sensitivity",
    "train",
]

_HOMES = {
    **dict.fromkeys(("advise", "build", "evaluate", "export", "finetune", "keep_budget"), "trt_qat.api"),
    **dict.fromkeys(("label", "parity", "quantize", "replace_activation", "sensitivity", "train"), "trt_qat.api"),
    **dict.fromkeys(("Model", "load", "save"), "trt_qat.checkpoint"),
    "lint": "trt_qat.linter.report",
    "Detector": "trt_qat.runtime.detector",
    "Detections": "trt_qat.vision.detections",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'trt_qat' has no attribute '{name}'")
    with extras_named():
        return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
