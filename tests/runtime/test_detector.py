from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_onnx import NAMES, colour_image, write_free_size, write_tiny_detector

import trt_qat
from trt_qat.config import InferSection
from trt_qat.errors import ArtifactError, ConfigError, RunnerError
from trt_qat.runtime import detector as module
from trt_qat.runtime.detector import Detector
from trt_qat.runtime.frames import Frame
from trt_qat.runtime.onnxruntime import OnnxRuntimeRunner
from trt_qat.runtime.openvino import OpenVinoRunner
from trt_qat.runtime.runner import Mode, Runner
from trt_qat.vision.detections import Detections


class StubRunner:
    """Returns one fixed output."""

    name = "stub"
    device = "none"

    def __init__(self, output: np.ndarray, batch: int | None = 1) -> None:
        self.output = output
        self.input_shape: tuple[int | None, ...] = (batch, 3, 64, 64)
        self.parallel = 1
        self.largest_batch = batch
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

    def remember(model: Path, runtime: str, **given: str) -> Runner:
        opened.append(OnnxRuntimeRunner(model))
        return opened[-1]

    monkeypatch.setattr(module, "open_runner", remember)
    with pytest.raises(ConfigError, match=r"infer.classes: the model has no class 'rde'. Did you mean 'red'\?"):
        Detector(tiny, runtime="onnxruntime", classes=["rde"])
    with pytest.raises(RunnerError, match="closed"):  # not left open
        opened[0].infer(np.zeros((1, 3, 64, 64), np.float32))


@pytest.mark.parametrize("shape", [(1, 300, 6), (1, 7, 64), (6, 64), (2, 6, 64)])
def test_other_outputs_are_refused(shape: tuple[int, ...]) -> None:
    runner: Runner = StubRunner(np.zeros(shape, np.float32))  # type: ignore[assignment]
    with pytest.raises(RunnerError, match=r"raw YOLOv8 detection has \(1, 6, anchors\)"):
        Detector(runner)(colour_image(64, 64))


def test_broken_numbers_are_refused() -> None:
    runner: Runner = StubRunner(np.full((1, 6, 64), np.nan, np.float32))  # type: ignore[assignment]
    with pytest.raises(RunnerError, match="NaN"):
        Detector(runner)(colour_image(64, 64))


@pytest.mark.parametrize("batch", [None, 1, 3, 8])
@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_a_batch_finds_what_single_images_do_whatever_batch_the_model_has(
    tmp_path: Path, batch: int | None, runtime: str
) -> None:
    images = [_red(), colour_image(64, 64), _red(256, 128), _red(100, 160), colour_image(8, 80)]
    with Detector(write_tiny_detector(tmp_path / "tiny.onnx", batch=batch), runtime=runtime) as detect:
        alone = [detect(image) for image in images]
        together = detect.batch(images)
        assert detect.batch([]) == []
    assert [len(found) for found in alone] == [1, 0, 1, 2, 0]  # the fourth lies on two cells
    np.testing.assert_allclose(alone[0].boxes_xyxy, [[32, 32, 48, 48]], atol=0.2)
    for one, other in zip(alone, together, strict=True):
        _assert_equal(one, other)


@pytest.mark.parametrize("mode", ["latency", "throughput"])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_stream_finds_what_single_images_do(tmp_path: Path, mode: Mode, batch: int) -> None:
    frames = [_red() if number % 3 else colour_image(40 + number, 64) for number in range(20)]
    with Detector(write_tiny_detector(tmp_path / "tiny.onnx", batch=None), mode=mode) as detect:
        streamed = list(detect.stream(iter(frames), batch=batch))
        assert [frame is given for (frame, _), given in zip(streamed, frames, strict=True)] == [True] * 20
        for frame, found in streamed:
            _assert_equal(found, detect(frame))
        assert sum(len(found) for _, found in streamed) == 13


