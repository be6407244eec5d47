"""What every calibrator is: a frozen value that turns a histogram into a range."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from trt_qat.config import QuantizationSection
from trt_qat.errors import QuantizationError
from trt_qat.quantization.histogram import ActivationHistogram, Histograms
from trt_qat.quantization.zero_point import Grid, grid_between
from trt_qat.registry import CALIBRATORS

LEVELS = 127  # positive steps of symmetric INT8
_EMPTY = "Calibration saw no non-zero activation. Check the calibration images."
Self = TypeVar("Self", bound="Calibrator")


@dataclass(frozen=True)
class Calibrator(ABC):
    """A way from a histogram to the range of an INT8 quantizer, e.g. ``Percentile(99.99)``.

    ``_amax`` gives the range ``amax`` of a symmetric one. An asymmetric one is asked for the values above and below
    zero apart, unless ``_ends`` looks at both.

    A new one is a file beside this one and a row in :data:`trt_qat.registry.CALIBRATORS`.
    """

    name: ClassVar[str]

    def amax(self, histogram: ActivationHistogram) -> float:
        """The range, above 0 and at most the largest value seen.

        Raises:
            QuantizationError: the histogram is empty (no image was calibrated, or all activations are zero).
        """
        if histogram.counts.sum() == 0 or histogram.maximum <= 0:
            raise QuantizationError(_EMPTY)
        return self._amax(histogram)

    def grid(self, histogram: ActivationHistogram) -> Grid:
        """The grid of an asymmetric quantizer.

        Args:
            histogram: two-sided.

        Raises:
            QuantizationError: the histogram is empty.
        """
        if histogram.below is None:
            raise ValueError("a grid needs a histogram with its values below zero apart")
        if max(histogram.maximum, histogram.below.maximum) <= 0:
            raise QuantizationError(_EMPTY)
        low, high = self._ends(histogram, histogram.below)
        return grid_between(low, high)

    def _ends(self, above: ActivationHistogram, below: ActivationHistogram) -> tuple[float, float]:
        """The lower end, 0 or below, and the upper one; at most one side has no values."""
        high, low = (self._amax(side) if side.maximum > 0 else 0.0 for side in (above, below))
        return -low, high

    @abstractmethod
    def _amax(self, histogram: ActivationHistogram) -> float:
        """The range for a histogram that is not empty."""

    @classmethod
    def configured(cls: type[Self], section: QuantizationSection) -> Self:
        """This calibrator with the settings of a section."""
        del section
        return cls()

    def ranges(self, histograms: Histograms) -> dict[str, Tensor]:
        """The range of every scale group, named as ``QuantizedModel.load_amax_`` takes it; a grid if two-sided."""
        ranges: dict[str, Tensor] = {}
        for name, histogram in histograms.items():
            if histogram.below is None:
                ranges[f"activation.{name}"] = torch.tensor(self.amax(histogram))
            else:
                grid = self.grid(histogram)
                ranges[f"activation.{name}"] = torch.tensor(grid.amax)
                ranges[f"zero_point.{name}"] = torch.tensor(grid.zero_point)
        return ranges

    def as_dict(self) -> dict[str, Any]:
        """A JSON form; :func:`calibrator_from_dict` is its inverse."""
        return {"calibrator": self.name, "percentile": None, **asdict(self)}


def calibrator_from_section(section: QuantizationSection) -> Calibrator:
    """The calibrator that ``quantization.calibrator`` names; not ``auto``, which is a choice among them."""
    kind: type[Calibrator] = CALIBRATORS.load(section.calibrator)
    return kind.configured(section)


def calibrator_from_dict(content: Mapping[str, Any]) -> Calibrator:
    """Read what :meth:`Calibrator.as_dict` wrote; other keys are left alone.

    Raises:
        ConfigError: no such calibrator.
        TypeError: it has no such setting.
    """
    kind: type[Calibrator] = CALIBRATORS.load(content["calibrator"])
    settings = {key: content[key] for key in kind.__dataclass_fields__ if key in content}
    return kind(**settings)
