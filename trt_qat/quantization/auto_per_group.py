"""``auto_per_group``: after one calibrator was chosen for the network, each scale group may take another one.

A network's tensors differ in how much of their tail is signal. Group after group tries the next larger or smaller of
the candidates' ranges, all others as they are, and goes on in that direction while the network's output error falls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from trt_qat import distributed
from trt_qat.progress import SILENT, Progress
from trt_qat.quantization.auto import CANDIDATES
from trt_qat.quantization.calibration import Calibration
from trt_qat.quantization.calibrators.base import Calibrator
from trt_qat.quantization.divergence import OutputDivergence
from trt_qat.quantization.histogram import Histograms
from trt_qat.quantization.insert import QuantizedModel

_APART = 1.02  # ranges nearer to each other than this differ by less than what one trial can tell


@torch.no_grad()
def choose_per_group(
    model: QuantizedModel,
    histograms: Histograms,
    start: Calibration,
    batches: Sequence[Callable[[], Tensor]],
    progress: Progress = SILENT,
) -> Calibration:
    """``start`` with the groups that do better with another calibrator; ``model`` has those ranges afterwards.

    Several processes (see :mod:`trt_qat.distributed`) give the same batches, share them and all get the same answer.

    Args:
        batches: each makes a float32 tensor of shape (n, 3, h, w) in [0, 1]; all are kept in memory.
    """
    present = start.calibrator
    ranges = {calibrator: calibrator.ranges(histograms) for calibrator in (present, *CANDIDATES)}
    model.load_amax_(ranges[present])
    was_training = model.network.training
    groups: dict[str, Calibrator] = {}
    try:
        error = _shared_error(model, batches)
        least = error()
        for name in progress.over(list(histograms), "calibrators per group"):
            steps = {calibrator: float(of_all[f"activation.{name}"]) for calibrator, of_all in ranges.items()}
            ladder = _ladder(steps)
            first = position = ladder.index(present)
            for step in (1, -1):
                if position != first:
                    break
                while 0 <= position + step < len(ladder):
                    model.load_amax_(_of_group(name, ranges[ladder[position + step]]))
                    found = error()
                    if found >= least:
                        break
                    least, position = found, position + step
            model.load_amax_(_of_group(name, ranges[ladder[position]]))
            if position != first:
                groups[name] = ladder[position]
    finally:
        model.network.train(was_training)
    return replace(start, groups=groups, groups_error=least)


def _of_group(name: str, ranges: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: ranges[key] for key in (f"activation.{name}", f"zero_point.{name}") if key in ranges}


def _shared_error(model: QuantizedModel, batches: Sequence[Callable[[], Tensor]]) -> Callable[[], float]:
    """The output error with the present ranges over all batches, of which each process computes its own."""
    mine = slice(distributed.rank(), None, distributed.world_size())
    measure = OutputDivergence(model, (batch() for batch in batches[mine]))

    def over_all(values: Sequence[float]) -> float:
        # each entry comes from one process, so that the sum does not depend on how they were shared
        entries = torch.zeros(len(batches), dtype=torch.float64)
        entries[mine] = torch.tensor(values, dtype=torch.float64)
        return float(distributed.all_sum(entries).sum())

    images = over_all(measure.counts)
    return lambda: over_all(measure.sums()) / images


def _ladder(ranges: Mapping[Calibrator, float]) -> list[Calibrator]:
    """From the smallest range to the largest; of those that are near each other the first given is kept."""
    kept: dict[Calibrator, float] = {}
    for calibrator, value in ranges.items():
        if all(value > _APART * other or other > _APART * value for other in kept.values()):
            kept[calibrator] = value
    return sorted(kept, key=lambda calibrator: kept[calibrator])