def test_a_stream_takes_what_carries_a_picture_and_ends_at_the_first_error(tiny: Path) -> None:
    broken = Frame(np.zeros((4, 4), np.uint8), "clip.mp4", 2)
    frames = [Frame(_red(), "clip.mp4", number) for number in range(2)]
    found = []
    with Detector(tiny, mode="throughput") as detect:
        results = detect.stream([*frames, broken, *frames])
        with pytest.raises(RunnerError, match="uint8"):
            list(map(found.append, results))
        assert [(frame.number, len(detections)) for frame, detections in found] == [(0, 1), (1, 1)]
    with pytest.raises(RunnerError, match="closed"):
        list(detect.stream(frames))


@pytest.mark.parametrize(("size_wh", "imgsz"), [(None, (96, 96)), ((640, 360), (64, 96)), ((100, 300), (96, 32))])
def test_a_model_of_free_size_gets_the_rectangle_of_the_images(
    tmp_path: Path, size_wh: tuple[int, int] | None, imgsz: tuple[int, int]
) -> None:
    free = write_free_size(tmp_path / "free.onnx", props={"names": str(NAMES), "imgsz": "[96, 96]"})
    with OnnxRuntimeRunner(free) as runner:
        detect = Detector(runner, size_wh=size_wh)
        assert detect.imgsz == imgsz
        assert detect(colour_image(50, 70)).boxes_xyxy.shape[1] == 4
    with OnnxRuntimeRunner(write_tiny_detector(tmp_path / "fixed.onnx")) as runner:
        assert Detector(runner, size_wh=size_wh).imgsz == (64, 64)


def test_only_the_wanted_classes(tiny: Path) -> None:
    image = _red()
    image[80:96, 80:96] = (255, 0, 0)
    with OnnxRuntimeRunner(tiny) as runner:
        assert sorted(Detector(runner)(image).class_ids) == [0, 2]
        assert Detector(runner, classes=["blue"])(image).class_ids.tolist() == [2]
        assert Detector(runner, classes=0)(image).class_ids.tolist() == [0]
        assert sorted(Detector(runner, classes=[0, "blue"])(image).class_ids) == [0, 2]
        with pytest.raises(ConfigError, match=r"infer.classes: the model has no class '3'"):
            Detector(runner, classes=[3])


def _assert_equal(one: Detections, other: Detections) -> None:
    np.testing.assert_array_equal(one.boxes_xyxy, other.boxes_xyxy)
    np.testing.assert_array_equal(one.scores, other.scores)
    np.testing.assert_array_equal(one.class_ids, other.class_ids)


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


def _end_to_end(output: np.ndarray, **metadata: str) -> StubRunner:
    runner = StubRunner(output.astype(np.float32)[None])
    runner.metadata = runner.metadata | metadata
    return runner


def test_both_layouts_of_an_end_to_end_head() -> None:
    """Two equal boxes stay two; the same boxes as rows are the same detections."""
    raw = np.array([[32, 32], [32, 32], [16, 16], [8, 8], [0.9, 0.1], [0.2, 0.6]])
    rows = np.array([[24, 28, 40, 36, 0.6, 1], [24, 28, 40, 36, 0.9, 0], [0] * 6])
    image = colour_image(128, 128)  # halved
    for runner in (_end_to_end(raw, nms_free="True"), _end_to_end(rows, end2end="True")):
        found = Detector(runner, conf=0.5, iou=0.1)(image)
        assert found.scores.tolist() == pytest.approx([0.9, 0.6])
        assert found.class_ids.tolist() == [0, 1]
        np.testing.assert_allclose(found.boxes_xyxy, [[48, 56, 80, 72]] * 2, atol=1e-4)
        assert Detector(runner, conf=0.5, classes=["b"])(image).class_ids.tolist() == [1]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((3, 7)), r"has shape \(1, 3, 7\), rows of an end-to-end detector have \(1, n, 6\)"),
        (np.array([[0, 0, 1, 1, 0.5, 2]]), "has class ids from 2 to 2, its names go from 0 to 1"),
        (np.array([[0, 0, np.nan, 1, 0.5, 1]]), "holds NaN or infinity"),
    ],
)
def test_rows_that_are_none(rows: np.ndarray, message: str) -> None:
    with pytest.raises(RunnerError, match=message):
        Detector(_end_to_end(rows, end2end="True"))(colour_image(64, 64))
