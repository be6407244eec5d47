"""Distillation reads no label: QAT on images that the model labelled gives the weights that people's labels give."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tiny_runs import finetune, weights

import trt_qat
from trt_qat.data.dataset import label_path
from trt_qat.data.labels import read_labels

if TYPE_CHECKING:
    from trt_qat.checkpoint import Model
    from trt_qat.data.dataset import Dataset


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
