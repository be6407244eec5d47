"""The scale groups as a reader looks for them: the worst at the top, named by the convolutions that read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from trt_qat.report.record import GroupRecord, RunRecord, Step

SQNR_STEPS_DB: Final = (20.0, 25.0, 30.0, 35.0)
"""Limits between the five shades of an SQNR."""
_ERROR_STEPS: Final = (0.75, 0.5, 0.25, 0.1)  # of the largest


def last_step(group: GroupRecord) -> Step:
    """The last step at which the group's quantizer is known."""
    return "qat" if group.at("qat") is not None else "ptq"


def sqnr(group: GroupRecord) -> float | None:
    """Of the group's values at the last step, dB; None if no value differs, or it is not known."""
    entry = group.at(last_step(group))
    return None if entry is None else entry.sqnr_db


def worst_first(groups: Sequence[GroupRecord]) -> list[GroupRecord]:
    """By their SQNR at the last step, the lowest first; those without noise at the end."""
    return sorted(groups, key=lambda group: float("inf") if (found := sqnr(group)) is None else found)


def group_label(group: GroupRecord) -> str:
    """The first convolution and how many more there are: names of traced tensors tell a reader little."""
    more = len(group.convs) - 1
    return layer_label(group.convs[0].name) + (f" +{more}" if more else "")


def layer_label(name: str) -> str:
    """A convolution's module name, without the ending that all of them have."""
    return name.removesuffix(".conv") or name


def anchors(record: RunRecord) -> dict[str, str]:
    """Convolution to the id of its row on the page."""
    names = [conv.name for group in record.placement.groups for conv in group.convs]
    return {name: f"layer-{number}" for number, name in enumerate(names, 1)}


def sqnr_shade(value: float | None) -> int:
    """0 is good, 4 is bad."""
    return 0 if value is None else sum(value < limit for limit in SQNR_STEPS_DB)


def error_shade(value: float | None, largest: float) -> int:
    """0 is little, 4 is nearly the largest."""
    return 0 if value is None or largest <= 0 else sum(value >= limit * largest for limit in _ERROR_STEPS)
