"""Which boxes of successive frames are the same object: ByteTrack, by the package ``trackers``, one per source.

ByteTrack lets a weak box continue a track but not begin one: an object half hidden scores low. So the detector should
be asked for weaker boxes than the user wants to see (:func:`detector_conf`); those that continue no track are removed
here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from trt_qat.errors import MissingDependency
from trt_qat.extras import install_hint
from trt_qat.runtime.frames import Frame
from trt_qat.vision.detections import Detections
from trt_qat.vision.supervised import as_supervision

if TYPE_CHECKING:
    from trackers import ByteTrackTracker

_LOWEST_CONF = 0.1  # as in the paper, https://arxiv.org/abs/2110.06864
_USUAL_FPS = 25.0
_GAP_SECONDS = 1.0  # as long as ByteTrack remembers what it does not see
_GAP_FRAMES = 3


def detector_conf(conf: float) -> float:
    """The threshold to give the detector where the user wants tracked boxes from ``conf`` on."""
    return min(conf, _LOWEST_CONF)


class Tracker:
    """Gives the detections of successive frames their track ids. Not for two threads at a time.

    Args:
        conf: score from which a box is a detection of its own and begins a track; give the detector
            :func:`detector_conf` of it.
        fps: frames per second that come here, by source, ``--every`` taken into account; 25 where there is none.

    Raises:
        MissingDependency: the package is not installed.
    """

    def __init__(self, conf: float, fps: Mapping[str, float | None] | None = None) -> None:
        try:
            import trackers  # noqa: F401
        except ModuleNotFoundError as exc:
            raise MissingDependency(f"Tracking needs the package 'trackers': {install_hint('trackers')}.") from exc
        self._conf = conf
        self._fps = fps or {}
        self._by_source: dict[str, _OneSource] = {}

    def update(self, frame: Frame, detections: Detections) -> Detections:
        """The detections of the source's next frame with track ids from 1, -1 where it is not yet clear.

        A new object gets its id on its second frame. Boxes below ``conf`` that continue no track are left out. Where
        the time of a source jumps by a second or backwards, all its tracks end; no id is given twice.
        """
        if frame.source not in self._by_source:
            self._by_source[frame.source] = _OneSource(self._conf, self._fps.get(frame.source) or _USUAL_FPS)
        return self._by_source[frame.source].update(frame, detections)


class _OneSource:
    def __init__(self, conf: float, fps: float) -> None:
        self._conf = conf
        self._gap = max(_GAP_SECONDS, _GAP_FRAMES / fps)
        self._fps = fps
        self._seconds: float | None = None
        self._size: tuple[int, ...] = ()
        self._first_id, self._next_id = 1, 1
        self._byte_track = self._new()

    def _new(self) -> ByteTrackTracker:
        from trackers import ByteTrackTracker

        # the package's own thresholds of 0.6 and 0.7 are for detectors that are surer of themselves than an 8n is
        return ByteTrackTracker(
            frame_rate=self._fps, high_conf_det_threshold=self._conf, track_activation_threshold=self._conf
        )

    def update(self, frame: Frame, detections: Detections) -> Detections:
        if self._is_gap(frame):
            self._byte_track = self._new()
            self._first_id = self._next_id
        self._seconds, self._size = frame.seconds, frame.image_bgr.shape
        found = as_supervision(detections)
        found.tracker_id = None
        tracked = self._byte_track.update(found, timestamp=frame.seconds)
        ids = np.full(len(detections), -1, np.int64)
        if len(tracked) and tracked.tracker_id is not None:
            given = np.asarray(tracked.tracker_id, np.int64)
            ids[tracked.data["index"]] = np.where(given >= 0, given + self._first_id, -1)
            self._next_id = max(self._next_id, int(ids.max()) + 1)
        kept = (ids >= 0) | (detections.scores >= self._conf)
        return Detections(detections.boxes_xyxy[kept], detections.scores[kept], detections.class_ids[kept], ids[kept])

    def _is_gap(self, frame: Frame) -> bool:
        if self._size and self._size != frame.image_bgr.shape:
            return True
        if self._seconds is None or frame.seconds is None or not math.isfinite(frame.seconds):
            return False
        return not 0 <= frame.seconds - self._seconds <= self._gap
