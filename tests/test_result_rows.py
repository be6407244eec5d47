"""Result files are read back, and nothing is written that could not be read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trt_qat.errors import ArtifactError
from trt_qat.results import GpuLatency, Latency, LeftOut, ResultRow, read_rows, write_rows

ROW = ResultRow("m.onnx", "int8+fp32", "openvino", 0.4, 0.6, 64, 1000, Latency(1.0, 2.0, 3.0))
WITHOUT = ResultRow("n.onnx", "fp32", "torch", 0.0, 1.0, 63, 0, Latency(1.0, 2.0, 3.0), LeftOut(1, 64, "no file"))


def test_what_was_written_is_read(tmp_path: Path) -> None:
    timed = replace(ROW, gpu_latency=GpuLatency(Latency(1.0, 2.0, 3.0), Latency(2.0, 3.0, 4.0), ({"clocks.sm": "9"},)))
    rows = (ROW, WITHOUT, timed)
    write_rows(tmp_path / "r.json", rows)
    assert read_rows(tmp_path / "r.json") == rows
    written = json.loads((tmp_path / "r.json").read_text())
    assert written[:2] == [ROW.as_dict(), WITHOUT.as_dict()]
    assert [{"left_out", "gpu_latency"} & row.keys() for row in written] == [set(), {"left_out"}, {"gpu_latency"}]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"map50_95": 41.8}, "rows.0.map50_95 = 41.8"),
        ({"map50": -0.1}, "rows.0.map50 = -0.1"),
        ({"map50": "0.4"}, "rows.0.map50 = '0.4'"),
        ({"images": 0}, "rows.0.images = 0"),
        ({"images": 1.5}, "rows.0.images = 1.5"),
        ({"size_bytes": -1}, "rows.0.size_bytes = -1"),
        ({"model": ""}, "rows.0.model = ''"),
        ({"runtime": None}, "rows.0.runtime = None"),
        ({"precision": ["int8"]}, "rows.0.precision"),
        ({"latency_ms": 1.0}, "rows.0.latency_ms = 1.0"),
        ({"latency_ms": {"median": 1.0, "p90": 2.0}}, "rows.0.latency_ms.p99"),
        ({"latency_ms": {"median": -1.0, "p90": 2.0, "p99": 3.0}}, "rows.0.latency_ms.median = -1.0"),
        ({"left_out": {"images": 1, "of": 2}}, "rows.0.left_out.reason"),
        ({"extra": 1}, "rows.0.extra = 1"),
    ],
)
def test_a_violation_is_one_line(change: dict[str, Any], found: str, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    file.write_text(json.dumps([ROW.as_dict() | change]), encoding="utf-8")
    with pytest.raises(ArtifactError) as caught:
        read_rows(file)
    assert str(caught.value).startswith(f"'{file}': {found}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{}", "[1]", "[[]]", "null", '[{"map50": NaN}]', "[" * 100_000])
def test_another_file(text: str, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"r\.json'"):
        read_rows(tmp_path / "r.json")


def test_a_figure_that_is_none_is_not_written(tmp_path: Path) -> None:
    wrong = ResultRow("m.onnx", "fp32", "torch", float("nan"), 0.6, 64, 1000, Latency(1.0, 2.0, 3.0))
    with pytest.raises(ArtifactError, match=r"r\.json'.*map50_95"):
        write_rows(tmp_path / "r.json", [wrong])
    assert not (tmp_path / "r.json").exists()
