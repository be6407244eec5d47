"""The network's drawing as SVG values: a path for each edge, a shade and a link for each convolution."""

from __future__ import annotations

from dataclasses import dataclass

from trt_qat.linter.layout import Box, Edge
from trt_qat.report.layers import anchors, error_shade, sqnr, sqnr_shade
from trt_qat.report.numbers import decibels, short
from trt_qat.report.record import GroupRecord, RunRecord


@dataclass(frozen=True)
class DrawnBox:
    """A box with what colours it.

    Args:
        lines: of its label.
        title: what a pointer that rests on it is told.
        anchor: id of the layer's row, empty if it has none.
        sqnr, error: shades, 0 to 4; None for what is not in INT8.
    """

    box: Box
    lines: tuple[str, ...]
    title: str
    anchor: str
    sqnr: int | None
    error: int | None


@dataclass(frozen=True)
class Network:
    """The drawing; lengths in points.

    Args:
        edges: the path's ``d`` and whether it carries INT8.
    """

    width: float
    height: float
    boxes: tuple[DrawnBox, ...]
    edges: tuple[tuple[str, bool], ...]


def drawn_network(record: RunRecord) -> Network | None:
    """The drawing of a record, if it has one."""
    drawing = record.drawing
    if drawing is None:
        return None
    read_by = {conv.name: group for group in record.placement.groups for conv in group.convs}
    rows = anchors(record)
    largest = max((group.error or 0.0 for group in record.placement.groups), default=0.0)
    boxes = tuple(_drawn(box, read_by, rows, largest) for box in drawing.boxes)
    return Network(drawing.width, drawing.height, boxes, tuple((_path(e), e.group is not None) for e in drawing.edges))


def _drawn(box: Box, read_by: dict[str, GroupRecord], rows: dict[str, str], largest: float) -> DrawnBox:
    name = next((name for name in (box.module, f"{box.module}.conv") if name in read_by), "")
    lines = tuple(box.label.splitlines()) or (box.key,)
    if not name:
        return DrawnBox(box, lines, box.module or lines[0], "", None, None)
    group = read_by[name]
    found = sqnr(group)
    title = f"{name}\nSQNR of what it reads: {decibels(found)}{'' if found is None else ' dB'}"
    if group.error is not None:
        title += f"\noutput error of the group alone: {short(group.error)}"
    return DrawnBox(box, lines, title, rows[name], sqnr_shade(found), error_shade(group.error, largest))


def _path(edge: Edge) -> str:
    """``M x,y C x,y x,y x,y ...``; points that make no whole piece are left away."""
    points = [f"{x:.1f},{y:.1f}" for x, y in edge.points]
    if not points:
        return ""
    pieces = [" ".join(points[start : start + 3]) for start in range(1, len(points) - 2, 3)]
    return f"M{points[0]}" + "".join(f"C{piece}" for piece in pieces)
