"""Targets for what the stages leave for themselves: caches, rankings, manifest, ``resume.pt``, results, budgets."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from archives import mutated_archive
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from model_targets import NothingRuns
from mutations import mutated_bytes, mutated_json, nudged_json, with_one_change
from safetensors.numpy import save
from target import Target, assert_one_line, made_anew, written

BINS = 16


def _caches() -> SearchStrategy[bytes]:
    limits = {"model.0.conv": {"limit": 2.0, "maximum": 1.5}, "model.1.conv": {"limit": 4.0, "maximum": 3.0}}
    counts = {f"{name}.counts": np.ones(BINS) for name in limits}
    good = save(counts, metadata={"limits": json.dumps(limits)})
    odd = st.sampled_from(
        [np.full(BINS, np.nan), -np.ones(BINS), np.zeros(0), np.ones((2, BINS)), np.ones(3), np.zeros(BINS)]
    )
    made = st.tuples(st.one_of(nudged_json(limits), mutated_json(limits)), st.one_of(st.none(), st.none(), odd)).map(
        lambda pair: save(
            counts if pair[1] is None else {**counts, "model.0.conv.counts": pair[1]},
            metadata={"limits": pair[0].decode("utf-8", "replace")},
        )
    )
    return st.one_of(_plausible_caches(), made, mutated_bytes([good]))


@st.composite
def _plausible_caches(draw: st.DrawFn) -> bytes:
    """Two groups of few bins with any maximum, most under its own limit."""
    limits: dict[str, Any] = {}
    counts: dict[str, Any] = {}
    for name in ("model.0.conv", "model.1.conv"):
        maximum = draw(st.floats(0, 1e40) | st.sampled_from([0.0, 1.0, 2.0, 1e-40, 3e38, 2.0**1023]))
        limit = 2.0 ** min(math.frexp(maximum)[1], 1023) if maximum else 0.0
        limits[name] = {"limit": draw(st.sampled_from([limit, limit, limit, limit * 2, 0.0, 1.0])), "maximum": maximum}
        values = draw(st.lists(st.sampled_from([0, 1, 9, 0.5, 1e15, 2.0**53, 1e300]), min_size=BINS, max_size=BINS))
        counts[f"{name}.counts"] = np.array(values, np.float64)
    return save(counts, metadata={"limits": json.dumps(limits)})


def _check_cache(content: bytes, folder: Path) -> None:
    from trt_qat.quantization.calibration_cache import load_histograms, save_histograms

    found = load_histograms(written(folder, "a.safetensors", content), bins=BINS)
    if found is None:
        raise made_anew("the cache")
    for histogram in found.values():
        counts = histogram.counts
        assert counts.ndim == 1, f"counts of shape {counts.shape}"
        assert np.isfinite(counts).all() and (counts >= 0).all(), "counts that are none"  # noqa: PT018
        assert 0 <= histogram.maximum <= histogram.limit < math.inf, f"{histogram.maximum} and limit {histogram.limit}"
        _check_ranges(histogram)
    save_histograms(folder / "b.safetensors", found)
    again = load_histograms(folder / "b.safetensors")
    assert again is not None, "what was written is not read"
    for name, histogram in found.items():
        assert again[name].limit == histogram.limit
        assert (again[name].counts == histogram.counts).all(), "other counts when they are written and read"


def _check_ranges(histogram: Any) -> None:
    """Every calibrator finds a range in it, or says that there is none."""
    from trt_qat.errors import QuantizationError
    from trt_qat.quantization.auto import CANDIDATES

    for calibrator in CANDIDATES:
        with contextlib.suppress(QuantizationError):
            amax = calibrator.amax(histogram)
            assert 0 < amax <= histogram.maximum, f"{calibrator}: {amax} of {histogram.maximum}"


@cache
def _choice() -> dict[str, Any]:
    from trt_qat.quantization.auto import CANDIDATES
    from trt_qat.quantization.calibration import Calibration, Candidate

    rows = tuple(Candidate(calibrator, 0.1 * index, index == 0) for index, calibrator in enumerate(CANDIDATES))
    content: dict[str, Any] = json.loads(json.dumps(Calibration(CANDIDATES[0], rows).as_dict()))
    return content


def _check_choice(content: bytes, folder: Path) -> None:
    from trt_qat.quantization.calibration_cache import load_choice

    found = load_choice(written(folder, "a.json", content))
    if found is None:
        raise made_anew("the choice")
    assert all(0 <= candidate.error < math.inf for candidate in found.candidates), "an error that is none"
    assert [candidate.calibrator for candidate in found.candidates if candidate.chosen] == [found.calibrator]
    json.dumps(found.as_dict(), allow_nan=False)


RANKING: dict[str, Any] = {
    "key": {"metric": "error", "weights": "0" * 16}, "metric": "error", "groups": 2, "float": {},
    "layers": [{"group": "model.0.conv", "convs": ["model.0.conv"], "error": 0.5},
               {"group": "model.1.conv", "convs": ["model.1.conv", "model.2.conv"], "error": 0.25}],
}  # fmt: skip


def _check_ranking(content: bytes, folder: Path) -> None:
    from trt_qat.evaluation.sensitivity import SensitivityFile

    path = written(folder, "a.json", content)
    ranking, said = SensitivityFile(path, {"metric": "error", "weights": "0" * 16}, 2).read()
    assert_one_line(said)
    if ranking is None:
        raise made_anew("the ranking")
    assert all(row.error is not None and math.isfinite(row.error) for row in ranking.rows), "an error that is none"
    assert len({row.group for row in ranking.rows}) == len(ranking.rows) <= 2, "groups twice, or too many"
    json.dumps([row.as_dict() for row in ranking.rows], allow_nan=False)


def _manifest() -> dict[str, Any]:
    stages = {
        name: {
            "inputs": {"weights": digit * 64, "imgsz": 64, "config": {"a": [1, 0.5, None]}},
            "files": {f"{name}.txt": digit * 64},
        }
        for name, digit in (("calibration", "0"), ("export", "f"))
    }
    return {"format": "trt_qat-manifest-1", "stages": stages}


def _check_manifest(content: bytes, folder: Path) -> None:
    from recording import Recording

    from trt_qat.artifacts import file_sha256
    from trt_qat.manifest import FILE, Manifest
    from trt_qat.progress import Noting

    path, out = folder / FILE, folder / "calibration.txt"
    inputs = _manifest()["stages"]["calibration"]["inputs"]
    out.write_text("content")  # as the stage left it
    written(folder, FILE, content.replace(b"0" * 64 + b'"}', file_sha256(out).encode() + b'"}'))
    made: list[int] = []
    progress = Recording()
    for _ in range(2):
        Manifest(folder, Noting(progress)).stage(
            "calibration", inputs, [out], lambda: made.append(out.write_text("content"))
        )
    assert len(made) <= 1, "made again although it was finished"
    for note in progress.notes:
        assert_one_line(note)
    if made:
        stage = json.loads(path.read_text(encoding="utf-8"))["stages"]["calibration"]
        assert (stage["inputs"], stage["files"]) == (inputs, {out.name: file_sha256(out)}), "not what was made"
        raise made_anew("the stage")


ROW: dict[str, Any] = {
    "model": "m.onnx", "precision": "int8+fp32", "runtime": "openvino", "map50_95": 0.4, "map50": 0.625, "images": 64,
    "size_bytes": 1000, "latency_ms": {"median": 1.0, "p90": 2.0, "p99": 3.5},
}  # fmt: skip
ROWS = [ROW, {**ROW, "images": 63, "left_out": {"images": 1, "of": 64, "reason": "no file"}}]


def _check_rows(content: bytes, folder: Path) -> None:
    from trt_qat.evaluation.report import markdown_table
    from trt_qat.results import read_rows, write_rows

    rows = read_rows(written(folder, "a.json", content))
    for row in rows:
        assert 0 <= row.map50_95 <= 1 and 0 <= row.map50 <= 1, "a figure that is no fraction"  # noqa: PT018
        latency = (row.latency_ms.median, row.latency_ms.p90, row.latency_ms.p99)
        assert all(0 <= value < math.inf for value in latency), "a latency that is none"
    write_rows(folder / "b.json", rows)
    assert read_rows(folder / "b.json") == rows, "other rows when they are written and read"
    assert markdown_table(rows)


@cache
def _record() -> dict[str, Any]:
    from report.example_record import example_record

    content: dict[str, Any] = example_record().model_dump(mode="json")
    for entry in content["files"]:  # else most of what is changed is one of a thousand resamples
        entry["result"]["details"]["resampled"] = entry["result"]["details"]["resampled"][:3]
    return content


def _check_record(content: bytes, folder: Path) -> None:
    """Everything that reads a record but the page, whose charts take a second each."""
    from trt_qat.report.compare import Tolerance, compare
    from trt_qat.report.explain import explain, overview
    from trt_qat.report.layer_facts import Network
    from trt_qat.report.markdown import markdown_report
    from trt_qat.report.record import read_record, write_record

    record = read_record(written(folder, "a.json", content))
    assert read_record(write_record(folder, record)) == record, "another record when it is written and read"
    assert markdown_report(record)
    assert overview(record, folder).as_dict()
    for layer in Network(record).layers:
        assert explain(layer, folder).as_text()
    assert not compare(folder, folder, Tolerance()).worse, "worse than itself"


@cache
def _budget() -> dict[str, Any]:
    step = {
        "k": 1, "weights": "fine-tuned", "order": "cost", "groups": ["model.0.conv"], "drop_points": 0.5, "map50_95": 0.4,
        "latency_ms": 2.0, "int8_latency_ms": 1.5,
    }  # fmt: skip
    candidate = {
        "group": "model.0.conv", "convs": ["model.0.conv"], "error": 0.5, "macs_share": 0.25, "error_per_share": 2.0,
    }  # fmt: skip
    return {
        "max_drop_points": 1.0, "met": True, "orders": "both", "weights": "both", "ranking": [candidate],
        "float": {"map50_95": 0.405, "latency_ms": 3.0}, "int8": {**step, "k": 0, "groups": []}, "steps": [step],
        "chosen": {**step, "why": [candidate]},
    }  # fmt: skip


def _check_budget(content: bytes, folder: Path) -> None:
    from trt_qat.mixed_precision.files import REPORT, read_budget
    from trt_qat.results import file_content

    found = read_budget(written(folder, REPORT, content))
    content_again = file_content(found.model_dump(mode="json", by_alias=True, exclude_none=True))
    text = json.dumps(content_again, allow_nan=False)
    assert read_budget(written(folder, REPORT, text.encode())) == found, "another report when it is written and read"
    for step in (found.int8, found.chosen, *found.steps):
        assert len(step.groups) == step.k, "another number of groups"


FINGERPRINT = "f" * 16


def _state() -> dict[str, Any]:
    """As training leaves it for a network of one layer, after a step."""
    import torch

    torch.manual_seed(0)
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return {
        "format": "trt_qat-resume-3", "fingerprint": FINGERPRINT, "finished": False, "epoch": 0, "model": layer.state_dict(),
        "ema": layer.state_dict(), "updates": 1, "optimizer": optimizer.state_dict(), "best_fitness": 0.5,
        "start_fitness": 0.4, "best_choice": -0.2, "stopper": (0.5, 1), "results_csv": "epoch,loss\n1,0.5\n",
        "features": {"monitor": {"amax": {"a": torch.ones(1)}, "sqnr_db": {}}},
    }  # fmt: skip


def _torch_bytes(content: Any) -> bytes:
    import torch

    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


@st.composite
def _other_states(draw: st.DrawFn) -> bytes:
    """One or two values of the state are others, or one of its tensors holds another value."""
    import torch

    state: Any = copy.deepcopy(_state())
    if draw(st.booleans()):
        for _ in range(draw(st.integers(1, 2))):
            state = with_one_change(draw, state)
    else:
        momentum = [entry["momentum_buffer"] for entry in state["optimizer"]["state"].values()]
        tensors = [*state["model"].values(), *state["ema"].values(), *momentum]
        value = draw(st.sampled_from([math.nan, math.inf, 0.0, -1.0, 3e38]))
        with torch.no_grad():
            draw(st.sampled_from(tensors)).view(-1)[0] = value
    return _torch_bytes(state)


def _states() -> SearchStrategy[bytes]:
    return st.one_of(_other_states(), _other_states(), mutated_archive(_torch_bytes(_state())))


def _check_state(content: bytes, folder: Path) -> None:
    import torch

    from trt_qat.training.resume import FILE, fitting, load_state, save_state

    written(folder, FILE, content)
    with NothingRuns():
        state = load_state(folder, FINGERPRINT)
    assert state is not None
    save_state(folder, FINGERPRINT, state)
    again = load_state(folder, FINGERPRINT)
    assert again is not None
    assert again.keys() == state.keys()
    if state["finished"]:
        return
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    with fitting(folder):
        layer.load_state_dict(state["ema"])
        layer.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    for value in _numbers([state["model"], state["ema"], state["optimizer"]["state"]]):
        assert value.isfinite().all() if isinstance(value, torch.Tensor) else math.isfinite(value), "a NaN in the state"
    assert state["epoch"] >= -1
    best, epoch = state["stopper"]
    assert math.isfinite(best)
    assert isinstance(epoch, int)


def _numbers(content: Any) -> list[Any]:
    import torch

    if isinstance(content, dict | list | tuple):
        parts = content.values() if isinstance(content, dict) else content
        return [number for part in parts for number in _numbers(part)]
    return [content] if isinstance(content, float | torch.Tensor) else []


TARGETS = (
    Target("calibration-cache", _caches, _check_cache),
    Target("auto-choice", lambda: st.one_of(nudged_json(_choice()), mutated_json(_choice())), _check_choice),
    Target("sensitivity", lambda: st.one_of(nudged_json(RANKING), mutated_json(RANKING)), _check_ranking),
    Target("manifest", lambda: st.one_of(nudged_json(_manifest()), mutated_json(_manifest())), _check_manifest),
    Target("result-rows", lambda: st.one_of(nudged_json(ROWS), mutated_json(ROWS)), _check_rows),
    Target("run-record", lambda: st.one_of(nudged_json(_record()), mutated_json(_record())), _check_record),
    Target("mixed-precision", lambda: st.one_of(nudged_json(_budget()), mutated_json(_budget())), _check_budget),
    Target("resume", _states, _check_state),
)
