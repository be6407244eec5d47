"""mAP of a file through our runners equals what Ultralytics itself measures on the same file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import pytest
from ultralytics import YOLO

from trt_qat.checkpoint import Checkpoint
from trt_qat.config import EvaluationSection, ExportSection
from trt_qat.data.dataset import Dataset, load_dataset
from trt_qat.errors import DatasetError
from trt_qat.evaluation.accuracy import Accuracy, measure_accuracy
from trt_qat.evaluation.torch_runner import TorchRunner
from trt_qat.exporter.onnx_export import export_onnx
from trt_qat.model.loading import LoadedModel, load_model
from trt_qat.runtime.onnxruntime import OnnxRuntimeRunner
from trt_qat.runtime.openvino import OpenVinoRunner
from trt_qat.training.detection_trainer import quiet_ultralytics

Item = TypeVar("Item")


@pytest.fixture(scope="module")
def real(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedModel, Dataset]:
    """The trained detector and 12 validation images with signs, copied: Ultralytics writes beside the labels."""
    source, folder = shared_data / "data" / "vnsigns", tmp_path_factory.mktemp("real")
    labels = sorted((source / "labels" / "val").glob("*.txt"))
    chosen = [label for label in labels if len(label.read_text().splitlines()) >= 2][::6][:12]
    assert len(chosen) == 12
    for kind in ("images", "labels"):
        (folder / kind / "val").mkdir(parents=True)
    for label in chosen:
        image = next((source / "images" / "val").glob(f"{label.stem}.*"))
        (folder / "images" / "val" / image.name).write_bytes(image.read_bytes())
        (folder / "labels" / "val" / label.name).write_bytes(label.read_bytes())
    names = load_dataset(source / "data.yaml").names
    lines = [f"path: {folder}", "train: images/val", "val: images/val", "names:"]
    lines += [f"  {index}: {name}" for index, name in names.items()]
    (folder / "data.yaml").write_text("\n".join(lines) + "\n")
    return load_model(shared_data / "weights" / "yolov8n_vnsigns.pt"), load_dataset(folder / "data.yaml")


def export_fp32(model: LoadedModel, path: Path, imgsz: int, **keys: object) -> Path:
    checkpoint = Checkpoint(model.network, model.names, "fp32", imgsz, None, {})
    section = ExportSection.model_validate({"precision": "fp32", **keys})
    return export_onnx(checkpoint, path, section, imgsz).path


def test_same_map_as_ultralytics(real: tuple[LoadedModel, Dataset], tmp_path: Path) -> None:
    model, dataset = real
    path = export_fp32(model, tmp_path / "fp32.onnx", 320)
    with quiet_ultralytics():
        box = (
            YOLO(str(path), task="detect")
            .val(
                data=str(dataset.source),
                imgsz=320,
                batch=1,
                conf=0.001,
                iou=0.7,
                rect=False,
                plots=False,
                workers=0,
                device="cpu",
                verbose=False,
                project=str(tmp_path),
                name="val",
            )
            .box
        )
    assert box.map50 > 0.1  # there is something to agree on
    with OnnxRuntimeRunner(path) as first, OpenVinoRunner(path) as second:
        for runner in (first, second, TorchRunner(model.network, model.names, 320)):
            found = measure_accuracy(runner, dataset, EvaluationSection())
            assert found.images == 12
            assert found.map50_95 == pytest.approx(float(box.map), abs=1e-3), runner.name
            assert found.map50 == pytest.approx(float(box.map50), abs=1e-3), runner.name


@pytest.mark.parametrize("keys", [{"dynamic_batch": True}, {"batch": 5}])
def test_batch_does_not_change_map(real: tuple[LoadedModel, Dataset], tmp_path: Path, keys: dict[str, object]) -> None:
    """12 images in batches of 5: the last one is padded where the batch is static."""
    model, dataset = real
    single = export_fp32(model, tmp_path / "single.onnx", 160)
    batched = export_fp32(model, tmp_path / "batched.onnx", 160, **keys)
    with OnnxRuntimeRunner(single) as one, OnnxRuntimeRunner(batched) as many:
        expected = measure_accuracy(one, dataset, EvaluationSection())
        found = measure_accuracy(many, dataset, EvaluationSection(), batch=5)
    assert expected.map50 > 0
    assert found.map50_95 == pytest.approx(expected.map50_95, abs=1e-3)


def test_confidence_threshold_lowers_map(real: tuple[LoadedModel, Dataset], tmp_path: Path) -> None:
    model, dataset = real
    with OnnxRuntimeRunner(export_fp32(model, tmp_path / "x.onnx", 160)) as runner:
        low = measure_accuracy(runner, dataset, EvaluationSection())
        high = measure_accuracy(runner, dataset, EvaluationSection(conf=0.9))
    assert high.map50 < low.map50


def test_demo_set_and_progress(detector: LoadedModel, demo: Dataset) -> None:
    seen: list[tuple[str, int]] = []

    def progress(items: Sequence[Item], description: str, /) -> Iterable[Item]:
        seen.append((description, len(items)))
        return items

    runner = TorchRunner(detector.network, detector.names, 64)
    found = measure_accuracy(runner, demo, EvaluationSection(), 4, progress, "tiny")
    assert isinstance(found, Accuracy)
    assert found.images == 6
    assert 0 <= found.map50_95 <= found.map50 <= 1
    assert seen == [("evaluating tiny", 2)]


def test_other_class_count_is_refused(detector: LoadedModel, demo: Dataset) -> None:
    runner = TorchRunner(detector.network, {0: "a", 1: "b"}, 64)
    with pytest.raises(DatasetError, match="the model 2 classes"):
        measure_accuracy(runner, demo, EvaluationSection())
