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
from trt_qat.config import QatSection
from trt_qat.data.dataset import label_path
from trt_qat.data.labels import read_labels
from trt_qat.training.detection_trainer import DatasetTrainer
from trt_qat.training.features.base import Start
from trt_qat.training.features.choose import features_from_section
from trt_qat.training.features.distillation import Distillation
from trt_qat.training.qat import QATTrainer

if TYPE_CHECKING:
    from trt_qat.checkpoint import Model
    from trt_qat.config import QatLoss
    from trt_qat.data.dataset import Dataset, LabelledBy


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
    # the held-out images say how far the network is from the float one, whoever labelled them
    rows = [_epochs(tmp_path / data.labelled_by) for data in (free, labelled)]
    terms = [[float(row[f"val/{term}"]) for term in Distillation.terms] for (row,) in rows]
    assert terms[0] == terms[1]
    assert all(0 < value < 1 for value in terms[0])


@pytest.mark.parametrize(
    ("loss", "labelled_by", "best"),
    [
        ("distill", "people", [True, True, True, False]),
        ("distill", "model", [True, True, True, False]),
        ("both", "model", [True, True, True, False]),
        ("both", "people", [True, False, True, False]),
        ("detection", "people", [True, False, True, False]),
        ("detection", "model", [True, False, True, False]),
    ],
)
def test_the_best_epoch_is_nearest_to_the_float_network(
    loss: QatLoss,
    labelled_by: LabelledBy,
    best: list[bool],
    tiny_int8: Model,
    demo: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """mAP and agreement count few boxes and fall by chance; the error of distillation counts every anchor."""
    epochs = iter([(0.98, 0.5), (0.97, 0.3), (0.98, 0.3), (0.96, 0.4)])

    def validate(_: DatasetTrainer) -> tuple[dict[str, float], float]:
        fitness, error = next(epochs)
        return {"val/score": error / 2, "val/box_kl": error / 4, "val/feature": error / 4}, fitness

    section = QatSection(loss=loss, dampening=1.0)
    features = features_from_section(section, Start(tiny_int8, tmp_path))
    trainer = QATTrainer(tiny_int8, features, replace(demo, labelled_by=labelled_by), tmp_path, section, {})
    monkeypatch.setattr(DatasetTrainer, "validate", validate)
    assert [(trainer.validate(), trainer._is_best)[1] for _ in range(4)] == best


def _epochs(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream, skipinitialspace=True))
