"""MSE: the range with the least expected squared error between a value and its rounded, clipped self."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from trt_qat.quantization.calibrators.base import LEVELS, Calibrator
from trt_qat.quantization.histogram import ActivationHistogram
from trt_qat.quantization.zero_point import STEPS, grid_between

# fine where the optimum usually lies, and down to 1 % for the outlier that is far from everything else
_SHARES = np.concatenate([np.geomspace(0.01, 0.2, 60, endpoint=False), np.linspace(0.2, 1.0, 161)])


@dataclass(frozen=True)
class Mse(Calibrator):
    """The range with the least expected squared error."""

    name: ClassVar[str] = "mse"

    @override
    def _amax(self, histogram: ActivationHistogram) -> float:
        return _least(histogram.maximum, lambda amax: _expected_squared_error(histogram, amax / LEVELS, LEVELS))

    @override
    def _ends(self, above: ActivationHistogram, below: ActivationHistogram) -> tuple[float, float]:
        """Each end in turn with the other as it is, from all values inside; both share one step."""

        def error(low: float, high: float) -> float:
            grid = grid_between(-low, high)
            counts = ((above, STEPS - grid.zero_point), (below, grid.zero_point))
            return sum(_expected_squared_error(side, grid.step, steps) for side, steps in counts if side.maximum > 0)

        low, high = below.maximum, above.maximum
        for _ in range(2):
            high = _least(above.maximum, partial(error, low))
            low = _least(below.maximum, partial(error, high=high))
        return -low, high


def _least(maximum: float, error: Callable[[float], float]) -> float:
    """The share of the largest value with the least error; 0 where there is no value."""
    if maximum <= 0:
        return 0.0
    candidates = maximum * _SHARES
    return float(candidates[int(np.argmin([error(float(end)) for end in candidates]))])


def _expected_squared_error(histogram: ActivationHistogram, step: float, steps: int) -> float:
    """Of rounding to a grid that ends after ``steps``."""
    bins = len(histogram.counts)
    centers: NDArray[np.float64] = (np.arange(bins) + 0.5) * histogram.limit / bins
    rounded = np.minimum(np.rint(centers / step), steps) * step
    return float(((centers - rounded) ** 2 * histogram.counts).sum())
