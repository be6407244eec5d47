"""How a long loop reports: the caller passes a wrapper, and only the command line draws a bar."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
