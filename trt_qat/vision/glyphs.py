"""Text as pixels, in a font that has Vietnamese, Cyrillic and Greek letters: OpenCV's own fonts are ASCII only.

supervision's RichLabelAnnotator draws such text too, but takes the whole picture to Pillow and back, 2.3 core
milliseconds for 640x360. Here words are rendered once, alone, and kept.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FONT = Path("fonts", "ttf", "DejaVuSans.ttf")


@lru_cache(maxsize=4096)
def text_mask(text: str, size: int) -> NDArray[np.uint8]:
    """How much of each pixel the text covers, 0 to 255, shape (h, w); h depends on the size alone. Do not write to it.

    Args:
        text: what cannot be printed of it, e.g. a line feed, is drawn as "?".
        size: of the font in pixels.
    """
    from PIL import Image, ImageDraw

    text = "".join(character if character.isprintable() else "?" for character in text)
    font = _font(size)
    ascent, descent = font.getmetrics()
    canvas = Image.new("L", (max(1, round(font.getlength(text))), ascent + descent), 0)
    ImageDraw.Draw(canvas).text((0, 0), text, fill=255, font=font)
    mask = np.asarray(canvas, dtype=np.uint8)
    mask.setflags(write=False)
    return mask


@lru_cache(maxsize=16)
def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.truetype(str(_font_file()), size)


def _font_file() -> Path:
    """supervision brings matplotlib, and that brings this font."""
    spec = find_spec("matplotlib")
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).parent / "mpl-data" / _FONT
        if path.is_file():  # importing matplotlib only to ask it takes 0.15 s
            return path
    import matplotlib

    return Path(matplotlib.get_data_path()) / _FONT  # a Linux distribution's own package keeps it elsewhere
