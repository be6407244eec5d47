"""MSE: the range with the least expected squared error between a value and its rounded, clipped self."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from trt_qat.quantization.calibrators.base import LEVELS, Calibrator
from trt_qat.quantization.histogram import ActivationHistogram


@dataclass(frozen=True)
class Mse(Calibrator):
    """The range with the least expected squared error."""

    name: ClassVar[str] = "mse"

    def _amax(self, histogram: ActivationHistogram) -> float:
        bins = len(histogram.counts)
        centers = (np.arange(bins) + 0.5) * histogram.limit / bins
        # fine where the optimum usually lies, and down to 1 % for the outlier that is far from everything else
        shares = np.concatenate([np.geomspace(0.01, 0.2, 60, endpoint=False), np.linspace(0.2, 1.0, 161)])
        candidates = histogram.maximum * shares
        errors = [_expected_squared_error(centers, histogram.counts, amax) for amax in candidates]
        return float(candidates[int(np.argmin(errors))])


def _expected_squared_error(centers: NDArray[np.float64], counts: NDArray[np.float64], amax: float) -> float:
    step = amax / LEVELS
    rounded = np.minimum(np.rint(centers / step), LEVELS) * step
    return float(((centers - rounded) ** 2 * counts).sum())
