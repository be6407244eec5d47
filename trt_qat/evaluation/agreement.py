"""Do two detectors find the same objects in an image?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trt_qat.vision.detections import Detections


def matched(expected: Detections, found: Detections, iou: float = 0.9) -> NDArray[np.bool_]:
    """Which of ``expected`` have a partner in ``found``: the same class, boxes that overlap by at least ``iou``.

    Greedy: each, best score first, takes the free partner that overlaps most. Shape (len(expected),).
    """
    overlap = np.where(
        expected.class_ids[:, None] == found.class_ids[None, :], _overlap(expected.boxes_xyxy, found.boxes_xyxy), 0.0
    )
    result = np.zeros(len(expected), dtype=np.bool_)
    for index in np.argsort(-expected.scores, kind="stable"):
        if len(found) and overlap[index].max() >= iou:
            result[index] = True
            overlap[:, overlap[index].argmax()] = 0.0
    return result


def _overlap(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float64]:
    """Intersection over union of every pair, shape (n, m)."""
    a, b = first.astype(np.float64)[:, None], second.astype(np.float64)[None]
    sides = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None)
    shared = sides.prod(axis=-1)
    union = (a[..., 2:] - a[..., :2]).prod(axis=-1) + (b[..., 2:] - b[..., :2]).prod(axis=-1) - shared
    return np.asarray(shared / np.maximum(union, 1e-9))
