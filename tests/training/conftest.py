"""Models that the tests of training share. They are never changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from tiny_runs import Reports
from ultralytics.nn.tasks import DetectionModel

if TYPE_CHECKING:
    from conftest import Calibrated

    from trt_qat.checkpoint import Model


@pytest.fixture(scope="session")
def int8(calibrated: Calibrated, detector: Model) -> Model:
    """YOLOv8n for the demo classes, random weights, BatchNorm folded, calibrated."""
    return detector.with_quantized(calibrated(), "ptq", {})


@pytest.fixture(scope="session")
def int8_with_batchnorm(int8: Model, unfolded: DetectionModel) -> Model:
    """The same detector as it is when it came from a file whose BatchNorm is apart."""
    return replace(int8, with_batchnorm=unfolded)


@pytest.fixture(scope="session")
def unfolded_pt(unfolded: DetectionModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That detector as an Ultralytics checkpoint."""
    path = tmp_path_factory.mktemp("weights") / "unfolded.pt"
    torch.save({"model": unfolded, "train_args": {"imgsz": 64}}, path)
    return path


@pytest.fixture
def reports() -> Reports:
    """A progress that keeps what it is told."""
    return Reports()
