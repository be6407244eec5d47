"""How long work reports. Whoever starts it passes one object; only the command line draws anything."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
