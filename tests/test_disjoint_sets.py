"""Sets that grow together."""

from __future__ import annotations

import itertools

from trt_qat.disjoint_sets import DisjointSets


def test_united_names_have_one_representative() -> None:
    sets = DisjointSets()
    sets.unite(["a", "b"])
    sets.unite(["c", "d"])
    assert sets.find("a") == sets.find("b") != sets.find("c") == sets.find("d")
    sets.unite(["b", "d", "e"])
    assert len({sets.find(name) for name in "abcde"}) == 1
    assert sets.find("alone") == "alone"


def test_order_does_not_matter() -> None:
    pairs = [("a", "b"), ("b", "c"), ("d", "e"), ("c", "f")]
    for order in itertools.permutations(pairs):
        sets = DisjointSets()
        for pair in order:
            sets.unite(pair)
        assert len({sets.find(name) for name in "abcf"}) == 1
        assert sets.find("d") == sets.find("e") != sets.find("a")


def test_only_known_names_are_in_it() -> None:
    sets = DisjointSets()
    sets.unite(["a", "b"])
    assert "a" in sets
    assert "c" not in sets


def test_a_long_chain_is_found_quickly() -> None:
    """Each question shortens the way; a recursion or a walk along the whole chain would not end here."""
    sets = DisjointSets()
    for number in range(100_000):
        sets.unite([str(number + 1), str(number)])
    assert len({sets.find(str(number)) for number in range(100_001)}) == 1
