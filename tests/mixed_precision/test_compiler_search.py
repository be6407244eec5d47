"""The search over mixes, against every mix of a small network."""

from __future__ import annotations

import itertools
import random

import pytest

from trt_qat.mixed_precision.compiler_search import cheapest_mix

GROUPS = tuple("abcdefgh")


def chain_cost(saved: dict[str, float], border: float) -> dict[frozenset[str], float]:
    """A chain of layers: each saves something in INT8, and each change of type costs a kernel."""

    def cost(floats: frozenset[str]) -> float:
        changes = sum((one in floats) != (other in floats) for one, other in itertools.pairwise(GROUPS))
        return 10 - sum(gain for group, gain in saved.items() if group not in floats) + border * changes

    subsets = itertools.chain.from_iterable(itertools.combinations(GROUPS, n) for n in range(len(GROUPS) + 1))
    return {frozenset(subset): cost(frozenset(subset)) for subset in subsets}


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("border", [0.0, 0.3])
def test_near_the_best_of_all_and_never_above_the_pure_ones(seed: int, border: float) -> None:
    draw = random.Random(seed)
    saved = {group: draw.uniform(-1, 1) for group in GROUPS}
    costs = chain_cost(saved, border)
    found = cheapest_mix(saved, costs.__getitem__)
    assert found.ms == costs[found.float_groups]
    assert found.ms <= min(costs[frozenset(GROUPS)], costs[frozenset()])
    best = min(costs.values())
    assert found.ms == pytest.approx(best) if border == 0 else found.ms <= best + 0.6  # two borders at most
    assert found.tried <= 40


def test_how_far_down_float_reaches_is_found_in_few_steps() -> None:
    """Memory decides in front, arithmetic behind, and each change of type costs."""
    groups = [f"group{index}" for index in range(48)]
    gains = {group: (index - 11.5) / 10 for index, group in enumerate(groups)}

    def cost(floats: frozenset[str]) -> float:
        changes = sum((one in floats) != (other in floats) for one, other in itertools.pairwise(groups))
        return 100 - sum(gain for group, gain in gains.items() if group not in floats) + 3 * changes

    found = cheapest_mix(gains, cost, limit=12)
    assert found.float_groups == frozenset(groups[:12])


def test_the_limit_holds_and_all_float_is_among_the_first() -> None:
    asked: list[frozenset[str]] = []

    def cost(floats: frozenset[str]) -> float:
        asked.append(floats)
        return float(len(GROUPS) - len(floats))

    found = cheapest_mix(dict.fromkeys(GROUPS, 1.0), cost, limit=3)
    assert len(asked) == len(set(asked)) <= 3
    assert found.float_groups == frozenset(GROUPS)
    assert found.ms == 0
