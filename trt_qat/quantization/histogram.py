"""Histograms of absolute activation values, from which every calibrator derives its range.

The upper limit is always a power of two and bins merge in pairs, so a value's bin does not depend on what was counted
before it: any order of the images, and any split of the batches over processes, gives the same counts bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trt_qat import distributed

SAMPLES_PER_IMAGE = 1 << 16


@dataclass(frozen=True)
class ActivationHistogram:
    """Counts of ``|x|`` over [0, limit) in equal bins, and the exact maximum.

    Args:
        counts: float64, shape (bins,).
        limit: upper edge of the last bin, the smallest power of two above ``maximum``.
        maximum: largest ``|x|`` seen.
        below: None, or the histogram of ``max(-x, 0)``; all else is then of ``max(x, 0)``. Either counts every value.
    """

    counts: NDArray[np.float64]
    limit: float
    maximum: float
    below: ActivationHistogram | None = None


Histograms = dict[str, ActivationHistogram]  # by name of the scale group


class HistogramCollector:
    """Collects a histogram batch by batch without knowing the range beforehand.

    When a value reaches the limit, the limit doubles and neighbouring bins merge, so that nothing already counted is
    lost and the bin count stays.

    Args:
        bins: how many, even.
        start: what was counted before, with as many bins.
        two_sided: count values above and below zero apart.
    """

    def __init__(self, bins: int, start: ActivationHistogram | None = None, two_sided: bool = False) -> None:
        if bins % 2:
            raise ValueError(f"bins={bins} must be even: neighbouring bins are merged in pairs")
        self._counts = (
            torch.zeros(bins, dtype=torch.float64) if start is None else torch.from_numpy(start.counts.copy())
        )
        self._limit = start.limit if start else 0.0
        self._maximum = start.maximum if start else 0.0
        self._below = HistogramCollector(bins, start.below if start else None) if two_sided else None

    @torch.no_grad()
    def add(self, values: Tensor) -> None:
        """Count the values of a batch, shape (images, ...).

        The maximum is that of all values. An image with more than 65536 values is counted at a fixed stride, whichever
        images stand beside it.
        """
        if not values.numel():
            return
        values = values.detach().float()
        if self._below is not None:
            self._below.add(values.neg().clamp_(min=0.0))
            values = values.clamp(min=0.0)
        low, high = torch.aminmax(values)
        self._see(float(torch.maximum(-low, high)))
        magnitudes = _sampled(values).abs().flatten()
        if self._limit == 0.0:
            self._counts[0] += len(magnitudes)  # zeros are in the first bin whatever the limit becomes
            return
        bins = len(self._counts)
        index = magnitudes.div_(self._limit).mul_(bins).int().clamp_(max=bins - 1)  # the product may round up to bins
        self._counts += torch.bincount(index, minlength=bins).double().cpu()  # a third of torch.histc's time

    def _see(self, maximum: float) -> None:
        if not math.isfinite(maximum):
            raise ValueError("activations contain NaN or infinity")
        self._maximum = max(self._maximum, maximum)
        if maximum < self._limit or maximum == 0.0:
            return
        # strictly above: a value equal to the limit would be in the last bin now and in the next one after a merge
        limit = 2.0 ** math.frexp(maximum)[1]
        while 0.0 < self._limit < limit:
            pairs = self._counts.reshape(-1, 2).sum(dim=1)
            self._counts = torch.cat([pairs, torch.zeros_like(pairs)])
            self._limit *= 2
        self._limit = limit

    def result(self) -> ActivationHistogram:
        """What was collected so far."""
        below = None if self._below is None else self._below.result()
        return ActivationHistogram(self._counts.numpy().copy(), self._limit, self._maximum, below)


def reduce_over_processes_(collectors: Sequence[HistogramCollector]) -> None:
    """Give every process's collectors what all processes counted together, in place. Bin counts are equal."""
    collectors = [*collectors, *(collector._below for collector in collectors if collector._below is not None)]
    maxima = distributed.all_max(torch.tensor([c._maximum for c in collectors], dtype=torch.float64))
    for collector, maximum in zip(collectors, maxima.tolist(), strict=True):
        collector._see(maximum)
    counts = distributed.all_sum(torch.stack([collector._counts for collector in collectors]))
    for collector, total in zip(collectors, counts, strict=True):
        collector._counts = total


def _sampled(values: Tensor) -> Tensor:
    """At most about 65536 values of each image, shape (images, samples)."""
    flat = values.reshape(len(values), -1)
    size = flat.shape[1]
    stride = -(-size // SAMPLES_PER_IMAGE)
    while stride > 1 and math.gcd(stride, size) > 1:
        stride += 1  # a common factor with the width would visit the same columns in every row
    return flat[:, ::stride]
