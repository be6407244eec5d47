"""A generated drive along a street with Vietnamese traffic signs: they come nearer and leave at the edge.

A world in metres (x to the right, y up, z ahead) is seen through a pinhole: what lies z ahead is drawn ``focal / z``
pixels per metre large. What stands at the road depends on the seed and its number only, so that a longer clip begins
with the shorter one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from trt_qat.demo.signs import DEMO_NAMES, SignTile, render_sign
from trt_qat.errors import DatasetError
from trt_qat.progress import SILENT, Progress
from trt_qat.runtime.frames import Frame, Result
from trt_qat.runtime.sinks.video import VideoSink
from trt_qat.vision.detections import Detections

Color = tuple[int, int, int]
Point = tuple[float, float, float]

CLIP_FPS = 25.0
_METRES_PER_FRAME = 0.25
_FOCAL = 0.8  # of the width
_HORIZON = 0.5  # of the height
_EYE = 1.5  # metres above the road
_NEAR, _FAR = 0.6, 60.0
_ROAD, _KERB, _WALLS_AT = 3.2, 4.6, 8.5  # metres to each side
_DASH, _DASHES_EVERY = 2.0, 5.0
_SIGN_EVERY, _SIGN_METRES, _TILE = 9.0, 0.9, 128  # _TILE: pixels of a face
_HOUSE_EVERY, _TREE_EVERY = 8.0, 7.0
_SKY_TOP, _HAZE, _GRASS, _PAVEMENT, _ASPHALT, _PAINT = (
    (215, 160, 100),
    (232, 216, 196),
    (95, 135, 105),
    (150, 155, 158),
    (92, 88, 86),
    (225, 228, 228),
)
_WALLS = ((150, 190, 215), (175, 205, 205), (120, 140, 190), (185, 185, 180), (150, 175, 140), (95, 115, 150))
_SUBPIXEL_BITS = 4


@dataclass(frozen=True)
class SeenSign:
    """Where a sign is in a frame.

    Args:
        number: which sign of the street.
        class_id: into :data:`trt_qat.demo.signs.DEMO_NAMES`.
        box_xyxy: pixels, not cut at the frame's edges.
    """

    number: int
    class_id: int
    box_xyxy: tuple[float, float, float, float]


def street_clip(
    frames: int, seed: int = 0, size_wh: tuple[int, int] = (640, 360)
) -> Iterator[tuple[NDArray[np.uint8], list[SeenSign]]]:
    """The frames, uint8 BGR (h, w, 3), and the signs that are wholly or in part in each, the farthest first.

    Raises:
        DatasetError: no frames, or fewer than 64 pixels to a side.
    """
    if frames < 1 or min(size_wh) < 64:
        raise DatasetError(f"A clip of {frames} frames of {size_wh[0]}x{size_wh[1]} is none. Use 1 and 64x64 or more.")
    for number in range(frames):
        view = _View(size_wh, seed, number * _METRES_PER_FRAME)
        yield view.drawn()


def write_street_clip(out: Path, frames: int, seed: int = 0, progress: Progress = SILENT) -> Path:
    """Write the clip, 640x360 at 25 frames per second.

    Raises:
        DatasetError: no frames.
        ArtifactError: ``out`` cannot be written.
    """
    nothing = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    with VideoSink(out, CLIP_FPS, progress=progress) as sink:
        for number, (picture, _) in enumerate(street_clip(frames, seed)):
            frame = Frame(picture, str(out), number, number / CLIP_FPS)
            sink.write(Result(frame, nothing, annotated_bgr=picture))
            progress.step(out.name, number + 1, frames)
    return out


@dataclass(frozen=True)
class _House:
    x: float
    length: float
    height: float
    wall: Color
    columns: int
    floors: int


@dataclass(frozen=True)
class _Tree:
    x: float
    height: float
    green: Color
    leaves: tuple[tuple[float, float, float], ...]  # x, y and radius as fractions of the height


@dataclass(frozen=True)
class _Sign:
    x: float
    height: float
    class_id: int
    tile: SignTile


@lru_cache(maxsize=64)
def _house(seed: int, number: int) -> _House:
    rng = np.random.default_rng([seed, 1, number])
    blue, green, red = (
        int(value) for value in np.add(_WALLS[int(rng.integers(len(_WALLS)))], rng.integers(-15, 16, 3))
    )
    side = -1 if number % 2 else 1
    length, height = float(rng.uniform(5, 2 * _HOUSE_EVERY - 1)), float(rng.uniform(4, 11))
    floors = max(1, int(height / 3))
    return _House(side * _WALLS_AT, length, height, (blue, green, red), int(rng.integers(2, 5)), floors)


@lru_cache(maxsize=64)
def _tree(seed: int, number: int) -> _Tree:
    rng = np.random.default_rng([seed, 2, number])
    leaves = tuple(
        (float(rng.normal(0, 0.14)), float(rng.uniform(0.55, 1.0)), float(rng.uniform(0.13, 0.22))) for _ in range(7)
    )
    x = float(rng.uniform(5.6, 7.2)) * (1 if number % 2 else -1)
    return _Tree(x, float(rng.uniform(3, 5.5)), (60, int(rng.integers(95, 150)), 65), leaves)


@lru_cache(maxsize=64)
def _sign(seed: int, number: int) -> _Sign:
    rng = np.random.default_rng([seed, 3, number])
    around = np.random.default_rng([seed, 4, number // len(DEMO_NAMES)]).permutation(len(DEMO_NAMES))
    class_id = int(around[number % len(DEMO_NAMES)])  # each comes once in a round
    side = 1 if number % 2 else -1
    x, height = side * float(rng.uniform(3.7, 4.3)), float(rng.uniform(2.0, 2.7))
    return _Sign(x, height, class_id, render_sign(rng, DEMO_NAMES[class_id], _TILE))


class _View:
    """What is seen from one place of the street."""

    def __init__(self, size_wh: tuple[int, int], seed: int, place: float) -> None:
        self._width, self._height = size_wh
        self._focal = _FOCAL * self._width
        self._horizon = _HORIZON * self._height
        self._seed, self._place = seed, place
        self._image = np.zeros((self._height, self._width, 3), np.uint8)

    def drawn(self) -> tuple[NDArray[np.uint8], list[SeenSign]]:
        self._background()
        for number, z in self._ahead(_HOUSE_EVERY, behind=2 * _HOUSE_EVERY):
            self._draw_house(_house(self._seed, number), z)
        things: list[tuple[float, _Tree | _Sign, int]] = [
            *((z, _tree(self._seed, number), number) for number, z in self._ahead(_TREE_EVERY)),
            *((z, _sign(self._seed, number), number) for number, z in self._ahead(_SIGN_EVERY)),
        ]
        seen = []
        for z, thing, number in sorted(things, key=lambda entry: -entry[0]):
            if isinstance(thing, _Tree):
                self._draw_tree(thing, z)
            elif (box := self._draw_sign(thing, z)) is not None:
                seen.append(SeenSign(number, thing.class_id, box))
        return cv2.GaussianBlur(self._image, (0, 0), 0.5).astype(np.uint8), seen

    def _ahead(self, every: float, behind: float = 0.0) -> list[tuple[int, float]]:
        """Numbers of things that stand every so many metres, and how far ahead; the farthest first."""
        first = max(0, int(np.ceil((self._place + _NEAR - behind) / every)))
        last = int((self._place + _FAR) / every)
        return [(number, number * every - self._place) for number in range(last, first - 1, -1)]

    def _at(self, point: Point) -> tuple[float, float]:
        x, y, z = point
        scale = self._focal / max(z, _NEAR)
        return self._width / 2 + x * scale, self._horizon - (y - _EYE) * scale

    def _polygon(self, points: Sequence[Point], color: Color, haze_at: float | None = None) -> None:
        """``haze_at``: how far it counts as being; as far as its middle if None."""
        fixed = np.round(np.array([self._at(point) for point in points]) * (1 << _SUBPIXEL_BITS)).astype(np.int32)
        distance = sum(z for _, _, z in points) / len(points) if haze_at is None else haze_at
        cv2.fillPoly(self._image, [fixed], _hazy(color, distance), cv2.LINE_AA, _SUBPIXEL_BITS)

    def _background(self) -> None:
        rows = np.linspace(0, 1, int(self._horizon) + 1, dtype=np.float32)[:, None, None]
        self._image[: int(self._horizon) + 1] = np.array(_SKY_TOP) * (1 - rows) + np.array(_HAZE) * rows
        self._image[int(self._horizon) :] = _hazy(_GRASS, 12)
        for half, color in ((_WALLS_AT, _PAVEMENT), (_KERB, (178, 180, 180)), (_ROAD + 0.9, _ASPHALT)):
            self._polygon([(-half, 0, _NEAR), (half, 0, _NEAR), (half, 0, 400), (-half, 0, 400)], color, haze_at=8)
        for half in (-_ROAD, _ROAD):
            self._flat(half - 0.07, half + 0.07, _NEAR, _FAR, _PAINT)
        for _, z in self._ahead(_DASHES_EVERY, behind=_DASH):
            self._flat(-0.08, 0.08, z, z + _DASH, _PAINT)

    def _flat(self, left: float, right: float, near: float, far: float, color: Color) -> None:
        if far > _NEAR:
            near = max(near, _NEAR)
            self._polygon([(left, 0, near), (right, 0, near), (right, 0, far), (left, 0, far)], color)

    def _draw_house(self, house: _House, z: float) -> None:
        near, far = max(z, _NEAR), z + house.length
        if far <= _NEAR:
            return
        if z > _NEAR:  # the wall that faces the camera
            depth = 6.0 if house.x > 0 else -6.0
            front = [(house.x, 0, z), (house.x + depth, 0, z), (house.x + depth, house.height, z)]
            self._polygon([*front, (house.x, house.height, z)], _shade(house.wall, 0.8))
        top = house.height
        self._polygon([(house.x, 0, near), (house.x, 0, far), (house.x, top, far), (house.x, top, near)], house.wall)
        step_z, step_y = house.length / house.columns, house.height / house.floors
        for column in range(house.columns):
            start, end = z + (column + 0.25) * step_z, z + (column + 0.75) * step_z
            if start <= _NEAR:
                continue
            for floor in range(house.floors):
                low, high = (floor + 0.3) * step_y, (floor + 0.75) * step_y
                pane = [(house.x, low, start), (house.x, low, end), (house.x, high, end), (house.x, high, start)]
                self._polygon(pane, _shade(house.wall, 0.5))

    def _draw_tree(self, tree: _Tree, z: float) -> None:
        half = 0.03 * tree.height
        top = 0.7 * tree.height
        left, right = tree.x - half, tree.x + half
        self._polygon([(left, 0, z), (right, 0, z), (right, top, z), (left, top, z)], (60, 78, 96))
        for shade, (x, y, radius) in enumerate(tree.leaves):
            center = np.round(np.array(self._at((tree.x + x * tree.height, y * tree.height, z))) * 16).astype(int)
            size = round(radius * tree.height * self._focal / z * 16)
            color = _hazy(_shade(tree.green, 0.85 + 0.05 * shade), z)
            cv2.circle(self._image, (int(center[0]), int(center[1])), size, color, -1, cv2.LINE_AA, _SUBPIXEL_BITS)

    def _draw_sign(self, sign: _Sign, z: float) -> tuple[float, float, float, float] | None:
        """Returns its box if any of it is in the frame."""
        self._polygon(
            [
                (sign.x - 0.04, 0, z),
                (sign.x + 0.04, 0, z),
                (sign.x + 0.04, sign.height, z),
                (sign.x - 0.04, sign.height, z),
            ],
            (120, 120, 122),
        )
        tile = sign.tile
        scale = _SIGN_METRES * self._focal / z / _TILE
        side = max(3, round(tile.alpha.shape[0] * scale))
        scale = side / tile.alpha.shape[0]
        x, y = self._at((sign.x, sign.height, z))
        left, top = round(x - side / 2), round(y - side / 2)
        box = tuple(value * scale + edge for value, edge in zip(tile.box_xyxy, (left, top, left, top), strict=True))
        if box[2] <= 0 or box[0] >= self._width or box[3] <= 0 or box[1] >= self._height:
            return None
        alpha = cv2.resize(tile.alpha, (side, side), interpolation=cv2.INTER_AREA)[..., None]
        color = cv2.resize(tile.color_bgr, (side, side), interpolation=cv2.INTER_AREA)
        rows, columns = _overlap(top, side, self._height), _overlap(left, side, self._width)
        inside = slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)
        window = self._image[rows, columns]
        haze = _haziness(z)
        face = color[inside] * (1 - haze) + np.array(_HAZE, np.float32) * alpha[inside] * haze
        window[:] = (window * (1 - alpha[inside]) + face).astype(np.uint8)
        return box[0], box[1], box[2], box[3]


def _overlap(start: int, length: int, end: int) -> slice:
    return slice(min(max(0, start), end), min(max(0, start + length), end))


def _haziness(z: float) -> float:
    return 1 - math.exp(-z / 110)


def _hazy(color: Color, z: float) -> Color:
    haze = _haziness(z)
    blue, green, red = (round(own * (1 - haze) + far * haze) for own, far in zip(color, _HAZE, strict=True))
    return blue, green, red


def _shade(color: Color, factor: float) -> Color:
    blue, green, red = (min(255, round(value * factor)) for value in color)
    return blue, green, red
