"""Parity: every figure against one that follows by hand, what breaks it, and what cannot be compared."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from onnx import numpy_helper
from tiny_onnx import CELL, NAMES, SIZE, write_tiny_detector

from trt_qat import api
from trt_qat.cli import cli
from trt_qat.config import EvaluationSection, InferSection, ParitySection
from trt_qat.data.dataset import Dataset, load_dataset
from trt_qat.errors import ArtifactError, ConsistencyError, DatasetError, RunnerError, TrtQatError
from trt_qat.evaluation.parity import Side, compare, cosine, psnr
from trt_qat.evaluation.parity_report import (
    MapPair,
    MatchedDetections,
    ParityReport,
    broken_thresholds,
    read_parity,
    write_parity,
)
from trt_qat.results import NO_ACCURACY
from trt_qat.runtime.onnxruntime import OnnxRuntimeRunner

Array = NDArray[np.float32]
Change = Callable[[Array], Array]
IMAGES = 5


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images, the n-th with n + 1 coloured cells, each labelled."""
    root = tmp_path_factory.mktemp("tiny_set")
    for kind in ("images", "labels"):
        (root / kind / "val").mkdir(parents=True)
    for index in range(IMAGES):
        image, rows = np.full((SIZE, SIZE, 3), 114, np.uint8), []
        for number in range(index + 1):
            colour, row, column = number % 3, number, (3 * number + index) % 8
            image[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = np.eye(3)[2 - colour] * 255
            centre = (column + 0.5) / 8, (row + 0.5) / 8
            rows.append(f"{colour} {centre[0]} {centre[1]} {1 / 8} {1 / 8}")
        cv2.imwrite(str(root / "images" / "val" / f"{index}.png"), image)
        (root / "labels" / "val" / f"{index}.txt").write_text("\n".join(rows) + "\n")
    names = "".join(f"  {index}: {name}\n" for index, name in NAMES.items())
    (root / "data.yaml").write_text(f"path: {root}\nval: images/val\nnames:\n{names}")
    return root / "data.yaml"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_detector(tmp_path_factory.mktemp("tiny") / "tiny.onnx", batch=None)


def _changed(tiny: Path, out: Path, **changes: Change) -> Path:
    """The tiny detector with other constants."""
    model = onnx.load(tiny)
    for tensor in model.graph.initializer:
        if tensor.name in changes:
            values = changes[tensor.name](numpy_helper.to_array(tensor).copy())
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
    onnx.save(model, out)
    return out


def _one_pixel_right(grid: Array) -> Array:
    grid[0, 0] += 1
    return grid


def test_psnr_and_cosine_of_known_arrays() -> None:
    a = np.float32([[3, 4], [0, 0]])
    assert psnr(a, a, 1.0) == math.inf
    assert psnr(a, a + 1, 10.0) == pytest.approx(20.0)  # the error is 1 everywhere
    assert psnr(a, a + np.float32([[2, 0], [0, 0]]), 8.0) == pytest.approx(20 * math.log10(8))  # root of 4 / 4
    assert cosine(a, np.float32([[4, 3], [0, 0]])) == pytest.approx(24 / 25)


def test_one_file_on_two_runtimes_is_the_same(tiny: Path, tiny_set: Path) -> None:
    report = api.parity(tiny, tiny, tiny_set, runtimes=("onnxruntime", "openvino"))
    assert report.broken == ()
    assert report.summary() == ""
    assert (report.first.runtime, report.second.runtime) == ("onnxruntime", "openvino")
    assert (report.images, report.of, report.left_out) == (IMAGES, IMAGES, None)
    assert [row.name for row in report.outputs] == ["output0", "output0 boxes", "output0 scores"]
    assert all(row.cosine_lowest == pytest.approx(1) for row in report.outputs)
    assert all(row.largest_error < 1e-4 for row in report.outputs)
    found = report.detections
    assert (found.first, found.first_matched, found.second, found.second_matched) == (15, 15, 15, 15)
    assert report.map50_95 is not None
    assert report.map50_95.first == report.map50_95.second > 0.99


def test_labels_of_a_model_give_agreement(tiny: Path, tiny_set: Path, tmp_path: Path) -> None:
    """From data.yaml to tables and files: no command calls the figure mAP."""
    data = tiny_set.with_name("by_model.yaml")
    data.write_text(tiny_set.read_text() + "labelled_by: model\n")
    moved, kept = _changed(tiny, tmp_path / "moved.onnx", grid=_one_pixel_right), tmp_path / "kept.json"
    few = ("--set", "evaluation.latency_iterations=3", "--set", "parity.max_drop=0", "--json", str(kept))
    for verb, said, code in (
        (("evaluate", str(moved)), "agreement50-95", 0),
        (("parity", str(tiny), str(moved)), "agreement50-95: 0.99", 1),
    ):
        done = CliRunner().invoke(cli, [*verb, "--data", str(data), *few])
        assert done.exit_code == code, done.output
        assert said in done.output
        assert '"measure": "agreement"' in kept.read_text()
        assert "map" not in (done.output + kept.read_text()).replace(str(tmp_path), "").lower()
    assert NO_ACCURACY in CliRunner().invoke(cli, ["evaluate", str(tiny), "--data", str(data), *few]).output


def test_boxes_that_are_one_pixel_off(tiny: Path, tiny_set: Path, tmp_path: Path) -> None:
    moved = _changed(tiny, tmp_path / "moved.onnx", grid=_one_pixel_right)
    report = api.parity(tiny, moved, tiny_set)
    _, boxes, scores = report.outputs
    assert boxes.largest_error == pytest.approx(1.0)
    assert boxes.psnr_lowest == pytest.approx(20 * math.log10(SIZE / 0.5), abs=1e-3)  # one coordinate of four is off
    assert (scores.largest_error, scores.psnr_lowest, scores.cosine_lowest) == (0, None, pytest.approx(1))
    assert 0.99 < boxes.cosine_lowest < 1
    grid = {name: numpy_helper.to_array(onnx.load(file).graph.initializer[1])[0, :4] for name, file in
            {"tiny": tiny, "moved": moved}.items()}  # fmt: skip
    assert boxes.cosine_lowest == pytest.approx(cosine(grid["tiny"], grid["moved"]), abs=1e-6)
    assert report.logits == pytest.approx(0)
    assert (report.detections.first, report.detections.first_matched) == (15, 0)  # the overlap is 7 / 9
    assert report.map50_95 is not None
    assert report.map50_95.first > 0.99
    assert report.map50_95.second == pytest.approx(0.6, abs=0.001)  # right at 6 of 10 thresholds, up to 0.75
    assert [line.partition(" (")[0] for line in report.broken] == [
        "15 of A's 15 detections are not matched by B",
        "15 of B's 15 detections are not matched by A",
        f"mAP50-95 falls by {report.map50_95.drop_points:.2f} points",
    ]
    loose = api.parity(tiny, moved, tiny_set, match_iou=0.75, max_drop=None)
    assert loose.broken == ()
    assert loose.detections.first_matched == 15
    strict = api.parity(tiny, moved, tiny_set, match_iou=0.75, max_drop=None, min_psnr=43, min_cosine=0.9999999)
    assert [line.split(" of ")[0] for line in strict.broken] == [
        "output0 boxes has a cosine",
        "output0 boxes has a PSNR",
    ]
    assert strict.summary().startswith(f"'{tiny}' on openvino and '{moved}' on openvino differ: output0 boxes has a")


def test_scores_that_are_lower_by_a_tenth(tiny: Path, tiny_set: Path, tmp_path: Path) -> None:
    lower = _changed(tiny, tmp_path / "lower.onnx", weights=lambda weights: 0.9 * weights)
    report = api.parity(tiny, lower, tiny_set)
    _, boxes, scores = report.outputs
    assert scores.largest_error == pytest.approx(0.1)
    assert scores.error_image == "0.png"  # the first of equals
    cells = 3 * (SIZE // CELL) ** 2
    assert scores.psnr_lowest == pytest.approx(20 * math.log10(1 / math.sqrt(IMAGES * 0.01 / cells)), abs=1e-3)
    assert scores.cosine_lowest == pytest.approx(1, abs=1e-6)  # a factor is not seen by a cosine
    assert boxes.psnr_lowest is None
    assert report.logits > 0.25
    assert [line.split(" of ")[0] for line in report.broken] == [
        "output0 scores has a PSNR",
        f"logits are off by {report.logits:.3f}",
    ]


def test_a_class_that_is_not_found(tiny: Path, tiny_set: Path, tmp_path: Path) -> None:
    def colour_blind(weights: Array) -> Array:
        weights[5] = 0
        return weights

    blind = _changed(tiny, tmp_path / "blind.onnx", weights=colour_blind)
    report = api.parity(tiny, blind, tiny_set)
    found = report.detections
    assert (found.first, found.first_matched, found.second, found.second_matched) == (15, 10, 10, 10)
    assert any("5 of A's 15 detections" in line for line in report.broken)
    assert not any("B's" in line for line in report.broken)
    back = api.parity(blind, tiny, tiny_set)
    assert (back.detections.second, back.detections.second_matched) == (15, 10)
    assert not any("mAP" in line for line in back.broken)  # a gain is no drop


class Fixed:
    """A runner that answers each image by its mean, and remembers the batches that it got."""

    name = "fixed"
    device = "none"

    def __init__(self, batch: int | None, outputs: int = 1, broken: bool = False) -> None:
        self.input_shape = (batch, 3, SIZE, SIZE)
        self.metadata = {"names": str(NAMES)}
        self.batches: list[int] = []
        self._outputs, self._broken = outputs, broken

    def infer(self, batch: Array) -> list[Array]:
        self.batches.append(len(batch))
        means = batch.mean(axis=(1, 2, 3))[:, None, None]
        raw = np.broadcast_to(means, (len(batch), 7, 21)).astype(np.float32)
        more = np.full((len(batch), 2), np.nan if self._broken else 3, np.float32)
        return [raw, more][: self._outputs]

    def __enter__(self) -> Fixed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing."""


def _compare(first: Fixed, second: Fixed, dataset: Dataset, **keys: int) -> ParityReport:
    sections = {"evaluation": EvaluationSection(**{"batch": 2, **keys}), "infer": InferSection()}
    return compare(Side("first", first), Side("second", second), dataset, ParitySection(), **sections)


@pytest.mark.parametrize(("batch", "wanted"), [(None, [2, 2, 1]), (1, [1] * 5), (2, [2, 2, 2]), (4, [4, 4, 4])])
def test_images_come_in_small_chunks_whatever_the_batch_of_the_file(
    batch: int | None, wanted: list[int], tiny_set: Path
) -> None:
    first, second = Fixed(batch), Fixed(None)
    report = _compare(first, second, load_dataset(tiny_set))
    assert first.batches == wanted  # never all images at once
    assert report.images == IMAGES
    assert all(row.largest_error == 0 and row.psnr_lowest is None for row in report.outputs)


def test_all_outputs_that_both_have_are_compared(tiny_set: Path) -> None:
    dataset = load_dataset(tiny_set)
    names = [row.name for row in _compare(Fixed(None, 2), Fixed(None, 2), dataset).outputs]
    assert names == ["output0", "output0 boxes", "output0 scores", "output1"]
    assert len(_compare(Fixed(None, 2), Fixed(None), dataset).outputs) == 3
    with pytest.raises(RunnerError, match="'output1' of 'second' holds NaN"):
        _compare(Fixed(None, 2), Fixed(None, 2, broken=True), dataset)


def test_fewer_images_are_evenly_spaced(tiny: Path, tiny_set: Path) -> None:
    report = api.parity(tiny, tiny, tiny_set, runtimes=("onnxruntime", None), images=2)
    assert (report.images, report.of) == (2, IMAGES)
    assert report.detections.first == 1 + 3  # images 0 and 2
    assert "2 of 5 val images" in report.lines()[2]


def test_without_labels_everything_but_map(tiny: Path, tiny_set: Path, tmp_path: Path) -> None:
    images = tmp_path / "images" / "val"
    images.mkdir(parents=True)
    for file in (tiny_set.parent / "images" / "val").iterdir():
        (images / file.name).write_bytes(file.read_bytes())
    (images / "9.png").write_bytes(b"no image")
    nobody = tmp_path / "data.yaml"
    nobody.write_text("val: images/val\nnames: [red, green, blue]\n", encoding="utf-8")
    report = api.parity(tiny, tiny, nobody, runtimes=("onnxruntime", None))
    assert report.map50_95 is None
    assert "has no box" in report.not_measured
    assert report.broken == ()
    assert report.detections.first_matched == 15
    assert report.left_out is not None
    assert (report.left_out.images, report.left_out.of, report.images) == (1, 6, 5)
    assert any(line.startswith("mAP50-95: not measured. ") for line in report.lines())


def _raises(error: type[TrtQatError], match: str, *arguments: object, **keys: object) -> None:
    with pytest.raises(error, match=match):
        api.parity(*arguments, **keys)  # type: ignore[arg-type]


def test_what_cannot_be_compared(tiny: Path, tiny_set: Path, tmp_path: Path) -> None:
    _raises(ArtifactError, "does not exist", tiny, tmp_path / "missing.onnx", tiny_set)
    _raises(RunnerError, "on openvino would be compared with itself", tiny, tiny, tiny_set)
    link = tmp_path / "link.onnx"
    link.symlink_to(tiny)
    _raises(RunnerError, "compared with itself", tiny, link, tiny_set, runtimes=("onnxruntime", "onnxruntime"))
    _raises(RunnerError, "Runtime 'torch' needs a checkpoint", tiny, tiny, tiny_set, runtimes=("torch", None))
    more = _changed(tiny, tmp_path / "more.onnx")
    model = onnx.load(more)
    next(entry for entry in model.metadata_props if entry.key == "names").value = str({0: "a", 1: "b"})
    onnx.save(model, more)
    _raises(ConsistencyError, "has 3 classes, .* 2: two different networks", tiny, more, tiny_set)
    rows = tmp_path / "rows.onnx"
    model = onnx.load(tiny)
    onnx.helper.set_model_props(model, {"names": str(NAMES), "end2end": "True"})
    onnx.save(model, rows)
    _raises(ConsistencyError, "rows of detections.*without --nms to compare it", tiny, rows, tiny_set)
    other = tmp_path / "other.yaml"
    other.write_text(tiny_set.read_text().replace("  2: blue\n", ""))
    _raises(DatasetError, "2 classes", tiny, tiny, other, runtimes=("onnxruntime", None))
    empty = tmp_path / "empty"
    (empty / "images").mkdir(parents=True)
    _raises(DatasetError, "no image", tiny, tiny, empty, runtimes=("onnxruntime", None))
    (empty / "images" / "a.png").write_bytes(b"no image")
    _raises(DatasetError, "No image of .* can be read", tiny, tiny, empty, runtimes=("onnxruntime", None))


def test_another_size_of_input_is_refused(tiny_set: Path) -> None:
    larger = Fixed(None)
    larger.input_shape = (None, 3, 96, 96)
    with pytest.raises(ConsistencyError, match=r"'first' takes images of 64 pixels, 'second' of 96.*model.imgsz=N"):
        _compare(Fixed(None), larger, load_dataset(tiny_set))


def test_outputs_of_other_shapes_are_two_networks(tiny_set: Path) -> None:
    class Wider(Fixed):
        def infer(self, batch: Array) -> list[Array]:
            return [np.repeat(output, 2, axis=2) for output in super().infer(batch)]

    with pytest.raises(ConsistencyError, match=r"'output0' has shape \(7, 21\) and \(7, 42\) per image in 'first'"):
        _compare(Fixed(None), Wider(None), load_dataset(tiny_set))


@pytest.fixture(scope="module")
def right(tiny: Path, tiny_set: Path) -> ParityReport:
    return api.parity(tiny, tiny, tiny_set, runtimes=("onnxruntime", "openvino"))


@pytest.mark.parametrize(
    ("count", "missing", "broken"),
    [(8, 2, False), (8, 3, True), (300, 40, False), (300, 41, True), (0, 0, False), (10_000, 1061, True)],
)
def test_few_detections_may_miss_more_of_them(right: ParityReport, count: int, missing: int, broken: bool) -> None:
    found = MatchedDetections(
        conf=0.25, iou=0.9, first=count, first_matched=count - missing, second=count, second_matched=count
    )
    report = right.model_copy(update={"detections": found})
    lines = list(broken_thresholds(report, ParitySection(min_matched=0.9)))
    assert bool(lines) == broken
    assert list(broken_thresholds(report, ParitySection(min_matched=None))) == []


@pytest.mark.parametrize(
    ("images", "drop", "broken"), [(256, 0.0101, True), (256, 0.0099, False), (32, 0.0199, False), (32, 0.0201, True)]
)
def test_few_images_may_lose_more_map(right: ParityReport, images: int, drop: float, broken: bool) -> None:
    report = right.model_copy(update={"images": images, "map50_95": MapPair(first=0.5, second=0.5 - drop)})
    assert bool(list(broken_thresholds(report, ParitySection(max_drop=1)))) == broken
    assert list(broken_thresholds(report, ParitySection(max_drop=None))) == []


def test_what_is_written_is_read_back(right: ParityReport, tmp_path: Path) -> None:
    file = tmp_path / "parity.json"
    write_parity(file, [right, right])
    assert read_parity(file) == (right, right)
    file.write_text(file.read_text().replace('"logits"', '"logit"', 1))
    with pytest.raises(ArtifactError, match=r"logit.*Remove it and run again"):
        read_parity(file)
    with pytest.raises(ArtifactError, match="does not exist"):
        read_parity(tmp_path / "none.json")


def test_map_is_what_evaluate_measures(tiny: Path, tiny_set: Path, tmp_path: Path) -> None:
    moved = _changed(tiny, tmp_path / "moved.onnx", grid=_one_pixel_right)
    report = api.parity(tiny, moved, tiny_set)
    rows = api.evaluate([tiny, moved], tiny_set, latency_iterations=3, latency_warmup=0)
    assert report.map50_95 is not None
    assert [report.map50_95.first, report.map50_95.second] == [row.map50_95 for row in rows]


def test_polygraphy_stays_silent(tiny: Path, tiny_set: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with OnnxRuntimeRunner(tiny) as first, OnnxRuntimeRunner(tiny) as second:
        sections = {"evaluation": EvaluationSection(), "infer": InferSection()}
        compare(Side("a", first), Side("b", second), load_dataset(tiny_set), ParitySection(), **sections)
    assert capfd.readouterr() == ("", "")
