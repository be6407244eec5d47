"""The bridge to supervision, which draws, counts and tracks: our detections as its own.

Importing it takes half a second to a whole one, whichever part is wanted (its package imports them all, and scipy), so
that it is imported inside the functions that need it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trt_qat.vision.detections import Detections

if TYPE_CHECKING:
    import supervision as sv

_FARTHEST = 1 << 20  # pixels; OpenCV draws with 32-bit coordinates


def as_supervision(detections: Detections) -> sv.Detections:
    """The same detections, but that NaN is 0 and what lies endlessly far comes nearer.

    ``data["index"]`` is each one's place in ``detections``: what supervision gives back may be in another order.
    """
    import supervision as sv

    return sv.Detections(
        xyxy=np.nan_to_num(detections.boxes_xyxy).clip(-_FARTHEST, _FARTHEST),
        confidence=detections.scores,
        class_id=detections.class_ids,
        tracker_id=detections.track_ids,
        data={"index": np.arange(len(detections))},
    )
