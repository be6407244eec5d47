"""Percentile: keeps the given share of the values and clips the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from trt_qat.config import QuantizationSection
from trt_qat.errors import ConfigError
from trt_qat.quantization.calibrators.base import Calibrator
from trt_qat.quantization.histogram import ActivationHistogram


@dataclass(frozen=True)
class Percentile(Calibrator):
    """The range that holds ``percentile`` percent of the values.

    Raises:
        ConfigError: not above 50 and at most 100.
    """

    name: ClassVar[str] = "percentile"
    percentile: float = 99.99

    def __post_init__(self) -> None:
        if not 50 < self.percentile <= 100:
            raise ConfigError(f"Percentile({self.percentile}) must be above 50 and at most 100, e.g. 99.99.")

    @classmethod
    def configured(cls, section: QuantizationSection) -> Percentile:
        """See the base class."""
        return cls(section.percentile)

    def _amax(self, histogram: ActivationHistogram) -> float:
        cumulative = np.cumsum(histogram.counts) / histogram.counts.sum()
        index = int(np.searchsorted(cumulative, self.percentile / 100.0))
        return min(histogram.maximum, (index + 1) * histogram.limit / len(cumulative))
