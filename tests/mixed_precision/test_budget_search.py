"""The search for the fewest float groups, on made-up measurements."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trt_qat.mixed_precision.budget_search import Measured, Search, Step, best_of, fewest_float_groups

FLOAT = Measured(0.5, 10.0, 5.0)


def searched(maps: list[float], max_drop: float) -> tuple[Search, list[int]]:
    """The search where leaving k groups float gives ``maps[k]``, and the numbers of groups it asked for."""
    ranked = [f"g{i}" for i in range(len(maps) - 1)]
    asked: list[int] = []

    def measure(groups: tuple[str, ...]) -> Measured:
        assert list(groups) == ranked[: len(groups)]
        asked.append(len(groups))
        return Measured(maps[len(groups)], 5.0, 5.0)

    return fewest_float_groups(ranked, FLOAT, Measured(maps[0], 5.0, 5.0), max_drop, measure, "fine-tuned"), asked


@given(st.integers(0, 150), st.data())
def test_the_smallest_k_in_few_measurements(count: int, data: st.DataObject) -> None:
    needed = data.draw(st.integers(0, count + 1))
    search, asked = searched([0.4 if k < needed else 0.499 for k in range(count + 1)], 0.2)
    assert search.met == (needed <= count)
    assert search.chosen.k == (needed if search.met else 0)
    assert len(asked) == len(set(asked))
    assert [step.k for step in search.steps] == [0, *asked]
    assert len(asked) <= 2 * math.log2(count + 1) + 2
    if needed <= 2:
        assert asked == list(range(1, min(needed, count) + 1))


@given(st.lists(st.floats(0, 0.6), min_size=1, max_size=60), st.floats(0, 30))
def test_what_is_chosen_was_measured_even_if_accuracy_is_not_monotonic(maps: list[float], max_drop: float) -> None:
    search, _ = searched(maps, max_drop)
    assert search.chosen in search.steps
    assert search.chosen.measured.map50_95 == maps[search.chosen.k]
    if search.met:
        assert 100 * (0.5 - maps[search.chosen.k]) <= max_drop + 1e-6
        assert all(100 * (0.5 - step.measured.map50_95) > max_drop for step in search.steps if step.k < search.chosen.k)
    else:
        assert all(100 * (0.5 - step.measured.map50_95) > max_drop for step in search.steps)
        assert search.chosen.measured.map50_95 == max(step.measured.map50_95 for step in search.steps)


@pytest.mark.parametrize(("max_drop", "k"), [(0.3, 1), (0.2, 2), (0.19, 3), (0.0, 3)])
def test_a_drop_that_equals_the_budget_meets_it(max_drop: float, k: int) -> None:
    assert searched([0.49, 0.497, 0.498, 0.5], max_drop)[0].chosen.k == k


def test_the_order_that_needs_fewer_groups_is_kept() -> None:
    def step(k: int, accuracy: float, milliseconds: float, order: str) -> Step:
        return Step(k, tuple("abcd"[:k]), Measured(accuracy, milliseconds, 1.0), "fine-tuned", order)

    start = step(0, 0.4, 1, "")
    long, short, slow = step(3, 0.5, 2, "a"), step(2, 0.5, 5, "b"), step(2, 0.5, 6, "c")
    searches = [Search((start, found), found, met=True) for found in (long, slow, short)]
    assert best_of(searches) == Search((start, long, slow, short), short, met=True)
    missed = [Search((start, found), found, met=False) for found in (step(3, 0.41, 2, "a"), step(1, 0.43, 2, "b"))]
    assert best_of(missed).chosen == missed[1].chosen
    assert not best_of(missed).met
    assert best_of([missed[1], searches[0]]).chosen == long
