"""Latency percentiles, cosine parity, the result table and the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor

from trt_qat import api
from trt_qat.config import EvaluationSection, InferSection
from trt_qat.data.dataset import load_dataset
from trt_qat.evaluation import latency as latency_module
from trt_qat.evaluation.latency import gpu_latencies, measure_latency
from trt_qat.evaluation.parity import cosine, lowest_cosine
from trt_qat.evaluation.picture import comparison_picture
from trt_qat.evaluation.report import cells, header, markdown_table
from trt_qat.evaluation.torch_runner import TorchRunner
from trt_qat.results import Latency, LeftOut, ResultRow
from trt_qat.runtime.onnxruntime import OnnxRuntimeRunner
from trt_qat.runtime.openvino import OpenVinoRunner

if TYPE_CHECKING:
    from conftest import Calibrated

    from trt_qat.checkpoint import Model

Array = NDArray[np.float32]


@pytest.fixture(scope="module")
def fp32(detector: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("evaluation") / "fp32.onnx"
    return api.export(detector, path, target="openvino", precision="fp32", batch=2, check=False).path


class Recorder:
    """A runner that remembers in which order runners were asked."""

    name = "recorder"
    metadata: dict[str, str] = {}  # noqa: RUF012
    device = "none"

    def __init__(self, batch: int | None, calls: list[str], label: str) -> None:
        self.input_shape = (batch, 3, 32, 32)
        self._calls = calls
        self._label = label
        self.shapes: set[tuple[int, ...]] = set()

    def infer(self, batch: Array) -> list[Array]:
        self._calls.append(self._label)
        self.shapes.add(batch.shape)
        return [batch]

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing."""


def test_percentiles_are_positive_and_ordered(fp32: Path, detector: Model) -> None:
    section = EvaluationSection(latency_iterations=6, latency_warmup=1)
    with OnnxRuntimeRunner(fp32) as first, OpenVinoRunner(fp32) as second:
        found = measure_latency([first, second, TorchRunner(detector)], section)
    assert len(found) == 3
    for latency in found:
        assert 0 < latency.median <= latency.p90 <= latency.p99 < 10_000


def test_rounds_are_interleaved_and_warmup_is_extra() -> None:
    calls: list[str] = []
    runners = [Recorder(None, calls, "a"), Recorder(4, calls, "b")]
    measure_latency(runners, EvaluationSection(latency_iterations=3, latency_warmup=2))
    assert calls == ["a", "b"] * 5
    assert [runner.shapes for runner in runners] == [{(1, 3, 32, 32)}, {(4, 3, 32, 32)}]


def test_the_gpus_own_clock_is_read_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock(Recorder):
        parallel = 1
        largest_batch = None

        def gpu_milliseconds(self, batch: Array, copies: bool = False) -> float:
            self._calls.append(self._label + "+" * copies)
            return 2.0 if self._label == "a" else float(len(calls))

    def clocks(fields: Sequence[str]) -> list[dict[str, str]]:
        calls.append("clocks")
        return [dict.fromkeys(fields, "1980 MHz")]

    monkeypatch.setattr(latency_module, "nvidia_smi", clocks)
    calls: list[str] = []
    runners = [Clock(1, calls, "a"), Recorder(1, calls, "no clock"), Clock(2, calls, "b")]
    section = EvaluationSection(latency_iterations=3, latency_warmup=1)
    first, none, second = gpu_latencies(runners, section)
    assert calls == ["a", "a+", "b", "b+"] * 4 + ["clocks"]
    assert none is None
    assert first is not None
    assert second is not None
    assert (first.compute_ms.median, first.with_copies_ms.p99) == (2.0, 2.0)
    assert second.compute_ms.median == 11.0  # of 7, 11 and 15: the warm-up's 3 is not counted
    assert second.with_copies_ms.median == 12.0
    assert second.clocks == ({"clocks.sm": "1980 MHz", "clocks.mem": "1980 MHz", "clocks.max.sm": "1980 MHz"},)
    assert gpu_latencies(runners[1:2], section) == [None]


def test_cosine() -> None:
    a = np.array([[1.0, 2.0, 3.0]], dtype=np.float32)
    assert cosine(a, 5 * a) == pytest.approx(1.0)
    assert cosine(a, -a) == pytest.approx(-1.0)
    assert cosine(np.float32([1, 0]), np.float32([0, 1])) == 0.0
    assert cosine(0 * a, 0 * a) == 1.0
    assert cosine(a, 0 * a) == 0.0
    huge = np.full(3, 1e30, dtype=np.float32)  # its square is no float32
    assert cosine(huge, huge) == pytest.approx(1.0)


def test_parity_of_exported_and_torch(fp32: Path, detector: Model, batches: tuple[Tensor, ...]) -> None:
    pairs = [batch[i : i + 2].numpy() for batch in batches for i in (0, 2)]
    with OnnxRuntimeRunner(fp32) as exported:
        assert exported.input_shape == (2, 3, 64, 64)
        (found,) = lowest_cosine(TorchRunner(detector), exported, pairs)
    assert found == pytest.approx(1.0, abs=1e-6)


def test_lowest_is_over_all_batches(detector: Model, calibrated: Calibrated, batches: tuple[Tensor, ...]) -> None:
    plain = TorchRunner(detector)
    quantized = TorchRunner(detector.with_quantized(calibrated(), "ptq", {}))
    singles = [lowest_cosine(plain, quantized, [batch.numpy()])[0] for batch in batches]
    assert lowest_cosine(plain, quantized, [batch.numpy() for batch in batches]) == [min(singles)]
    assert 0.9 < min(singles) < 1 - 1e-7
    assert lowest_cosine(plain, quantized, []) == []


def test_table() -> None:
    row = ResultRow("a.onnx", "int8+fp32", "openvino", 0.41234, 0.61, 64, 3_456_789, Latency(1.26, 2.0, 3.04))
    expected = ("a.onnx", "int8+fp32", "openvino", "0.4123", "0.6100", "64", "3.46", "1.3", "2.0", "3.0")
    assert cells(row) == expected
    lines = markdown_table([row, row]).splitlines()
    assert len(lines) == 4
    assert {line.count("|") for line in lines} == {len(header("mAP")) + 1}


def test_left_out_is_in_the_json_where_there_is_something() -> None:
    row = ResultRow("a.onnx", "fp32", "openvino", 0.4, 0.6, 63, 1000, Latency(1.0, 2.0, 3.0))
    assert "left_out" not in row.as_dict()
    assert replace(row, left_out=LeftOut(1, 64, "why")).as_dict()["left_out"] == {
        "images": 1,
        "of": 64,
        "reason": "why",
    }


def test_picture_has_one_panel_per_model(demo_detector: Model, demo_set: Path, tmp_path: Path) -> None:
    runner = TorchRunner(demo_detector)
    images = load_dataset(demo_set).val[:4]
    pair = [("FP32", runner), ("INT8", runner)]
    image = cv2.imread(str(comparison_picture(pair, images, InferSection(), tmp_path / "picture.jpg")))
    assert image.shape == (480 + 36, 2 * 480, 3)
    left, right = image[60:, :480].astype(int), image[60:, 480:].astype(int)
    assert np.abs(left - right).mean() < 3  # equal models, equal panels
    bare = comparison_picture(pair, images, InferSection(conf=0.99), tmp_path / "bare.jpg")
    assert np.abs(image.astype(int) - cv2.imread(str(bare))).max() > 100  # boxes are drawn
