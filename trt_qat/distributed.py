"""Several processes of one job, as torchrun starts them; without torchrun there is one process and nothing happens.

torch is loaded only where a process group is made or there may be one, so that the command line starts quickly.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

Value = TypeVar("Value")

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_PATIENCE = timedelta(hours=2)  # others wait while the main process validates or writes


@contextmanager
def process_group() -> Iterator[None]:
    """Within: the processes that torchrun started can talk (gloo for CPU tensors, nccl for GPU tensors)."""
    if _grouped() or not all(name in os.environ for name in _TORCHRUN):
        yield
        return
    import torch
    import torch.distributed as dist

    gpu = torch.cuda.is_available()
    if gpu and local_rank() < torch.cuda.device_count():  # more processes than GPUs may still share the CPU
        torch.cuda.set_device(local_rank())
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=_PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """This process's number among all, from 0."""
    if not _grouped():
        return 0
    import torch.distributed as dist

    return dist.get_rank()


def local_rank() -> int:
    """This process's number among those of its machine, from 0: the index of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """How many processes share the work."""
    if not _grouped():
        return 1
    import torch.distributed as dist

    return dist.get_world_size()


def local_world_size() -> int:
    """How many of the processes run on this machine and share its cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if _grouped() else 1


def is_main() -> bool:
    """Whether this is the one process that prints and writes files."""
    return rank() == 0


def barrier() -> None:
    """Wait until every process has come here."""
    if _grouped():
        import torch

        all_sum(torch.zeros(1))  # on the CPU, so that no GPU has to be named


def broadcast(value: Value) -> Value:
    """The main process's value, in every process (pickled; what the others pass is dropped)."""
    if not _grouped():
        return value
    import torch.distributed as dist

    held = [value]
    dist.broadcast_object_list(held, src=0)
    return held[0]


def all_sum(tensor: Tensor) -> Tensor:
    """The sum of every process's tensor, in every process."""
    if not _grouped():
        return tensor
    import torch.distributed as dist

    total = tensor.clone()
    dist.all_reduce(total, dist.ReduceOp.SUM)
    return total


def all_max(tensor: Tensor) -> Tensor:
    """The elementwise maximum of every process's tensor, in every process."""
    if not _grouped():
        return tensor
    import torch.distributed as dist

    maximum = tensor.clone()
    dist.all_reduce(maximum, dist.ReduceOp.MAX)
    return maximum


def _grouped() -> bool:
    if "torch" not in sys.modules:
        return False  # nobody can have made a group
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized()
