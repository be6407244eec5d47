"""Histograms of absolute activation values, from which every calibrator derives its range."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class ActivationHistogram:
    """Counts of ``|x|`` over [0, limit) in equal bins, and the exact maximum.

    Args:
        counts: float64, shape (bins,).
        limit: upper edge of the last bin.
        maximum: largest ``|x|`` seen.
    """

    counts: NDArray[np.float64]
    limit: float
    maximum: float


class HistogramCollector:
    """Collects a histogram batch by batch without knowing the range beforehand.

    When a value exceeds the limit, the limit doubles and neighbouring bins merge, so that nothing already counted is
    lost and the bin count stays.
    """

    def __init__(self, bins: int) -> None:
        if bins % 2:
            raise ValueError(f"bins={bins} must be even: neighbouring bins are merged in pairs")
        self._counts = torch.zeros(bins, dtype=torch.float64)
        self._limit = 0.0
        self._maximum = 0.0

    @torch.no_grad()
    def add(self, values: Tensor) -> None:
        """Count the values of a tensor of any shape."""
        magnitudes = values.detach().float().abs().flatten()
        maximum = float(magnitudes.max()) if magnitudes.numel() else 0.0
        if not np.isfinite(maximum):
            raise ValueError("activations contain NaN or infinity")
        self._maximum = max(self._maximum, maximum)
        if self._limit == 0.0:
            self._limit = maximum
        if self._limit == 0.0:
            return  # all zeros so far: no scale to choose a range by
        while maximum > self._limit:
            pairs = self._counts.reshape(-1, 2).sum(dim=1)
            self._counts = torch.cat([pairs, torch.zeros_like(pairs)])
            self._limit *= 2
        self._counts += torch.histc(magnitudes, len(self._counts), 0.0, self._limit).double().cpu()

    def result(self) -> ActivationHistogram:
        """What was collected so far."""
        return ActivationHistogram(self._counts.numpy().copy(), self._limit, self._maximum)
