"""The file of a ranking: whatever is wrong with it, the ranking starts anew with one line; nothing wrong is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trt_qat.errors import ArtifactError
from trt_qat.evaluation.group_sensitivity import GroupSensitivity
from trt_qat.evaluation.sensitivity import Ranking, SensitivityFile

KEY = {"metric": "both", "imgsz": 64}
ROW = {"group": "g", "convs": ["model.0.conv"], "error": 0.1, "map50_95_drop": -0.01}
GOOD: dict[str, Any] = {"key": KEY, "metric": "both", "groups": 2, "float": {"map50_95": 0.5}, "layers": [ROW]}


def _file(folder: Path) -> SensitivityFile:
    return SensitivityFile(folder / "s.json", KEY, 2)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    rows = [GroupSensitivity("g", ("model.0.conv",), 0.1, -0.01)]
    assert _file(tmp_path).write(Ranking(rows, {"map50_95": 0.5})) == GOOD
    assert _file(tmp_path).read()[0] == Ranking(rows, {"map50_95": 0.5})


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"key": []}, "key = []"),
        ({"metric": "loss"}, "metric = 'loss'"),
        ({"groups": 0}, "groups = 0"),
        ({"groups": "2"}, "groups = '2'"),
        ({"float": {"map50_95": 50}}, "float.map50_95 = 50"),
        ({"float": {"map50": 0.5}}, "float.map50_95 = None"),
        ({"layers": {}}, "layers = {}"),
        ({"layers": [ROW | {"group": ""}]}, "layers.0.group = ''"),
        ({"layers": [ROW | {"convs": []}]}, "layers.0.convs = []"),
        ({"layers": [ROW | {"convs": [1]}]}, "layers.0.convs.0 = 1"),
        ({"layers": [ROW | {"error": -1.0}]}, "layers.0.error"),
        ({"layers": [ROW | {"error": "0.1"}]}, "layers.0.error"),
        ({"layers": [ROW | {"error": None}]}, "does not hold what metric 'both' measures"),
        ({"layers": [ROW, ROW]}, "or one twice"),
        ({"layers": [ROW | {"group": str(number)} for number in range(3)]}, "3 groups of 2"),
        ({"extra": 1}, "extra = 1"),
    ],
)
def test_a_violation_starts_anew_with_one_line(change: dict[str, Any], found: str, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps(GOOD | change), encoding="utf-8")
    ranking, said = _file(tmp_path).read()
    assert ranking is None
    assert said.startswith(f"Starting anew: '{tmp_path / 's.json'}' is not a readable sensitivity file.")
    assert found in said
    assert "\n" not in said


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"key": NaN}'])
def test_another_file_starts_anew(text: str, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(text)
    ranking, said = _file(tmp_path).read()
    assert ranking is None
    assert said.startswith("Starting anew")
    assert "\n" not in said


def test_a_figure_that_is_none_is_not_written(tmp_path: Path) -> None:
    rows = [GroupSensitivity("g", ("model.0.conv",), float("nan"), 0.0)]
    with pytest.raises(ArtifactError, match=r"s\.json'"):
        _file(tmp_path).write(Ranking(rows, {"map50_95": 0.5}))
    assert not (tmp_path / "s.json").exists()
