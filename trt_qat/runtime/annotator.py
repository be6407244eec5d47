"""The stage behind the network: objects are tracked and counted in the order of the frames, then drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trt_qat.runtime.frames import Frame, Result
from trt_qat.vision.detections import Detections
from trt_qat.vision.draw import annotate


class Annotator:
    """Detections to results. Called by one thread, with the frames of each source in order.

    Args:
        names: class id to name.
        draw: whether anybody wants the pictures.
    """

    def __init__(self, names: Mapping[int, str], draw: bool) -> None:
        self._names = names
        self._draw = draw

    def __call__(self, group: Sequence[tuple[Frame, Detections]]) -> list[Result]:
        """The results of a group, in its order."""
        return [self._result(frame, detections) for frame, detections in group]

    def _result(self, frame: Frame, detections: Detections) -> Result:
        picture = annotate(frame.image_bgr, detections, self._names) if self._draw else None
        return Result(frame, detections, annotated_bgr=picture)
