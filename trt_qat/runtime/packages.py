"""The CPU runtimes' packages, imported when they are first used; trt_qat/__init__.py switches their telemetry off."""

from __future__ import annotations

import importlib
from typing import Any

from trt_qat.errors import MissingDependency
from trt_qat.extras import install_hint


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


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as exc:
        raise MissingDependency(f"Runtime '{name}' cannot be imported ({exc}): {install_hint(name)}.") from exc
