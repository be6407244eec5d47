"""One stage of a pipeline in threads of its own: order is kept, memory stays flat, the first error ends it.

Decoding, the network, drawing and encoding release Python's global lock while they work, so that threads are enough
to keep every core busy. A pipeline is one :func:`overlapped` around another.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")

_PATIENCE_S = 5.0  # for an iterator that is waited for when the stage is left early


def overlapped(
    function: Callable[[Item], Made], items: Iterable[Item], workers: int, waiting: int, name: str
) -> Generator[Made, None, None]:
    """``map(function, items)`` in threads, in the order of the items.

    One thread takes the items, as soon as there is room for one and not before, so that what it takes is the newest of
    a live source; ``workers`` threads call the function. Leaving the iterator early ends them all: an iterator that
    blocks has to be ended first.

    Args:
        workers: calls at once; 1 for a function that depends on the order.
        waiting: items at most that are taken and not yet handed on, at least ``workers``.
        name: of the stage, for its threads.

    Raises:
        BaseException: what the iterator or the function raised, where its item would have come.
    """
    room = threading.Semaphore(max(waiting, workers))
    made: queue.SimpleQueue[Future[Made] | None] = queue.SimpleQueue()  # None: there are no more items
    left = threading.Event()
    pool = ThreadPoolExecutor(workers, thread_name_prefix=name)

    def take() -> None:
        iterator = iter(items)
        try:
            while room.acquire() and not left.is_set():
                item = next(iterator)
                if left.is_set():
                    return
                made.put(pool.submit(function, item))
        except StopIteration:
            made.put(None)
        except BaseException as exc:  # noqa: BLE001  # it is raised again where the results are read
            failed: Future[Made] = Future()
            failed.set_exception(exc)
            made.put(failed)

    taker = threading.Thread(target=take, name=f"{name}-input", daemon=True)
    taker.start()
    try:
        while (future := made.get()) is not None:
            result = future.result()
            room.release()
            yield result
    finally:
        left.set()
        room.release()
        taker.join(_PATIENCE_S)
        pool.shutdown(cancel_futures=True)
        if isinstance(items, Generator) and not taker.is_alive():
            items.close()  # the stage before this one
        with suppress(queue.Empty):  # results that nobody reads any more are let go of
            while True:
                made.get_nowait()
