"""How the page names layers and shades them."""

from __future__ import annotations

from typing import Final

from trt_qat.report.layer_facts import Layer, Network, standing_out
from trt_qat.report.record import RunRecord

SQNR_STEPS_DB: Final = (20.0, 25.0, 30.0, 35.0)
"""Limits between the five shades of an SQNR."""
_SHARES: Final = (0.75, 0.5, 0.25, 0.1)  # of the largest


def worst_layers(record: RunRecord) -> list[Layer]:
    """Every scale group, in the order in which ``trt-qat explain`` lists them."""
    network = Network(record)
    return [entry.layer for entry in standing_out(network, [layer for layer in network.layers if layer.group])]


def anchors(record: RunRecord) -> dict[str, str]:
    """Convolution to the id of its row on the page."""
    names = [conv.name for group in record.placement.groups for conv in group.convs]
    return {name: f"layer-{number}" for number, name in enumerate(names, 1)}


def sqnr_shade(value: float | None) -> int:
    """0 is good, 4 is bad."""
    return 0 if value is None else sum(value < limit for limit in SQNR_STEPS_DB)


def error_shade(value: float | None, largest: float) -> int:
    """0 is little, 4 is nearly the largest."""
    return 0 if value is None or largest <= 0 else sum(value >= limit * largest for limit in _SHARES)
