"""A procedural street without traffic signs: sky, houses, trees, a road, cars, and shapes that resemble signs.

Everything is drawn at twice the image size and shrunk, which is the anti-aliasing.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Color = tuple[int, int, int]
Pole = tuple[float, float, float]

_SUPERSAMPLING = 2
_SKIES = (  # top and horizon, BGR
    ((225, 165, 95), (240, 220, 195)),  # clear
    ((205, 200, 195), (225, 224, 222)),  # overcast
    ((150, 105, 85), (120, 170, 235)),  # dusk
    ((140, 135, 130), (180, 180, 178)),  # rain
)
_WALLS = ((150, 190, 215), (175, 205, 205), (120, 140, 190), (185, 185, 180), (150, 175, 140), (95, 115, 150))
_PAINTS = ((40, 40, 190), (170, 90, 30), (230, 230, 228), (40, 40, 42), (60, 160, 200), (110, 120, 60))
_SIGN_PAINTS = ((36, 28, 200), (168, 74, 12), (20, 200, 250), (245, 245, 245), (70, 140, 40))


def draw_street(rng: np.random.Generator, size_wh: tuple[int, int], poles: Sequence[Pole]) -> NDArray[np.uint8]:
    """Paint a street.

    Args:
        rng: source of the variation.
        size_wh: image size in pixels.
        poles: x, top y and width in image pixels of the poles that will carry signs.

    Returns:
        uint8 BGR, shape (h, w, 3).
    """
    width, height = size_wh[0] * _SUPERSAMPLING, size_wh[1] * _SUPERSAMPLING
    horizon = int(height * rng.uniform(0.42, 0.62))
    image = _sky(rng, width, height, horizon)
    _houses(rng, image, horizon)
    _trees(rng, image, horizon)
    _ground(rng, image, horizon)
    vanishing = int(width * rng.uniform(0.3, 0.7))
    _road(rng, image, horizon, vanishing)
    _cars(rng, image, horizon, vanishing)
    _sign_lookalikes(rng, image, horizon)
    for x, top, thickness in poles:
        shade = int(rng.integers(90, 190))
        foot = int(rng.uniform(horizon + (height - horizon) * 0.15, height * 1.02))
        left, right = round((x - thickness / 2) * _SUPERSAMPLING), round((x + thickness / 2) * _SUPERSAMPLING)
        start = round(top * _SUPERSAMPLING)
        if foot > start:
            _box(image, left, start, max(left + 1, right), foot, (shade, shade, shade))
    return np.asarray(cv2.resize(image, size_wh, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _jitter(rng: np.random.Generator, color: Color, amount: int = 18) -> Color:
    blue, green, red = (int(v) for v in np.clip(np.array(color) + rng.integers(-amount, amount + 1, 3), 0, 255))
    return blue, green, red


def _pick(rng: np.random.Generator, colors: Sequence[Color]) -> Color:
    return _jitter(rng, colors[int(rng.integers(len(colors)))])


def _box(image: NDArray[np.uint8], left: int, top: int, right: int, bottom: int, color: Color) -> None:
    image[max(0, top) : max(0, bottom), max(0, left) : max(0, right)] = color


def _sky(rng: np.random.Generator, width: int, height: int, horizon: int) -> NDArray[np.uint8]:
    top, low = _SKIES[int(rng.integers(len(_SKIES)))]
    ramp = np.minimum(np.arange(height, dtype=np.float32) / horizon, 1.0)[:, None]
    column = np.array(_jitter(rng, top), np.float32) * (1 - ramp) + np.array(_jitter(rng, low), np.float32) * ramp
    image = np.repeat(column.astype(np.uint8)[:, None], width, axis=1)
    for _ in range(int(rng.integers(0, 4))):
        center = int(rng.integers(width)), int(rng.integers(1, max(2, horizon)))
        axes = int(rng.integers(40, 130) * width / 640), int(rng.integers(8, 26) * height / 640)
        cloud = tuple(int(v) for v in np.minimum(image[min(center[1], height - 1), 0] + rng.uniform(8, 30), 255))
        cv2.ellipse(image, center, axes, 0, 0, 360, cloud, -1)
    return np.ascontiguousarray(image)


def _houses(rng: np.random.Generator, image: NDArray[np.uint8], horizon: int) -> None:
    height, width = image.shape[:2]
    x = -int(rng.integers(0, 40))
    while x < width:
        wide = int(rng.uniform(0.08, 0.24) * width)
        if rng.random() < 0.8:
            top = int(horizon - rng.uniform(0.08, 0.95) * horizon * 0.9)
            wall = _pick(rng, _WALLS)
            _box(image, x, top, x + wide, horizon + int(height * 0.03), wall)
            roof = tuple(int(v * 0.6) for v in wall)
            _box(image, x, top, x + wide, top + max(2, height // 110), (roof[0], roof[1], roof[2]))
            _windows(rng, image, (x, top, x + wide, horizon), wall)
            if rng.random() < 0.35:  # shop board
                board = horizon - int(rng.uniform(0.05, 0.1) * height)
                _box(image, x + 4, board, x + wide - 4, board + height // 36, _pick(rng, _SIGN_PAINTS))
        x += wide + int(rng.integers(0, 12))


def _windows(rng: np.random.Generator, image: NDArray[np.uint8], box: tuple[int, int, int, int], wall: Color) -> None:
    left, top, right, bottom = box
    columns = int(rng.integers(2, 5))
    step_x, step_y = (right - left) // columns, int(rng.uniform(0.05, 0.09) * image.shape[0])
    lit = _jitter(rng, (190, 215, 225)) if rng.random() < 0.3 else None
    dark = _jitter(rng, (80, 72, 64))
    frame = tuple(min(255, int(v * 1.15)) for v in wall)
    for y in range(top + step_y // 2, bottom - step_y, step_y):
        for column in range(columns):
            x = left + column * step_x + step_x // 4
            x_end, y_end = x + step_x // 2, y + step_y * 6 // 10
            _box(image, x - 2, y - 2, x_end + 2, y_end + 2, (frame[0], frame[1], frame[2]))
            _box(image, x, y, x_end, y_end, lit if lit and rng.random() < 0.5 else dark)


def _trees(rng: np.random.Generator, image: NDArray[np.uint8], horizon: int) -> None:
    height, width = image.shape[:2]
    for _ in range(int(rng.integers(0, 6))):
        x, radius = int(rng.integers(width)), int(rng.uniform(0.03, 0.11) * height)
        crown = horizon - int(rng.uniform(0.8, 2.2) * radius)
        _box(image, x - radius // 9, crown, x + radius // 9 + 2, horizon + height // 40, _jitter(rng, (50, 70, 90)))
        for _ in range(int(rng.integers(5, 10))):
            offset = rng.normal(0, 0.5, 2) * radius
            center = int(x + offset[0]), int(crown + offset[1] * 0.8)
            green = _jitter(rng, (50, int(rng.integers(85, 150)), 60), 14)
            cv2.circle(image, center, int(radius * rng.uniform(0.35, 0.7)), green, -1)


def _ground(rng: np.random.Generator, image: NDArray[np.uint8], horizon: int) -> None:
    height = image.shape[0]
    base = ((120, 135, 140), (75, 125, 95), (110, 130, 155))[int(rng.integers(3))]
    ramp = np.linspace(1.1, 0.8, height - horizon, dtype=np.float32)[:, None, None]
    ground = np.clip(np.array(_jitter(rng, base), dtype=np.float32) * ramp, 0, 255)
    image[horizon:] = ground.astype(np.uint8)


def _road(rng: np.random.Generator, image: NDArray[np.uint8], horizon: int, vanishing: int) -> None:
    height, width = image.shape[:2]
    shade = int(rng.integers(60, 125))
    left, right = int(width * rng.uniform(-0.35, 0.15)), int(width * rng.uniform(0.85, 1.35))
    near = width // 60

    def at(foot: float, depth: float) -> tuple[int, int]:  # depth 0 at the image bottom, 1 at the horizon
        return round(foot + (vanishing - foot) * depth), round(height + (horizon - height) * depth)

    outline = np.array([at(left, 0), at(right, 0), (vanishing + near, horizon), (vanishing - near, horizon)], np.int32)
    cv2.fillPoly(image, [outline], _jitter(rng, (shade, shade, shade), 5))
    curb = int(min(255, shade + 70))
    for foot in (left, right):
        edge = np.array([at(foot, 0), at(foot + width * 0.03, 0), at(foot, 0.97)], np.int32)
        cv2.fillPoly(image, [edge], (curb, curb, curb))
    paint = (215, 220, 220) if rng.random() < 0.6 else (70, 185, 220)
    lanes, depth_step = int(rng.integers(2, 5)), 0.14
    for lane in range(1, lanes):
        middle = left + (right - left) * lane / lanes
        solid = rng.random() < 0.25
        for depth in np.arange(rng.uniform(0, depth_step), 0.95, depth_step):
            end = depth + depth_step * (1.0 if solid else 0.5)
            half = width * 0.009
            corners = [
                at(middle - half, depth),
                at(middle + half, depth),
                at(middle + half, end),
                at(middle - half, end),
            ]
            cv2.fillPoly(image, [np.array(corners, np.int32)], paint)


def _cars(rng: np.random.Generator, image: NDArray[np.uint8], horizon: int, vanishing: int) -> None:
    height, width = image.shape[:2]
    depths = np.sort(rng.uniform(0.15, 0.9, int(rng.integers(0, 4))))[::-1]
    for depth in depths:
        ground = int(height + (horizon - height) * depth)
        side = max(10, int(width * 0.3 * (1 - depth)))
        x = int(vanishing + (rng.uniform(-0.1, 1.1) * width - vanishing) * (1 - depth) - side / 2)
        tall, paint = int(side * rng.uniform(0.55, 0.8)), _pick(rng, _PAINTS)
        roof, middle = ground - tall, ground - tall // 2
        cv2.ellipse(image, (x + side // 2, ground), (side * 6 // 10, side // 14 + 1), 0, 0, 360, (45, 45, 45), -1)
        for wheel in (x + side // 8, x + side - side // 8):
            _box(image, wheel - side // 10, middle, wheel + side // 10, ground, (25, 25, 25))
        cabin = [(x + side // 8, middle), (x + side // 5, roof), (x + side * 4 // 5, roof), (x + side * 7 // 8, middle)]
        cv2.fillPoly(image, [np.array(cabin, np.int32)], paint)
        _box(image, x, middle - side // 40, x + side, ground - side // 12, paint)
        _box(image, x + side // 4, roof + side // 16, x + side * 3 // 4, middle - side // 20, (95, 85, 75))
        lamp = (60, 60, 215) if rng.random() < 0.7 else (225, 245, 250)
        for left in (x + side // 20, x + side - side // 5):
            _box(image, left, middle + side // 20, left + side // 7, middle + side // 7, lamp)
        _box(image, x + side * 2 // 5, ground - side // 4, x + side * 3 // 5, ground - side // 6, (225, 225, 225))


def _sign_lookalikes(rng: np.random.Generator, image: NDArray[np.uint8], horizon: int) -> None:
    """Plain discs, boards, backs of signs and lamps: the colours and outlines of signs, not their faces."""
    width = image.shape[1]
    for _ in range(int(rng.integers(0, 5))):
        x, y = int(rng.integers(width)), int(rng.uniform(0.1, 0.95) * horizon)
        radius, kind = int(rng.uniform(0.012, 0.055) * width), int(rng.integers(4))
        color = _pick(rng, _SIGN_PAINTS)
        if kind == 0:  # plain disc, or the grey back of a sign
            cv2.circle(image, (x, y), radius, color if rng.random() < 0.6 else (150, 150, 150), -1)
        elif kind == 1:  # advertising board with lines of writing
            tall = int(radius * rng.uniform(0.6, 1.6))
            _box(image, x - radius, y - tall, x + radius, y + tall, color)
            for row in range(y - tall // 2, y + tall // 2, max(4, tall // 2)):
                _box(image, x - radius * 3 // 4, row, x + radius // 2, row + max(2, tall // 8), (235, 235, 235))
        elif kind == 2:  # traffic light
            _box(image, x - radius // 2, y - radius, x + radius // 2, y + radius, (35, 35, 35))
            for offset, lamp in zip((-0.6, 0.0, 0.6), ((50, 50, 220), (40, 190, 240), (90, 200, 60)), strict=True):
                on = lamp if rng.random() < 0.5 else (60, 60, 60)
                cv2.circle(image, (x, int(y + offset * radius)), max(1, radius // 4), on, -1)
        else:  # plain triangle
            corners = [(x, y - radius), (x + radius, y + radius * 7 // 10), (x - radius, y + radius * 7 // 10)]
            cv2.fillPoly(image, [np.array(corners, np.int32)], color)
