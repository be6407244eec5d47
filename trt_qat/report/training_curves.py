"""The fine-tuning as its folder tells it: Ultralytics' table of epochs and the error monitor's table of layers."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from trt_qat.config import QatSection
from trt_qat.errors import ArtifactError
from trt_qat.limits import JSON_MEGABYTES
from trt_qat.reading import read_text
from trt_qat.report.layer_figures import finite
from trt_qat.report.record import Epoch, LayerNoise, Training
from trt_qat.results import Measure, other_names
from trt_qat.training.features import error_monitor

_TABLE: Final = "results.csv"
_LOSS: Final = "train/"
_RATE: Final = "lr/pg0"


def training_record(
    folder: Path, section: QatSection, images: int, kept: Mapping[str, Any], measure: Measure
) -> Training:
    """The curves of a finished fine-tuning.

    Args:
        folder: of the fine-tuning.
        images: that it trained on.
        kept: what the best checkpoint's provenance says of its training.
        measure: what its columns are of.

    Raises:
        ArtifactError: a table is missing or not one.
    """
    epochs = [_epoch(row, folder / _TABLE, measure) for row in _rows(folder / _TABLE)]
    start = other_names(dict(kept)).get("start_fake_quant_map50_95")
    if start is not None:
        first = Epoch(epoch=0, map50_95=float(start), losses={}, learning_rate=None, seconds=None)
        epochs = [first, *epochs]
    done = max((entry.epoch for entry in epochs), default=0)
    stopped = "" if done >= section.epochs else f"it ended after {done} of {section.epochs} epochs"
    return Training(
        epochs=tuple(epochs),
        best=int(kept.get("epoch", 0)),
        seed=section.seed,
        images=images,
        stopped=stopped,
        noise=_noise(folder / error_monitor.FILE),
    )


def _rows(file: Path) -> list[dict[str, str]]:
    if not os.path.lexists(file):  # it ended before its first epoch did
        return []
    text = read_text(file, "Table of the epochs", JSON_MEGABYTES)
    return list(csv.DictReader(text.splitlines(), skipinitialspace=True))


def _epoch(row: Mapping[str, str], file: Path, measure: Measure) -> Epoch:
    try:
        losses = {name.removeprefix(_LOSS): float(value) for name, value in row.items() if name.startswith(_LOSS)}
        return Epoch(
            epoch=int(row["epoch"]),
            map50_95=float(row[f"metrics/{measure}50-95(B)"]),
            losses={name: value for name, value in losses.items() if math.isfinite(value)},  # others were not asked for
            learning_rate=float(row[_RATE]),
            seconds=float(row["time"]),
        )
    except (KeyError, TypeError, ValueError) as exc:
        raise ArtifactError(f"'{file}' is not Ultralytics' table of epochs ({exc}). Run with --anew.") from exc


def _noise(file: Path) -> tuple[LayerNoise, ...]:
    if not os.path.lexists(file):
        return ()
    found: dict[tuple[str, str], list[Sequence[str]]] = {}
    for row in error_monitor.read_rows(file):
        found.setdefault((row[1], row[2]), []).append(row)
    return tuple(
        LayerNoise(
            kind="weight" if kind == "weight" else "activation",
            layer=layer,
            sqnr_db=tuple(finite(float(row[3])) for row in rows),
            drift=tuple(float(row[5]) for row in rows),
        )
        for (kind, layer), rows in found.items()
    )
