"""What can be chosen by name: a new calibrator, runtime or target is one file and one row here.

The rows are names, so that reading a configuration or ``--help`` loads none of what stands behind them.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from trt_qat.errors import ConfigError


@dataclass(frozen=True)
class Table:
    """One kind of thing that a name chooses.

    Args:
        what: the kind in the singular, for messages, e.g. "calibrator".
        rows: name to where it is, as ``package.module:attribute``.
    """

    what: str
    rows: dict[str, str] = field(hash=False)

    def check(self, name: str) -> str:
        """The name, if there is a row of it.

        Raises:
            ConfigError: there is none; the nearest known name is suggested.
        """
        if name not in self.rows:
            raise ConfigError(f"Unknown {self.what} '{name}'. {suggestion(name, self.rows)}")
        return name

    def load(self, name: str) -> Any:
        """What stands behind a name; its module is imported now.

        Raises:
            ConfigError: see :meth:`check`.
            MissingDependency: a package that it needs is not installed.
        """
        module, _, attribute = self.rows[self.check(name)].partition(":")
        return getattr(importlib.import_module(module), attribute)


def suggestion(name: str, known: Iterable[str]) -> str:
    """What to try instead of a name that is not known."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"Did you mean '{close[0]}'?" if close else f"Known: {', '.join(known)}."


CALIBRATORS = Table(
    "calibrator",
    {
        "max": "trt_qat.quantization.calibrators.max:Max",
        "percentile": "trt_qat.quantization.calibrators.percentile:Percentile",
        "mse": "trt_qat.quantization.calibrators.mse:Mse",
        "entropy": "trt_qat.quantization.calibrators.entropy:Entropy",
    },
)
RUNTIMES = Table(
    "runtime",
    {
        "openvino": "trt_qat.runtime.openvino:OpenVinoRunner",
        "onnxruntime": "trt_qat.runtime.onnxruntime:OnnxRuntimeRunner",
        "tensorrt": "trt_qat.runtime.tensorrt:TensorRtRunner",
    },
)
TARGETS = Table(
    "target",
    {
        "tensorrt": "trt_qat.targets.tensorrt:TARGET",
        "tensorrt-rtx": "trt_qat.targets.tensorrt_rtx:TARGET",
        "openvino": "trt_qat.targets.openvino:TARGET",
        "onnxruntime": "trt_qat.targets.onnxruntime:TARGET",
        "ultralytics": "trt_qat.targets.ultralytics:TARGET",
    },
)
DEPLOYMENTS = Table(
    "deployment target",
    {
        "deepstream": "trt_qat.deploy.deepstream:DEPLOYMENT",
        "triton": "trt_qat.deploy.triton:DEPLOYMENT",
        "isaac-ros": "trt_qat.deploy.isaac_ros:DEPLOYMENT",
        "jetson": "trt_qat.deploy.jetson:DEPLOYMENT",
    },
)
