"""What one input may take and say: seconds, memory, and nothing on stderr."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

BYTES = 2 << 30


class TookTooLong(BaseException):
    """An input takes longer than the limit. No ``except Exception`` on the way may swallow it."""


@contextlib.contextmanager
def limited_time(seconds: float) -> Iterator[None]:
    """Within: code that takes longer is interrupted, unless it is native and never returns to Python.

    Raises:
        TookTooLong: it did.
    """

    def alarm(number: int, frame: FrameType | None) -> NoReturn:
        raise TookTooLong(f"takes more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def limited_memory() -> Iterator[None]:
    """Within: no more than 2 GB above what is mapped now."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextlib.contextmanager
def quiet_stderr() -> Iterator[Callable[[], str]]:
    """Within: what reaches file descriptor 2 is kept and not shown; the function returns what there is so far."""
    saved = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield lambda: os.pread(kept.fileno(), 4000, 0).decode("utf-8", "replace")
        finally:
            os.dup2(saved, 2)
            os.close(saved)
