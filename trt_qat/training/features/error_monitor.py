"""Watches what quantization does to every layer while QAT runs: SQNR and scale drift, in CSV and TensorBoard."""

from __future__ import annotations

import csv
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field, ValidationError
from torch import Tensor, nn
from typing_extensions import override

from trt_qat.config import QatSection
from trt_qat.errors import ArtifactError
from trt_qat.limits import JSON_MEGABYTES
from trt_qat.quantization.insert import QuantizedModel
from trt_qat.reading import FileModel, explain, read_text, shortened
from trt_qat.training.features.base import Epoch, Feature, Start

LOG = logging.getLogger(__name__)
FILE = "quantization_error.csv"
HEADER = ("epoch", "kind", "layer", "sqnr_db", "amax", "drift")
_LOSS_DB = 3.0  # half of the signal-to-noise ratio gone since the start
_DRIFT = 0.5  # half as far again as at the start


@dataclass(frozen=True)
class QuantizationNoise:
    """One quantizer on some batches.

    Args:
        kind: ``activation`` (layer is a scale group) or ``weight`` (layer is a convolution).
        sqnr_db: signal-to-quantization-noise ratio in decibel.
        amax: mean range.
        drift: relative change of the range since the start; for a fixed range, of the largest weight against it.
    """

    kind: str
    layer: str
    sqnr_db: float
    amax: float
    drift: float


@torch.no_grad()
def measure_noise(
    model: QuantizedModel, batches: Iterable[Tensor], start: Mapping[str, Tensor]
) -> list[QuantizationNoise]:
    """SQNR and drift of every quantizer.

    Args:
        batches: each (batch, 3, h, w) in [0, 1].
        start: the ranges that drift is measured from, as ``QuantizedModel.amax`` names them.
    """
    quantizers = {f"activation.{name}": q for name, q in model.activation_quantizers().items()}
    quantizers |= {f"weight.{name}": q for name, q in model.weight_quantizers().items()}
    power = {name: [0.0, 0.0] for name in quantizers}
    handles = [quantizer.register_forward_hook(_observer(power[name])) for name, quantizer in quantizers.items()]
    was_training = model.network.training
    try:
        model.network.eval()
        for images in batches:
            model.network(images)
    finally:
        model.network.train(was_training)
        for handle in handles:
            handle.remove()
    return [_noise(model, name, quantizer, power[name], start[name]) for name, quantizer in quantizers.items()]


