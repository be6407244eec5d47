"""Models that the tests of training share. They are never changed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from tiny_network import tiny_architecture
from tiny_runs import Reports
from torch import Tensor
from ultralytics.nn.tasks import DetectionModel

if TYPE_CHECKING:
    from conftest import Calibrated

    from trt_qat.checkpoint import Model
    from trt_qat.data.dataset import Dataset

    MakeUnfolded = Callable[..., DetectionModel]


@pytest.fixture(scope="session")
def int8(calibrated: Calibrated, detector: Model) -> Model:
    """YOLOv8n for the demo classes, random weights, BatchNorm folded, calibrated."""
    return detector.with_quantized(calibrated(), "ptq", {})


@pytest.fixture(scope="session")
def int8_with_batchnorm(int8: Model, unfolded: DetectionModel) -> Model:
    """The same detector as it is when it came from a file whose BatchNorm is apart."""
    return replace(int8, with_batchnorm=unfolded)


@pytest.fixture(scope="session")
def tiny_int8(make_unfolded: MakeUnfolded, demo: Dataset, batches: tuple[Tensor, ...]) -> Model:
    """Three layers and a head for the demo classes, calibrated, with BatchNorm apart: QAT of it takes a second."""
    from trt_qat.checkpoint import Model
    from trt_qat.config import QuantizationSection
    from trt_qat.model.loading import fold_batchnorm
    from trt_qat.quantization.calibrators.max import Max
    from trt_qat.quantization.insert import quantize_model
    from trt_qat.quantization.observe import collect_histograms

    names = dict(demo.names)
    unfolded = make_unfolded({**tiny_architecture(), "nc": len(names)}, names)
    folded = fold_batchnorm(copy.deepcopy(unfolded))
    quantized = quantize_model(folded, names, QuantizationSection())
    quantized.load_amax_(Max().ranges(collect_histograms(quantized, batches, 4096)))
    return Model(folded, names, (64, 64), Path("tiny.yaml"), "ptq", quantized, with_batchnorm=unfolded)


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
