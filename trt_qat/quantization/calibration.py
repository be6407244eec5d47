"""How the ranges of a calibrated network were found: a value that goes into the checkpoint's provenance."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ConfigDict
from torch import Tensor

from trt_qat.quantization.calibrators.base import Calibrator, calibrator_from_dict
from trt_qat.quantization.histogram import Histograms
from trt_qat.reading import FileModel
from trt_qat.results import OutputError


@dataclass(frozen=True)
class Candidate:
    """A calibrator that ``auto`` tried, the output error with it, and whether it was taken."""

    calibrator: Calibrator
    error: OutputError
    chosen: bool


@dataclass(frozen=True)
class Calibration:
    """How the ranges were found.

    Args:
        candidates: empty where the calibrator was given.
        groups: scale groups whose calibrator is another one.
        groups_error: the output error with them; None where groups were not asked for their own.
    """

    calibrator: Calibrator
    candidates: tuple[Candidate, ...] = ()
    groups: Mapping[str, Calibrator] = field(default_factory=dict)
    groups_error: float | None = None

    def ranges(self, histograms: Histograms) -> dict[str, Tensor]:
        """The range of every group, named as :meth:`QuantizedModel.load_amax_` takes it."""
        ranges = self.calibrator.ranges(histograms)
        for group, calibrator in self.groups.items():
            ranges |= calibrator.ranges({group: histograms[group]})
        return ranges

    def as_dict(self) -> dict[str, Any]:
        """A JSON form for the checkpoint's provenance."""
        return {
            **self.calibrator.as_dict(),
            "candidates": [
                {**candidate.calibrator.as_dict(), "error": candidate.error, "chosen": candidate.chosen}
                for candidate in self.candidates
            ],
            "groups": {group: calibrator.as_dict() for group, calibrator in self.groups.items()},
            "groups_error": self.groups_error,
        }

    def content(self) -> CalibrationContent:
        """What a file holds; :meth:`from_content` is its inverse."""
        return CalibrationContent.model_validate_json(json.dumps(self.as_dict()))

    @classmethod
    def from_content(cls, content: CalibrationContent) -> Calibration:
        """Read what :meth:`content` made.

        Raises:
            ConfigError: a calibrator of no known name, or a setting that it does not take.
        """
        candidates = tuple(
            Candidate(entry.calibrator_value(), entry.error, entry.chosen) for entry in content.candidates
        )
        groups = {group: entry.calibrator_value() for group, entry in content.groups.items()}
        return cls(content.calibrator_value(), candidates, groups, content.groups_error)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Calibration:
        """Read what :meth:`as_dict` wrote.

        Raises:
            ConfigError: see :meth:`from_content`.
            ValueError: it is something else.
        """
        return cls.from_content(CalibrationContent.model_validate_json(json.dumps(content)))


class CalibratorContent(FileModel):
    """A calibrator in a file; one that is registered from elsewhere may have settings of its own."""

    model_config = ConfigDict(extra="allow")

    calibrator: str
    percentile: float | None

    def calibrator_value(self) -> Calibrator:
        """The calibrator itself.

        Raises:
            ConfigError: no such one, or not such a percentile.
        """
        return calibrator_from_dict(self.model_dump(exclude_none=True))


class CandidateContent(CalibratorContent):
    """A calibrator that was tried."""

    error: OutputError
    chosen: bool


class CalibrationContent(CalibratorContent):
    """The file of the answer of ``auto``; :class:`Calibration` in memory."""

    candidates: tuple[CandidateContent, ...]
    groups: dict[str, CalibratorContent]
    groups_error: OutputError | None
