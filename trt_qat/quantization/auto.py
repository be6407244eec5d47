"""``calibrator: auto``: try every candidate on some of the calibration images and keep the one that distorts least.

No calibrator is best for every network: what one clips as an outlier is another's signal. All candidates come from the
same histograms, so that a candidate costs one forward pass over few images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trt_qat import distributed
from trt_qat.model.output_error import output_error, raw_predictions
from trt_qat.progress import SILENT, Progress
from trt_qat.quantization.calibration import Calibration, Candidate
from trt_qat.quantization.calibrators.base import Calibrator
from trt_qat.quantization.calibrators.entropy import Entropy
from trt_qat.quantization.calibrators.max import Max
from trt_qat.quantization.calibrators.mse import Mse
from trt_qat.quantization.calibrators.percentile import Percentile
from trt_qat.quantization.histogram import Histograms
from trt_qat.quantization.insert import QuantizedModel

CANDIDATES: tuple[Calibrator, ...] = (
    Max(),
    Percentile(99.9999),
    Percentile(99.999),
    Percentile(99.99),
    Percentile(99.9),
    Entropy(),
    Mse(),
)


@torch.no_grad()
def choose_calibrator(
    model: QuantizedModel, histograms: Histograms, batches: Sequence[Callable[[], Tensor]], progress: Progress = SILENT
) -> Calibration:
    """Compare the candidates; the ranges of ``model`` are those of any candidate afterwards.

    Several processes (see :mod:`trt_qat.distributed`) give the same batches, share them and all get the same answer.

    Args:
        batches: each makes a float32 tensor of shape (n, 3, h, w) in [0, 1].
    """
    ranges = [calibrator.ranges(histograms) for calibrator in CANDIDATES]
    errors = torch.zeros(len(batches), len(CANDIDATES), dtype=torch.float64)
    counts = torch.zeros(len(batches))
    was_training = model.network.training
    model.network.eval()
    device = next(model.network.parameters()).device
    mine = range(distributed.rank(), len(batches), distributed.world_size())
    steps = [(batch, candidate) for batch in mine for candidate in range(len(CANDIDATES))]
    try:
        for batch, candidate in progress.over(steps, "comparing calibrators"):
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
        Candidate(calibrator, total / count, index == best)
        for index, (calibrator, total) in enumerate(zip(CANDIDATES, sums, strict=True))
    )
    return Calibration(CANDIDATES[best], table)