def _observer(power: list[float]) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
    def observe(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        power[0] += float(inputs[0].square().sum())
        power[1] += float((inputs[0] - output).square().sum())

    return observe


def _noise(
    model: QuantizedModel, name: str, quantizer: nn.Module, power: list[float], start: Tensor
) -> QuantizationNoise:
    kind, _, layer = name.partition(".")
    amax = model.toolkit.amax(quantizer).detach()
    start = start.to(amax.device)  # a resumed run has read it from a file
    drift = amax / start - 1
    # a weight's range that nobody moves says nothing: how far the weights outgrew it, or shrank away from it, does;
    # one scale for a whole weight never was its largest value, there the SQNR alone tells
    if kind == "weight" and amax.numel() > 1 and torch.equal(amax, start):
        weight: Tensor = model.network.get_submodule(layer).weight
        drift = weight.detach().abs().amax(dim=(1, 2, 3), keepdim=True) / amax - 1
    worst = float(drift.flatten()[drift.abs().argmax()])
    signal, noise = power
    sqnr = 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else math.inf
    return QuantizationNoise(kind, layer, sqnr, float(amax.mean()), worst)


class QuantizationErrorMonitor(Feature):
    """After each epoch, one batch through the averaged network; CSV, TensorBoard, warnings by layer name.

    Stops the run when the fake-quant mAP (or agreement) falls below a share of its best; the best checkpoint is then
    the result.

    Args:
        folder: for ``quantization_error.csv`` and TensorBoard's event file.
        collapse: share of the best one below which the run is stopped.
    """

    name: ClassVar[str] = "monitor"

    def __init__(self, folder: Path, collapse: float) -> None:
        self._folder = folder
        self._collapse = collapse
        self._images: Tensor | None = None
        self._start: dict[str, Tensor] = {}
        self._sqnr: dict[str, float] = {}
        self._epochs_done = 0
        self._writer: Any = None

    @classmethod
    @override
    def configured(cls, section: QatSection, start: Start) -> QuantizationErrorMonitor | None:
        return cls(start.out, section.collapse) if section.monitor else None

    @override
    def begin(self, model: QuantizedModel, images: Iterator[Tensor]) -> None:
        from torch.utils.tensorboard import SummaryWriter  # a second to import

        self._images = next(images)  # the same ones after every epoch, so that only the network changes
        self._writer = SummaryWriter(str(self._folder))
        if self._start:
            self._drop_rows_after(self._epochs_done)
            return
        self._start = {name: amax.detach().clone() for name, amax in model.amax().items()}
        noise = self._measure(model)
        self._sqnr = {_key(entry): entry.sqnr_db for entry in noise}
        self._record(0, noise, "w")

    @override
    def after_epoch(self, epoch: Epoch) -> bool:
        noise = self._measure(epoch.model)
        self._record(epoch.number, noise, "a")
        for entry in noise:
            self._warn(entry)
        collapsed = epoch.fitness < self._collapse * epoch.best_fitness
        if collapsed:
            LOG.warning(
                "QAT diverged: fake-quant %s50-95 %.4f after epoch %d, best %.4f. Stopped; the best checkpoint is "
                "kept. Lower qat.lr0.",
                epoch.measure,
                epoch.fitness,
                epoch.number,
                epoch.best_fitness,
            )
        return collapsed

    @override
    def state(self) -> dict[str, Any]:
        """What drift and loss are measured from: the ranges and the SQNR at the start."""
        return {"amax": self._start, "sqnr_db": self._sqnr}

    @override
    def load_state(self, state: Mapping[str, Any], epochs: int) -> None:
        self._start, self._sqnr, self._epochs_done = dict(state["amax"]), dict(state["sqnr_db"]), epochs

    @override
    def end(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _measure(self, model: QuantizedModel) -> list[QuantizationNoise]:
        if self._images is None:
            raise RuntimeError("the monitor measures only after training has started")
        return measure_noise(model, [self._images], self._start)

    def _warn(self, entry: QuantizationNoise) -> None:
        before = self._sqnr[_key(entry)]
        if entry.sqnr_db < before - _LOSS_DB:
            LOG.warning("%s %s: SQNR fell from %.1f to %.1f dB.", entry.kind, entry.layer, before, entry.sqnr_db)
        if abs(entry.drift) > _DRIFT:
            what = "range" if entry.kind == "activation" else "range or largest weight"
            LOG.warning("%s %s: %s drifted by %+.0f %%.", entry.kind, entry.layer, what, 100 * entry.drift)

    def _record(self, epoch: int, noise: list[QuantizationNoise], mode: str) -> None:
        rows = [[str(epoch), e.kind, e.layer, f"{e.sqnr_db:.3f}", f"{e.amax:.6g}", f"{e.drift:.4f}"] for e in noise]
        self._write_rows(rows, mode)
        for entry in noise:
            self._writer.add_scalar(f"sqnr_db/{entry.kind}/{entry.layer}", entry.sqnr_db, epoch)
            self._writer.add_scalar(f"drift/{entry.kind}/{entry.layer}", entry.drift, epoch)
        self._writer.flush()

    def _drop_rows_after(self, epochs: int) -> None:
        """A killed run may have measured an epoch that its last state does not know: it will be done again."""
        file = self._folder / FILE
        rows = read_rows(file) if os.path.lexists(file) else []
        self._write_rows([row for row in rows if int(row[0]) <= epochs], "w")

    def _write_rows(self, rows: list[list[str]], mode: str) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / FILE).open(mode, newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            if mode == "w":
                writer.writerow(HEADER)
            writer.writerows(rows)


class NoiseRow(FileModel):
    """One row of the CSV file; figures may be infinite (no noise), texts otherwise."""

    model_config = ConfigDict(strict=False, allow_inf_nan=True)

    epoch: Annotated[int, Field(ge=0, lt=1_000_000)]
    kind: Literal["activation", "weight"]
    layer: Annotated[str, Field(min_length=1)]
    sqnr_db: float
    amax: Annotated[float, Field(ge=0)]
    drift: float


def read_rows(file: Path) -> list[list[str]]:
    """The rows of a CSV file that a run left, without the header and without a last line that was not ended.

    Raises:
        ArtifactError: unreadable, or a row is something else; the line names it.
    """
    lines = read_text(file, "Table of the monitor", JSON_MEGABYTES).splitlines(keepends=True)
    complete = [line for line in lines if line.endswith("\n")]
    try:
        rows = list(csv.reader(complete, strict=True))
        if rows and tuple(rows[0]) != HEADER:
            raise ValueError(f"line 1: the columns are {shortened(rows[0])}")
        for number, row in enumerate(rows[1:], 2):
            if len(row) != len(HEADER):
                raise ValueError(f"line {number}: {len(row)} values, {len(HEADER)} are needed")
            try:
                NoiseRow.model_validate(dict(zip(HEADER, row, strict=True)))
            except ValidationError as exc:
                raise ValueError(f"line {number}: {explain(exc)}") from exc
    except (csv.Error, ValueError) as exc:
        raise ArtifactError(f"'{file}', {exc}. Start without --resume.") from exc
    return rows[1:]


def _key(entry: QuantizationNoise) -> str:
    return f"{entry.kind}.{entry.layer}"
