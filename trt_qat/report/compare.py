"""Is one model worse than another by more than chance? From their result rows alone, without models or images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trt_qat.results import ResultRow


@dataclass(frozen=True)
class MapDifference:
    """Second minus first, in points of mAP50-95, and between which values 95 % of the resamples lie."""

    points: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.points:+.2f} points, 95 % of resamples {self.low:+.2f} to {self.high:+.2f}"


def map_difference(first: ResultRow, second: ResultRow) -> MapDifference | None:
    """How far two mAPs of the same images are apart; None where it cannot be told what of it is chance."""
    if first.details is None or second.details is None:
        return None
    if first.details.images_sha256 != second.details.images_sha256:
        return None
    drawn = 100 * (np.array(second.details.resampled) - np.array(first.details.resampled))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return MapDifference(100 * (second.map50_95 - first.map50_95), float(low), float(high))
