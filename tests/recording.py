"""A progress that remembers what it was told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

Item = TypeVar("Item")


class Recording:
    """What was looped over, with how many items; the steps of other loops; the lines to read."""

    def __init__(self) -> None:
        self.seen: dict[str, int] = {}
        self.steps: list[tuple[str, int, int]] = []
        self.notes: list[str] = []

    def over(self, items: Sequence[Item], description: str) -> Iterable[Item]:
        self.seen[description] = len(items)
        return items

    def step(self, description: str, done: int, total: int, detail: str = "") -> None:
        self.steps.append((description, done, total))

    def note(self, line: str) -> None:
        self.notes.append(line)
