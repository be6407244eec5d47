from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from trt_qat.runtime.overlap import overlapped


def test_order_is_kept_whatever_finishes_first() -> None:
    def slow_if_even(number: int) -> int:
        time.sleep(0.004 if number % 2 == 0 else 0)
        return number * 10

    assert list(overlapped(slow_if_even, range(30), workers=4, waiting=8, name="x")) == list(range(0, 300, 10))


def test_calls_overlap_with_each_other_and_with_the_reader() -> None:
    together = threading.Barrier(3, timeout=5)  # two calls at once and the reader of an earlier result

    def meet(number: int) -> int:
        if number in (1, 2):
            together.wait()
        return number

    results = overlapped(meet, range(4), workers=2, waiting=4, name="x")
    assert next(results) == 0
    together.wait()
    assert list(results) == [1, 2, 3]


def test_no_more_items_are_taken_than_there_is_room_for() -> None:
    taken = []

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    results = overlapped(lambda number: number, items(), workers=2, waiting=5, name="x")
    assert next(results) == 0
    time.sleep(0.05)
    assert len(taken) == 6  # the one that was read, and five that wait
    results.close()
    assert len(taken) <= 7


def test_with_one_at_a_time_an_item_is_taken_when_the_one_before_is_done() -> None:
    """What a live source gives is then the newest."""
    newest = [0]

    def items() -> Iterator[int]:
        while True:
            yield newest[0]

    started, go_on = threading.Semaphore(0), threading.Semaphore(0)

    def work(number: int) -> int:
        started.release()
        assert go_on.acquire(timeout=5)
        return number

    results = overlapped(work, items(), workers=1, waiting=1, name="x")
    go_on.release(3)
    assert next(results) == 0
    newest[0] = 7
    next(results)
    assert next(results) == 7
    go_on.release(3)
    results.close()


@pytest.mark.parametrize("broken", ["items", "function"])
def test_an_error_comes_where_its_item_would_have_and_ends_every_thread(broken: str) -> None:
    def items() -> Iterator[int]:
        yield from range(3)
        if broken == "items":
            raise ValueError("frame 3 is broken")
        yield from range(3, 1000)

    def work(number: int) -> int:
        if broken == "function" and number == 3:
            raise ValueError("frame 3 is broken")
        return number

    before = threading.active_count()
    found = []
    results = overlapped(work, items(), workers=2, waiting=4, name="x")
    with pytest.raises(ValueError, match="frame 3 is broken"):
        list(map(found.append, results))
    assert found == [0, 1, 2]
    assert threading.active_count() == before


def test_leaving_early_ends_the_stage_and_the_one_before_it() -> None:
    closed = []

    def items() -> Iterator[int]:
        try:
            yield from range(10**9)
        finally:
            closed.append(True)

    before = threading.active_count()
    inner = overlapped(lambda number: number + 1, items(), workers=2, waiting=4, name="inner")
    outer = overlapped(lambda number: number + 1, inner, workers=1, waiting=2, name="outer")
    assert next(outer) == 2
    outer.close()
    assert closed == [True]
    assert threading.active_count() == before
