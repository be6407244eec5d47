"""Which scale groups are worth INT8, searched with a compiler that says what each mix would cost.

An INT8 convolution saves arithmetic and weights; around it the compiler may need kernels that FP16 does without. Both
depend on the neighbours, so a mix is judged as a whole. What single groups gain, read from the two pure engines, only
orders the search.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

Cost = Callable[[frozenset[str]], float]
"""Estimated milliseconds with these groups in float; the others are INT8."""

_STRIDES = (8, 4, 2, 1)


@dataclass(frozen=True)
class Mix:
    """The cheapest mix found.

    Args:
        float_groups: left in float.
        ms: its cost.
        tried: how many mixes were judged.
    """

    float_groups: frozenset[str]
    ms: float
    tried: int


def cheapest_mix(gains: Mapping[str, float], cost: Cost, limit: int = 40) -> Mix:
    """Search: the groups that gain most first, as many of them as pay; then one group at a time.

    Args:
        gains: by group, the milliseconds that INT8 saves by itself, negative where it costs.
        limit: mixes to judge at most, all INT8 and all float among them.

    Returns:
        Never worse than all float and all INT8, which are judged first.
    """
    ranked = sorted(gains, key=lambda group: -gains[group])
    seen: dict[frozenset[str], float] = {}

    def ms(groups: frozenset[str]) -> float:
        if groups not in seen:
            if len(seen) >= limit:
                return float("inf")
            seen[groups] = cost(groups)
        return seen[groups]

    def of_prefix(count: int) -> float:
        return ms(frozenset(ranked[count:]))

    count = min((0, len(ranked), sum(gain > 0 for gain in gains.values())), key=of_prefix)
    for stride in _STRIDES:
        near = (max(0, count - stride), count, min(len(ranked), count + stride))
        count = min(near, key=of_prefix)
    best = frozenset(ranked[count:])
    for group in sorted(gains, key=lambda group: abs(gains[group])):
        flipped = best ^ {group}
        if ms(flipped) < ms(best):
            best = flipped
    return Mix(best, seen[best], len(seen))
