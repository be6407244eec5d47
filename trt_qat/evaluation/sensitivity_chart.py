"""A bar per scale group, the worst at the top."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from trt_qat.artifacts import atomic_path
from trt_qat.evaluation.group_sensitivity import GroupSensitivity
from trt_qat.results import Measure

_BAR_INCHES = 0.22
_COLOURS = {"error": "#3b6ea5", "map50_95_drop": "#c1553b"}


def draw_sensitivity(rows: Sequence[GroupSensitivity], out: Path, measure: Measure) -> Path:
    """Write a PNG with one panel per figure that was measured.

    Args:
        rows: worst first, at least one.
        measure: what drops are of.
    """
    titles = {"error": "output error (scores and boxes)", "map50_95_drop": f"{measure}50-95 drop, points"}
    shown = {
        name: values
        for name, values in (
            ("map50_95_drop", [row.map50_95_drop for row in rows]),
            ("error", [row.error for row in rows]),
        )
        if all(value is not None for value in values)
    }
    figure = Figure(figsize=(3 + 5 * len(shown), 1.4 + _BAR_INCHES * len(rows)), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    places = range(len(rows))
    for axes, (name, values) in zip(panels, shown.items(), strict=True):
        scale = 100.0 if name == "map50_95_drop" else 1.0
        axes.barh(places, [scale * float(value or 0) for value in values], height=0.75, color=_COLOURS[name])
        axes.set_xlabel(titles[name])
        axes.axvline(0, color="black", linewidth=0.8)
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
        axes.set_ylim(len(rows) - 0.4, -0.6)  # worst at the top
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(places, [row.label for row in rows], fontsize=8)
    panels[0].set_ylabel("scale group: its first convolution, and how many more")
    figure.suptitle("What each scale group costs when it alone is INT8", fontsize=11)
    with atomic_path(out) as temporary:
        figure.savefig(temporary, format="png")
    return out
