"""Faults that would make a wrong number, planted one by one: the pipeline stops, or says so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from recording import Recording
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_onnx import write_tiny_detector

import trt_qat
from trt_qat import api
from trt_qat.checkpoint import load, save
from trt_qat.data.dataset import load_dataset
from trt_qat.engine.engine_file import read_sidecar
from trt_qat.errors import ArtifactError, ConsistencyError, DatasetError, TrtQatError
from trt_qat.exporter import onnx_export
from trt_qat.given_data import dataset_for, trainable_dataset
from trt_qat.quantization.calibration_cache import CalibrationCache
from trt_qat.runtime.detector import Detector
from trt_qat.runtime.selection import choose_runner
from trt_qat.vision.letterbox import LetterboxTransform, network_input
from trt_qat.vision.self_check import check_preprocessing

if TYPE_CHECKING:
    from trt_qat.checkpoint import Model

    Prepared = tuple[NDArray[np.float32], LetterboxTransform]
    Out = NDArray[np.float32] | None


def _not_divided(image: NDArray[np.uint8], imgsz: tuple[int, int], out: Out = None) -> Prepared:
    pixels, transform = network_input(image, imgsz, out)
    pixels *= 255
    return pixels, transform


def _bgr(image: NDArray[np.uint8], imgsz: tuple[int, int], out: Out = None) -> Prepared:
    pixels, transform = network_input(image, imgsz, out)
    pixels[:] = pixels[:, ::-1].copy()
    return pixels, transform


def _shifted(image: NDArray[np.uint8], imgsz: tuple[int, int], out: Out = None) -> Prepared:
    pixels, transform = network_input(image, imgsz, out)
    pixels[:] = np.roll(pixels, 8, axis=3)
    return pixels, transform


def _boxes_shifted(image: NDArray[np.uint8], imgsz: tuple[int, int], out: Out = None) -> Prepared:
    pixels, transform = network_input(image, imgsz, out)
    return pixels, replace(transform, pad_left=transform.pad_left + 8)


PREPROCESSING = {
    "not divided by 255": _not_divided,
    "BGR for RGB": _bgr,
    "letterbox 8 pixels aside": _shifted,
    "boxes 8 pixels aside": _boxes_shifted,
}


def test_right_preprocessing_passes() -> None:
    check_preprocessing(network_input)


@pytest.mark.parametrize("fault", PREPROCESSING)
@pytest.mark.parametrize("stage", ["infer", "evaluate", "calibrate", "train"])
def test_wrong_preprocessing_stops_every_stage(
    stage: str, fault: str, demo_detector: Model, demo_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = PREPROCESSING[fault]
    small = replace(demo_detector, imgsz=(64, 64))
    if stage == "infer":
        write_tiny_detector(tmp_path / "tiny.onnx")
        monkeypatch.setattr("trt_qat.runtime.detector.network_input", wrong)
        run: Callable[[], Any] = lambda: Detector(tmp_path / "tiny.onnx")  # noqa: E731
    elif stage == "evaluate":
        monkeypatch.setattr("trt_qat.evaluation.accuracy.network_input", wrong)
        run = lambda: api.evaluate([small], demo_yaml)  # noqa: E731
    elif fault == "boxes 8 pixels aside":
        pytest.skip("neither calibration nor training takes a box back to its image")
    elif stage == "calibrate":
        monkeypatch.setattr("trt_qat.data.images.network_input", wrong)
        run = lambda: api.quantize(small, demo_yaml, calibrator="max", images=2)  # noqa: E731
    else:
        int8 = api.quantize(small, demo_yaml, calibrator="max", images=2)
        monkeypatch.setattr("trt_qat.training.detection_trainer.network_input", wrong)  # what is compared with
        run = lambda: api.finetune(int8, demo_yaml, tmp_path / "qat", epochs=1, batch=2)  # noqa: E731
    with pytest.raises(ConsistencyError, match="damaged"):
        run()
    assert not (tmp_path / "qat" / "best.safetensors").exists()


def test_a_range_four_times_too_large_stops_the_calibration(
    demo_detector: Model, demo_yaml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trt_qat.quantization.calibrators.max import Max

    right = Max.ranges

    def wrong(self: Max, histograms: Any) -> Any:
        ranges = right(self, histograms)
        name = sorted(ranges)[3]
        return {**ranges, name: ranges[name] * 4}

    monkeypatch.setattr(Max, "ranges", wrong)
    with pytest.raises(ConsistencyError, match=r"^The range of '.*' is .*, but no value of it was above"):
        api.quantize(replace(demo_detector, imgsz=(64, 64)), demo_yaml, calibrator="max", images=2)


def test_a_range_that_was_changed_in_the_file_is_refused(demo_int8: Model, tmp_path: Path) -> None:
    file = save(tmp_path / "ptq.safetensors", demo_int8).path
    with safe_open(file, framework="pt") as stream:
        metadata = stream.metadata()
    tensors = load_file(file)
    name = next(name for name in sorted(tensors) if name.startswith("amax.activation."))
    save_file({**tensors, name: tensors[name] * 4}, file, metadata=metadata)
    with pytest.raises(ArtifactError, match="weights or ranges are not those that were saved with its header"):
        load(file)


def test_a_scale_four_times_too_large_stops_the_export(
    demo_int8: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = onnx_export.quantize_at_source_

    def wrong(graph: Any) -> None:
        right(graph)
        node = next(node for node in graph.nodes if node.op == "QuantizeLinear")
        node.inputs[1].values = np.asarray(node.inputs[1].values * 4, dtype=np.float32)

    monkeypatch.setattr(onnx_export, "quantize_at_source_", wrong)
    with pytest.raises(ConsistencyError, match=r"quantizes with scale .*, which no range of the checkpoint gives"):
        api.export(demo_int8, tmp_path / "int8.onnx", target="openvino")
    assert not (tmp_path / "int8.onnx").exists()


def test_classes_in_another_order_are_refused(demo_detector: Model, demo_yaml: Path) -> None:
    dataset = load_dataset(demo_yaml)
    swapped = replace(dataset, names={**dataset.names, 0: dataset.names[1], 1: dataset.names[0]})
    for run in (
        lambda: api.evaluate([demo_detector], swapped),
        lambda: api.quantize(demo_detector, swapped),
        lambda: api.finetune(demo_detector, swapped, "unused"),
    ):
        with pytest.raises(TrtQatError, match=r"is number [01] in .* and number [01] in the model"):
            run()
    translated = replace(dataset, names={**dataset.names, 0: "cấm đi ngược chiều"})
    dataset_for(demo_detector, translated)  # another language is no other order


def test_weights_of_another_model_behind_a_side_car(demo_detector: Model, tmp_path: Path) -> None:
    plan, onnx_file = tmp_path / "x.plan", tmp_path / "x.onnx"
    try:
        trt_qat.build(
            trt_qat.export(demo_detector, onnx_file, target="tensorrt-rtx", check=False).path,
            plan,
            flavor="tensorrt-rtx",
        )
    except trt_qat.errors.MissingDependency as exc:
        pytest.skip(str(exc))
    read_sidecar(plan)
    model = onnx.load(onnx_file)
    weight = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    values = onnx.numpy_helper.to_array(weight)
    weight.CopyFrom(onnx.numpy_helper.from_array(-values, weight.name))
    onnx.save(model, onnx_file)
    runner, reason = choose_runner(onnx_file)
    runner.__exit__(None, None, None)
    assert "'x.plan' was built from another version of it" in reason
    plan.write_bytes(plan.read_bytes() + b"0")
    with pytest.raises(TrtQatError, match=r"x\.plan|x\.json"):
        api.evaluate([plan], "unused")


@pytest.mark.parametrize("changed", ["weights", "an image", "image size"])
def test_a_stale_calibration_is_not_used(changed: str, demo_detector: Model, demo_yaml: Path, tmp_path: Path) -> None:
    data = tmp_path / "set"
    shutil.copytree(demo_yaml.parent, data)
    small, cache = replace(demo_detector, imgsz=(64, 64)), CalibrationCache(tmp_path / "calib", "x")
    api.quantize(small, data, calibrator="max", images=2, remember=cache)
    again = Recording()
    api.quantize(small, data, calibrator="max", images=2, remember=cache, progress=again)
    assert "calibrating" not in again.seen
    if changed == "weights":
        other = load(small.source, 64)
        next(other.network.parameters()).data.mul_(1.01)
        small = other
    elif changed == "image size":
        small = replace(small, imgsz=(96, 96))
    else:
        image = load_dataset(data).train[0]
        shutil.copy(load_dataset(data).train[1], image)
    api.quantize(small, data, calibrator="max", images=2, remember=cache, progress=again)
    assert "calibrating" in again.seen


def test_a_val_image_that_is_in_train_is_said(demo_detector: Model, demo_yaml: Path, tmp_path: Path) -> None:
    data = tmp_path / "set"
    shutil.copytree(demo_yaml.parent, data)
    dataset = load_dataset(data)
    clean, leaking = Recording(), Recording()
    small = replace(demo_detector, imgsz=(64, 64))
    api.evaluate([small], data, progress=clean, latency_iterations=3)
    assert clean.notes == []
    shutil.copy(dataset.val[2], dataset.train[1])
    api.evaluate([small], data, progress=leaking, latency_iterations=3)
    (said,) = leaking.notes
    assert said.startswith("Warning: 1 of 6 val images are in train as well, e.g. '")
    trainable_dataset(small, data, leaking)
    assert leaking.notes == [said, said]
    same = Recording()
    trainable_dataset(small, replace(dataset, val=dataset.train), same)
    assert same.notes[0].startswith("Warning: train and val are the same images: mAP is measured on what was trained")


def test_map_on_fewer_images_than_listed_stops(
    demo_detector: Model, demo_yaml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trt_qat.evaluation import accuracy

    right = accuracy.prepared
    monkeypatch.setattr(accuracy, "prepared", lambda *given: list(right(*given))[1:])  # loses one of each batch
    with pytest.raises(ConsistencyError, match=r"counted on \d+ images and 0 were left out, but .* lists 6"):
        api.evaluate([replace(demo_detector, imgsz=(64, 64))], demo_yaml)


def test_an_image_that_is_left_out_is_counted_and_said(demo_detector: Model, demo_yaml: Path, tmp_path: Path) -> None:
    data = tmp_path / "set"
    shutil.copytree(demo_yaml.parent, data)
    broken = load_dataset(data).val[0]
    broken.write_bytes(broken.read_bytes()[:300])
    progress = Recording()
    (row,) = api.evaluate([replace(demo_detector, imgsz=(64, 64))], data, progress=progress, latency_iterations=3)
    assert row.images == 5
    assert row.left_out is not None
    assert (row.left_out.images, row.left_out.of) == (1, 6)
    assert any("1 of 6 images left out" in note for note in progress.notes)
    assert json.loads(json.dumps(row.as_dict()))["left_out"]["images"] == 1


def test_a_model_of_other_classes_is_refused(demo_detector: Model, demo_yaml: Path) -> None:
    dataset = load_dataset(demo_yaml)
    fewer = replace(dataset, names={0: "one"})
    with pytest.raises(DatasetError, match="the model"):
        api.evaluate([demo_detector], fewer)
