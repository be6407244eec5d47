"""Images with known detections, for the tests of what is counted from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from trt_qat.evaluation.accuracy import COCO_IOU, MatchedImage, right_at

Box = tuple[int, float, float, float, float]
"""Class id and x1, y1, x2, y2."""


def matched_image(labels: Sequence[Box], detections: Sequence[tuple[float, Box]]) -> MatchedImage:
    """An image with these labels and detections with these scores, in any order."""
    best_first = sorted(detections, key=lambda item: -item[0])
    found, targets = _boxes([box for _, box in best_first]), _boxes(labels)
    scores = np.array([score for score, _ in best_first], np.float32)
    return MatchedImage(right_at(COCO_IOU, found, targets), scores, *found, *targets)


def _boxes(boxes: Sequence[Box]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    ids = np.array([box[0] for box in boxes], np.int64)
    return ids, np.array([box[1:] for box in boxes], np.float32).reshape(-1, 4)


def street(images: int, moved: float, seed: int = 0) -> list[MatchedImage]:
    """Images of three classes, the last of them in one image; detections that are ``moved`` pixels off, more or less,
    and false ones. No two scores are equal.
    """
    random = np.random.default_rng(seed)
    scores = iter(random.permutation(np.linspace(0.001, 0.999, images * 40)).tolist())
    return [_street_image(random, scores, moved, rare=index == 0) for index in range(images)]


def _street_image(random: np.random.Generator, scores: Iterator[float], moved: float, rare: bool) -> MatchedImage:
    labels: list[Box] = [(2, 10, 10, 60, 60)] * rare
    for _ in range(int(random.integers(0, 6))):
        x, y, side = random.uniform(0, 500), random.uniform(0, 300), random.uniform(10, 140)
        labels.append((int(random.integers(0, 2)), x, y, x + side, y + side))
    found: list[Box] = []
    for class_id, *corners in labels:
        for _ in range(int(random.integers(0, 3))):
            found.append((class_id, *(np.array(corners) + random.normal(0, moved, 4)).tolist()))
    for _ in range(int(random.integers(0, 10))):
        x, y, side = random.uniform(0, 500), random.uniform(0, 300), random.uniform(10, 140)
        found.append((int(random.integers(0, 3)), x, y, x + side, y + side))
    return matched_image(labels, [(next(scores), box) for box in found])
