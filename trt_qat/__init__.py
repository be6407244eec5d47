"""From a trained YOLOv8 checkpoint to an INT8 TensorRT engine, with the accuracy measured on the exported file.

Importing this package loads neither torch nor TensorRT; the stages do when they are called.
"""

from __future__ import annotations

import os

from trt_qat.config import Config
from trt_qat.errors import TrtQatError

# Ultralytics, when a stage imports it, must neither install packages by itself nor look for a network.
os.environ.setdefault("YOLO_AUTOINSTALL", "false")
os.environ.setdefault("YOLO_OFFLINE", "true")

__version__ = "0.1.0"
__all__ = ["Config", "TrtQatError", "__version__"]
