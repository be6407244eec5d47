"""Batches are halved where memory runs out, and only there."""

from __future__ import annotations

import pytest
from recording import Recording

from trt_qat.errors import ArtifactError, NotEnoughMemory
from trt_qat.halving import halving
from trt_qat.memory import check_memory, is_out_of_memory

CPU = "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes."
CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB."


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (MemoryError(), True),
        (RuntimeError(CPU), True),
        (RuntimeError(CUDA), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("can't start new thread"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
        (ArtifactError("out of memory"), False),
    ],
)
def test_what_counts_as_memory(error: BaseException, found: bool) -> None:
    assert is_out_of_memory(error) is found
    if found:
        with pytest.raises(NotEnoughMemory, match="Memory ran out"):
            check_memory(error)
    else:
        check_memory(error)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError(CPU), NotEnoughMemory("x")])
def test_the_batch_is_halved_until_it_fits(error: Exception) -> None:
    tried, progress = [], Recording()

    def attempt(batch: int) -> str:
        tried.append(batch)
        if batch > 3:
            raise error
        return "done"

    assert halving(attempt, 13, "qat.batch", progress) == "done"
    assert tried == [13, 6, 3]
    assert progress.notes == [
        "Memory ran out with qat.batch=13: going on with 6.",
        "Memory ran out with qat.batch=6: going on with 3.",
    ]


def test_one_image_that_does_not_fit_is_one_line() -> None:
    def attempt(batch: int) -> None:
        raise RuntimeError(CUDA)

    with pytest.raises(NotEnoughMemory, match=r"^Memory ran out with qat\.batch=1\. Lower model\.imgsz, or"):
        halving(attempt, 8, "qat.batch", Recording())


def test_another_failure_goes_through() -> None:
    def attempt(batch: int) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        halving(attempt, 8, "qat.batch", Recording())
