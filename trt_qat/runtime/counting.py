"""How many objects have crossed a line, and how many are inside of a zone, by supervision.

What counts is the centre of a box. Looking along a line from its first point to its second, "in" is a crossing from
right to left, and "out" one from left to right. An object counts once it was seen beyond the line on two frames, so
that a box that trembles on the line does not count at every tremble.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from trt_qat.errors import ConfigError
from trt_qat.runtime.frames import Frame
from trt_qat.vision.detections import Detections
from trt_qat.vision.regions import Region
from trt_qat.vision.supervised import as_supervision

if TYPE_CHECKING:
    import supervision as sv

_FRAMES_BEYOND = 2


@dataclass
class _Line:
    """A line in frames of one size; what was counted at another size of the source is kept."""

    zone: sv.LineZone
    by_class: dict[int, dict[str, int]] = field(default_factory=dict)

    def update(self, found: sv.Detections) -> dict[str, int]:
        for direction, crossed in zip(("in", "out"), self.zone.trigger(found), strict=True):
            for class_id in cast("NDArray[np.int64]", found.class_id)[crossed].tolist():
                self.by_class.setdefault(class_id, {"in": 0, "out": 0})[direction] += 1
        return {key: sum(counts[key] for counts in self.by_class.values()) for key in ("in", "out")}


@dataclass
class _OneSource:
    size_wh: tuple[int, int] = (0, 0)
    lines: dict[str, _Line] = field(default_factory=dict)
    zones: dict[str, sv.PolygonZone] = field(default_factory=dict)


class Counter:
    """Counts at lines and in zones, for each source by itself. Not for two threads at a time.

    Args:
        regions: see :func:`trt_qat.vision.regions.parse_regions`.
    """

    def __init__(self, regions: Sequence[Region]) -> None:
        self._regions = tuple(regions)
        self._by_source: dict[str, _OneSource] = {}

    @property
    def needs_tracks(self) -> bool:
        """Whether there is a line: who crosses it must be known again."""
        return any(not region.is_zone for region in self._regions)

    def update(self, frame: Frame, detections: Detections) -> dict[str, dict[str, int]]:
        """What :attr:`trt_qat.runtime.frames.Result.counts` is after this frame.

        Raises:
            ConfigError: a line or a zone lies outside of the frame, or there is a line and nothing is tracked.
        """
        state = self._state(frame)
        everything = as_supervision(detections)
        counts: dict[str, dict[str, int]] = {}
        for region in self._regions:
            if region.is_zone:
                counts[region.name] = {"inside": int(np.sum(state.zones[region.name].trigger(everything)))}
                continue
            if detections.track_ids is None:
                raise ConfigError("A line counts tracked objects only. Add --track.")
            tracked = cast("sv.Detections", everything[detections.track_ids >= 0])
            counts[region.name] = state.lines[region.name].update(tracked)
        return counts

    def per_class(self, source: str) -> dict[str, Mapping[int, Mapping[str, int]]]:
        """By line: class id to {"in": n, "out": n}, so far."""
        state = self._by_source.get(source, _OneSource())
        return {name: dict(line.by_class) for name, line in state.lines.items()}

    def _state(self, frame: Frame) -> _OneSource:
        """What is known of the frame's source; made anew in pixels where the size of its frames changes."""
        state = self._by_source.setdefault(frame.source, _OneSource())
        size_wh = frame.image_bgr.shape[1], frame.image_bgr.shape[0]
        if state.size_wh != size_wh:
            for region in self._regions:
                self._place(state, region, region.pixels(size_wh))
            state.size_wh = size_wh
        return state

    def _place(self, state: _OneSource, region: Region, points_xy: NDArray[np.float64]) -> None:
        import supervision as sv

        if region.is_zone:
            polygon = points_xy.round().astype(np.int64)
            state.zones[region.name] = sv.PolygonZone(polygon, triggering_anchors=(sv.Position.CENTER,))
            return
        start, end = (sv.Point(float(x), float(y)) for x, y in points_xy)
        zone = sv.LineZone(
            start, end, triggering_anchors=(sv.Position.CENTER,), minimum_crossing_threshold=_FRAMES_BEYOND
        )
        known = state.lines.get(region.name)
        state.lines[region.name] = _Line(zone, known.by_class if known else {})
