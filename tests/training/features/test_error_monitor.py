"""The monitor: its figures against their definition, its warnings, and that it stops a collapsed run."""

from __future__ import annotations

import copy
import csv
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from trt_qat.quantization.fake_quant import fake_quantize
from trt_qat.quantization.insert import QuantizedModel
from trt_qat.results import Measure
from trt_qat.training.features.base import Epoch
from trt_qat.training.features.error_monitor import FILE, QuantizationErrorMonitor, measure_noise

if TYPE_CHECKING:
    from conftest import Calibrated


@pytest.fixture
def model(calibrated: Calibrated) -> QuantizedModel:
    return copy.deepcopy(calibrated())


def begun(model: QuantizedModel, images: Tensor, folder: Path) -> QuantizationErrorMonitor:
    monitor = QuantizationErrorMonitor(folder, collapse=0.5)
    monitor.begin(model, iter([images]))
    return monitor


def epoch(model: QuantizedModel, number: int, fitness: float = 0.3, measure: Measure = "mAP") -> Epoch:
    return Epoch(number, model, fitness, 0.3, measure)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / FILE).open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_sqnr_is_signal_power_over_noise_power(model: QuantizedModel, batches: tuple[Tensor, ...]) -> None:
    errors = {(e.kind, e.layer): e for e in measure_noise(model, batches[:1], model.amax())}
    assert len(errors) == len(model.amax())
    first = model.placement.groups[0].name
    amax = model.amax()[f"activation.{first}"]
    noise = (batches[0] - fake_quantize(batches[0], amax)).square().sum()
    expected = 10 * torch.log10(batches[0].square().sum() / noise)
    assert errors["activation", first].sqnr_db == pytest.approx(float(expected), abs=0.01)
    assert all(e.sqnr_db > 15 for e in errors.values() if e.kind == "weight")


def test_one_scale_per_weight_has_not_drifted_at_the_start(calibrated: Calibrated, batches: tuple[Tensor, ...]) -> None:
    """Its range has the least error and is not the largest weight, which is no drift."""
    model = calibrated(weights="tensor")
    errors = measure_noise(model, batches[:1], model.amax())
    assert {entry.drift for entry in errors if entry.kind == "weight"} == {0.0}


def test_a_damaged_layer_is_named(
    model: QuantizedModel, batches: tuple[Tensor, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monitor = begun(model, batches[0], tmp_path)
    with caplog.at_level(logging.WARNING, logger="trt_qat"):
        assert not monitor.after_epoch(epoch(model, 1))
        assert not caplog.records
        victim = model.placement.groups[5].name
        quantizer = model.activation_quantizers()[victim]
        model.toolkit.set_amax(quantizer, model.toolkit.amax(quantizer) * 8)
        assert not monitor.after_epoch(epoch(model, 2))
    monitor.end()
    messages = [record.getMessage() for record in caplog.records]
    assert [m for m in messages if "SQNR fell" in m and victim in m]
    assert [m for m in messages if "drifted by +700 %" in m and victim in m]
    written = rows(tmp_path)
    assert {row["epoch"] for row in written} == {"0", "1", "2"}
    damaged = [row for row in written if row["epoch"] == "2" and row["layer"] == victim]
    assert [float(row["drift"]) for row in damaged if row["kind"] == "activation"] == [7.0]
    assert list(tmp_path.glob("events.out.tfevents*"))


def test_a_collapsed_run_is_stopped(
    model: QuantizedModel, batches: tuple[Tensor, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monitor = begun(model, batches[0], tmp_path)
    with caplog.at_level(logging.WARNING, logger="trt_qat"):
        assert not monitor.after_epoch(epoch(model, 1, fitness=0.2))
        assert not caplog.records
        assert monitor.after_epoch(epoch(model, 2, fitness=0.1))
        assert monitor.after_epoch(epoch(model, 3, fitness=0.1, measure="agreement"))
    monitor.end()
    assert "diverged: fake-quant mAP50-95 0.1000 after epoch 2, best 0.3000" in caplog.text
    assert "diverged: fake-quant agreement50-95 0.1000 after epoch 3, best 0.3000" in caplog.text


def test_going_on_drops_later_rows(
    model: QuantizedModel, batches: tuple[Tensor, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monitor = begun(model, batches[0], tmp_path)
    monitor.after_epoch(epoch(model, 1))
    state = copy.deepcopy(monitor.state())
    monitor.after_epoch(epoch(model, 2))
    monitor.end()
    whole = rows(tmp_path)
    victim = model.placement.groups[5].name
    with caplog.at_level(logging.WARNING, logger="trt_qat"):
        again = QuantizationErrorMonitor(tmp_path, collapse=0.5)
        again.load_state(state, epochs=1)
        again.begin(model, iter([batches[0]]))
        assert {row["epoch"] for row in rows(tmp_path)} == {"0", "1"}
        again.after_epoch(epoch(model, 2))
        assert rows(tmp_path) == whole
        assert not caplog.records
        quantizer = model.activation_quantizers()[victim]
        model.toolkit.set_amax(quantizer, model.toolkit.amax(quantizer) * 8)
        again.after_epoch(epoch(model, 3))  # measured from the first run's start
    again.end()
    assert [m for m in caplog.messages if "SQNR fell" in m and victim in m]


def test_a_run_that_failed_before_it_began_has_nothing_to_close(tmp_path: Path) -> None:
    QuantizationErrorMonitor(tmp_path, collapse=0.5).end()
    assert not list(tmp_path.iterdir())
