"""Detections of raw outputs, and how many two sets of them share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trt_qat.evaluation.agreement import matched
from trt_qat.vision.detections import Detections
from trt_qat.vision.postprocess import detections_from_output

CONFIDENCE, NMS_IOU = 0.25, 0.45


def detections(outputs: list[NDArray[np.float32]], confidence: float = CONFIDENCE) -> list[Detections]:
    return [detections_from_output(output[0], confidence, NMS_IOU) for output in outputs]


def share_matched(expected: list[Detections], found: list[Detections]) -> float:
    """What part of the detections of either has a partner in the other: same class, IoU of at least 0.9."""
    both = [(matched(one, other), matched(other, one)) for one, other in zip(expected, found, strict=True)]
    hits = np.concatenate([np.concatenate(pair) for pair in both])
    return float(hits.mean())
