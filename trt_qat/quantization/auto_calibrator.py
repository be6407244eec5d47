"""``calibrator: auto``: try every candidate on some of the calibration images and keep the one that distorts least.

No calibrator is best for every network: what one clips as an outlier is another's signal. All candidates come from the
same histograms, so that a candidate costs one forward pass over few images.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trt_qat import distributed
from trt_qat.artifacts import write_json
from trt_qat.config import Calibrator, QuantizationSection
from trt_qat.data.progress import Progress, silent
from trt_qat.model.output_error import MEASURE, output_error, raw_predictions
from trt_qat.quantization.calibration import Histograms, activation_ranges
from trt_qat.quantization.insert import QuantizedModel

Choice = tuple[Calibrator, float | None]  # with the percentile in percent, if it has one

CANDIDATES: tuple[Choice, ...] = (
    ("max", None),
    ("percentile", 99.9999),
    ("percentile", 99.999),
    ("percentile", 99.99),
    ("percentile", 99.9),
    ("entropy", None),
    ("mse", None),
)


def ranges_of(choice: Choice, histograms: Histograms) -> dict[str, Tensor]:
    """The range of every group, named as :meth:`QuantizedModel.load_amax_` takes it."""
    calibrator, percentile = choice
    return activation_ranges(histograms, calibrator, percentile or 100.0)


@dataclass(frozen=True)
class Candidate:
    """A calibrator, its percentile in percent if it has one, the output error with it, and whether it was taken."""

    calibrator: Calibrator
    percentile: float | None
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
    percentile: float | None
    candidates: tuple[Candidate, ...] = ()
    groups: Mapping[str, Choice] = field(default_factory=dict)
    groups_error: float | None = None

    @classmethod
    def given(cls, calibrator: Calibrator, percentile: float) -> Calibration:
        """That of a calibrator chosen by the user."""
        return cls(calibrator, percentile if calibrator == "percentile" else None)

    def ranges(self, histograms: Histograms) -> dict[str, Tensor]:
        """The range of every group, named as :meth:`QuantizedModel.load_amax_` takes it."""
        ranges = ranges_of((self.calibrator, self.percentile), histograms)
        for group, choice in self.groups.items():
            ranges |= ranges_of(choice, {group: histograms[group]})
        return ranges

    def as_dict(self) -> dict[str, Any]:
        """A JSON form."""
        candidates = [asdict(candidate) for candidate in self.candidates]
        groups = {group: list(choice) for group, choice in self.groups.items()}
        return {**asdict(self), "candidates": candidates, "groups": groups}


@torch.no_grad()
def choose_calibrator(
    model: QuantizedModel, histograms: Histograms, batches: Sequence[Callable[[], Tensor]], progress: Progress = silent
) -> Calibration:
    """Compare the candidates; the ranges of ``model`` are those of any candidate afterwards.

    Several processes (see :mod:`trt_qat.distributed`) give the same batches, share them and all get the same answer.

    Args:
        batches: each makes a float32 tensor of shape (n, 3, h, w) in [0, 1].
    """
    ranges = [ranges_of(choice, histograms) for choice in CANDIDATES]
    errors = torch.zeros(len(batches), len(CANDIDATES), dtype=torch.float64)
    counts = torch.zeros(len(batches))
    was_training = model.network.training
    model.network.eval()
    device = next(model.network.parameters()).device
    mine = range(distributed.rank(), len(batches), distributed.world_size())
    steps = [(batch, candidate) for batch in mine for candidate in range(len(CANDIDATES))]
    try:
        for batch, candidate in progress(steps, "comparing calibrators"):
            if candidate == 0:
                images = batches[batch]().to(device)
                with model.quantizers_off():
                    reference = raw_predictions(model.network, images)
            model.load_amax_(ranges[candidate])
            error = output_error(raw_predictions(model.network, images), reference)
            errors[batch, candidate] = max(0.0, float(error)) * len(images)  # rounding can make nothing negative
            counts[batch] = len(images)
    finally:
        model.network.train(was_training)
    # each entry comes from one process, so that the sum does not depend on how they were shared
    sums = distributed.all_sum(errors).sum(dim=0).tolist()
    count = float(distributed.all_sum(counts).sum())
    best = sums.index(min(sums))
    table = tuple(
        Candidate(calibrator, percentile, total / count, index == best)
        for index, ((calibrator, percentile), total) in enumerate(zip(CANDIDATES, sums, strict=True))
    )
    return Calibration(*CANDIDATES[best], table)


def choice_key(histograms_key: str, section: QuantizationSection, batch: int) -> str:
    """Everything that decides the choice, as one hash.

    Args:
        histograms_key: of :func:`~trt_qat.quantization.calibration.cache_key`; holds weights, images and placement.
        batch: images per forward pass.
    """
    recipe = [histograms_key, CANDIDATES, MEASURE, section.auto_images, section.auto_per_group, section.toolkit, batch]
    return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:16]


def save_choice(path: Path, calibration: Calibration) -> None:
    """Write a choice beside the histograms, whole or not at all."""
    write_json(path, calibration.as_dict())


def load_choice(path: Path) -> Calibration | None:
    """Read a choice; None if there is none or it is damaged (it is then made anew)."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        candidates = tuple(Candidate(**candidate) for candidate in content["candidates"])
        (chosen,) = [candidate for candidate in candidates if candidate.chosen]
        groups = {group: (calibrator, percentile) for group, (calibrator, percentile) in content["groups"].items()}
        error = content["groups_error"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    tried = tuple((candidate.calibrator, candidate.percentile) for candidate in candidates)
    if tried != CANDIDATES or not set(groups.values()) <= set(CANDIDATES):
        return None
    return Calibration(chosen.calibrator, chosen.percentile, candidates, groups, error)
