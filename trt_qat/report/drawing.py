"""The network's drawing as SVG values: a path for each edge, a shade and a link for each convolution."""

from __future__ import annotations

from dataclasses import dataclass

from trt_qat.linter.layout import Box, Edge
from trt_qat.report.layer_facts import Layer, Network
from trt_qat.report.layers import anchors, error_shade, sqnr_shade
from trt_qat.report.numbers import coordinate, decibels, share
from trt_qat.report.record import RunRecord


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
class DrawnNetwork:
    """The drawing; lengths in points.

    Args:
        edges: the path's ``d`` and whether it carries INT8.
    """

    width: float
    height: float
    boxes: tuple[DrawnBox, ...]
    edges: tuple[tuple[str, bool], ...]


def drawn_network(record: RunRecord) -> DrawnNetwork | None:
    """The drawing of a record, if it has one."""
    drawing = record.drawing
    if drawing is None:
        return None
    layers = Network(record).layers
    read_by = {conv.name: layer for layer in layers for conv in layer.convs}
    rows, largest = anchors(record), max(layer.error_share or 0.0 for layer in layers)
    boxes = tuple(_drawn(box, read_by, rows, largest) for box in drawing.boxes)
    return DrawnNetwork(
        drawing.width, drawing.height, boxes, tuple((_path(e), e.group is not None) for e in drawing.edges)
    )


def _drawn(box: Box, read_by: dict[str, Layer], rows: dict[str, str], largest: float) -> DrawnBox:
    name = next((name for name in (box.module, f"{box.module}.conv") if name in read_by), "")
    lines = tuple(box.label.splitlines()) or (box.key,)
    if not name:
        return DrawnBox(box, lines, box.module or lines[0], "", None, None)
    layer = read_by[name]
    title = f"{name}\nSQNR of what it reads: {decibels(layer.sqnr_db)}{'' if layer.sqnr_db is None else ' dB'}"
    if layer.error_share is not None:
        title += f"\n{share(layer.error_share)} of the summed output error"
    shades = sqnr_shade(layer.sqnr_db), error_shade(layer.error_share, largest)
    return DrawnBox(box, lines, title, rows[name], *shades)


def _path(edge: Edge) -> str:
    """``M x,y C x,y x,y x,y ...``; points that make no whole piece are left away."""
    points = [f"{coordinate(x)},{coordinate(y)}" for x, y in edge.points]
    if not points:
        return ""
    pieces = [" ".join(points[start : start + 3]) for start in range(1, len(points) - 2, 3)]
    return f"M{points[0]}" + "".join(f"C{piece}" for piece in pieces)
