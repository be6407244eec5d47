"""The monitor: its figures against their definition, its warnings, and that it stops a collapsed run."""

from __future__ import annotations

import copy
import csv
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from trt_qat.quantization.fake_quant import fake_quantize
from trt_qat.quantization.insert import QuantizedModel
from trt_qat.training.features.error_monitor import FILE, QuantizationErrorMonitor, measure_errors

if TYPE_CHECKING:
    from conftest import Calibrated


@pytest.fixture
def model(calibrated: Calibrated) -> QuantizedModel:
    return copy.deepcopy(calibrated())


def trainer(model: QuantizedModel, images: Tensor) -> SimpleNamespace:
    return SimpleNamespace(
        test_loader=[{"img": images}],
        preprocess_batch=lambda batch: batch,
        evaluated_model=lambda: model,
        epoch=0,
        fitness=0.3,
        best_fitness=0.3,
        stop=False,
    )


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / FILE).open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_sqnr_is_signal_power_over_noise_power(model: QuantizedModel, batches: tuple[Tensor, ...]) -> None:
    errors = {(e.kind, e.layer): e for e in measure_errors(model, batches[0], model.amax())}
    assert len(errors) == len(model.amax())
    first = model.placement.groups[0].name
    amax = model.amax()[f"activation.{first}"]
    noise = (batches[0] - fake_quantize(batches[0], amax)).square().sum()
    expected = 10 * torch.log10(batches[0].square().sum() / noise)
    assert errors["activation", first].sqnr_db == pytest.approx(float(expected), abs=0.01)
    assert all(e.sqnr_db > 15 for e in errors.values() if e.kind == "weight")


def test_a_damaged_layer_is_named(
    model: QuantizedModel, batches: tuple[Tensor, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monitor, run = QuantizationErrorMonitor(tmp_path, collapse=0.5), trainer(model, batches[0])
    monitor._begin(run)
    with caplog.at_level(logging.WARNING, logger="trt_qat"):
        monitor._after_epoch(run)
        assert not caplog.records
        victim = model.placement.groups[5].name
        quantizer = model.activation_quantizers()[victim]
        model.toolkit.set_amax(quantizer, model.toolkit.amax(quantizer) * 8)
        run.epoch = 1
        monitor._after_epoch(run)
    monitor._close(run)
    messages = [record.getMessage() for record in caplog.records]
    assert [m for m in messages if "SQNR fell" in m and victim in m]
    assert [m for m in messages if "drifted by +700 %" in m and victim in m]
    assert not run.stop
    written = rows(tmp_path)
    assert {row["epoch"] for row in written} == {"0", "1", "2"}
    damaged = [row for row in written if row["epoch"] == "2" and row["layer"] == victim]
    assert [float(row["drift"]) for row in damaged if row["kind"] == "activation"] == [7.0]
    assert list(tmp_path.glob("events.out.tfevents*"))


def test_a_collapsed_run_is_stopped(
    model: QuantizedModel, batches: tuple[Tensor, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monitor, run = QuantizationErrorMonitor(tmp_path, collapse=0.5), trainer(model, batches[0])
    monitor._begin(run)
    for run.fitness, stopped in ((0.2, False), (0.1, True)):
        with caplog.at_level(logging.WARNING, logger="trt_qat"):
            monitor._after_epoch(run)
        assert run.stop == stopped
    monitor._close(run)
    assert "diverged" in caplog.text


def test_going_on_drops_later_rows(model: QuantizedModel, batches: tuple[Tensor, ...], tmp_path: Path) -> None:
    monitor, run = QuantizationErrorMonitor(tmp_path, collapse=0.5), trainer(model, batches[0])
    monitor._begin(run)
    for run.epoch in (0, 1):
        monitor._after_epoch(run)
    monitor._close(run)
    whole = rows(tmp_path)
    again = QuantizationErrorMonitor(tmp_path, collapse=0.5)
    again.load_state(monitor.state(), epochs=1)
    assert {row["epoch"] for row in rows(tmp_path)} == {"0", "1"}
    again._begin(run)
    again._after_epoch(run)
    again._close(run)
    assert rows(tmp_path) == whole
