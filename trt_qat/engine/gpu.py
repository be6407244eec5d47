"""Which NVIDIA GPUs the driver offers, asked of the driver library alone.

TensorRT's own ``Runtime`` crashes the process on a machine without a GPU, so the question must be
answered before TensorRT is touched, and without torch or a CUDA toolkit.
"""

from __future__ import annotations

import ctypes
import sys

_CUDA_SUCCESS = 0
_NAME_BYTES = 256
_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


def gpu_names() -> tuple[str, ...]:
    """Names of the usable GPUs in CUDA's order; empty without a GPU or a driver."""
    try:
        driver = ctypes.CDLL(_LIBRARY)
    except OSError:
        return ()
    count = ctypes.c_int(0)
    if driver.cuInit(0) != _CUDA_SUCCESS or driver.cuDeviceGetCount(ctypes.byref(count)) != _CUDA_SUCCESS:
        return ()
    return tuple(_device_name(driver, index) for index in range(count.value))


def _device_name(driver: ctypes.CDLL, index: int) -> str:
    device = ctypes.c_int(0)
    name = ctypes.create_string_buffer(_NAME_BYTES)
    if driver.cuDeviceGet(ctypes.byref(device), index) != _CUDA_SUCCESS:
        return f"GPU {index}"
    if driver.cuDeviceGetName(name, _NAME_BYTES, device) != _CUDA_SUCCESS:
        return f"GPU {index}"
    text = name.value.decode("utf-8", errors="replace")
    return text if text.startswith("NVIDIA") else f"NVIDIA {text}"
