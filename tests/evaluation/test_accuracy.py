"""mAP through our reader, letterbox and NMS: equal to Ultralytics' own on the same file, and right where it is known.

What is left of a difference to Ultralytics' ``val`` of the same file, largest first:

- it rounds the shorter side of the letterbox up, deployment to the nearest pixel: other pixels reach the network. That
  moved sets of 12 to 64 generated signs by up to 0.02 either way, coco128 by 0.0007; nothing where the side is whole;
- its NMS moves each class by 7680 pixels in float32, so that an overlap within about 1 % of the threshold may fall on
  the other side;
- it matches boxes in network pixels without clipping them to the image.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image
from ultralytics import YOLO

from trt_qat import api
from trt_qat.config import EvaluationSection
from trt_qat.data.dataset import Dataset, label_path, load_dataset
from trt_qat.data.labels import read_labels
from trt_qat.demo.generate import generate_demo_set
from trt_qat.errors import DatasetError, RunnerError
from trt_qat.evaluation.accuracy import Accuracy, measure_accuracy
from trt_qat.evaluation.torch_runner import TorchRunner
from trt_qat.progress import Silent
from trt_qat.runtime.onnxruntime import OnnxRuntimeRunner
from trt_qat.runtime.openvino import OpenVinoRunner
from trt_qat.vision.image import read_image_bgr
from trt_qat.vision.letterbox import fit, network_input

if TYPE_CHECKING:
    from trt_qat.checkpoint import Model

Item = TypeVar("Item")
SECTION = EvaluationSection(batch=4)


def exported(model: Model, path: Path, **keys: object) -> Path:
    return api.export(model, path, target="openvino", precision="fp32", check=False, **keys).path


@pytest.fixture(scope="module")
def fp32(demo_detector: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped detector as a file of batch 1."""
    return exported(demo_detector, tmp_path_factory.mktemp("accuracy") / "fp32.onnx")


@pytest.fixture(scope="module")
def signs(demo_set: Path) -> Dataset:
    """Generated signs at the shipped detector's own size."""
    return load_dataset(demo_set)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Images whose shorter side is no whole number of network pixels: 250 * 320 / 333 = 240.24."""
    return load_dataset(generate_demo_set(tmp_path_factory.mktemp("odd") / "set", 1, 12, size_wh=(333, 250)))


@pytest.fixture
def spoiled(signs: Dataset, tmp_path: Path) -> Dataset:
    """A copy of ``signs``, to be spoiled."""
    return load_dataset(Path(shutil.copytree(signs.source.parent, tmp_path / "set")) / "data.yaml")


def of_ultralytics(file: Path, dataset: Dataset, imgsz: int, folder: Path) -> tuple[float, float]:
    """mAP50-95 and mAP50 of Ultralytics' own validator, on a copy: it writes beside the labels."""
    root = Path(shutil.copytree(dataset.source.parent, folder / "copy"))
    lines = [f"path: {root}", "train: images/val", "val: images/val", "names:"]
    (root / "here.yaml").write_text("\n".join([*lines, *(f"  {i}: {name}" for i, name in dataset.names.items())]))
    settings = {"conf": 0.001, "iou": 0.7, "rect": False, "plots": False, "workers": 0, "device": "cpu"}
    box = (
        YOLO(str(file), task="detect")
        .val(
            data=str(root / "here.yaml"), imgsz=imgsz, batch=1, verbose=False, project=str(folder), name="v", **settings
        )
        .box
    )
    return float(box.map), float(box.map50)


def fitted(dataset: Dataset, folder: Path) -> Dataset:
    """The val split with its images as large as the network sees them: no letterbox rounds anything any more."""
    root = Path(shutil.copytree(dataset.source.parent, folder / "fitted"))
    for image in load_dataset(root / "data.yaml").val:
        pixels = fit(read_image_bgr(image), (320, 320))
        assert cv2.imwrite(str(image.with_suffix(".png")), pixels)
        image.unlink()
    return load_dataset(root / "data.yaml")


