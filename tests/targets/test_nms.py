"""NMS in a real INT8 or FP16 file finds, on real pictures, what trt_qat finds with the raw file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from scenes import CONFIDENCE, NMS_IOU
from ultralytics import YOLO

from trt_qat.api import evaluate
from trt_qat.cli import cli
from trt_qat.config import EngineSection, ExportSection, InferSection
from trt_qat.engine.build import build_engine
from trt_qat.engine.onnx_file import onnx_metadata
from trt_qat.errors import ConfigError, ExportError, RunnerError
from trt_qat.runtime.detector import Detector
from trt_qat.runtime.onnxruntime import OnnxRuntimeRunner
from trt_qat.runtime.openvino import OpenVinoRunner
from trt_qat.targets.base import Arrays, target_from_name
from trt_qat.targets.export import export
from trt_qat.targets.nms import build_in_nms
from trt_qat.targets.onnx_file import compute_onnxruntime
from trt_qat.vision.postprocess import detections_from_output

if TYPE_CHECKING:
    from conftest import Exported

    from trt_qat.checkpoint import Model

Inputs = list[NDArray[np.float32]]


def nms_behind(raw: Path, folder: Path) -> Path:
    """What ``export --nms`` makes of the raw file, without the time that exporting it again takes."""
    file = folder / "nms.onnx"
    file.write_bytes(raw.read_bytes())
    build_in_nms(file, target_from_name(onnx_metadata(raw)["target"]), InferSection(), [])
    return file


@pytest.mark.parametrize(
    ("keys", "runner"),
    [
        ({"target": "openvino"}, OpenVinoRunner),
        pytest.param({"target": "tensorrt-rtx"}, OpenVinoRunner, marks=pytest.mark.slow),
        pytest.param({"target": "tensorrt"}, OnnxRuntimeRunner, marks=pytest.mark.slow),
        pytest.param({"target": "tensorrt", "precision": "fp16"}, OpenVinoRunner, marks=pytest.mark.slow),
    ],
)
def test_the_file_finds_what_trt_qat_finds(
    exported: Exported, inputs: Inputs, tmp_path: Path, keys: dict[str, Any], runner: type
) -> None:
    """Three scenes at once: the same boxes, scores and classes, in the same order, then zeros."""
    batch = np.concatenate(inputs[:3])
    file = exported(**keys, dynamic_batch=True, check=False)
    with runner(file) as raw:
        outputs = raw.infer(batch)[0]
    with runner(nms_behind(file, tmp_path)) as opened:
        rows = opened.infer(batch)[0]
    assert rows.shape == (3, 300, 6)
    for output, image in zip(outputs, rows, strict=True):
        wanted = detections_from_output(output, CONFIDENCE, NMS_IOU)
        assert len(wanted) > 0
        np.testing.assert_allclose(image[: len(wanted), :4], wanted.boxes_xyxy, atol=1e-2)
        np.testing.assert_allclose(image[: len(wanted), 4], wanted.scores, atol=1e-5)
        np.testing.assert_array_equal(image[: len(wanted), 5], wanted.class_ids)
        assert not image[len(wanted) :].any()


def test_tensorrt_rtx_builds_it(exported: Exported, tmp_path: Path) -> None:
    """NonMaxSuppression it does not build (1.7: "has no runners that implement it"), the loop it does."""
    pytest.importorskip("tensorrt_rtx")
    file = nms_behind(exported(target="tensorrt-rtx", dynamic_batch=True, check=False), tmp_path)
    build_engine(file, tmp_path / "x.plan", EngineSection(flavor="tensorrt-rtx", timing_cache=""))
    assert (tmp_path / "x.plan").stat().st_size > 1_000_000


@pytest.mark.slow
def test_yolo_takes_the_rows_as_they_are(exported: Exported, pictures: list[NDArray[np.uint8]], tmp_path: Path) -> None:
    model: Any = YOLO(str(nms_behind(exported(target="ultralytics"), tmp_path)), task="detect")
    with Detector(exported(target="ultralytics"), runtime="onnxruntime") as detect:
        for picture in pictures[:2]:
            (result,) = model.predict(picture, conf=CONFIDENCE, device="cpu", verbose=False)
            wanted = detect(picture)
            np.testing.assert_allclose(result.boxes.xyxy.numpy(), wanted.boxes_xyxy, atol=0.5)
            np.testing.assert_array_equal(result.boxes.cls.numpy(), wanted.class_ids)


def test_detector_and_evaluate_refuse_it(
    exported: Exported, pictures: list[NDArray[np.uint8]], demo_set: Path, tmp_path: Path
) -> None:
    """Rows at one threshold are no measure of mAP, and the detector has its own thresholds."""
    file = nms_behind(exported(target="openvino"), tmp_path)
    assert onnx_metadata(file)["nms"] == "{'conf': 0.25, 'iou': 0.45, 'max_det': 300}"
    with Detector(file) as detect, pytest.raises(RunnerError, match="without built-in NMS"):
        detect(pictures[0])
    with pytest.raises(RunnerError, match="without built-in NMS"):
        evaluate([file], demo_set)


# the gate ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_export_writes_it_through_the_gate(demo_int8: Model, tmp_path: Path) -> None:
    """In BF16, which plain OpenVINO computes in where the CPU has it, too."""
    section = ExportSection(target="openvino", nms=True, dynamic_batch=True)
    export(demo_int8, tmp_path / "x.onnx", section, thresholds=InferSection(conf=0.3))
    said = onnx_metadata(tmp_path / "x.onnx")
    assert said["args"] == "{'batch': 1, 'dynamic': None, 'nms': True}"
    assert said["nms"] == "{'conf': 0.3, 'iou': 0.45, 'max_det': 300}"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda rows: rows[:, :, [1, 0, 3, 2, 4, 5]],  # x and y exchanged
        lambda rows: np.where(rows[:, :, 4:5] > 0, rows, 7),  # no zeros behind the boxes
        lambda rows: rows[:, :100],
        lambda rows: rows * np.array([1, 1, 1, 1, 1, 0]),  # all of the first class
    ],
)
def test_a_client_that_computes_nms_otherwise_is_found_out(
    exported: Exported, inputs: Inputs, tmp_path: Path, spoil: Callable[[Any], Any]
) -> None:
    def compute(file: Path, batches: Arrays) -> Arrays:
        outputs = compute_onnxruntime(file, batches)
        return [spoil(output).astype(np.float32) if output.shape[-1] == 6 else output for output in outputs]

    raw = tmp_path / "x.onnx"
    raw.write_bytes(exported(target="openvino").read_bytes())
    honest = target_from_name("onnxruntime")
    form = honest.form("onnx")
    liar = _replaced(honest, forms={"onnx": _replaced(form, compute=compute)})
    with pytest.raises(ExportError, match="computes the NMS of the file otherwise") as said:
        build_in_nms(raw, liar, InferSection(), inputs[:2])
    assert "\n" not in str(said.value)


def _replaced(value: Any, **changes: Any) -> Any:
    return dataclasses.replace(value, **changes)


def test_wrong_usage_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"")
    command = ["export", str(tmp_path / "x.safetensors"), "--nms", "--target", "openvino", "--format", "openvino"]
    done = CliRunner().invoke(cli, [*command, "--out", str(tmp_path / "x_openvino_model")])
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: NMS is built into ONNX files only, export.format is 'openvino'.")
    assert done.stderr.count("\n") == 1
    with pytest.raises(ConfigError, match="Use format onnx"):
        export(None, tmp_path / "x.engine", ExportSection(target="ultralytics", format="engine", nms=True))  # type: ignore[arg-type]


def test_run_says_at_once_that_it_measures_raw_files(tmp_path: Path) -> None:
    command = ["run", "--weights", "x.pt", "--data", "x", "--out", str(tmp_path / "run"), "--set", "export.nms=true"]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 1
    assert "export.nms=true: `run` measures the files" in done.stderr
    assert not (tmp_path / "run").exists()
