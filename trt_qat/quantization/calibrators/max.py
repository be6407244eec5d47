"""Max: the largest value seen. Nothing is clipped, and one outlier costs everyone else resolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from trt_qat.quantization.calibrators.base import Calibrator
from trt_qat.quantization.histogram import ActivationHistogram


@dataclass(frozen=True)
class Max(Calibrator):
    """The largest value seen."""

    name: ClassVar[str] = "max"

    def _amax(self, histogram: ActivationHistogram) -> float:
        return histogram.maximum
