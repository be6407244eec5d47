"""Which NVIDIA GPUs the driver offers, asked of the driver library alone.

TensorRT's own ``Runtime`` crashes the process on a machine without a GPU, so the question must be
answered before TensorRT is touched, and without torch or a CUDA toolkit.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

_CUDA_SUCCESS = 0
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CUdevice_attribute, cuda.h
_NAME_BYTES = 256
_SMI_SECONDS = 60
_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


def gpu_names() -> tuple[str, ...]:
    """Names of the usable GPUs in CUDA's order; empty without a GPU or a driver."""
    driver, count = _opened()
    return tuple(_device_name(driver, index) for index in range(count))


def compute_capability(index: int = 0) -> int | None:
    """That of a GPU, the first by default, on which TensorRT builds: 89 for 8.9. None without the GPU or an answer."""
    driver, count = _opened()
    device, major, minor = ctypes.c_int(0), ctypes.c_int(0), ctypes.c_int(0)
    if index >= count or driver.cuDeviceGet(ctypes.byref(device), index) != _CUDA_SUCCESS:
        return None
    for number, attribute in ((major, _CAPABILITY_MAJOR), (minor, _CAPABILITY_MINOR)):
        if driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device) != _CUDA_SUCCESS:
            return None
    return 10 * major.value + minor.value


def driver_library() -> Any | None:
    """NVIDIA's driver library, in an object of the caller's own; None where there is no driver."""
    try:
        return ctypes.CDLL(_LIBRARY)
    except OSError:
        return None


def nvidia_smi(fields: Sequence[str]) -> list[dict[str, str]]:
    """What the tool of that name says of each GPU, e.g. of "clocks.sm"; empty without the tool or an answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SMI_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [line.split(", ") for line in done.stdout.splitlines()] if done.returncode == 0 else []
    return [dict(zip(fields, row, strict=False)) for row in rows]


def _opened() -> tuple[Any, int]:
    """The driver library and how many GPUs it offers; 0 where there is no driver."""
    driver = driver_library()
    if driver is None:
        return None, 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != _CUDA_SUCCESS or driver.cuDeviceGetCount(ctypes.byref(count)) != _CUDA_SUCCESS:
        return driver, 0
    return driver, count.value


def _device_name(driver: Any, index: int) -> str:
    device = ctypes.c_int(0)
    name = ctypes.create_string_buffer(_NAME_BYTES)
    if driver.cuDeviceGet(ctypes.byref(device), index) != _CUDA_SUCCESS:
        return f"GPU {index}"
    if driver.cuDeviceGetName(name, _NAME_BYTES, device) != _CUDA_SUCCESS:
        return f"GPU {index}"
    text = name.value.decode("utf-8", errors="replace")
    return text if text.startswith("NVIDIA") else f"NVIDIA {text}"
