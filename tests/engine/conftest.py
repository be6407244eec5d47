"""The shipped detector as the files that TensorRT compiles."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from trt_qat.checkpoint import Model
    from trt_qat.engine.compiled import CompiledEngine

LOGS = Path(__file__).with_name("logs")


@pytest.fixture(scope="session")
def recorded() -> Callable[[str], str]:
    """A recorded log of tensorrt-rtx 1.7.1, from the last words before the layers on, by name."""

    def read(name: str) -> str:
        return gzip.decompress((LOGS / f"{name}.txt.gz").read_bytes()).decode("utf-8")

    return read


@pytest.fixture(scope="session")
def demo_onnx(demo_detector: Model, demo_int8: Model, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The shipped detector for TensorRT, 320 pixels, by precision, and its INT8 file for TensorRT-RTX."""
    from trt_qat.api import export

    folder = tmp_path_factory.mktemp("demo_onnx")
    models = {"fp32": demo_detector, "fp16": demo_detector, "int8+fp16": demo_int8}
    files = {
        precision: export(model, folder / f"{precision}.onnx", target="tensorrt", precision=precision, check=False).path
        for precision, model in models.items()
    }
    return {**files, "rtx": export(demo_int8, folder / "rtx.onnx", target="tensorrt-rtx", check=False).path}


@pytest.fixture(scope="session")
def demo_engines(demo_onnx: Mapping[str, Path]) -> Mapping[str, CompiledEngine]:
    """The same, compiled for SM 89 at batch 1."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    from trt_qat.engine.compile import compile_onnx

    return {precision: compile_onnx(path, 89) for precision, path in demo_onnx.items()}
