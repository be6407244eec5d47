"""The CPU runtimes' packages, imported with their telemetry off.

Imported as they are, onnxruntime 1.32 writes ``~/.cache/Microsoft/DeveloperTools/.onnxruntime`` (a device id and a
database of events) and openvino 2026.4 with its openvino-telemetry writes ``~/intel`` (a client id and statistics).
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from trt_qat.errors import MissingDependency


def import_onnxruntime() -> Any:
    """The package ``onnxruntime``.

    Raises:
        MissingDependency: it is not installed, or a library that it loads is missing.
    """
    return _import("onnxruntime")


def import_openvino() -> Any:
    """The package ``openvino``.

    Raises:
        MissingDependency: it is not installed, or a library that it loads is missing.
    """
    return _import("openvino")


def switch_telemetry_off() -> None:
    """For this process and its children. It changes nothing where a package was imported before."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # disable_telemetry_events() comes too late: import writes
    if "openvino" not in sys.modules:  # as if openvino-telemetry were not installed: openvino then uses its own stub
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def _import(name: str) -> Any:
    switch_telemetry_off()
    try:
        return importlib.import_module(name)
    except ImportError as exc:
        raise MissingDependency(f"Runtime '{name}' cannot be imported ({exc}): pip install {name}.") from exc
