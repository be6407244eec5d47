"""Every family of detectors goes the whole way, from random weights to detections of an INT8 file."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import trt_qat
from trt_qat.data.dataset import Dataset
from trt_qat.metadata import output_layout
from trt_qat.model.loading import is_end_to_end
from trt_qat.runtime.onnxruntime import OnnxRuntimeRunner
from trt_qat.training.fp32 import trainable_network
from trt_qat.vision.image import read_image_bgr

NAMES = ("yolov5n", "yolov8n-p2", "yolov8n-p6", "yolov9t", "yolov10n", "yolo11n", "yolo12n", "yolo26n")
WITHOUT_NMS = ("yolov10n", "yolo26n")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_whole_way(demo: Dataset, tmp_path: Path, name: str) -> None:
    """Train, calibrate, QAT, export, lint, build, evaluate, infer; 12 images of 64 pixels."""
    random = trt_qat.load(f"{name}.yaml", 64)
    trained = trt_qat.train(random, demo, tmp_path / "fp32", epochs=1, batch=4)
    assert is_end_to_end(trained.network) == (name in WITHOUT_NMS)
    assert trainable_network(trained, demo.names).state_dict().keys() == trained.as_trained().state_dict().keys()
    int8 = trt_qat.quantize(trained, demo, calibrator="max", images=4)
    tuned = trt_qat.finetune(int8, demo, tmp_path / "qat", epochs=1, batch=4)
    file = trt_qat.export(tuned, tmp_path / "int8.onnx", target="onnxruntime").path
    (row,) = trt_qat.evaluate([file], demo, latency_iterations=3)
    assert row.images == len(demo.val)
    with OnnxRuntimeRunner(file) as runner:
        assert output_layout(runner.metadata) == ("nms_free" if name in WITHOUT_NMS else "raw")
        found = trt_qat.Detector(runner, conf=0.0, max_det=20)(read_image_bgr(demo.val[0]))
    assert len(found) > 0
    for_tensorrt = trt_qat.export(tuned, tmp_path / "trt.onnx", target="tensorrt").path
    assert trt_qat.lint(for_tensorrt).errors == 0
    if importlib.util.find_spec("tensorrt_rtx") is not None:
        for_rtx = trt_qat.export(tuned, tmp_path / "rtx.onnx", target="tensorrt-rtx").path
        assert trt_qat.build(for_rtx, tmp_path / "rtx.plan", flavor="tensorrt-rtx").path.stat().st_size > 0
