"""Draw detections on an image: boxes, names, the ways of tracked objects, and lines and zones with their counts."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from trt_qat.vision.detections import Detections
from trt_qat.vision.glyphs import text_mask
from trt_qat.vision.regions import Region
from trt_qat.vision.supervised import as_supervision

if TYPE_CHECKING:
    import supervision as sv

Color = tuple[int, int, int]

_COLORS = 256
_REGION_COLOR, _REGION_LABEL_COLOR = (0, 215, 255), (40, 40, 40)  # BGR
_BRIGHTEST = 0.42  # luminance (BT.601) behind white text
_PADDING = 2  # pixels around a label's text
_LONGEST_LABEL = 200  # characters
_NO_COUNTS: Mapping[str, Mapping[str, int]] = {}


def annotate(image_bgr: NDArray[np.uint8], detections: Detections, names: Mapping[int, str]) -> NDArray[np.uint8]:
    """A copy of one image with boxes, class names and scores. For frame after frame, keep one :class:`Painter`.

    Args:
        image_bgr: uint8, shape (h, w, 3).
        detections: in pixels of that image.
        names: class id to name; an unknown id is drawn as its number.
    """
    return Painter(names).draw(image_bgr, detections)


@dataclass(frozen=True)
class _Pens:
    """What draws on images of one size."""

    boxes: sv.BoxAnnotator
    thickness: int
    font_size: int


class Painter:
    """Draws the frames of one or more sources. Not for two threads at a time.

    A class has a colour, a tracked object its own.

    Args:
        names: class id to name; an unknown id is drawn as its number.
        regions: lines and zones to draw with their counts.
    """

    def __init__(self, names: Mapping[int, str], regions: Sequence[Region] = ()) -> None:
        self._names = names
        self._regions = regions
        self._pens: dict[int, _Pens] = {}  # by the shorter side of the image
        self._traces: dict[str, sv.TraceAnnotator] = {}  # by source

    def draw(
        self,
        image_bgr: NDArray[np.uint8],
        detections: Detections,
        counts: Mapping[str, Mapping[str, int]] = _NO_COUNTS,
        source: str = "",
    ) -> NDArray[np.uint8]:
        """A copy of the image with everything on it.

        Args:
            image_bgr: uint8, shape (h, w, 3).
            detections: in pixels of that image; where they are tracked, their ways are drawn.
            counts: by the name of the line or zone.
            source: where the image comes from; each has its own tracked objects.

        Raises:
            ConfigError: a line or a zone lies outside of the image.
        """
        canvas: NDArray[np.uint8] = image_bgr.copy()
        pens = self._pens_for(canvas)
        for region in self._regions:
            _draw_region(canvas, region, counts.get(region.name, {}), pens)
        if not len(detections):
            return canvas
        found = as_supervision(detections)
        found.xyxy = found.xyxy.round()
        colors = self._color_indices(detections)
        found.class_id = colors  # supervision chooses a colour by it; its own argument for that fails before 0.27
        if detections.track_ids is not None:
            tracked = detections.track_ids >= 0
            # the width of the lines is that of the first image; a source seldom changes its size
            trace = self._traces.setdefault(source, _trace_annotator(pens.thickness))
            trace.annotate(canvas, cast("sv.Detections", found[tracked]))
        pens.boxes.annotate(canvas, found)
        for place, (left, top, *_) in enumerate(found.xyxy.astype(int).tolist()):
            _draw_label(canvas, self._label(detections, place), (left, top), _color(int(colors[place])), pens.font_size)
        return canvas

    def _pens_for(self, image_bgr: NDArray[np.uint8]) -> _Pens:
        import supervision as sv

        shorter = min(image_bgr.shape[:2])
        if shorter not in self._pens:
            thickness = max(1, round(shorter / 320))
            boxes = sv.BoxAnnotator(_palette(), thickness)
            self._pens = {shorter: _Pens(boxes, thickness, max(12, round(shorter / 30)))}
        return self._pens[shorter]

    def _color_indices(self, detections: Detections) -> NDArray[np.int_]:
        ids = detections.class_ids
        if detections.track_ids is not None:
            ids = np.where(detections.track_ids >= 0, detections.track_ids, ids)
        return (ids % _COLORS).astype(int)

    def _label(self, detections: Detections, place: int) -> tuple[str, ...]:
        """Its words, each of which comes back: a name, a score of two digits, a track."""
        class_id = int(detections.class_ids[place])
        name = self._names.get(class_id, str(class_id))[:_LONGEST_LABEL]
        words = (name, f" {detections.scores[place]:.2f}")
        if detections.track_ids is None or detections.track_ids[place] < 0:
            return words
        return (f"#{detections.track_ids[place]} ", *words)


def _draw_region(canvas: NDArray[np.uint8], region: Region, counts: Mapping[str, int], pens: _Pens) -> None:
    import supervision as sv

    points = region.pixels((canvas.shape[1], canvas.shape[0])).round().astype(int)
    color = sv.Color.from_bgr_tuple(_REGION_COLOR)
    if region.is_zone:
        sv.draw_polygon(canvas, points, color, pens.thickness + 1)
    else:
        start, end = (sv.Point(int(x), int(y)) for x, y in points)
        sv.draw_line(canvas, start, end, color, pens.thickness + 1)
    text = "  ".join([region.name, *(f"{key} {count}" for key, count in counts.items())])[:_LONGEST_LABEL]
    left, top = points[points[:, 1].argmin()].tolist()
    _draw_label(canvas, (text,), (left, top), _REGION_LABEL_COLOR, pens.font_size)


def _draw_label(
    canvas: NDArray[np.uint8], words: Sequence[str], corner: tuple[int, int], color: Color, font_size: int
) -> None:
    """White text on colour: above the corner where there is room, else below; never off an edge it has room within."""
    text = np.hstack([text_mask(word, font_size) for word in words])
    height, width = text.shape[0], text.shape[1] + 2 * _PADDING
    top = corner[1] - height if corner[1] >= height else corner[1]
    top = max(0, min(top, canvas.shape[0] - height))
    left = max(0, min(corner[0], canvas.shape[1] - width))
    window = canvas[top : top + height, left : left + width]
    window[:] = color
    inside = window[:, _PADDING : _PADDING + text.shape[1]]
    cover = text[: inside.shape[0], : inside.shape[1], None].astype(np.uint16)
    inside[:] = (inside * (255 - cover) + cover * 255) // 255


@lru_cache(maxsize=_COLORS)
def _color(index: int) -> Color:
    # the golden ratio spreads neighbouring ids over the hue circle; none is so bright that white text fades on it
    red, green, blue = colorsys.hsv_to_rgb((index * 0.618034) % 1.0, 0.85, 0.75)
    scale = 255 * min(1.0, _BRIGHTEST / (0.299 * red + 0.587 * green + 0.114 * blue))
    return int(blue * scale), int(green * scale), int(red * scale)


@lru_cache(maxsize=1)
def _palette() -> sv.ColorPalette:
    import supervision as sv

    return sv.ColorPalette([sv.Color.from_bgr_tuple(_color(index)) for index in range(_COLORS)])


def _trace_annotator(thickness: int) -> sv.TraceAnnotator:
    import supervision as sv

    return sv.TraceAnnotator(_palette(), trace_length=30, thickness=thickness)
