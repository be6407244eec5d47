from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_onnx import NAMES, colour_image, write_tiny_detector

import trt_qat
from trt_qat.config import InferSection
from trt_qat.errors import ArtifactError, ConfigError, RunnerError
from trt_qat.runtime import detector as module
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


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_detector(tmp_path / "tiny.onnx")


def _red(height: int = 128, width: int = 128) -> np.ndarray:
    """A gray image with a red square in rows and columns 32 to 48."""
    image = colour_image(height, width)
    image[32:48, 32:48] = (0, 0, 255)
    return image


@pytest.mark.parametrize("runner_class", [OpenVinoRunner, OnnxRuntimeRunner])
def test_box_is_in_pixels_of_a_letterboxed_image(tmp_path: Path, runner_class: type[OpenVinoRunner]) -> None:
    image = colour_image(64, 128)  # halved, 16 rows of padding above and below
    image[16:32, 32:48] = (0, 0, 255)  # BGR red: network cell column 2, row 3
    image[32:48, 112:128] = (255, 0, 0)
    with runner_class(write_tiny_detector(tmp_path / "tiny.onnx", batch=None)) as runner:
        found = Detector(runner, conf=0.5)(image)
    boxes = {int(class_id): box for class_id, box in zip(found.class_ids, found.boxes_xyxy, strict=True)}
    assert sorted(boxes) == [0, 2]
    np.testing.assert_allclose(boxes[0], [32, 16, 48, 32], atol=1e-3)
    np.testing.assert_allclose(boxes[2], [112, 32, 128, 48], atol=1e-3)
    np.testing.assert_allclose(found.scores, 1, atol=1e-2)


def test_nothing_in_a_gray_image(tiny: Path) -> None:
    with OnnxRuntimeRunner(tiny) as runner:
        assert len(Detector(runner)(colour_image(50, 70))) == 0


@pytest.mark.parametrize("as_text", [True, False])
def test_a_file_is_opened_and_closed(tiny: Path, as_text: bool) -> None:
    with Detector(str(tiny) if as_text else tiny, runtime="onnxruntime") as detect:
        assert (detect.names, detect.imgsz) == (NAMES, (64, 64))
        assert detect.reason == f"'{tiny}' runs on onnxruntime (CPU): it was asked for."
        (box,) = detect(_red()).boxes_xyxy
        np.testing.assert_allclose(box, [32, 32, 48, 48], atol=0.2)
    with pytest.raises(RunnerError, match="The detector is closed"):
        detect(_red())
    with pytest.raises(RunnerError, match="The detector is closed"), detect:
        pass
    with pytest.raises(RunnerError, match="onnxruntime: the runner is closed"):
        detect.runner.infer(np.zeros((1, 3, 64, 64), np.float32))


def test_auto_says_why(tiny: Path) -> None:
    with trt_qat.Detector(tiny) as detect:
        assert detect.reason.startswith(f"'{tiny}' runs on openvino (")
        assert detect.reason.endswith("): there is no plan beside it.")


def test_an_open_runner_stays_its_owners(tiny: Path) -> None:
    with OnnxRuntimeRunner(tiny) as runner:
        with Detector(runner) as detect:
            assert len(detect(_red())) == 1
            assert detect.reason == "It runs on onnxruntime (CPU): an open runner was given."
        with pytest.raises(RunnerError, match="The detector is closed"):
            detect(_red())
        assert len(Detector(runner)(_red())) == 1


def test_section_and_settings(tiny: Path) -> None:
    image = _red()
    image[80:96, 80:96] = (0, 0, 230)  # scores less than the pure red
    with OnnxRuntimeRunner(tiny) as runner:
        weaker, stronger = sorted(float(score) for score in Detector(runner)(image).scores)
        between = (weaker + stronger) / 2
        assert len(Detector(runner, InferSection(conf=between))(image)) == 1
        assert len(Detector(runner, max_det=1)(image)) == 1
        both = Detector(runner, InferSection(max_det=1, conf=between), conf=0.25)
        assert both.section == InferSection(max_det=1, conf=0.25)
        with pytest.raises(ConfigError, match=r"Unknown key 'infer.cnof'. Did you mean 'conf'"):
            Detector(runner, cnof=0.5)
        with pytest.raises(ConfigError, match=r"infer.conf = 2"):
            Detector(runner, conf=2)


def test_files_that_cannot_be_opened(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArtifactError, match=r"Model '.*none.onnx' does not exist"):
        Detector(tmp_path / "none.onnx")
    with pytest.raises(RunnerError, match=r"Known: openvino, onnxruntime, tensorrt"):
        Detector(tiny, runtime="tflite")
    opened: list[Runner] = []

    def remember(model: Path, runtime: str) -> Runner:
        opened.append(OnnxRuntimeRunner(model))
        return opened[-1]

    monkeypatch.setattr(module, "open_runner", remember)
    with pytest.raises(RunnerError, match="static batch of 8"):
        Detector(write_tiny_detector(tmp_path / "eight.onnx", batch=8), runtime="onnxruntime")
    with pytest.raises(RunnerError, match="closed"):  # not left open
        opened[0].infer(np.zeros((8, 3, 64, 64), np.float32))


@pytest.mark.parametrize("shape", [(1, 300, 6), (1, 7, 64), (6, 64), (2, 6, 64)])
def test_other_outputs_are_refused(shape: tuple[int, ...]) -> None:
    runner: Runner = StubRunner(np.zeros(shape, np.float32))  # type: ignore[assignment]
    with pytest.raises(RunnerError, match=r"raw YOLOv8 detection has \(1, 6, anchors\)"):
        Detector(runner)(colour_image(64, 64))


def test_broken_numbers_are_refused() -> None:
    runner: Runner = StubRunner(np.full((1, 6, 64), np.nan, np.float32))  # type: ignore[assignment]
    with pytest.raises(RunnerError, match="NaN"):
        Detector(runner)(colour_image(64, 64))


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
        Detector(runner)(image)


def test_the_documented_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny_detector(Path("best_int8.onnx"))
    image = colour_image(128, 128)
    image[16:32, 32:48] = (0, 0, 255)
    cv2.imwrite("street.jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 100])
    (example,) = doctest.DocTestFinder(recurse=False).find(Detector, globs={"trt_qat": trt_qat, "cv2": cv2})
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0


def test_it_loads_no_torch(tiny: Path) -> None:
    script = (
        "import sys, numpy, trt_qat\n"
        "for runtime in ('auto', 'onnxruntime'):\n"
        f"    with trt_qat.Detector({str(tiny)!r}, runtime=runtime) as detect:\n"
        "        detect(numpy.zeros((64, 64, 3), numpy.uint8))\n"
        "print(sorted({'torch', 'ultralytics', 'tensorrt', 'modelopt'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr
