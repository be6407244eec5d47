"""The range of a weight: a convolution's own numbers decide it, no image is needed."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from trt_qat.config import WeightScales
from trt_qat.quantization.calibrators.mse import Mse
from trt_qat.quantization.histogram import ActivationHistogram

_BINS = 4096
_SMALLEST = 1e-8  # a step of 0 would make NaN of a dead channel


def weight_range(weight: Tensor, scales: WeightScales) -> Tensor:
    """The range that a weight is quantized with; above 0 where all its numbers are 0, too.

    Args:
        weight: (out_channels, in_channels / groups, kernel height, kernel width).

    Returns:
        Per channel the largest magnitude, (out_channels, 1, 1, 1), which clips nothing. Per tensor, (1, 1, 1, 1), the
        range with the least squared error, each channel's relative to its own squares: the activation behind sees a
        weak channel as large as a strong one, whose outliers would otherwise take all levels.
    """
    magnitude = weight.detach().abs()
    if scales == "channel":
        return magnitude.amax(dim=(1, 2, 3), keepdim=True).clamp(min=_SMALLEST)
    return magnitude.new_full((1, 1, 1, 1), max(_least_relative_error(magnitude), _SMALLEST))


def _least_relative_error(magnitude: Tensor) -> float:
    channels = magnitude.double().cpu().flatten(1).numpy()
    squares = (channels**2).sum(axis=1)
    alive = channels[squares > 0]
    if not len(alive):
        return 0.0
    importance = np.repeat(1 / squares[squares > 0], alive.shape[1])
    maximum = float(alive.max())
    counts, _ = np.histogram(alive, _BINS, (0.0, maximum), weights=importance.reshape(alive.shape))
    return Mse().amax(ActivationHistogram(counts, maximum, maximum))
