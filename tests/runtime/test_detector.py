from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_onnx import colour_image, write_tiny_detector

from trt_qat.errors import RunnerError
from trt_qat.runtime.detector import Detector
from trt_qat.runtime.onnxruntime import OnnxRuntimeRunner
from trt_qat.runtime.openvino import OpenVinoRunner
from trt_qat.runtime.runner import Runner


class StubRunner:
    """Returns one fixed output."""

    name = "stub"
    device = "none"

    def __init__(self, output: np.ndarray, batch: int | None = 1) -> None:
        self.output = output
        self.input_shape: tuple[int | None, ...] = (batch, 3, 64, 64)
        self.metadata = {"names": "{0: 'a', 1: 'b'}"}

    def infer(self, batch: np.ndarray) -> list[np.ndarray]:
        return [self.output]


@pytest.mark.parametrize("runner_class", [OpenVinoRunner, OnnxRuntimeRunner])
def test_box_is_in_pixels_of_a_letterboxed_image(tmp_path: Path, runner_class: type[OpenVinoRunner]) -> None:
    image = colour_image(64, 128)  # halved, 16 rows of padding above and below
    image[16:32, 32:48] = (0, 0, 255)  # BGR red: network cell column 2, row 3
    image[32:48, 112:128] = (255, 0, 0)
    with runner_class(write_tiny_detector(tmp_path / "tiny.onnx", batch=None)) as runner:
        found = Detector(runner, conf=0.5).detect(image)
    boxes = {int(class_id): box for class_id, box in zip(found.class_ids, found.boxes_xyxy, strict=True)}
    assert sorted(boxes) == [0, 2]
    np.testing.assert_allclose(boxes[0], [32, 16, 48, 32], atol=1e-3)
    np.testing.assert_allclose(boxes[2], [112, 32, 128, 48], atol=1e-3)
    np.testing.assert_allclose(found.scores, 1, atol=1e-2)


def test_nothing_in_a_gray_image(tmp_path: Path) -> None:
    with OnnxRuntimeRunner(write_tiny_detector(tmp_path / "tiny.onnx")) as runner:
        assert len(Detector(runner).detect(colour_image(50, 70))) == 0


@pytest.mark.parametrize("shape", [(1, 300, 6), (1, 7, 64), (6, 64), (2, 6, 64)])
def test_other_outputs_are_refused(shape: tuple[int, ...]) -> None:
    runner: Runner = StubRunner(np.zeros(shape, np.float32))  # type: ignore[assignment]
    with pytest.raises(RunnerError, match=r"raw YOLOv8 detection has \(1, 6, anchors\)"):
        Detector(runner).detect(colour_image(64, 64))


def test_broken_numbers_are_refused() -> None:
    runner: Runner = StubRunner(np.full((1, 6, 64), np.nan, np.float32))  # type: ignore[assignment]
    with pytest.raises(RunnerError, match="NaN"):
        Detector(runner).detect(colour_image(64, 64))


def test_static_batch_is_refused() -> None:
    runner: Runner = StubRunner(np.zeros((8, 6, 64), np.float32), batch=8)  # type: ignore[assignment]
    with pytest.raises(RunnerError, match="static batch of 8"):
        Detector(runner)


@pytest.mark.parametrize(
    "image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32), np.zeros((0, 8, 3), np.uint8)]
)
def test_wrong_images_are_refused(image: np.ndarray) -> None:
    runner: Runner = StubRunner(np.zeros((1, 6, 64), np.float32))  # type: ignore[assignment]
    with pytest.raises(RunnerError, match="uint8"):
        Detector(runner).detect(image)
