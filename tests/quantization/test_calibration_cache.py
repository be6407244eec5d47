"""A damaged calibration cache, or answer of ``auto``, is made anew with one line; nothing damaged is used."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from trt_qat.artifacts import write_json
from trt_qat.errors import ArtifactError
from trt_qat.quantization.auto import CANDIDATES
from trt_qat.quantization.calibration import Calibration, Candidate
from trt_qat.quantization.calibration_cache import (
    CachedCalibration,
    cache_key,
    load_choice,
    load_histograms,
    save_histograms,
)
from trt_qat.quantization.histogram import ActivationHistogram

if TYPE_CHECKING:
    from trt_qat.checkpoint import Model

BINS = 8


def _histograms() -> dict[str, ActivationHistogram]:
    return {name: ActivationHistogram(np.arange(BINS, dtype=np.float64), 4.0, 3.5) for name in ("a", "b")}


def _write(path: Path, limits: Any, **counts: np.ndarray) -> None:
    text = limits if isinstance(limits, str) else json.dumps(limits)
    save_file({f"{name}.counts": value for name, value in counts.items()}, path, metadata={"limits": text})


GOOD = np.ones(BINS)
SPAN = {"limit": 4.0, "maximum": 3.5}
BOTH = {"a": SPAN, "b": SPAN}


def _damaged(**change: Any) -> Callable[[Path], None]:
    content = {"limits": BOTH, "a": GOOD, "b": GOOD} | change
    return lambda path: _write(path, **{key: value for key, value in content.items() if value is not None})


def _with_count(value: float) -> np.ndarray:
    counts = GOOD.copy()
    counts[3] = value
    return counts


def _truncated(path: Path) -> None:
    _damaged()(path)
    path.write_bytes(path.read_bytes()[:-20])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing group": _damaged(limits={"a": SPAN}, b=None),
    "one group more": _damaged(limits=BOTH | {"c": SPAN}, c=GOOD),
    "counts without limits": _damaged(limits={"a": SPAN}),
    "limits without counts": _damaged(b=None),
    "NaN count": _damaged(a=_with_count(np.nan)),
    "infinite count": _damaged(a=_with_count(np.inf)),
    "negative count": _damaged(b=_with_count(-1)),
    "float32 counts": _damaged(a=GOOD.astype(np.float32)),
    "fewer bins": _damaged(a=GOOD[:4]),
    "two axes": _damaged(a=GOOD.reshape(2, 4)),
    "limits []": _damaged(limits=[]),
    "limits null": _damaged(limits="null"),
    "limits NaN": _damaged(limits='{"a": {"limit": NaN, "maximum": 1}, "b": {"limit": 4, "maximum": 3.5}}'),
    "deep limits": _damaged(limits="[" * 100_000),
    "limit no power of two": _damaged(limits=BOTH | {"a": {"limit": 5.0, "maximum": 3.5}}),
    "limit below the maximum": _damaged(limits=BOTH | {"a": {"limit": 2.0, "maximum": 3.5}}),
    "beyond float32": _damaged(limits=BOTH | {"a": {"limit": 2.0**1000, "maximum": 2.0**999}}),
    "beyond float64": _damaged(limits=BOTH | {"a": {"limit": 1e308, "maximum": 1.5e308}}),
    "count of 1e300": _damaged(a=_with_count(1e300)),
    "limit far above": _damaged(limits=BOTH | {"a": {"limit": 64.0, "maximum": 3.5}}),
    "negative maximum": _damaged(limits=BOTH | {"a": {"limit": 4.0, "maximum": -3.5}}),
    "text": _damaged(limits=BOTH | {"a": {"limit": "4", "maximum": 3.5}}),
    "no metadata": lambda path: save_file({"a.counts": GOOD}, path),
    "truncated": _truncated,
    "empty": lambda path: path.touch(),
    "other bytes": lambda path: path.write_bytes(b"\xff" * 100),
    "pipe": os.mkfifo,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_cache_is_made_anew(
    damage: Callable[[Path], object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "x.safetensors"
    damage(file)
    made = _histograms()
    cached = CachedCalibration(("a", "b"), BINS, file, tmp_path / "x.json")
    with caplog.at_level(logging.WARNING):
        assert cached.histograms(lambda: made) is made
    assert len(caplog.messages) == 1
    assert str(file) in caplog.messages[0]
    assert "\n" not in caplog.messages[0]
    caplog.clear()
    found = cached.histograms(lambda: pytest.fail("it is there now"))
    assert found.keys() == made.keys()
    assert not caplog.messages


def test_without_a_cache_nothing_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert load_histograms(tmp_path / "none.safetensors") is None
    assert load_choice(tmp_path / "none.json") is None
    assert not caplog.messages


@pytest.mark.parametrize(
    "wrong",
    [
        ActivationHistogram(_with_count(np.nan), 4.0, 3.5),
        ActivationHistogram(GOOD, 4.0, float("nan")),
        ActivationHistogram(GOOD, 3.0, 2.5),
    ],
)
def test_what_would_not_be_read_is_not_written(wrong: ActivationHistogram, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"x.safetensors'"):
        save_histograms(tmp_path / "x.safetensors", {"a": wrong})
    assert not (tmp_path / "x.safetensors").exists()


def _answer() -> Calibration:
    tried = tuple(Candidate(calibrator, 0.5, number == 1) for number, calibrator in enumerate(CANDIDATES))
    return Calibration(CANDIDATES[1], tried, {"a": CANDIDATES[0]}, 0.25)


def _entry(content: dict[str, Any], **change: Any) -> None:
    content["candidates"][0].update(change)


ANSWERS: dict[str, Callable[[dict[str, Any]], object]] = {
    "negative error": lambda content: _entry(content, error=-1.0),
    "error is a text": lambda content: _entry(content, error="0.5"),
    "chosen is a number": lambda content: _entry(content, chosen=0),
    "calibrator is a list": lambda content: _entry(content, calibrator=["max"]),
    "unknown calibrator": lambda content: _entry(content, calibrator="mes"),
    "percentile": lambda content: content["candidates"][1].update(percentile=1e9),
    "another one chosen": lambda content: content.update(calibrator="max", percentile=None),
    "no groups": lambda content: content.pop("groups"),
    "group that is not there": lambda content: content.update(groups={"z": content["groups"]["a"]}),
    "groups is a list": lambda content: content.update(groups=[]),
    "groups_error": lambda content: content.update(groups_error=-0.5),
    "candidates is a text": lambda content: content.update(candidates="all"),
    "fewer candidates": lambda content: content["candidates"].pop(),
}


@pytest.mark.parametrize("damage", ANSWERS.values(), ids=ANSWERS)
def test_a_damaged_answer_is_made_anew(
    damage: Callable[[dict[str, Any]], object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = _answer().as_dict()
    cached = CachedCalibration(("a", "b"), BINS, tmp_path / "x.safetensors", tmp_path / "x.json")
    write_json(cached.choice_file, content)
    assert cached.choice(lambda: pytest.fail("it is there")) == _answer()
    damage(content)
    write_json(cached.choice_file, content)
    with caplog.at_level(logging.WARNING):
        assert cached.choice(_answer) == _answer()
    assert len(caplog.messages) == 1
    assert "\n" not in caplog.messages[0]
    assert load_choice(cached.choice_file) == _answer()


def test_the_values_below_zero_are_kept_apart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    below = ActivationHistogram(np.arange(BINS, 0, -1, dtype=np.float64), 0.5, 0.278)
    made = {name: replace(histogram, below=below) for name, histogram in _histograms().items()}
    file = tmp_path / "x.safetensors"
    cached = CachedCalibration(("a", "b"), BINS, file, tmp_path / "x.json", "asymmetric")
    assert cached.histograms(lambda: made) is made
    found = cached.histograms(lambda: pytest.fail("it is there now"))
    for name in ("a", "b"):
        side = found[name].below
        assert side is not None
        assert (side.limit, side.maximum) == (0.5, 0.278)
        assert np.array_equal(side.counts, below.counts)
        assert np.array_equal(found[name].counts, made[name].counts)
    assert not caplog.messages
    # a symmetric calibration wants other histograms, and the other way round
    assert load_histograms(file, ("a", "b"), BINS) is None
    save_histograms(tmp_path / "y.safetensors", _histograms())
    assert load_histograms(tmp_path / "y.safetensors", ("a", "b"), BINS, "asymmetric") is None
    assert len(caplog.messages) == 2


def test_the_scheme_is_part_of_the_key(tiny_asymmetric: Model) -> None:
    model = tiny_asymmetric.require_quantized()
    symmetric = replace(model, placement=replace(model.placement, scheme="symmetric"))
    assert cache_key(model, "images", (64, 64), BINS) != cache_key(symmetric, "images", (64, 64), BINS)
