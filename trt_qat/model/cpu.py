"""How torch uses the CPU."""

from __future__ import annotations

import ctypes
import os
import platform

import torch

from trt_qat import distributed

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def tune_cpu() -> None:
    """Use all cores (Ultralytics leaves one idle) and keep freed memory in the process.

    Processes of one job share the cores. glibc hands every large tensor back to the kernel when it is freed and gets
    the next one page by page: 5 % of a QAT step at 640 px.
    """
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // distributed.local_world_size()))
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)  # never
