"""Sets that grow together: which tensors must share one scale.

networkx has such a class, but importing it costs as much as the whole lint's own imports (0.12 s of 0.24 s), and the
member that names a set there depends on the order of hashes.
"""

from __future__ import annotations

from collections.abc import Iterable


class DisjointSets:
    """Names in sets; each name is alone until it is united with others."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def find(self, name: str) -> str:
        """The member that stands for the set of ``name``; equal for two names in one set."""
        while self._parent.setdefault(name, name) != name:
            self._parent[name] = name = self._parent[self._parent[name]]  # halves the path for the next question
        return name

    def unite(self, names: Iterable[str]) -> None:
        """Put the sets of all ``names`` into one; the first one's member stands for it."""
        first, *others = map(self.find, names)
        for other in others:
            self._parent[self.find(other)] = self.find(first)

    def __contains__(self, name: str) -> bool:
        """Whether ``name`` was ever asked for or united."""
        return name in self._parent
