"""The tails behind a raw detector find what the post-processing of its raw output finds, on any numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tiny_onnx import NAMES, write_free_size, write_tiny_detector

from trt_qat.config import InferSection
from trt_qat.errors import ExportError
from trt_qat.exporter.output_forms import loop_candidates, one_row_per_anchor, with_nms
from trt_qat.onnx_reading import metadata_texts
from trt_qat.runtime.onnxruntime import OnnxRuntimeRunner
from trt_qat.runtime.openvino import OpenVinoRunner
from trt_qat.vision.postprocess import detections_from_output

Raw = NDArray[np.float32]
CLASSES, ANCHORS = 8, 1024  # as many numbers as an image of 64x64 has


def passing_on(opset: int = 19) -> onnx.ModelProto:
    """A raw detector whose output is its input, in another shape."""
    node = helper.make_node("Reshape", ["images", "shape"], ["output0"], "reshape")
    graph = helper.make_graph(
        [node],
        "passing_on",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [None, 3, 64, 64])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [None, 4 + CLASSES, ANCHORS])],
        [numpy_helper.from_array(np.array([0, 4 + CLASSES, ANCHORS], np.int64), "shape")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    helper.set_model_props(model, {"names": str(NAMES), "args": "{'batch': 1, 'nms': False}"})
    return model


def crowd(batch: int = 3) -> Raw:
    """Boxes in heaps, so that most overlap others of their class, in chains too. No two scores are equal: which of two
    such boxes is the better one is each runtime's own choice.
    """
    random = np.random.default_rng(0)
    raw = np.empty((batch, 4 + CLASSES, ANCHORS), np.float32)
    raw[:, :2] = random.integers(2, 60, (batch, 2, 1)) + random.normal(0, 12, (batch, 2, ANCHORS))
    raw[:, 2:4] = random.uniform(4, 24, (batch, 2, ANCHORS))
    count = CLASSES * ANCHORS
    raw[:, 4:] = [(random.permutation(count) / count).reshape(CLASSES, ANCHORS) ** 4 for _ in range(batch)]
    return raw


def rows_of(model: onnx.ModelProto, raw: Raw, file: Path, runner: type = OnnxRuntimeRunner) -> NDArray[np.float32]:
    onnx.save(model, str(file))
    with runner(file) as opened:
        found: NDArray[np.float32] = opened.infer(raw.reshape(-1, 3, 64, 64))[0]
    return found


def assert_found(rows: NDArray[np.float32], raw: Raw, section: InferSection) -> int:
    """The rows are what the post-processing finds, best first, then zeros. Returns how many there are."""
    count = 0
    assert rows.shape == (len(raw), section.max_det, 6)
    for output, image in zip(raw, rows, strict=True):
        wanted = detections_from_output(output, section.conf, section.iou, section.max_det)
        found, padding = image[: len(wanted)], image[len(wanted) :]
        assert not padding.any()
        np.testing.assert_allclose(found[:, :4], wanted.boxes_xyxy, atol=1e-4)
        np.testing.assert_array_equal(found[:, 4], wanted.scores)
        np.testing.assert_array_equal(found[:, 5], wanted.class_ids)
        count += len(wanted)
    return count


@pytest.mark.parametrize("by_loop", [False, True])
@pytest.mark.parametrize("runner", [OnnxRuntimeRunner, OpenVinoRunner])
def test_nms_in_the_file_is_ours(tmp_path: Path, runner: type, by_loop: bool) -> None:
    """In a crowd of a thousand boxes, three images at once."""
    raw, section = crowd(), InferSection(conf=0.2, iou=0.2, max_det=1000)
    rows = rows_of(with_nms(passing_on(), section, by_loop), raw, tmp_path / "nms.onnx", runner)
    assert 300 < assert_found(rows, raw, section) < 2000  # of 3072


@pytest.mark.parametrize("by_loop", [False, True])
@pytest.mark.parametrize(
    "section",
    [
        InferSection(conf=0.0, iou=0.1, max_det=2000),  # more than there are anchors
        InferSection(conf=0.9, iou=1.0, max_det=7),  # nothing is suppressed, most is cut off
        InferSection(conf=0.999),  # hardly anything is found
    ],
)
def test_thresholds_are_the_sections(tmp_path: Path, section: InferSection, by_loop: bool) -> None:
    raw = crowd(batch=1)
    assert_found(rows_of(with_nms(passing_on(), section, by_loop), raw, tmp_path / "x.onnx"), raw, section)


@pytest.mark.parametrize("by_loop", [False, True])
def test_a_chain_is_settled_box_by_box(tmp_path: Path, by_loop: bool) -> None:
    """Of 100 boxes, each of which overlaps the next alone, every second one is kept: a hundred rounds of the loop."""
    raw = np.zeros((1, 4 + CLASSES, ANCHORS), np.float32)
    raw[0, 0, :100] = np.arange(100) * 5
    raw[0, 2:4, :100] = 10
    raw[0, 4, :100] = np.linspace(0.9, 0.5, 100)
    section = InferSection(iou=0.3)
    rows = rows_of(with_nms(passing_on(), section, by_loop), raw, tmp_path / "x.onnx")
    assert assert_found(rows, raw, section) == 50


def test_the_loop_looks_at_the_best_candidates_alone() -> None:
    assert loop_candidates(100) == 1024
    assert loop_candidates(300) == 1200
    assert loop_candidates(3840) == 3840


def test_one_row_per_anchor(tmp_path: Path) -> None:
    """x1, y1, x2, y2, score, class: the best class of each anchor, nothing suppressed."""
    raw = crowd(batch=2)
    model = one_row_per_anchor(passing_on())
    assert [info.name for info in model.graph.output] == ["output"]
    rows = rows_of(model, raw, tmp_path / "rows.onnx")
    assert rows.shape == (2, ANCHORS, 6)
    np.testing.assert_allclose(rows[..., 0], raw[:, 0] - raw[:, 2] / 2, atol=1e-5)
    np.testing.assert_allclose(rows[..., 3], raw[:, 1] + raw[:, 3] / 2, atol=1e-5)
    np.testing.assert_array_equal(rows[..., 4], raw[:, 4:].max(axis=1))
    np.testing.assert_array_equal(rows[..., 5], raw[:, 4:].argmax(axis=1))


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
def test_any_opset_from_13(tmp_path: Path, opset: int) -> None:
    raw, section = crowd(batch=1), InferSection(max_det=20, conf=0.5)
    for by_loop in (False, True):
        model = with_nms(passing_on(opset), section, by_loop)
        assert_found(rows_of(model, raw, tmp_path / "x.onnx"), raw, section)


@pytest.mark.parametrize("by_loop", [False, True])
def test_any_height_and_width(tmp_path: Path, by_loop: bool) -> None:
    """The number of anchors may be known only when the file runs."""
    raw, section = onnx.load(write_free_size(tmp_path / "free.onnx")), InferSection(max_det=20)
    weights = numpy_helper.to_array(raw.graph.initializer[0]).copy()
    weights[:4, :, 0, 0] = [[60, -60, 0], [0, 60, -60], [20, 0, 0], [0, 20, 0]]  # boxes by colour, of some size
    raw.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "weights"))
    onnx.save(raw, str(tmp_path / "free.onnx"))
    onnx.save(with_nms(raw, section, by_loop), str(tmp_path / "nms.onnx"))
    images = np.random.default_rng(3).uniform(0, 1, (2, 3, 64, 96)).astype(np.float32)
    images[:, 0, :8, :8] = 1
    with OnnxRuntimeRunner(tmp_path / "free.onnx") as before, OnnxRuntimeRunner(tmp_path / "nms.onnx") as after:
        assert 4 < assert_found(after.infer(images)[0], before.infer(images)[0], section) < 40


def test_the_file_says_what_is_in_it(tmp_path: Path) -> None:
    write_tiny_detector(tmp_path / "raw.onnx", batch=None)
    before = onnx.load(tmp_path / "raw.onnx")
    said = metadata_texts(with_nms(before, InferSection(conf=0.3)))
    assert said["nms"] == "{'conf': 0.3, 'iou': 0.45, 'max_det': 300}"
    assert said["args"] == "{'nms': True}"
    assert said["names"] == str(NAMES)
    assert "nms" not in metadata_texts(before)


def test_what_is_no_raw_detector_is_refused(tmp_path: Path) -> None:
    section = InferSection()
    with pytest.raises(ExportError, match=r"first output has shape \(any, 300, 6\).* without NMS") as said:
        one_row_per_anchor(_with_output([None, 300, 6], TensorProto.FLOAT16))
    assert "\n" not in str(said.value)
    with pytest.raises(ExportError, match=r"shape \(any, 4, 1024\)"):
        with_nms(_with_output([None, 4, 1024]), section)
    with pytest.raises(ExportError, match="opset 12, 13 or later"):
        with_nms(passing_on(opset=12), section)
    with pytest.raises(ExportError, match=r"infer\.max_det=4000 .* 1 to 3840"):
        with_nms(passing_on(), section.replace(max_det=4000))


def _with_output(shape: list[int | None], kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    infos = [
        helper.make_tensor_value_info(name, kind, sizes)
        for name, sizes in (("images", [None, 3, 64, 64]), ("out", shape))
    ]
    node = helper.make_node("Reshape", ["images", "shape"], ["out"])
    sizes = numpy_helper.from_array(np.array([0, *shape[1:]], np.int64), "shape")
    graph = helper.make_graph([node], "other", infos[:1], infos[1:], [sizes])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


@pytest.mark.parametrize("runner", [OnnxRuntimeRunner, OpenVinoRunner])
def test_best_rows_of_an_end_to_end_head(tmp_path: Path, runner: type) -> None:
    """In a crowd nothing is suppressed and nothing cut off by its score; Ultralytics knows such a file by its name."""
    model, raw, section = passing_on(), crowd(), InferSection(conf=0.5, iou=0.1, max_det=40)
    onnx.helper.set_model_props(model, metadata_texts(model) | {"nms_free": "True", "end2end": "False"})
    made = with_nms(model, section)
    rows = rows_of(made, raw, tmp_path / "rows.onnx", runner)
    assert rows.shape == (3, 40, 6)
    for output, image in zip(raw, rows, strict=True):
        wanted = detections_from_output(output, 0.0, 1.0, 40, layout="nms_free")
        np.testing.assert_allclose(image[:, :4], wanted.boxes_xyxy, atol=1e-4)
        np.testing.assert_array_equal(image[:, 4], wanted.scores)
        np.testing.assert_array_equal(image[:, 5], wanted.class_ids)
    said = metadata_texts(made)
    assert (said["end2end"], said["nms_free"], "nms" in said) == ("True", "False", False)
