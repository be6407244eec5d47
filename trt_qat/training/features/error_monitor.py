"""Watches what quantization does to every layer while QAT runs: SQNR and scale drift, in CSV and TensorBoard."""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trt_qat.quantization.insert import QuantizedModel

if TYPE_CHECKING:
    from trt_qat.training.detection_trainer import DatasetTrainer

LOG = logging.getLogger(__name__)
FILE = "quantization_error.csv"
HEADER = ("epoch", "kind", "layer", "sqnr_db", "amax", "drift")
_LOSS_DB = 3.0  # half of the signal-to-noise ratio gone since the start
_DRIFT = 0.5


@dataclass(frozen=True)
class QuantizationNoise:
    """One quantizer on one batch.

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
def measure_errors(model: QuantizedModel, images: Tensor, start: Mapping[str, Tensor]) -> list[QuantizationNoise]:
    """SQNR and drift of every quantizer.

    Args:
        images: (batch, 3, h, w) in [0, 1].
        start: the ranges that drift is measured from, as ``QuantizedModel.amax`` names them.
    """
    quantizers = {f"activation.{name}": q for name, q in model.activation_quantizers().items()}
    quantizers |= {f"weight.{name}": q for name, q in model.weight_quantizers().items()}
    power = {name: [0.0, 0.0] for name in quantizers}
    handles = [quantizer.register_forward_hook(_observer(power[name])) for name, quantizer in quantizers.items()]
    was_training = model.network.training
    try:
        model.network.eval()(images)
    finally:
        model.network.train(was_training)
        for handle in handles:
            handle.remove()
    return [_layer_error(model, name, quantizer, power[name], start[name]) for name, quantizer in quantizers.items()]


def _observer(power: list[float]) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
    def observe(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        power[0] += float(inputs[0].square().sum())
        power[1] += float((inputs[0] - output).square().sum())

    return observe


def _layer_error(
    model: QuantizedModel, name: str, quantizer: nn.Module, power: list[float], start: Tensor
) -> QuantizationNoise:
    kind, _, layer = name.partition(".")
    amax = model.toolkit.amax(quantizer).detach()
    drift = amax / start - 1
    if kind == "weight" and torch.equal(amax, start):
        weight: Tensor = model.network.get_submodule(layer).weight
        drift = weight.detach().abs().amax(dim=(1, 2, 3), keepdim=True) / amax - 1
    worst = float(drift.flatten()[drift.abs().argmax()])
    signal, noise = power
    sqnr = 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else math.inf
    return QuantizationNoise(kind, layer, sqnr, float(amax.mean()), worst)


class QuantizationErrorMonitor:
    """Callback: after each epoch, one batch through the EMA network; CSV, TensorBoard, warnings by layer name.

    Stops the run when the fake-quant mAP falls below a share of its best; the best checkpoint is then the result.

    Args:
        folder: for ``quantization_error.csv`` and TensorBoard's event file.
        collapse: share of the best mAP below which the run is stopped.
    """

    def __init__(self, folder: Path, collapse: float) -> None:
        self._folder = folder
        self._collapse = collapse
        self._images: Tensor | None = None
        self._start: dict[str, Tensor] = {}
        self._sqnr: dict[tuple[str, str], float] = {}
        self._writer: Any = None

    def attach(self, trainer: DatasetTrainer) -> None:
        """Measure at the start and after each epoch."""
        trainer.add_callback("on_train_start", self._begin)
        trainer.add_callback("on_fit_epoch_end", self._after_epoch)
        trainer.add_callback("teardown", self._close)

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to go on: the ranges at the start."""
        return {"start": self._start}

    def load_state(self, state: Mapping[str, Any], epochs: int) -> None:
        """Go on after ``epochs`` finished epochs; what a killed run wrote later is dropped."""
        self._start = dict(state["start"])
        file = self._folder / FILE
        rows = list(csv.reader(file.read_text(encoding="utf-8").splitlines())) if file.is_file() else []
        kept = [row for row in rows[1:] if int(row[0]) <= epochs]
        self._sqnr = {(row[1], row[2]): float(row[3]) for row in kept if row[0] == "0"}
        self._write_rows(kept, "w")

    def _begin(self, trainer: Any) -> None:
        from torch.utils.tensorboard import SummaryWriter  # a second to import

        batch = next(iter(trainer.test_loader))
        self._images = trainer.preprocess_batch(batch)["img"]
        self._writer = SummaryWriter(str(self._folder))
        if self._start:
            return  # resumed
        model = trainer.evaluated_model()
        self._start = {name: amax.detach().clone() for name, amax in model.amax().items()}
        errors = self._measure(model)
        self._sqnr = {(error.kind, error.layer): error.sqnr_db for error in errors}
        self._record(0, errors, "w")

    def _after_epoch(self, trainer: Any) -> None:
        errors = self._measure(trainer.evaluated_model())
        self._record(trainer.epoch + 1, errors, "a")
        for error in errors:
            self._warn(error)
        if trainer.fitness is not None and trainer.fitness < self._collapse * trainer.best_fitness:
            LOG.warning(
                "QAT diverged: fake-quant mAP %.4f after epoch %d, best %.4f. Stopped; the best checkpoint is kept. "
                "Lower qat.lr0.",
                trainer.fitness,
                trainer.epoch + 1,
                trainer.best_fitness,
            )
            trainer.stop = True

    def _measure(self, model: QuantizedModel) -> list[QuantizationNoise]:
        if self._images is None:
            raise RuntimeError("the monitor measures only after training has started")
        return measure_errors(model, self._images, self._start)

    def _warn(self, error: QuantizationNoise) -> None:
        before = self._sqnr.get((error.kind, error.layer), error.sqnr_db)
        if error.sqnr_db < before - _LOSS_DB:
            LOG.warning("%s %s: SQNR fell from %.1f to %.1f dB.", error.kind, error.layer, before, error.sqnr_db)
        if abs(error.drift) > _DRIFT:
            what = "range" if error.kind == "activation" else "range or largest weight"
            LOG.warning("%s %s: %s drifted by %+.0f %%.", error.kind, error.layer, what, 100 * error.drift)

    def _record(self, epoch: int, errors: list[QuantizationNoise], mode: str) -> None:
        rows = [[str(epoch), e.kind, e.layer, f"{e.sqnr_db:.3f}", f"{e.amax:.6g}", f"{e.drift:.4f}"] for e in errors]
        self._write_rows(rows, mode)
        for error in errors:
            self._writer.add_scalar(f"sqnr_db/{error.kind}/{error.layer}", error.sqnr_db, epoch)
            self._writer.add_scalar(f"drift/{error.kind}/{error.layer}", error.drift, epoch)
        self._writer.flush()

    def _write_rows(self, rows: list[list[str]], mode: str) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / FILE).open(mode, newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            if mode == "w":
                writer.writerow(HEADER)
            writer.writerows(rows)

    def _close(self, _: Any) -> None:
        if self._writer is not None:
            self._writer.close()
