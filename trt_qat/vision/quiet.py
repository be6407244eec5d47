"""Decoders talk to the terminal; what they say stands in our one-line error, or is nothing the user can act on.

Both switches count who is inside: warning filters and file descriptor 2 belong to the whole process, and images are
decoded in threads.
"""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager


class _Shared:
    """A context that the first one in opens and the last one out closes.

    Args:
        make: the context.
    """

    def __init__(self, make: Callable[[], AbstractContextManager[None]]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._inside = 0
        self._opened = contextlib.ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._opened.enter_context(self._make())
            self._inside += 1

    def __exit__(self, *_exc_info: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._opened.close()


@contextlib.contextmanager
def _warnings_ignored() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _stderr_to_null() -> Iterator[None]:
    try:
        kept = os.dup(2)
    except OSError:  # closed: nothing can be written there
        yield
        return
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        os.close(null)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


NO_WARNINGS = _Shared(_warnings_ignored)
"""Python's warnings go nowhere and do not become errors."""

NO_STDERR = _Shared(_stderr_to_null)
"""What C libraries write to file descriptor 2 goes nowhere; for short calls, since other threads lose theirs too."""
