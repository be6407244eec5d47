"""Entropy: the range whose quantized histogram has the least Kullback-Leibler divergence from the original.

TensorRT's own method; Migacz, "8-bit Inference with TensorRT", GTC 2017.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from trt_qat.quantization.calibrators.base import LEVELS, Calibrator
from trt_qat.quantization.histogram import ActivationHistogram


@dataclass(frozen=True)
class Entropy(Calibrator):
    """The range with the least Kullback-Leibler divergence."""

    name: ClassVar[str] = "entropy"

    def _amax(self, histogram: ActivationHistogram) -> float:
        counts = histogram.counts.copy()
        bins = len(counts)
        used = min(bins, int(np.ceil(histogram.maximum / histogram.limit * bins)))
        # the spike at zero (dead activations) quantizes exactly and would dominate the divergence
        counts[0] = counts[1]
        best, best_divergence = used, np.inf
        for end in range(min(LEVELS + 1, used), used + 1, max(1, used // 512)):
            divergence = _divergence(counts, end)
            if divergence < best_divergence:
                best, best_divergence = end, divergence
        return min(histogram.maximum, best * histogram.limit / bins)


def _divergence(counts: NDArray[np.float64], end: int) -> float:
    """KL divergence between the clipped histogram and its version with 128 levels."""
    reference = counts[:end].copy()
    present = reference > 0
    level = np.minimum(np.arange(end) * (LEVELS + 1) // end, LEVELS)
    sums = np.bincount(level, weights=reference, minlength=LEVELS + 1)
    members = np.bincount(level, weights=present, minlength=LEVELS + 1)
    reference[-1] += counts[end:].sum()  # clipped values land in the last bin
    quantized = np.where(present, sums[level] / np.maximum(members[level], 1), 0.0)
    if reference.sum() == 0 or quantized.sum() == 0:
        return float("inf")
    p, q = reference / reference.sum(), quantized / quantized.sum()
    support = p > 0
    if np.any(q[support] == 0):
        q = q + 1e-12
    return float((p[support] * np.log(p[support] / q[support])).sum())
