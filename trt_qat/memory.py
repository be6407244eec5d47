"""Memory that ran out, told from every other failure."""

from __future__ import annotations

from trt_qat.errors import NotEnoughMemory

MEMORY_RAN_OUT = "Memory ran out. Lower the batch or model.imgsz, or raise the limit of this process's memory."

# PyTorch on a CPU, CUDA and C++ libraries; none of them has a class of its own for it on every device. "primitive" is
# oneDNN's word for a convolution: it fails so where its scratch memory cannot be had.
_SAYINGS = (
    *("can't allocate memory", "cannot allocate memory", "out of memory", "bad allocation", "bad_alloc"),
    *("unable to allocate", "could not create a primitive", "could not execute a primitive", "failed to map segment"),
    "can't start new thread",  # its stack is memory too
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, whichever library raised it."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(saying in said for saying in _SAYINGS)
    )


def check_memory(error: BaseException) -> None:
    """Where a third library's failure becomes an error of ours: memory that ran out is no fault of the file.

    Raises:
        NotEnoughMemory: it did.
    """
    if is_out_of_memory(error):
        raise NotEnoughMemory(MEMORY_RAN_OUT) from error
