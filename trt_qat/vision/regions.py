"""Lines and zones of a picture at which things are counted, as a user types them: ``door:0.2,0.5,0.8,0.5``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trt_qat.errors import ConfigError
from trt_qat.reading import shortened

_MOST_POINTS = 100
_FARTHEST = 65_536  # pixels


@dataclass(frozen=True)
class Region:
    """A line from its first point to its second, or a zone inside of its points.

    Args:
        name: unique among those of a run.
        points_xy: (x, y) each: pixels, or fractions of the picture's width and height where none exceeds 1.
        is_zone: whether it is a zone.
    """

    name: str
    points_xy: tuple[tuple[float, float], ...]
    is_zone: bool = False

    @property
    def kind(self) -> str:
        """What it is called in messages."""
        return "zone" if self.is_zone else "line"

    def pixels(self, size_wh: tuple[int, int]) -> NDArray[np.float64]:
        """Its points in pixels of a picture of this size, shape (n, 2).

        Raises:
            ConfigError: one of them lies outside of the picture.
        """
        points = np.array(self.points_xy, dtype=np.float64)
        if points.max() <= 1:
            return points * size_wh
        if (points > size_wh).any():
            raise ConfigError(
                f"Counting {self.kind} '{self.name}' leaves the picture of {size_wh[0]} x {size_wh[1]} pixels. "
                "Move it, or give fractions of width and height, each at most 1."
            )
        return points


def parse_regions(lines: Sequence[str] = (), zones: Sequence[str] = ()) -> tuple[Region, ...]:
    """What ``--count-line`` and ``--count-zone`` were given; those without a name are numbered.

    Args:
        lines: ``NAME:x1,y1,x2,y2`` or ``x1,y1,x2,y2``.
        zones: the same with three points or more.

    Raises:
        ConfigError: something else, or two of one name.
    """
    regions = [
        *(_region(text, f"line {number}", False) for number, text in enumerate(lines, 1)),
        *(_region(text, f"zone {number}", True) for number, text in enumerate(zones, 1)),
    ]
    for place, region in enumerate(regions):
        if any(region.name == other.name for other in regions[:place]):
            raise ConfigError(f"Two counting lines or zones are named '{region.name}'. Give each its own name.")
    return tuple(regions)


def _region(text: str, default_name: str, is_zone: bool) -> Region:
    name, colon, numbers = text.rpartition(":")
    name = name.strip() if colon else default_name
    points = _points(numbers)
    enough = points is not None and (3 <= len(points) <= _MOST_POINTS if is_zone else len(points) == 2)
    if points is None or not enough or not name or not name.isprintable() or not _has_extent(points, is_zone):
        option, form, rule = (
            ("--count-zone", "x1,y1,x2,y2,x3,y3", f"3 to {_MOST_POINTS} points around an area")
            if is_zone
            else ("--count-line", "x1,y1,x2,y2", "two different points")
        )
        raise ConfigError(
            f"{option} {shortened(text)} is not NAME:{form} or {form}: {rule}, in pixels from 0 to {_FARTHEST}, or in "
            "fractions of width and height where all are at most 1."
        )
    return Region(name, points, is_zone)


def _points(text: str) -> tuple[tuple[float, float], ...] | None:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        return None
    if len(values) % 2 or not all(math.isfinite(value) and 0 <= value <= _FARTHEST for value in values):
        return None
    return tuple(zip(values[::2], values[1::2], strict=True))


def _has_extent(points: Sequence[tuple[float, float]], is_zone: bool) -> bool:
    """Whether the points of a line differ, and those of a zone lie around an area (the shoelace formula)."""
    if not is_zone:
        return points[0] != points[1]
    following = [*points[1:], points[0]]
    return abs(sum(x * next_y - next_x * y for (x, y), (next_x, next_y) in zip(points, following, strict=True))) > 0
