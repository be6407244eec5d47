"""The two TensorRT packages: which module each flavor is, and how to get it."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from trt_qat.errors import EngineError, MissingDependency
from trt_qat.extras import install_hint

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
INSTALL_HINTS = {
    "tensorrt": "pip install tensorrt, or use --flavor tensorrt-rtx",
    "tensorrt-rtx": f"{install_hint('tensorrt_rtx')} (Linux, x86-64)",
}


def import_tensorrt(flavor: str) -> ModuleType:
    """The ``tensorrt`` or ``tensorrt_rtx`` module.

    Raises:
        EngineError: unknown flavor.
        MissingDependency: the package, or a library that it loads, is not there.
    """
    if flavor not in MODULES:
        raise EngineError(f"Unknown TensorRT flavor '{flavor}'. Known: {', '.join(MODULES)}.")
    try:
        module = importlib.import_module(MODULES[flavor])
    except (ImportError, OSError, RuntimeError) as exc:  # its __init__ loads shared libraries
        reason = " ".join(str(exc).split())
        raise MissingDependency(
            f"Flavor '{flavor}' needs the package '{flavor}' ({reason}): {INSTALL_HINTS[flavor]}."
        ) from exc
    if not hasattr(module, "Logger"):  # a folder called 'tensorrt' on the path imports as an empty namespace
        raise MissingDependency(f"'{MODULES[flavor]}' is not NVIDIA's package: {INSTALL_HINTS[flavor]}.")
    return module


def tensorrt_logger(trt: Any) -> tuple[Any, list[str]]:
    """A TensorRT logger that prints nothing, and the list in which it collects error messages."""
    errors: list[str] = []

    class CollectingLogger(trt.ILogger):  # type: ignore[misc]  # the base class is known at run time only
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                errors.append(" ".join(msg.split()))

    return CollectingLogger(), errors
