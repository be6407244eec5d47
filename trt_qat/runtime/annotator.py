"""The stage behind the network: objects are tracked and counted in the order of the frames, then drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trt_qat.runtime.counting import Counter
from trt_qat.runtime.frames import Frame, Result
from trt_qat.runtime.tracking import Tracker
from trt_qat.vision.detections import Detections
from trt_qat.vision.draw import Painter
from trt_qat.vision.regions import Region


class Annotator:
    """Detections to results. Called by one thread, with the frames of each source in order.

    Args:
        names: class id to name.
        draw: whether anybody wants the pictures.
        tracker: gives objects their ids; None for none.
        regions: lines and zones to count at; lines need a tracker.
    """

    def __init__(
        self, names: Mapping[int, str], draw: bool, tracker: Tracker | None = None, regions: Sequence[Region] = ()
    ) -> None:
        self._painter = Painter(names, regions) if draw else None
        self._tracker = tracker
        self._counter = Counter(regions) if regions else None

    def __call__(self, group: Sequence[tuple[Frame, Detections]]) -> list[Result]:
        """The results of a group, in its order.

        Raises:
            ConfigError: a line or a zone lies outside of the frame.
        """
        return [self._result(frame, detections) for frame, detections in group]

    def _result(self, frame: Frame, detections: Detections) -> Result:
        if self._tracker is not None:
            detections = self._tracker.update(frame, detections)
        counts = self._counter.update(frame, detections) if self._counter is not None else {}
        if self._painter is None:
            return Result(frame, detections, counts)
        picture = self._painter.draw(frame.image_bgr, detections, counts, frame.source)
        return Result(frame, detections, counts, picture)
