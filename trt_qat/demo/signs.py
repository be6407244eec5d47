"""Vietnamese traffic signs (shapes of QCVN 41) as vector drawings: one tile per sign, with an alpha channel.

A sign is drawn in unit coordinates (x to the right, y down, the face inside [-1, 1]) at four times its
size, warped as if seen from the side, worn, and then shrunk: that is the anti-aliasing, and it leaves the
box exact to a quarter of a pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

Color = tuple[int, int, int]
Point = tuple[float, float]

RED, BLUE, YELLOW = (36, 28, 200), (168, 74, 12), (20, 200, 250)
WHITE, BLACK = (245, 245, 245), (24, 22, 22)
SUPERSAMPLING = 4
_MARGIN = 1.3  # tile half-side over face half-side: room for the warp
_SUBPIXEL_BITS = 4


@dataclass(frozen=True)
class SignTile:
    """A rendered sign.

    Args:
        color_bgr: float32, shape (h, w, 3), 0 to 255, already multiplied by alpha.
        alpha: float32, shape (h, w, 1), 0 to 1.
        box_xyxy: tight box of the visible face, in pixels of the tile.
    """

    color_bgr: NDArray[np.float32]
    alpha: NDArray[np.float32]
    box_xyxy: tuple[float, float, float, float]


class _Canvas:
    """Draws shapes given in unit coordinates on a square colour plane and its mask."""

    def __init__(self, side: int) -> None:
        self.color = np.zeros((side, side, 3), dtype=np.uint8)
        self.mask = np.zeros((side, side), dtype=np.uint8)
        self.unit = side / 2 / _MARGIN
        self.center = side / 2

    def _fixed(self, points: Sequence[Point]) -> NDArray[np.int32]:
        pixels = np.asarray(points, dtype=np.float64) * self.unit + self.center - 0.5
        return np.asarray(np.round(pixels * (1 << _SUBPIXEL_BITS)), dtype=np.int32)

    def polygon(self, points: Sequence[Point], color: Color) -> None:
        fixed = self._fixed(points)
        cv2.fillPoly(self.color, [fixed], color, cv2.LINE_AA, _SUBPIXEL_BITS)
        cv2.fillPoly(self.mask, [fixed], 255, cv2.LINE_AA, _SUBPIXEL_BITS)

    def disc(self, radius: float, color: Color, center: Point = (0.0, 0.0)) -> None:
        (x, y), r = self._fixed([center])[0].tolist(), round(radius * self.unit * (1 << _SUBPIXEL_BITS))
        cv2.circle(self.color, (x, y), r, color, -1, cv2.LINE_AA, _SUBPIXEL_BITS)
        cv2.circle(self.mask, (x, y), r, 255, -1, cv2.LINE_AA, _SUBPIXEL_BITS)

    def stroke(self, points: Sequence[Point], width: float, color: Color) -> None:
        """A line with square ends and filled joints."""
        for (x0, y0), (x1, y1) in pairwise(points):
            length = max(float(np.hypot(x1 - x0, y1 - y0)), 1e-6)
            nx, ny = -(y1 - y0) / length * width / 2, (x1 - x0) / length * width / 2
            corners = [(x0 + nx, y0 + ny), (x1 + nx, y1 + ny), (x1 - nx, y1 - ny), (x0 - nx, y0 - ny)]
            self.polygon(corners, color)
        for joint in points[1:-1]:
            self.disc(width / 2, color, joint)

    def arrow(self, points: Sequence[Point], width: float, head: float, color: Color) -> None:
        """A stroke whose last point carries a triangular head of half-width ``head``."""
        self.stroke(points, width, color)
        (x0, y0), (x1, y1) = points[-2:]
        length = max(float(np.hypot(x1 - x0, y1 - y0)), 1e-6)
        dx, dy = (x1 - x0) / length, (y1 - y0) / length
        tip = (x1 + dx * head * 1.1, y1 + dy * head * 1.1)
        self.polygon([tip, (x1 - dy * head, y1 + dx * head), (x1 + dy * head, y1 - dx * head)], color)

    def text(self, text: str, half_width: float, half_height: float, color: Color) -> None:
        """Centred text that fills the given half-extents as far as its shape allows."""
        font = cv2.FONT_HERSHEY_DUPLEX
        (width, height), _ = cv2.getTextSize(text, font, 1.0, 1)
        scale = min(2 * half_width * self.unit / width, 2 * half_height * self.unit / height)
        thickness = max(1, round(scale * height * 0.19))
        origin = round(self.center - scale * width / 2), round(self.center + scale * height / 2)
        cv2.putText(self.color, text, origin, font, scale, color, thickness, cv2.LINE_AA)


def _turned(points: Sequence[Point], degrees: float, mirror: bool = False) -> list[Point]:
    sine, cosine = float(np.sin(np.radians(degrees))), float(np.cos(np.radians(degrees)))
    flip = -1.0 if mirror else 1.0
    return [(flip * (x * cosine - y * sine), x * sine + y * cosine) for x, y in points]


def _no_entry(canvas: _Canvas, rng: np.random.Generator) -> None:
    del rng
    canvas.disc(1.0, WHITE)
    canvas.disc(0.95, RED)
    canvas.polygon([(-0.7, -0.17), (0.7, -0.17), (0.7, 0.17), (-0.7, 0.17)], WHITE)


def _no_stopping(canvas: _Canvas, rng: np.random.Generator) -> None:
    del rng
    canvas.disc(1.0, RED)
    canvas.disc(0.8, BLUE)
    canvas.stroke([(-0.6, -0.6), (0.6, 0.6)], 0.19, RED)
    canvas.stroke([(-0.6, 0.6), (0.6, -0.6)], 0.19, RED)


def _speed_limit(canvas: _Canvas, rng: np.random.Generator) -> None:
    canvas.disc(1.0, RED)
    canvas.disc(0.78, WHITE)
    # the letter O, because newer OpenCV fonts put a slash through the zero
    canvas.text(f"{int(rng.integers(3, 10))}O", 0.56, 0.42, BLACK)


def _no_turning(canvas: _Canvas, rng: np.random.Generator) -> None:
    mirror = bool(rng.integers(2))
    canvas.disc(1.0, RED)
    canvas.disc(0.8, WHITE)
    canvas.arrow(_turned([(0.26, 0.55), (0.26, -0.14), (-0.14, -0.14)], 0, mirror), 0.18, 0.28, BLACK)
    # the slash crosses the bend, not the head: the turn stays readable
    canvas.stroke(_turned([(-0.6, -0.6), (0.6, 0.6)], 0, not mirror), 0.15, RED)


_TRIANGLE: tuple[Point, ...] = ((0.0, -0.9), (1.0, 0.82), (-1.0, 0.82))


def _warning(canvas: _Canvas, rng: np.random.Generator) -> None:
    centroid = np.array([0.0, 0.25])
    inner = [(float(x), float(y)) for x, y in (np.array(_TRIANGLE) - centroid) * 0.7 + centroid]
    canvas.polygon(_TRIANGLE, RED)
    canvas.polygon(inner, YELLOW)
    symbol, mirror = int(rng.integers(4)), bool(rng.integers(2))
    if symbol == 0:  # other danger
        canvas.polygon([(-0.1, -0.3), (0.1, -0.3), (0.05, 0.32), (-0.05, 0.32)], BLACK)
        canvas.disc(0.08, BLACK, (0.0, 0.47))
    elif symbol == 1:  # bend
        canvas.arrow(_turned([(0.12, 0.58), (0.12, 0.2), (-0.06, 0.02)], 0, mirror), 0.15, 0.17, BLACK)
    elif symbol == 2:  # crossroads
        canvas.stroke([(0.0, -0.25), (0.0, 0.56)], 0.15, BLACK)
        canvas.stroke([(-0.36, 0.24), (0.36, 0.24)], 0.15, BLACK)
    else:  # uneven road
        canvas.disc(0.2, BLACK, (-0.22, 0.46))
        canvas.disc(0.2, BLACK, (0.22, 0.46))
        canvas.polygon([(-0.5, 0.42), (0.5, 0.42), (0.54, 0.58), (-0.54, 0.58)], BLACK)


def _mandatory(canvas: _Canvas, rng: np.random.Generator) -> None:
    canvas.disc(1.0, WHITE)
    canvas.disc(0.95, BLUE)
    kind, mirror = int(rng.integers(4)), bool(rng.integers(2))
    if kind == 3:  # turn ahead
        path = _turned([(0.3, 0.6), (0.3, -0.12), (-0.15, -0.12)], 0, mirror)
        canvas.arrow(path, 0.26, 0.38, WHITE)
    else:  # straight on, sideways, or keep to one side
        path = _turned([(0.0, 0.66), (0.0, -0.2)], (0.0, 90.0, 135.0)[kind], mirror)
        canvas.arrow(path, 0.28, 0.44, WHITE)


def _pedestrian_crossing(canvas: _Canvas, rng: np.random.Generator) -> None:
    mirror = bool(rng.integers(2))

    def pose(*points: Point) -> list[Point]:
        return _turned(points, 0, mirror)

    canvas.polygon([(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)], WHITE)
    canvas.polygon([(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)], BLUE)
    canvas.polygon([(0.0, -0.7), (0.74, 0.62), (-0.74, 0.62)], WHITE)
    canvas.disc(0.09, BLACK, pose((0.02, -0.26))[0])
    canvas.stroke(pose((0.0, -0.14), (0.0, 0.2)), 0.17, BLACK)
    canvas.stroke(pose((0.0, 0.16), (0.14, 0.36), (0.2, 0.55)), 0.1, BLACK)
    canvas.stroke(pose((0.0, 0.16), (-0.08, 0.36), (-0.22, 0.54)), 0.1, BLACK)
    canvas.stroke(pose((0.0, -0.08), (0.18, 0.1)), 0.08, BLACK)
    canvas.stroke(pose((0.0, -0.08), (-0.18, 0.12)), 0.08, BLACK)
    for x in (-0.5, -0.3, 0.3, 0.5):  # ends of the zebra stripes beside the feet
        canvas.polygon([(x - 0.06, 0.5), (x + 0.06, 0.5), (x + 0.08, 0.6), (x - 0.08, 0.6)], BLACK)


_PAINTERS: dict[str, Callable[[_Canvas, np.random.Generator], None]] = {
    "no_entry": _no_entry,
    "no_stopping": _no_stopping,
    "speed_limit": _speed_limit,
    "no_turning": _no_turning,
    "warning": _warning,
    "mandatory": _mandatory,
    "pedestrian_crossing": _pedestrian_crossing,
}

DEMO_NAMES: tuple[str, ...] = tuple(_PAINTERS)


def render_sign(rng: np.random.Generator, name: str, size: float) -> SignTile:
    """Draw one sign as seen from a car: turned, foreshortened, worn, lit from one side.

    Args:
        rng: source of the variation.
        name: one of :data:`DEMO_NAMES`.
        size: width of the face in pixels before the warp.
    """
    side = SUPERSAMPLING * max(8, round(size * _MARGIN))
    canvas = _Canvas(side)
    _PAINTERS[name](canvas, rng)
    matrix = _view(rng, side)
    color = cv2.warpPerspective(canvas.color, matrix, (side, side), flags=cv2.INTER_LINEAR)
    mask = cv2.warpPerspective(canvas.mask, matrix, (side, side), flags=cv2.INTER_LINEAR)
    small = side // SUPERSAMPLING
    alpha = cv2.resize(mask, (small, small), interpolation=cv2.INTER_AREA).astype(np.float32)[..., None] / 255
    color = cv2.resize(color, (small, small), interpolation=cv2.INTER_AREA).astype(np.float32)
    rows, columns = np.flatnonzero(mask.max(axis=1) > 127), np.flatnonzero(mask.max(axis=0) > 127)
    edges = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / SUPERSAMPLING
    left, top, right, bottom = (float(v) for v in edges)
    return SignTile(_worn(rng, color, alpha), alpha, (left, top, right, bottom))


def _view(rng: np.random.Generator, side: int) -> NDArray[np.float64]:
    half = side / 2 / _MARGIN
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], dtype=np.float64)
    angle = np.radians(rng.uniform(-8, 8))
    rotation = np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])
    seen = corners @ rotation * np.array([rng.uniform(0.78, 1.0), 1.0]) + rng.uniform(-0.07, 0.07, (4, 2))
    source, target = corners * half + side / 2, np.clip(seen, -1.25, 1.25) * half + side / 2
    return np.asarray(cv2.getPerspectiveTransform(source.astype(np.float32), target.astype(np.float32)))


def _worn(rng: np.random.Generator, color: NDArray[np.float32], alpha: NDArray[np.float32]) -> NDArray[np.float32]:
    gray = color.mean(axis=2, keepdims=True)
    faded = color + (gray - color) * np.float32(rng.uniform(0.0, 0.35))
    steps = np.linspace(rng.uniform(0.75, 1.1), rng.uniform(0.75, 1.1), color.shape[0], dtype=np.float32)
    shade = steps[:, None, None] if rng.integers(2) else steps[None, :, None]
    dirt = np.float32(rng.uniform(0, 18))
    return np.asarray(np.minimum(faded * shade + dirt * alpha, 255.0 * alpha), dtype=np.float32)
