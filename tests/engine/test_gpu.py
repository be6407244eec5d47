from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any

import pytest

from trt_qat.engine import flavor, gpu
from trt_qat.errors import EngineError, MissingDependency


class FakeDriver:
    """Two devices, as libcuda reports them."""

    names = (b"NVIDIA GeForce RTX 4090", b"Tesla T4")

    def __init__(self, init_status: int = 0, attribute_status: int = 0) -> None:
        self.init_status = init_status
        self.attribute_status = attribute_status

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self.init_status

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = len(self.names)
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:  # noqa: N802
        device._obj.value = index
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:  # noqa: N802
        name.value = self.names[device.value]
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:  # noqa: N802
        value._obj.value = {75: 8, 76: 9}[attribute]
        return self.attribute_status


def test_names_come_from_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeDriver())
    assert gpu.gpu_names() == ("NVIDIA GeForce RTX 4090", "NVIDIA Tesla T4")
    assert gpu.compute_capability() == gpu.compute_capability(1) == 89
    assert gpu.compute_capability(2) is None
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeDriver(attribute_status=1))
    assert gpu.compute_capability() is None


def test_no_driver_and_no_device_are_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert gpu.gpu_names() == ()
    assert gpu.compute_capability() is None
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeDriver(init_status=100))
    assert gpu.gpu_names() == ()
    assert gpu.compute_capability() is None


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a shell script")
def test_clocks_come_from_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = ("clocks.sm", "clocks.max.sm")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu.nvidia_smi(fields) == []
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        '#!/bin/sh\n[ "$*" = "--query-gpu=clocks.sm,clocks.max.sm --format=csv,noheader" ] || exit 6\n'
        'echo "1980 MHz, 2100 MHz"\necho "210 MHz, 2100 MHz"\n'
    )
    tool.chmod(0o755)
    assert gpu.nvidia_smi(fields) == [
        {"clocks.sm": "1980 MHz", "clocks.max.sm": "2100 MHz"},
        {"clocks.sm": "210 MHz", "clocks.max.sm": "2100 MHz"},
    ]
    assert gpu.nvidia_smi(["clocks.sm"]) == []  # what it refuses
    tool.write_text("no program")
    assert gpu.nvidia_smi(fields) == []


def test_missing_tensorrt_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(flavor.MODULES, "tensorrt", "no_such_module")
    with pytest.raises(MissingDependency, match="pip install tensorrt, or use --flavor tensorrt-rtx"):
        flavor.import_tensorrt("tensorrt")
    with pytest.raises(EngineError, match="Unknown TensorRT flavor"):
        flavor.import_tensorrt("other")


def test_logger_collects_errors_only() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    logger, errors = flavor.tensorrt_logger(trt)
    logger.log(trt.ILogger.ERROR, "two\n lines")
    logger.log(trt.ILogger.WARNING, "not this")
    assert errors == ["two lines"]
