"""How the ranges of a calibrated network were found: a value that goes into the checkpoint's provenance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from trt_qat.quantization.calibrators.base import Calibrator, calibrator_from_dict
from trt_qat.quantization.histogram import Histograms


@dataclass(frozen=True)
class Candidate:
    """A calibrator that ``auto`` tried, the output error with it, and whether it was taken."""

    calibrator: Calibrator
    error: float
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
        """A JSON form; :meth:`from_dict` is its inverse."""
        return {
            **self.calibrator.as_dict(),
            "candidates": [
                {**candidate.calibrator.as_dict(), "error": candidate.error, "chosen": candidate.chosen}
                for candidate in self.candidates
            ],
            "groups": {group: calibrator.as_dict() for group, calibrator in self.groups.items()},
            "groups_error": self.groups_error,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Calibration:
        """Read what :meth:`as_dict` wrote.

        Raises:
            ConfigError, KeyError, TypeError, ValueError, AttributeError: it is something else.
        """
        candidates = tuple(
            Candidate(calibrator_from_dict(entry), float(entry["error"]), bool(entry["chosen"]))
            for entry in content["candidates"]
        )
        groups = {str(group): calibrator_from_dict(entry) for group, entry in content["groups"].items()}
        error = content["groups_error"]
        return cls(calibrator_from_dict(content), candidates, groups, None if error is None else float(error))
