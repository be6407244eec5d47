"""Distillation reads no label: QAT on images that the model labelled gives the weights that people's labels give."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from tiny_runs import finetune, weights

import trt_qat
from trt_qat.data.dataset import Dataset, label_path
from trt_qat.data.labels import read_labels
from trt_qat.training.detection_trainer import DatasetTrainer
from trt_qat.training.features.dampening import Dampening
from trt_qat.training.features.distillation import Distillation
from trt_qat.training.qat import QATTrainer

if TYPE_CHECKING:
    from trt_qat.checkpoint import Model
    from trt_qat.results import Measure


def test_label_free_qat_is_labelled_qat_bit_for_bit(tiny_int8: Model, demo: Dataset, tmp_path: Path) -> None:
    free = trt_qat.label(tiny_int8, list(demo.train), tmp_path / "footage", label_conf=0.0)
    labelled = replace(demo, train=demo.train[:10], val=demo.train[10:])
    assert [image.readlink() for image in (*free.train, *free.val)] == list(demo.train)
    assert [len(dataset.train) for dataset in (free, labelled)] == [10, 10]
    texts = [label_path(dataset.train[0]).read_text() for dataset in (free, labelled)]
    assert texts[0] != texts[1]
    assert len(read_labels(label_path(free.train[0]), len(demo.names))) > 0
    found = [weights(finetune(tiny_int8, data, tmp_path / data.labelled_by)) for data in (free, labelled)]
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    before = weights(tiny_int8)
    assert any(not torch.equal(found[0][name], before[name]) for name in before)
    # the held-out images say how far the network is from the float one; people's say mAP, and the teacher is not asked
    (taught,), (labelled_row,) = (_epochs(tmp_path / data.labelled_by) for data in (free, labelled))
    assert all(0 < float(taught[f"val/{term}"]) < 1 for term in Distillation.terms)
    assert all(labelled_row[f"val/{term}"] == "nan" for term in Distillation.terms)


@pytest.mark.parametrize(
    ("measure", "best"), [("agreement", [True, True, True, False]), ("mAP", [True, False, True, False])]
)
def test_the_best_epoch_is_nearest_to_the_float_network(
    measure: Measure, best: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Agreement counts few boxes and falls by chance; the error of distillation counts every anchor."""
    epochs = iter([(0.98, 0.5), (0.97, 0.3), (0.98, 0.3), (0.96, 0.4)])

    def validate(_: DatasetTrainer) -> tuple[dict[str, float], float]:
        fitness, error = next(epochs)
        return {"val/score": error / 2, "val/box_kl": error / 4, "val/feature": error / 4}, fitness

    monkeypatch.setattr(DatasetTrainer, "validate", validate)
    trainer = QATTrainer.__new__(QATTrainer)
    trainer._features, trainer._best_choice = [Distillation.__new__(Distillation), Dampening(1.0)], None
    trainer._dataset = Dataset(Path(), (), (), {}, labelled_by="model" if measure == "agreement" else "people")
    assert [(trainer.validate(), trainer._is_best)[1] for _ in range(4)] == best


def _epochs(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream, skipinitialspace=True))