@pytest.mark.parametrize("name", ["signs", "odd"])
def test_same_map_as_ultralytics(
    name: str, demo_detector: Model, fp32: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    dataset: Dataset = request.getfixturevalue(name)
    # the rounding of the letterbox is ours: see above
    theirs = dataset if name == "signs" else fitted(dataset, tmp_path)
    map50_95, map50 = of_ultralytics(fp32, theirs, 320, tmp_path)
    assert map50 > 0.8  # a trained detector: there is something to agree on
    with OnnxRuntimeRunner(fp32) as first, OpenVinoRunner(fp32) as second:
        for runner in (first, second, TorchRunner(demo_detector)):
            found = measure_accuracy(runner, dataset, SECTION)
            assert found.images == len(dataset.val)
            assert found.left_out is None
            assert found.map50_95 == pytest.approx(map50_95, abs=5e-3), runner.name
            assert found.map50 == pytest.approx(map50, abs=5e-3), runner.name


@pytest.mark.slow
@pytest.mark.parametrize("data", ["vnsigns", "coco128"])
def test_same_map_as_ultralytics_on_real_images(shared_data: Path, tmp_path: Path, data: str) -> None:
    """vnsigns: 0.37765 and 0.37765. coco128: 0.4668 and 0.4661, whose shorter sides are rounded."""
    weights = {"vnsigns": "yolov8n_vnsigns.pt", "coco128": "yolov8n_coco.pt"}[data]
    file = exported(api.load(shared_data / "weights" / weights), tmp_path / "fp32.onnx")
    folder = Path(shutil.copytree(shared_data / "data" / data, tmp_path / data))
    dataset = load_dataset(folder)
    if data == "coco128":
        (folder / "images" / "train2017").rename(folder / "images" / "val")
        (folder / "labels" / "train2017").rename(folder / "labels" / "val")
        (folder / "data.yaml").write_text(
            (folder / "data.yaml").read_text().replace("images/train2017", "images/val"), encoding="utf-8"
        )
        dataset = load_dataset(folder)
    map50_95, map50 = of_ultralytics(file, dataset, 640, tmp_path / "theirs")
    with OpenVinoRunner(file) as runner:
        found = measure_accuracy(runner, dataset, EvaluationSection())
    assert found.map50_95 == pytest.approx(map50_95, abs=2e-3)
    assert found.map50 == pytest.approx(map50, abs=2e-3)


class Oracle(TorchRunner):
    """Answers with the labelled boxes, each moved by ``shift`` network pixels, in the order of the val split."""

    def __init__(self, model: Model, dataset: Dataset, shift: float = 0.0) -> None:
        super().__init__(model)
        self._queue = list(dataset.val)
        self._names = dataset.names
        self._shift = shift

    def infer(self, batch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        output = np.zeros((len(batch), 4 + len(self._names), 64), np.float32)
        for row in output:
            path = self._queue.pop(0)
            _, transform = network_input(read_image_bgr(path), batch.shape[-2:])
            labels = read_labels(label_path(path), len(self._names))
            boxes = labels.boxes_cxcywh * np.float32(transform.size_wh * 2) * np.float32(transform.ratio_wh * 2)
            boxes[:, :2] += np.float32([transform.pad_left, transform.pad_top]) + np.float32(self._shift)
            row[:4, : len(labels)] = boxes.T
            row[4 + labels.class_ids, np.arange(len(labels))] = 0.9
        return [output]


def test_true_boxes_are_a_perfect_score(demo_detector: Model, odd: Dataset, tmp_path: Path) -> None:
    """Also on photos that the camera turned: labels are fractions of what is shown."""
    root = Path(shutil.copytree(odd.source.parent, tmp_path / "set"))
    turned = load_dataset(root / "data.yaml")
    for image in turned.val[::2]:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        with Image.open(image) as stored:
            stored.transpose(Image.Transpose.ROTATE_90).save(image, exif=exif)
        assert read_image_bgr(image).shape == (250, 333, 3)
    for dataset in (odd, turned):
        found = measure_accuracy(Oracle(demo_detector, dataset), dataset, SECTION)
        assert found.map50_95 == pytest.approx(0.995, abs=1e-3)  # the highest that Ultralytics' interpolation gives
    far = measure_accuracy(Oracle(demo_detector, odd, shift=200), odd, SECTION)
    near = measure_accuracy(Oracle(demo_detector, odd, shift=2), odd, SECTION)
    assert far.map50_95 < 0.05 < near.map50_95 < 0.95


def test_trained_is_good_and_random_is_not(
    demo_detector: Model, detector: Model, signs: Dataset, demo: Dataset
) -> None:
    trained = measure_accuracy(TorchRunner(demo_detector), signs, SECTION)
    random = measure_accuracy(TorchRunner(detector), demo, SECTION)
    assert 0.6 < trained.map50_95 < trained.map50 <= 1
    assert random.map50 < 0.1


@pytest.mark.parametrize("keys", [{"dynamic_batch": True}, pytest.param({"batch": 5}, marks=pytest.mark.slow)])
def test_batch_does_not_change_map(
    demo_detector: Model, fp32: Path, signs: Dataset, tmp_path: Path, keys: dict[str, object]
) -> None:
    """16 images in batches of 5: the last one is padded where the batch is static."""
    batched = exported(demo_detector, tmp_path / "batched.onnx", **keys)
    with OnnxRuntimeRunner(fp32) as one, OnnxRuntimeRunner(batched) as many:
        expected = measure_accuracy(one, signs, EvaluationSection(batch=5))
        found = measure_accuracy(many, signs, EvaluationSection(batch=5))
    assert found.map50_95 == pytest.approx(expected.map50_95, abs=1e-4)
    assert found.images == expected.images == 16


def test_confidence_threshold_lowers_map(fp32: Path, signs: Dataset) -> None:
    with OnnxRuntimeRunner(fp32) as runner:
        low = measure_accuracy(runner, signs, SECTION)
        high = measure_accuracy(runner, signs, SECTION.replace(conf=0.9))
    assert high.map50 < low.map50 - 0.1


class Recording(Silent):
    """A progress that remembers its loops."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    def over(self, items: Sequence[Item], description: str) -> Iterable[Item]:
        self.seen.append((description, len(items)))
        return items


def test_progress_counts_batches(demo_detector: Model, signs: Dataset) -> None:
    recording = Recording()
    measure_accuracy(TorchRunner(demo_detector), signs, EvaluationSection(batch=7), recording, "demo")
    assert recording.seen == [("evaluating demo", 3)]


def test_what_is_left_out_is_counted_and_changes_nothing_else(fp32: Path, spoiled: Dataset) -> None:
    bad, cut, *rest = spoiled.val
    label_path(bad).write_text("0 0.5 0.5 0.5 0.5 0.93\n")
    cut.write_bytes(cut.read_bytes()[:-200])
    with OnnxRuntimeRunner(fp32) as runner:
        found = measure_accuracy(runner, spoiled, SECTION)
        expected = measure_accuracy(runner, replace(spoiled, val=tuple(rest)), SECTION)
    assert found.left_out is not None
    assert replace(found, left_out=None) == expected
    assert (found.images, found.left_out.images, found.left_out.of) == (14, 2, 16)
    assert f"'{label_path(bad)}' line 1: 6 columns" in found.left_out.reason
    assert found.as_dict()["left_out"]["images"] == 2
    assert expected.as_dict().keys() == {"map50_95", "map50", "images"}


def test_left_out_is_said_once_and_written(fp32: Path, spoiled: Dataset) -> None:
    class Notes(Silent):
        def __init__(self) -> None:
            self.lines: list[str] = []

        def note(self, line: str) -> None:
            self.lines.append(line)

    spoiled.val[0].write_text("no image")
    notes = Notes()
    section = SECTION.replace(latency_iterations=3, latency_warmup=0)
    rows = api.evaluate([fp32, fp32], spoiled, section, progress=notes)
    assert len(notes.lines) == 1
    assert notes.lines[0].startswith(f"val: 1 of 16 images left out, the first: Image '{spoiled.val[0]}' is not an")
    assert [row.as_dict()["left_out"]["images"] for row in rows] == [1, 1]


def test_nothing_usable_and_nothing_labelled_are_errors(demo_detector: Model, spoiled: Dataset) -> None:
    runner = TorchRunner(demo_detector)
    for image in spoiled.val:
        label_path(image).write_text("")
    with pytest.raises(DatasetError, match="has no box"):
        measure_accuracy(runner, spoiled, SECTION)
    for image in spoiled.val:
        label_path(image).write_text("0 0.5 0.5 0.5 0.5\n")
        image.write_bytes(b"")
    with pytest.raises(DatasetError, match="16 of 16 images left out"):
        measure_accuracy(runner, spoiled, SECTION)


class Changed(TorchRunner):
    """The shipped detector, its output as another export would give it."""

    def __init__(self, model: Model, kind: str) -> None:
        super().__init__(model)
        self._kind = kind

    def infer(self, batch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        (output,) = super().infer(batch)
        if self._kind == "built-in NMS":
            return [output[:, :6, :300].transpose(0, 2, 1)]
        if self._kind == "one class fewer":
            return [output[:, :-1]]
        output[0, 0, 0] = np.nan
        return [output]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("built-in NMS", r"output of x.onnx has shape \(4, 300, 6\), raw YOLOv8 detection has \(4, 11, anchors\)"),
        ("one class fewer", r"output of x.onnx has shape \(4, 10, "),
        ("not finite", "output of x.onnx holds NaN or infinity"),
    ],
)
def test_an_output_that_is_not_raw_detection_is_refused(
    demo_detector: Model, signs: Dataset, kind: str, message: str
) -> None:
    with pytest.raises(RunnerError, match=message):
        measure_accuracy(Changed(demo_detector, kind), signs, SECTION, label="x.onnx")


def test_other_class_count_is_refused(demo_detector: Model, signs: Dataset) -> None:
    other = replace(demo_detector, names={0: "a", 1: "b"})
    with pytest.raises(DatasetError, match="the model 2 classes"):
        measure_accuracy(TorchRunner(other), signs, SECTION)


def test_accuracy_is_a_value() -> None:
    assert Accuracy(0.4, 0.6, 8) == Accuracy(0.4, 0.6, 8, None)
