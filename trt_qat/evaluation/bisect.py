"""Which layer is it? Each layer of the second side is given what the first side computed before it.

Differences add up on the way through a network: the rounding of INT8 alone takes the last layers of a right file below
any limit that would show a fault in the first. So no layer is judged by its distance from the input: both sides compute
it from the same values, and only what this one layer makes of them is compared. That needs two runs per image, not the
halving of a range that the name comes from.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trt_qat.data.images import network_batch
from trt_qat.errors import RunnerError
from trt_qat.evaluation.layers import common_layers, layers_of
from trt_qat.evaluation.parity import Side, cosine
from trt_qat.evaluation.parity_report import Bisection, LayerParity
from trt_qat.progress import SILENT, Progress

Array = NDArray[np.float32]


def bisect_layers(
    first: Side, second: Side, images: Sequence[Path], limit: float, progress: Progress = SILENT
) -> Bisection:
    """Compare layer by layer.

    Args:
        images: files; each costs two runs, and the values of all layers of one image are in memory at once.
        limit: signal over difference, in dB, below which a layer differs.

    Raises:
        RunnerError: a side does not show its layers, or they have none in common.
        DatasetError: an image cannot be read.
    """
    expected, found = (layers_of(Path(side.label), side.runner) for side in (first, second))
    names = common_layers(expected, found)
    if len(names) < 2:  # the output alone is no layer
        raise RunnerError(
            f"'{first.label}' and '{second.label}' have no layer of one name and shape in common. Export both with "
            "trt-qat, or compare the outputs alone."
        )
    reading, given = expected.open(names, given=False), found.open(names, given=True)
    signal, noise = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    lowest = dict.fromkeys(names, 1.0)
    for image in progress.over(images, "comparing layers"):
        batch = network_batch([image], first.imgsz)
        wanted = reading.run(batch, {})
        computed = given.run(batch, wanted)
        for name in names:
            signal[name] += _energy(wanted[name])
            noise[name] += _energy(computed[name] - wanted[name])
            lowest[name] = min(lowest[name], cosine(wanted[name], computed[name]))
    rows = tuple(
        LayerParity(layer=name, sqnr=_decibel(signal[name], noise[name]), cosine=lowest[name]) for name in names
    )
    differing = [row.layer for row in rows if row.sqnr is not None and row.sqnr < limit]
    return Bisection(
        limit=limit, first=next(iter(differing), None), layers=rows, images=tuple(image.name for image in images)
    )


def _energy(values: Array) -> float:
    return float(np.sum(np.square(values, dtype=np.float64)))


def _decibel(signal: float, noise: float) -> float | None:
    """10 log10(signal / noise); None without noise, 0 without a signal to compare it with."""
    if noise == 0:
        return None
    return 10 * float(np.log10(signal / noise)) if signal > 0 else 0.0
