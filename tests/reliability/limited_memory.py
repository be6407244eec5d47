"""``python limited_memory.py MB trt-qat's arguments``: the command with so many MB of memory beyond what loading takes.

An absolute limit would be another one on every machine and with every version of the libraries.
"""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

from trt_qat import entry


def _command() -> None:
    import modelopt.torch.quantization  # noqa: F401
    import onnxruntime  # noqa: F401
    import openvino  # noqa: F401
    import torch
    import torchvision  # noqa: F401  # within QAT it would be loaded later

    import trt_qat.run  # noqa: F401
    from trt_qat.cli import call, cli

    torch.set_num_threads(1)  # each thread would reserve address space of its own
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + int(sys.argv[1]) * 1_000_000
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    sys.argv = ["trt-qat", *sys.argv[2:]]
    call(cli, "trt-qat")


if __name__ == "__main__":
    entry.run(_command)
