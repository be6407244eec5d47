"""The report of a budget is read back, every field of it checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trt_qat.errors import ArtifactError
from trt_qat.mixed_precision.files import read_budget
from trt_qat.results import file_content

STEP: dict[str, Any] = {
    "k": 1,
    "weights": "fine-tuned",
    "order": "error",
    "groups": ["g"],
    "drop_points": 0.1,
    "map50_95": 0.4,
    "latency_ms": 2.0,
    "int8_latency_ms": 1.0,
}
CANDIDATE: dict[str, Any] = {
    "group": "g",
    "convs": ["model.0.conv"],
    "error": 0.1,
    "macs_share": 0.5,
    "error_per_share": 0.2,
}
GOOD: dict[str, Any] = {
    "max_drop_points": 0.2,
    "met": True,
    "orders": "",
    "weights": "",
    "float": {"map50_95": 0.41, "latency_ms": 3.0},
    "int8": STEP | {"k": 0, "groups": []},
    "steps": [STEP | {"k": 0, "groups": []}, STEP],
    "chosen": STEP | {"why": [CANDIDATE]},
    "ranking": [CANDIDATE],
}


def _write(folder: Path, content: Any) -> Path:
    (folder / "m.json").write_text(json.dumps(content), encoding="utf-8")
    return folder / "m.json"


def test_a_good_one(tmp_path: Path) -> None:
    budget = read_budget(_write(tmp_path, GOOD))
    assert (budget.chosen.k, budget.of_float.map50_95) == (1, 0.41)
    assert file_content(budget.model_dump(mode="json", by_alias=True, exclude_none=True)) == GOOD


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"max_drop_points": -1.0}, "max_drop_points = -1.0"),
        ({"met": "yes"}, "met = 'yes'"),
        ({"float": {"map50_95": 41.0, "latency_ms": 3.0}}, "float.map50_95 = 41.0"),
        ({"float": {}}, "float.map50_95"),
        ({"steps": []}, "steps = []"),
        ({"int8": STEP | {"k": 2}}, "k = 2, but 1 groups"),
        ({"int8": STEP | {"k": -1}}, "int8.k = -1"),
        ({"int8": STEP | {"weights": "random"}}, "int8.weights = 'random'"),
        ({"int8": STEP | {"latency_ms": -1.0}}, "int8.latency_ms = -1.0"),
        ({"int8": STEP | {"drop_points": 1e9}}, "int8.drop_points"),
        ({"chosen": STEP}, "chosen.why"),
        ({"chosen": STEP | {"why": [CANDIDATE | {"convs": []}]}}, "chosen.why.0.convs = []"),
        ({"ranking": [CANDIDATE | {"macs_share": 0.0}]}, "ranking.0.macs_share = 0.0"),
        ({"ranking": [CANDIDATE | {"error": "much"}]}, "ranking.0.error = 'much'"),
        ({"ranking": "none"}, "ranking = 'none'"),
        ({"extra": 1}, "extra = 1"),
    ],
)
def test_a_violation_is_one_line(change: dict[str, Any], found: str, tmp_path: Path) -> None:
    file = _write(tmp_path, GOOD | change)
    with pytest.raises(ArtifactError) as caught:
        read_budget(file)
    assert found in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
