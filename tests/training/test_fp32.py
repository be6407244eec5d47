"""FP32 training: what it starts from, and what it leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trt_qat.checkpoint import Model, load, save
from trt_qat.config import TrainSection
from trt_qat.data.dataset import Dataset
from trt_qat.errors import ArtifactError
from trt_qat.training.fp32 import train_fp32

SECTION = TrainSection(epochs=1, batch=6, optimizer="SGD")
WEIGHT = "model.0.conv.weight"


def test_trains_on_from_the_weights(unfolded_pt: Path, demo: Dataset, tmp_path: Path) -> None:
    start = load(unfolded_pt)
    before = start.network.state_dict()[WEIGHT].clone()
    best = train_fp32(start, demo, tmp_path / "run", SECTION)
    assert best == tmp_path / "run" / "weights" / "best.pt"
    model = load(best)
    assert model.names == demo.names
    after = model.network.state_dict()[WEIGHT]
    assert not torch.equal(after, before)
    assert torch.allclose(after, before, rtol=1.0, atol=0.1)  # two steps from there, not from random weights
    assert torch.equal(start.network.state_dict()[WEIGHT], before)  # what was handed in is as it was


def test_folded_weights_are_refused(detector: Model, demo: Dataset, tmp_path: Path) -> None:
    folded = load(save(tmp_path / "folded.safetensors", detector).path)
    with pytest.raises(ArtifactError, match=r"has its BatchNorm folded.*Give the original"):
        train_fp32(folded, demo, tmp_path / "run", SECTION)
    assert not (tmp_path / "run").exists()
