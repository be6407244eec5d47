"""All stages at a rectangle, where it is known what comes out: borders at the sides change nothing that is found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import trt_qat
from trt_qat import pipeline
from trt_qat.config import Config
from trt_qat.data.dataset import load_dataset
from trt_qat.engine.engine_file import Preprocessing, read_sidecar
from trt_qat.errors import ConsistencyError
from trt_qat.evaluation.torch_runner import TorchRunner
from trt_qat.metadata import read_metadata
from trt_qat.progress import Silent
from trt_qat.runtime.openvino import OpenVinoRunner
from trt_qat.vision.image import read_image_bgr

if TYPE_CHECKING:
    from trt_qat.checkpoint import Model

WIDE = (320, 384)  # the demo's images are squares of 320


@pytest.fixture(scope="module")
def wide(demo_int8: Model) -> Model:
    """With the ranges of the square, which are those of the same pictures."""
    return replace(demo_int8, imgsz=WIDE)


@pytest.fixture(scope="module")
def wide_onnx(wide: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trt_qat.export(wide, tmp_path_factory.mktemp("wide") / "wide.onnx", target="openvino").path


def test_what_is_saved_exported_and_built(wide: Model, wide_onnx: Path, tmp_path: Path) -> None:
    assert trt_qat.load(trt_qat.save(tmp_path / "wide.safetensors", wide).path).imgsz == WIDE
    with OpenVinoRunner(wide_onnx) as runner:
        assert runner.input_shape == (1, 3, *WIDE)
        assert read_metadata(runner.metadata).imgsz == WIDE
    engine = trt_qat.export(wide, tmp_path / "engine.onnx", target="tensorrt-rtx", check=False).path
    plan = trt_qat.build(engine, tmp_path / "wide.plan", flavor="tensorrt-rtx").path
    assert read_sidecar(plan).preprocessing == Preprocessing(size=WIDE)


def test_boxes_are_where_the_square_finds_them(demo_int8: Model, wide_onnx: Path, demo_set: Path) -> None:
    with trt_qat.Detector(wide_onnx) as detect, TorchRunner(demo_int8) as square:
        images = [read_image_bgr(path) for path in load_dataset(demo_set).val[:2]]
        found, expected = ([detector(image) for image in images] for detector in (detect, trt_qat.Detector(square)))
    for ours, theirs in zip(found, expected, strict=True):
        assert len(ours) == len(theirs) > 0
        assert ours.boxes_xyxy == pytest.approx(theirs.boxes_xyxy, abs=4)


def test_sizes_that_do_not_compare(wide_onnx: Path, demo_int8: Model, demo_set: Path) -> None:
    with pytest.raises(ConsistencyError, match=r"takes images of \[320, 384\] pixels, .* of 320\."):
        trt_qat.parity(wide_onnx, demo_int8, demo_set, images=1)


@pytest.mark.slow
def test_accuracy_and_parity(wide: Model, wide_onnx: Path, demo_int8: Model, demo_set: Path, tmp_path: Path) -> None:
    square = trt_qat.export(demo_int8, tmp_path / "square.onnx", target="openvino").path
    rows = trt_qat.evaluate([square, wide_onnx, wide], demo_set, latency_iterations=3)
    assert rows[0].map50_95 > 0.5
    assert [row.map50_95 for row in rows] == pytest.approx([rows[0].map50_95] * 3, abs=0.03)
    assert trt_qat.parity(wide, wide_onnx, demo_set, images=16).broken == ()


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, line: str) -> None:
        self.notes.append(line)


def test_auto_says_what_it_chose(demo_detector: Model, demo_set: Path, tmp_path: Path) -> None:
    notes, config = Notes(), Config.load(overrides=["model.imgsz=auto"])
    tall = replace(demo_detector, imgsz=(64, 640))
    dataset = load_dataset(demo_set)
    assert pipeline.sized(tall, dataset, config, notes).imgsz == (640, 640)
    assert notes.notes == [
        f"model.imgsz=auto: 640, in which 24 of 24 images of '{demo_set}' are as large as in a square of 640."
    ]
    assert pipeline.sized(tall, dataset, Config(), notes) is tall
    weights = trt_qat.save(tmp_path / "x.safetensors", tall).path
    assert pipeline.load_for_no_data(weights, config, notes).imgsz == (64, 640)
    assert notes.notes[1] == "model.imgsz=auto: there are no images to look at; [64, 640], as the weights say."
