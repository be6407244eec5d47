"""Which scale groups are worth INT8, searched with a compiler that says what each mix would cost.

An INT8 convolution saves arithmetic and weights; around it the compiler may need kernels that FP16 does without. Both
depend on the neighbours, so a mix is judged as a whole. Near the input images are large and channels few: memory
decides, and FP16 moves less; further down arithmetic decides. So the search first asks how far down FP16 should reach,
then what the two pure engines say of single groups, then changes one group at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Cost = Callable[[frozenset[str]], float]
"""Estimated milliseconds with these groups in float; the others are INT8."""


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
    """Search for the cheapest mix.

    Args:
        gains: by group, in the network's order, the milliseconds that INT8 saves by itself, negative where it costs.
        limit: mixes to judge at most, all INT8 and all float among them.

    Returns:
        Never worse than all float and all INT8, which are judged first.
    """
    seen: dict[frozenset[str], float] = {}

    def ms(groups: frozenset[str]) -> float:
        if groups not in seen:
            if len(seen) >= limit:
                return float("inf")
            seen[groups] = cost(groups)
        return seen[groups]

    by_depth, by_gain = list(gains), sorted(gains, key=lambda group: gains[group])
    best = min(frozenset[str](), frozenset(gains), key=ms)
    best = min(best, _best_prefix(by_depth, ms), key=ms)
    losing = frozenset(group for group, gain in gains.items() if gain <= 0)
    if ms(losing) <= 1.1 * ms(best):  # else its neighbours are not worth their compilations
        best = min(best, _best_prefix(by_gain, ms, len(losing)), key=ms)
    for group in sorted(gains, key=lambda group: abs(gains[group])):
        best = min(best, best ^ {group}, key=ms)
    return Mix(best, seen[best], len(seen))


def _best_prefix(ranked: Sequence[str], ms: Cost, start: int | None = None) -> frozenset[str]:
    """The first so many groups that are best left float, found from coarse to fine."""

    def of(count: int) -> float:
        return ms(frozenset(ranked[:count]))

    total = len(ranked)
    best = min((total // 8, total // 4, total // 2), key=of) if start is None else start
    stride = max(1, total // 8)
    while True:
        best = min((best, max(0, best - stride), min(total, best + stride)), key=of)
        if stride == 1:
            return frozenset(ranked[:best])
        stride //= 2
