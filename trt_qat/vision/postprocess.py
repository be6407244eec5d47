"""A detector's output to detections: threshold, class-wise NMS (OpenCV's). ONE way for deployment and for mAP.

The output of an end-to-end head (YOLOv10, YOLO26) names each object once: nothing is suppressed there.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from trt_qat.metadata import Layout
from trt_qat.vision.detections import Detections

_MOST_CANDIDATES = 30_000
"""NMS looks at the best so many, as Ultralytics' does (``max_nms``): its time grows with their square."""

_FARTHEST = np.float32(1e6)
"""Network pixels; a coordinate beyond is none of an object, and sums and areas of such overflow."""


def detections_from_output(
    output: NDArray[np.float32],
    conf: float,
    iou: float,
    max_det: int = 300,
    multi_label: bool = False,
    classes: NDArray[np.int64] | None = None,
    layout: Layout = "raw",
) -> Detections:
    """Decode one image's output.

    Args:
        output: float32, shape (4 + classes, anchors): box centre x, centre y, width, height in network
            pixels, then one score per class in [0, 1]; or (n, 6) where the layout is rows.
        conf: scores at or below this are dropped.
        iou: boxes of one class that overlap a better one by more than this are dropped; of the layout raw alone.
        max_det: keep at most this many, best first.
        multi_label: a box counts once for every class above ``conf``, as mAP is measured; by default only for its
            best class, as in deployment. Rows count as they are.
        classes: ids to keep, shape (n,); None for all. What another class wins is not given to these.

    Returns:
        Detections in network pixels.
    """
    if layout == "rows":
        return _of_rows(output, conf, max_det, classes)
    anchors, class_ids, scores = _all_classes(output[4:], conf) if multi_label else _best_class(output[4:], conf)
    if classes is not None:
        wanted = np.isin(class_ids, classes)
        anchors, class_ids, scores = anchors[wanted], class_ids[wanted], scores[wanted]
    if len(scores) == 0:
        empty = np.zeros((0,), dtype=np.float32)
        return Detections(np.zeros((0, 4), dtype=np.float32), empty, empty.astype(np.int64))
    boxes_xywh = output[:4, anchors].T.clip(-_FARTHEST, _FARTHEST)
    boxes_xywh[:, :2] -= boxes_xywh[:, 2:] / 2
    if layout == "nms_free":
        chosen = np.argsort(-scores, kind="stable")[:max_det]
    else:
        chosen = _nms(boxes_xywh, scores, class_ids, conf, iou, max_det)
    boxes_xyxy = boxes_xywh[chosen]
    boxes_xyxy[:, 2:] += boxes_xyxy[:, :2]
    return Detections(
        boxes_xyxy.astype(np.float32), scores[chosen].astype(np.float32), class_ids[chosen].astype(np.int64)
    )


def _of_rows(rows: NDArray[np.float32], conf: float, max_det: int, classes: NDArray[np.int64] | None) -> Detections:
    wanted = rows[:, 4] > conf
    if classes is not None:
        wanted &= np.isin(rows[:, 5].round().astype(np.int64), classes)
    best = rows[wanted]
    best = best[np.argsort(-best[:, 4], kind="stable")[:max_det]]
    boxes_xyxy = best[:, :4].clip(-_FARTHEST, _FARTHEST)
    return Detections(boxes_xyxy.astype(np.float32), best[:, 4].astype(np.float32), best[:, 5].round().astype(np.int64))


_Candidates = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]  # anchors, class ids, scores: (n,) each


def _best_class(scores: NDArray[np.float32], conf: float) -> _Candidates:
    best = scores.max(axis=0)
    anchors = np.flatnonzero(best > conf)
    return anchors, scores[:, anchors].argmax(axis=0), best[anchors]


def _all_classes(scores: NDArray[np.float32], conf: float) -> _Candidates:
    anchors = np.flatnonzero(scores.max(axis=0) > conf)  # few: the rest is not looked at again
    some = scores[:, anchors].T
    rows, class_ids = np.nonzero(some > conf)
    return anchors[rows], class_ids, some[rows, class_ids]


def _nms(
    boxes_xywh: NDArray[np.float32],
    scores: NDArray[np.float32],
    class_ids: NDArray[np.int64],
    conf: float,
    iou: float,
    max_det: int,
) -> NDArray[np.int64]:
    """Indices of what is kept, best first.

    What becomes of a candidate depends on better ones only, so that the first ``max_det`` are mostly settled by a
    few of the best; all are looked at only where these do not suffice.
    """
    order = np.argsort(-scores, kind="stable")[:_MOST_CANDIDATES]
    for count in sorted({min(4 * max_det, len(order)), len(order)}):
        best = order[:count]
        found = cv2.dnn.NMSBoxesBatched(
            boxes_xywh[best].tolist(), scores[best].tolist(), class_ids[best].tolist(), conf, iou
        )
        if len(found) >= max_det:
            break
    return best[np.asarray(found, dtype=np.int64).reshape(-1)[:max_det]]
