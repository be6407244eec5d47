"""Batches that do not fit into memory are tried again at half the size, and the user reads it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

from trt_qat import distributed
from trt_qat.errors import NotEnoughMemory
from trt_qat.memory import is_out_of_memory
from trt_qat.progress import Progress

Result = TypeVar("Result")


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
        except (MemoryError, RuntimeError, NotEnoughMemory) as exc:
            if not (isinstance(exc, NotEnoughMemory) or is_out_of_memory(exc)) or distributed.world_size() > 1:
                raise
            if batch <= 1:
                raise NotEnoughMemory(
                    f"Memory ran out with {key}=1. Lower model.imgsz, or raise the limit of this process's memory."
                ) from exc
        gc.collect()  # what the failed attempt held in circles
        progress.note(f"Memory ran out with {key}={batch}: going on with {batch // 2}.")
        batch //= 2
