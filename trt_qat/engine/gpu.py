"""Which NVIDIA GPUs the driver offers, asked of the driver library alone.

TensorRT's own ``Runtime`` crashes the process on a machine without a GPU, so the question must be
answered before TensorRT is touched, and without torch or a CUDA toolkit.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

_CUDA_SUCCESS = 0
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CUdevice_attribute, cuda.h
_NAME_BYTES = 256
_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


def gpu_names() -> tuple[str, ...]:
    """Names of the usable GPUs in CUDA's order; empty without a GPU or a driver."""
    driver, count = _opened()
    return tuple(_device_name(driver, index) for index in range(count))


def compute_capability() -> int | None:
    """That of the first GPU, on which TensorRT builds and runs: 89 for 8.9. None without a GPU or an answer."""
    driver, count = _opened()
    device, major, minor = ctypes.c_int(0), ctypes.c_int(0), ctypes.c_int(0)
    if not count or driver.cuDeviceGet(ctypes.byref(device), 0) != _CUDA_SUCCESS:
        return None
    for number, attribute in ((major, _CAPABILITY_MAJOR), (minor, _CAPABILITY_MINOR)):
        if driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device) != _CUDA_SUCCESS:
            return None
    return 10 * major.value + minor.value


def _opened() -> tuple[Any, int]:
    """The driver library and how many GPUs it offers; 0 where there is no driver."""
    try:
        driver = ctypes.CDLL(_LIBRARY)
    except OSError:
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
