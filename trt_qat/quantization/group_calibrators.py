"""``auto_per_group``: after one calibrator was chosen for the network, each scale group may take another one.

A network's tensors differ in how much of their tail is signal. Group after group tries the next larger or smaller of
the candidates' ranges, all others as they are, and goes on in that direction while the network's output error falls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from trt_qat import distributed
from trt_qat.data.progress import Progress, silent
from trt_qat.model.output_error import Predictions, output_error, raw_predictions
from trt_qat.quantization.auto_calibrator import CANDIDATES, Calibration, Choice
from trt_qat.quantization.calibration import Histograms, activation_ranges
from trt_qat.quantization.insert import QuantizedModel

_APART = 1.02  # ranges nearer to each other than this differ by less than what one trial can tell


@torch.no_grad()
def choose_per_group(
    model: QuantizedModel,
    histograms: Histograms,
    start: Calibration,
    batches: Sequence[Callable[[], Tensor]],
    progress: Progress = silent,
) -> Calibration:
    """``start`` with the groups that do better with another calibrator; ``model`` has those ranges afterwards.

    Several processes (see :mod:`trt_qat.distributed`) give the same batches, share them and all get the same answer.

    Args:
        batches: each makes a float32 tensor of shape (n, 3, h, w) in [0, 1]; all are kept in memory.
    """
    model.load_amax_(start.ranges(histograms))
    was_training = model.network.training
    model.network.eval()
    groups: dict[str, Choice] = {}
    try:
        error = _OutputError(model, batches)
        least = error()
        for name in progress(list(histograms), "calibrators per group"):
            ladder, first = _ladder(histograms, name, start)
            position = first
            for step in (1, -1):
                if position != first:
                    break
                while 0 <= position + step < len(ladder):
                    model.load_amax_(ladder[position + step][1])
                    found = error()
                    if found >= least:
                        break
                    least, position = found, position + step
            model.load_amax_(ladder[position][1])
            if position != first:
                groups[name] = ladder[position][0]
    finally:
        model.network.train(was_training)
    return replace(start, groups=groups, groups_error=least)


class _OutputError:
    """The network's output error with its present ranges, per image; float outputs are computed once."""

    def __init__(self, model: QuantizedModel, batches: Sequence[Callable[[], Tensor]]) -> None:
        self._network = model.network
        self._batches: dict[int, tuple[Tensor, Predictions]] = {}
        self._counts = torch.zeros(len(batches), dtype=torch.float64)
        device = next(model.network.parameters()).device
        for index in range(distributed.rank(), len(batches), distributed.world_size()):
            images = batches[index]().to(device)
            with model.quantizers_off():
                found = raw_predictions(model.network, images)
            self._batches[index] = images, {key: found[key] for key in ("scores", "boxes")}
            self._counts[index] = len(images)
        self._images = float(distributed.all_sum(self._counts).sum())

    def __call__(self) -> float:
        errors = torch.zeros_like(self._counts)
        for index, (images, reference) in self._batches.items():
            errors[index] = float(output_error(raw_predictions(self._network, images), reference)) * len(images)
        # each entry comes from one process, so that the sum does not depend on how they were shared
        return float(distributed.all_sum(errors).sum()) / self._images


def _ladder(
    histograms: Histograms, name: str, start: Calibration
) -> tuple[list[tuple[Choice, dict[str, Tensor]]], int]:
    """The candidates for one group from the smallest range to the largest, and which of them ``start`` has."""
    one = {name: histograms[name]}
    present = (start.calibrator, start.percentile)
    # the present one first: of ranges that are near each other the first one is kept
    choices = [present, *(choice for choice in CANDIDATES if choice != present)]
    kept: list[tuple[Choice, dict[str, Tensor], float]] = []
    for choice in choices:
        ranges = activation_ranges(one, choice[0], choice[1] or 100.0)
        (value,) = map(float, ranges.values())
        if all(value > _APART * other or other > _APART * value for _, _, other in kept):
            kept.append((choice, ranges, value))
    kept.sort(key=lambda entry: entry[2])
    return [(choice, ranges) for choice, ranges, _ in kept], [choice for choice, _, _ in kept].index(present)
