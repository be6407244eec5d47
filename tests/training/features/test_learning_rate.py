"""The schedule: warm-up, cosine, and that its length is the run's."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from tiny_runs import finetune

from trt_qat.checkpoint import Model
from trt_qat.data.dataset import Dataset
from trt_qat.training.features.learning_rate import QATLearningRateScheduler


@pytest.mark.parametrize(("per_epoch", "epochs"), [(10, 1), (10, 5), (144, 2), (1, 3), (1, 1)])
def test_ends_at_the_final_share(per_epoch: int, epochs: int) -> None:
    scheduler = QATLearningRateScheduler(warmup_epochs=0.5, final=0.1)
    factors = [scheduler.factor(step, per_epoch, epochs) for step in range(per_epoch * epochs)]
    assert max(factors) == pytest.approx(1.0)
    assert all(0 < factor <= 1 for factor in factors)
    if len(factors) > 1:
        assert factors[-1] == pytest.approx(0.1)


def test_rises_then_falls() -> None:
    scheduler = QATLearningRateScheduler(warmup_epochs=1, final=0.0)
    factors = [scheduler.factor(step, 10, 8) for step in range(80)]
    peak = factors.index(max(factors))
    assert peak == 10  # one epoch
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert factors[peak + 35] == pytest.approx(0.5, abs=0.02)


def test_warmup_is_at_most_a_quarter_of_a_short_run() -> None:
    scheduler = QATLearningRateScheduler(warmup_epochs=3, final=0.1)
    factors = [scheduler.factor(step, 40, 1) for step in range(40)]
    assert factors.index(max(factors)) == 10


def test_a_run_follows_it_and_not_ultralytics_warm_up(int8: Model, demo: Dataset, tmp_path: Path) -> None:
    """Ultralytics' own, an epoch long, would be written over ours in the first epoch."""
    finetune(int8, demo, tmp_path / "run", epochs=2, lr0=1e-4, lrf=0.1, warmup_epochs=1.0, monitor=False)
    with (tmp_path / "run" / "results.csv").open() as stream:
        rates = [float(row["lr/pg0"]) for row in csv.DictReader(stream)]
    schedule = QATLearningRateScheduler(warmup_epochs=1.0, final=0.1)
    assert rates == pytest.approx([1e-4 * schedule.factor(step, 3, 2) for step in (2, 5)], rel=1e-3)
    assert rates[1] == pytest.approx(1e-5, rel=1e-3)
