"""The drawing of a network as data, for pages that colour it by what they know; :func:`trt_qat.linter.picture.layout`.

Lengths are in points, y downwards from the top left corner.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trt_qat.reading import FileModel
from trt_qat.results import Text

Kind = Literal["int8", "float", "copy", "plain", "input", "output"]
Length = Annotated[float, Field(ge=0)]


class Box(FileModel):
    """A box of the network's drawing.

    Args:
        key: unique in the drawing.
        module: the PyTorch module; empty for inputs, outputs, and where the file does not say.
        label: one line or two.
        kind: "int8" and "float" are convolutions, "float" also the decode behind them; "copy" moves INT8 data.
        group: index of the scale group that it writes in the drawing, None for float.
        x, y: its centre.
    """

    key: Text
    module: str
    label: str
    kind: Kind
    group: int | None
    x: float
    y: float
    width: Length
    height: Length


class Edge(FileModel):
    """A line of the drawing, a cubic Bezier path: first a start, then three points for each piece.

    Args:
        start, end: keys of boxes.
        group: index of the scale group, None for float.
    """

    start: str
    end: str
    group: int | None
    points: tuple[tuple[float, float], ...]


class Drawing(FileModel):
    """The exported network with its layout."""

    width: Length
    height: Length
    boxes: tuple[Box, ...]
    edges: tuple[Edge, ...]
