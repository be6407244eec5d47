"""The range of a weight: a convolution's own numbers decide it, no image is needed."""

from __future__ import annotations

from torch import Tensor

from trt_qat.config import WeightScales
from trt_qat.quantization.calibrators.mse import Mse
from trt_qat.quantization.histogram import HistogramCollector

_BINS = 4096
_SMALLEST = 1e-8  # a step of 0 would make NaN of a dead channel


def weight_range(weight: Tensor, scales: WeightScales) -> Tensor:
    """The range that a weight is quantized with; above 0 where all its numbers are 0, too.

    Args:
        weight: (out_channels, in_channels / groups, kernel height, kernel width).

    Returns:
        Per channel the largest magnitude, (out_channels, 1, 1, 1), which clips nothing. Per tensor the range with the
        least squared error, (1, 1, 1, 1): there the largest channel's outlier would take the levels of all others.
    """
    magnitude = weight.detach().abs()
    if scales == "channel":
        return magnitude.amax(dim=(1, 2, 3), keepdim=True).clamp(min=_SMALLEST)
    return magnitude.new_full((1, 1, 1, 1), max(_least_squared_error(magnitude), _SMALLEST))


def _least_squared_error(magnitude: Tensor) -> float:
    collector = HistogramCollector(_BINS)
    collector.add(magnitude)
    histogram = collector.result()
    return Mse().amax(histogram) if histogram.maximum > 0 else 0.0
