"""From a histogram of ``|x|`` to the range ``amax`` of a symmetric INT8 quantizer.

``max``         the largest value seen
``percentile``  clips the given share of the largest values
``mse``         the range with the least expected squared error
``entropy``     the range whose quantized histogram has the least Kullback-Leibler divergence (TensorRT's method;
                Migacz, "8-bit Inference with TensorRT", GTC 2017)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trt_qat.config import Calibrator
from trt_qat.errors import QuantizationError
from trt_qat.quantization.histogram import ActivationHistogram

_LEVELS = 127  # positive steps of symmetric INT8


def amax_from_histogram(histogram: ActivationHistogram, calibrator: Calibrator, percentile: float = 99.999) -> float:
    """The range that a calibrator chooses.

    Args:
        percentile: used by ``percentile`` only, in percent.

    Raises:
        QuantizationError: the histogram is empty (no image was calibrated, or all activations are zero).
    """
    if histogram.counts.sum() == 0 or histogram.maximum <= 0:
        raise QuantizationError("Calibration saw no non-zero activation. Check the calibration images.")
    if calibrator == "max":
        return histogram.maximum
    if calibrator == "percentile":
        return _percentile(histogram, percentile)
    if calibrator == "mse":
        return _mse(histogram)
    return _entropy(histogram)


def _percentile(histogram: ActivationHistogram, percentile: float) -> float:
    cumulative = np.cumsum(histogram.counts) / histogram.counts.sum()
    index = int(np.searchsorted(cumulative, percentile / 100.0))
    return min(histogram.maximum, (index + 1) * histogram.limit / len(cumulative))


def _mse(histogram: ActivationHistogram) -> float:
    bins = len(histogram.counts)
    centers = (np.arange(bins) + 0.5) * histogram.limit / bins
    # fine where the optimum usually lies, and down to 1 % for the outlier that is far from everything else
    shares = np.concatenate([np.geomspace(0.01, 0.2, 60, endpoint=False), np.linspace(0.2, 1.0, 161)])
    candidates = histogram.maximum * shares
    errors = [_expected_squared_error(centers, histogram.counts, amax) for amax in candidates]
    return float(candidates[int(np.argmin(errors))])


def _expected_squared_error(centers: NDArray[np.float64], counts: NDArray[np.float64], amax: float) -> float:
    step = amax / _LEVELS
    rounded = np.minimum(np.rint(centers / step), _LEVELS) * step
    return float(((centers - rounded) ** 2 * counts).sum())


def _entropy(histogram: ActivationHistogram) -> float:
    counts = histogram.counts.copy()
    bins = len(counts)
    used = min(bins, int(np.ceil(histogram.maximum / histogram.limit * bins)))
    # the spike at zero (dead activations) quantizes exactly and would dominate the divergence
    counts[0] = counts[1]
    best, best_divergence = used, np.inf
    for end in range(min(_LEVELS + 1, used), used + 1, max(1, used // 512)):
        divergence = _divergence(counts, end)
        if divergence < best_divergence:
            best, best_divergence = end, divergence
    return min(histogram.maximum, best * histogram.limit / bins)


def _divergence(counts: NDArray[np.float64], end: int) -> float:
    """KL divergence between the clipped histogram and its version with 128 levels."""
    reference = counts[:end].copy()
    present = reference > 0
    level = np.minimum(np.arange(end) * (_LEVELS + 1) // end, _LEVELS)
    sums = np.bincount(level, weights=reference, minlength=_LEVELS + 1)
    members = np.bincount(level, weights=present, minlength=_LEVELS + 1)
    reference[-1] += counts[end:].sum()  # clipped values land in the last bin
    quantized = np.where(present, sums[level] / np.maximum(members[level], 1), 0.0)
    if reference.sum() == 0 or quantized.sum() == 0:
        return float("inf")
    p, q = reference / reference.sum(), quantized / quantized.sum()
    support = p > 0
    if np.any(q[support] == 0):
        q = q + 1e-12
    return float((p[support] * np.log(p[support] / q[support])).sum())
