"""Batches that do not fit into memory are tried again at half the size, and the user reads it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

from trt_qat import distributed
from trt_qat.errors import NotEnoughMemory
from trt_qat.progress import Progress

Result = TypeVar("Result")

# PyTorch on a CPU, CUDA and C++ libraries; none of them has a class of its own for it on every device. "primitive" is
# oneDNN's word for a convolution: it fails so where its scratch memory cannot be had.
_SAYINGS = (
    *("can't allocate memory", "cannot allocate memory", "out of memory", "bad allocation", "bad_alloc"),
    *("unable to allocate", "could not create a primitive", "could not execute a primitive"),
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, whichever library raised it."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(saying in said for saying in _SAYINGS)
    )


def halving(attempt: Callable[[int], Result], batch: int, key: str, progress: Progress) -> Result:
    """Call ``attempt`` with a batch size, half of it after each time that memory ran out.

    Processes of one job do not: they must agree on the batches that they share.

    Args:
        attempt: done again from its start.
        key: of the setting, for the message, e.g. "qat.batch".

    Raises:
        NotEnoughMemory: it ran out with one image.
    """
    while True:
        try:
            return attempt(batch)
        except (MemoryError, RuntimeError) as exc:
            if not is_out_of_memory(exc) or distributed.world_size() > 1:
                raise
            if batch <= 1:
                raise NotEnoughMemory(
                    f"Memory ran out with {key}=1. Lower model.imgsz, or raise the limit of this process's memory."
                ) from exc
        gc.collect()  # what the failed attempt held in circles
        batch //= 2
        progress.note(f"Memory ran out with {key}={2 * batch}: going on with {batch}.")
