"""Raw YOLOv8 output to detections: threshold, class-wise NMS (OpenCV's)."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from trt_qat.vision.detections import Detections


def detections_from_output(output: NDArray[np.float32], conf: float, iou: float, max_det: int = 300) -> Detections:
    """Decode one image's raw output.

    Args:
        output: float32, shape (4 + classes, anchors): box centre x, centre y, width, height in network
            pixels, then one score per class in [0, 1].
        conf: scores at or below this are dropped.
        iou: boxes of one class that overlap a better one by more than this are dropped.
        max_det: keep at most this many, best first.

    Returns:
        Detections in network pixels.
    """
    scores_all = output[4:]
    class_ids = scores_all.argmax(axis=0)
    scores = scores_all[class_ids, np.arange(output.shape[1])]
    keep = scores > conf
    boxes_cxcywh, scores, class_ids = output[:4, keep].T, scores[keep], class_ids[keep]
    if len(scores) == 0:
        empty = np.zeros((0,), dtype=np.float32)
        return Detections(np.zeros((0, 4), dtype=np.float32), empty, empty.astype(np.int64))
    boxes_xywh = boxes_cxcywh.copy()
    boxes_xywh[:, :2] -= boxes_xywh[:, 2:] / 2
    chosen = np.asarray(
        cv2.dnn.NMSBoxesBatched(boxes_xywh.tolist(), scores.tolist(), class_ids.tolist(), conf, iou), dtype=np.int64
    ).reshape(-1)
    chosen = chosen[np.argsort(-scores[chosen], kind="stable")][:max_det]
    boxes_xyxy = boxes_xywh[chosen]
    boxes_xyxy[:, 2:] += boxes_xyxy[:, :2]
    return Detections(
        boxes_xyxy.astype(np.float32), scores[chosen].astype(np.float32), class_ids[chosen].astype(np.int64)
    )
