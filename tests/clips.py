"""Small videos whose frames carry their number, so that each one can be told from its pixels after any codec."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

BITS = 16
_CLOCK = 90_000  # ticks per second


def numbered(number: int, width: int = 128, height: int = 64) -> NDArray[np.uint8]:
    """A picture, uint8 BGR, that says ``number`` in a row of white and black blocks, and its negative below."""
    bits = [number >> bit & 1 for bit in range(BITS)]
    columns = np.minimum(np.arange(width) * BITS // width, BITS - 1)
    row = np.asarray(bits, np.uint8)[columns] * 255
    half = height // 2
    grey = np.vstack([np.tile(row, (half, 1)), np.tile(255 - row, (height - half, 1))])
    return np.repeat(grey[:, :, None], 3, axis=2)


def number_in(image_bgr: NDArray[np.uint8]) -> int | None:
    """The number that a picture says; None if it is damaged: a block without contrast to the one below it."""
    height, width = image_bgr.shape[:2]
    grey = image_bgr.mean(axis=2)
    number = 0
    for bit in range(BITS):
        left, right = bit * width // BITS, (bit + 1) * width // BITS
        inner = slice(left + (right - left) // 4, right - (right - left) // 4)
        upper = grey[height // 8 : height // 2 - height // 8, inner].mean()
        lower = grey[height // 2 + height // 8 : height - height // 8, inner].mean()
        if abs(upper - lower) < 100:
            return None
        number |= int(upper > lower) << bit
    return number


def write_clip(
    target: Any,
    frames: int | Iterable[NDArray[np.uint8]] = 10,
    *,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    fps: float = 25,
    seconds: Sequence[float] | None = None,
    size_wh: tuple[int, int] = (128, 64),
    container: str | None = None,
    keyframes: int = 5,
    options: dict[str, str] | None = None,
    **context: Any,
) -> Any:
    """Encode numbered frames, or given ones.

    Args:
        target: a path or an object with ``write``.
        frames: how many numbered ones, or BGR arrays.
        seconds: the time of each; None is a constant rate.
        context: attributes of the encoder.

    Returns:
        The target.
    """
    pictures = [numbered(number, *size_wh) for number in range(frames)] if isinstance(frames, int) else list(frames)
    rate = Fraction(fps).limit_denominator(1001)
    with av.open(str(target) if isinstance(target, Path) else target, "w", format=container) as out:
        stream: Any = out.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size_wh, pixels
        stream.gop_size = keyframes
        stream.options = options or {}
        tick = 1 / rate if seconds is None else Fraction(1, _CLOCK)
        stream.codec_context.time_base = tick
        for name, value in context.items():
            setattr(stream.codec_context, name, value)
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="bgr24").reformat(format=pixels)
            frame.time_base = tick
            frame.pts = number if seconds is None else round(seconds[number] * _CLOCK)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return target


def turned(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Write another display matrix (a, b, c, d) into an MP4 file's track header (ISO 14496-12, 8.3.2)."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 4 + 20 + 8 + 8
    a, b, c, d = (value << 16 for value in matrix)
    content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path
