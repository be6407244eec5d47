"""What can be chosen by name: a new calibrator, runtime or target is one file and one row here.

The rows are names, so that reading a configuration or ``--help`` loads none of what stands behind them. Another package
adds rows without a change here: its entry points of the group ``trt_qat.KIND`` (see :data:`KINDS`) are rows too, in
every process, those that torchrun or Ray starts included.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import metadata
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
            ConfigError: see :meth:`check`; or the row is another package's, and nothing is there.
            MissingDependency: a package that it needs is not installed.
        """
        where = self.rows[self.check(name)]
        module, _, attribute = where.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as exc:
            if module.partition(".")[0] == __package__:
                raise
            raise ConfigError(
                f"The {self.what} '{name}' is '{where}' of another package, which cannot be loaded: {exc}. "
                "Repair or uninstall that package."
            ) from exc


def suggestion(name: str, known: Iterable[str]) -> str:
    """What to try instead of a name that is not known."""
    known = sorted(known)
    if not known:
        return "None is installed."
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
FEATURES = Table("QAT feature", {})
"""Those of other packages, chosen by ``qat.features``; our own are in ``training/features/choose.py``."""

KINDS = {
    "calibrators": CALIBRATORS,
    "runtimes": RUNTIMES,
    "targets": TARGETS,
    "deployments": DEPLOYMENTS,
    "features": FEATURES,
}
"""The tables by the names that groups of entry points have behind ``trt_qat.``."""


def add_rows_of_others_() -> None:
    """Add the rows of the packages that are installed now to the tables; nothing takes the place of a row of ours."""
    for kind, table in KINDS.items():
        for point in _entry_points(kind):
            table.rows.setdefault(point.name, point.value)


def packages_of_others() -> list[str]:
    """The installed packages that add rows: what they compute decides results, so their versions are recorded."""
    return sorted({point.dist.name for kind in KINDS for point in _entry_points(kind) if point.dist})


def _entry_points(kind: str) -> metadata.EntryPoints:
    return metadata.entry_points(group=f"{__package__}.{kind}")


add_rows_of_others_()
