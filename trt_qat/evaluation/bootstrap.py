"""Is one mAP higher than another by more than chance? A paired bootstrap over the images (Efron 1979)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trt_qat.evaluation.accuracy import MatchedImage, mean_average_precision


@dataclass(frozen=True)
class MapDifference:
    """Second minus first, in points of mAP50-95, and between which values 95 % of the resamples lie."""

    points: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.points:+.2f} points, 95 % of resamples {self.low:+.2f} to {self.high:+.2f}"


def map_difference(
    first: Sequence[MatchedImage], second: Sequence[MatchedImage], resamples: int = 1000
) -> MapDifference:
    """Draw images with replacement, as many as there are, the same for both; the draws are the same at every call.

    Args:
        first, second: of the same images in the same order, see
            :func:`~trt_qat.evaluation.accuracy.match_images`.
    """
    random, count = np.random.default_rng(0), len(first)

    def points(chosen: Sequence[int]) -> float:
        a, b = (mean_average_precision([images[index] for index in chosen])[0] for images in (first, second))
        return 100 * (b - a)

    drawn = [points(random.integers(0, count, count).tolist()) for _ in range(resamples)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return MapDifference(points(range(count)), float(low), float(high))
