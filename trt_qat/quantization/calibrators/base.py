"""What every calibrator is: a frozen value that turns a histogram of ``|x|`` into a range."""

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
from trt_qat.registry import CALIBRATORS

LEVELS = 127  # positive steps of symmetric INT8
Self = TypeVar("Self", bound="Calibrator")


@dataclass(frozen=True)
class Calibrator(ABC):
    """A way from a histogram to the range ``amax`` of a symmetric INT8 quantizer, e.g. ``Percentile(99.99)``.

    A new one is a file beside this one and a row in :data:`trt_qat.registry.CALIBRATORS`.
    """

    name: ClassVar[str]

    def amax(self, histogram: ActivationHistogram) -> float:
        """The range, above 0 and at most the largest value seen.

        Raises:
            QuantizationError: the histogram is empty (no image was calibrated, or all activations are zero).
        """
        if histogram.counts.sum() == 0 or histogram.maximum <= 0:
            raise QuantizationError("Calibration saw no non-zero activation. Check the calibration images.")
        return self._amax(histogram)

    @abstractmethod
    def _amax(self, histogram: ActivationHistogram) -> float:
        """The range for a histogram that is not empty."""

    @classmethod
    def configured(cls: type[Self], section: QuantizationSection) -> Self:
        """This calibrator with the settings of a section."""
        del section
        return cls()

    def ranges(self, histograms: Histograms) -> dict[str, Tensor]:
        """The range of every scale group, named as ``QuantizedModel.load_amax_`` takes it."""
        return {f"activation.{name}": torch.tensor(self.amax(histogram)) for name, histogram in histograms.items()}

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
