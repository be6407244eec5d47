"""How a long loop reports: the caller passes a wrapper, and only the command line draws a bar."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Progress(Protocol):
    """A callable that iterates over ``items`` unchanged and may show ``description`` while it does."""

    def __call__(self, items: Sequence[Item], description: str, /) -> Iterable[Item]:
        """The same items, in the same order."""


def silent(items: Sequence[Item], description: str, /) -> Iterable[Item]:
    """The wrapper that shows nothing."""
    del description
    return items


# How a stage says one line of text to the user.
Note = Callable[[str], None]


def no_note(line: str) -> None:
    """The note that says nothing."""
    del line


# How a loop that is not ours reports: description, steps done, steps in total.
Report = Callable[[str, int, int], None]


def no_report(description: str, done: int, total: int) -> None:
    """The reporter that shows nothing."""
    del description, done, total
