"""How many groups must be left float: the search for the fewest that meet an accuracy budget, in few measurements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Weights = Literal["fine-tuned", "calibrated"]
_ROUNDING = 1e-9  # a drop that equals the budget meets it, whatever the last bit says


@dataclass(frozen=True)
class Measured:
    """One exported file: mAP50-95 (or agreement), a fraction; median milliseconds of it and of all INT8 beside it."""

    map50_95: float
    latency_ms: float
    int8_latency_ms: float


@dataclass(frozen=True)
class Step:
    """A mix that was measured: the first ``k`` groups of an order are float, the others have these weights."""

    k: int
    groups: tuple[str, ...]
    measured: Measured
    weights: Weights
    order: str = ""


@dataclass(frozen=True)
class Search:
    """Every mix that was measured, in that order (all INT8, fine-tuned, first), and the one to keep.

    Args:
        met: whether ``chosen`` is within the budget; if not, it is the most accurate one measured.
    """

    steps: tuple[Step, ...]
    chosen: Step
    met: bool


def fewest_float_groups(
    ranked: Sequence[str],
    of_float: Measured,
    of_int8: Measured,
    max_drop: float,
    measure: Callable[[tuple[str, ...]], Measured],
    weights: Weights,
    order: str = "",
) -> Search:
    """Find the smallest k such that leaving ``ranked[:k]`` float meets the budget, in few measurements.

    k grows 0, 1, 2, 4, ... until the budget is met and is then bisected: more float groups are taken to be no less
    accurate. Where they are, k may not be the smallest, but what is chosen was measured all the same.

    Args:
        ranked: groups in the order in which they are left float.
        of_float: the float model.
        of_int8: k = 0.
        max_drop: the budget in points (0.2 is 0.002 as a fraction).
        measure: measures the mix that leaves the given groups float.
        weights: what the steps say about the weights that ``measure`` uses.
        order: what the steps say about where ``ranked`` comes from.
    """
    steps = {0: Step(0, (), of_int8, weights)}

    def meets(k: int) -> bool:
        if k not in steps:
            groups = tuple(ranked[:k])
            steps[k] = Step(k, groups, measure(groups), weights, order)
        return meets_budget(of_float, steps[k].measured, max_drop)

    low, high = -1, 0
    while not meets(high):
        if high == len(ranked):
            best = max(steps.values(), key=lambda step: (step.measured.map50_95, -step.k))
            return Search(tuple(steps.values()), best, met=False)
        low, high = high, min(len(ranked), max(1, 2 * high))
    while high - low > 1:
        middle = (low + high) // 2
        if meets(middle):
            high = middle
        else:
            low = middle
    return Search(tuple(steps.values()), steps[high], met=True)


def best_of(searches: Sequence[Search]) -> Search:
    """The steps of all searches, each once, and the choice with the fewest float groups, then the fastest.

    If none met the budget, it is the most accurate mix of all.
    """
    steps = tuple(dict.fromkeys(step for search in searches for step in search.steps))
    met = [search.chosen for search in searches if search.met]
    if met:
        return Search(steps, min(met, key=lambda step: (step.k, step.measured.latency_ms)), met=True)
    return Search(
        steps, max((search.chosen for search in searches), key=lambda step: step.measured.map50_95), met=False
    )


def drop_points(of_float: Measured, found: Measured) -> float:
    """What is lost, in points (hundredths); negative if something is won."""
    return 100 * (of_float.map50_95 - found.map50_95)


def meets_budget(of_float: Measured, found: Measured, max_drop: float) -> bool:
    """Whether ``found`` loses no more than ``max_drop`` points."""
    return drop_points(of_float, found) <= max_drop + _ROUNDING
