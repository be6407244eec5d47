"""How long work reports. Whoever starts it passes one object; only the command line draws anything."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Progress(Protocol):
    """Told what is being done. Nothing that it does changes a result."""

    def over(self, items: Sequence[Item], description: str) -> Iterable[Item]:
        """Iterate over ``items`` unchanged, in the same order."""

    def step(self, description: str, done: int, total: int, detail: str = "") -> None:
        """A loop that is not ours (training, a video) has come to ``done`` of ``total``; 0 is an unknown total.

        Args:
            detail: what else is worth showing of it now, e.g. "61.2 frames/s".
        """

    def note(self, line: str) -> None:
        """One line that the user should read."""


class Silent:
    """The progress that shows nothing."""

    def over(self, items: Sequence[Item], description: str) -> Iterable[Item]:
        """See :class:`Progress`."""
        del description
        return items

    def step(self, description: str, done: int, total: int, detail: str = "") -> None:
        """See :class:`Progress`."""

    def note(self, line: str) -> None:
        """See :class:`Progress`."""


SILENT = Silent()


class Noting:
    """A progress that passes everything on and keeps the lines that the user was told.

    Args:
        progress: who shows them.

    Attributes:
        lines: the notes, and within :meth:`with_warnings` the package's warnings, in order.
    """

    def __init__(self, progress: Progress) -> None:
        self.shown = progress
        self.lines: list[str] = []

    def over(self, items: Sequence[Item], description: str) -> Iterable[Item]:
        """See :class:`Progress`."""
        return self.shown.over(items, description)

    def step(self, description: str, done: int, total: int, detail: str = "") -> None:
        """See :class:`Progress`."""
        self.shown.step(description, done, total, detail)

    def note(self, line: str) -> None:
        """See :class:`Progress`."""
        self.lines.append(line)
        self.shown.note(line)

    @contextmanager
    def with_warnings(self) -> Iterator[None]:
        """Within: what the package logs as a warning is kept, too."""
        logger, handler = logging.getLogger("trt_qat"), _Keeping(self.lines)
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)


class _Keeping(logging.Handler):
    """Appends each message to a list."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(record.getMessage())
