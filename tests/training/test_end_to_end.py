"""End-to-end heads are trained with both branches, and fine-tuned in INT8 with the one that is deployed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tiny_network import tiny_architecture

from trt_qat import api
from trt_qat.checkpoint import Model, load
from trt_qat.config import QatLoss
from trt_qat.data.dataset import Dataset
from trt_qat.metadata import output_layout
from trt_qat.runtime.detector import Detector
from trt_qat.runtime.onnxruntime import OnnxRuntimeRunner
from trt_qat.vision.image import read_image_bgr


@pytest.fixture(scope="module")
def trained(demo: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A tiny YOLO26, one epoch in 16 bit, as its ``best.pt`` is read back."""
    folder = tmp_path_factory.mktemp("end_to_end")
    architecture = {**tiny_architecture(), "end2end": True, "reg_max": 1}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(architecture))
    start = load(folder / "tiny.yaml", 64)
    return api.train(start, demo, folder / "run", epochs=1, batch=4, amp="bfloat16", nominal_batch=4, optimizer="AdamW")


@pytest.fixture(scope="module")
def int8(trained: Model, demo: Dataset) -> Model:
    return api.quantize(trained, demo, calibrator="max", images=4)


def test_both_branches_are_trained(trained: Model) -> None:
    start = load(trained.source.parents[2] / "tiny.yaml", 64).as_trained().state_dict()
    trained_values = trained.as_trained().state_dict()
    for branch in ("cv2", "one2one_cv2"):
        names = [name for name in start if f".{branch}." in name and name.endswith("conv.weight")]
        assert names
        assert all(not torch.equal(start[name], trained_values[name]) for name in names)


@pytest.mark.parametrize("loss", ["detection", pytest.param("distill", marks=pytest.mark.slow)])
def test_qat(int8: Model, demo: Dataset, tmp_path: Path, loss: QatLoss) -> None:
    tuned = api.finetune(int8, demo, tmp_path / loss, epochs=1, batch=4, lr0=1e-3, loss=loss)
    last = load(tmp_path / loss / "last.safetensors").network.state_dict()
    first = "model.0.conv.weight"
    assert not torch.equal(last[first], int8.network.state_dict()[first])
    assert tuned.stage == "qat"
    assert all(torch.isfinite(value).all() for value in last.values())


def test_both_layouts_find_the_same(int8: Model, demo: Dataset, tmp_path: Path) -> None:
    raw = api.export(int8, tmp_path / "raw.onnx", target="onnxruntime").path
    rows = api.export(int8, tmp_path / "rows.onnx", target="onnxruntime", nms=True).path
    image = read_image_bgr(demo.train[0])
    found = []
    for file, layout in ((raw, "nms_free"), (rows, "rows")):
        with OnnxRuntimeRunner(file) as runner:
            assert output_layout(runner.metadata) == layout
            detections = Detector(runner, conf=0.0, iou=0.01, max_det=50)(image)
        found.append(detections)
    assert len(found[0]) == 50  # of boxes side by side nothing is suppressed, whatever the overlap
    np.testing.assert_allclose(found[0].scores, found[1].scores, atol=1e-6)
    np.testing.assert_allclose(found[0].boxes_xyxy, found[1].boxes_xyxy, atol=1e-3)
    accuracies = api.evaluate([raw, rows, int8], demo, runtime=None, latency_iterations=3)
    assert [row.images for row in accuracies] == [len(demo.val)] * 3
