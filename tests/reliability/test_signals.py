"""Every verb, stopped by a signal while it works: one line, the signal's exit code, nothing temporary left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import starved

_DATA = ("--data", "data/data.yaml", "--config", "settings.yaml")
_PTQ = ("--weights", "ptq.safetensors", *_DATA)
VERBS: Mapping[str, tuple[str, ...]] = {
    **starved.VERBS,
    "train": ("train", "--weights", "yolov8n.yaml", *_DATA, "--out", "out/fp32"),
    "sensitivity": ("sensitivity", *_PTQ, "--out", "out/ranking.json"),
    "engine": ("engine", "int8.onnx", "--flavor", "tensorrt-rtx", "--out", "out/x.plan"),
    "evaluate": ("evaluate", "tiny.onnx", "ptq.safetensors", *_DATA, "--json", "out/rows.json"),
    "lint": ("lint", "int8.onnx", "--svg", "out/x.svg"),
    "targets": ("targets",),
    "data validate": ("data", "validate", "data/data.yaml"),
    "data demo": ("data", "demo", "--train", "4000", "--val", "100", "--out", "out/demo"),
    "data demo-clip": ("data", "demo-clip", "--frames", "2000", "--out", "out/street.mp4"),
    "data demo-model": ("data", "demo-model", "--out", "out/demo.onnx"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signals")
    starved.prepare(folder)
    starved.prepare_checkpoint(folder)
    arguments = ("export", "ptq.safetensors", "--target", "tensorrt-rtx", "--no-check", "--out", "int8.onnx")
    assert _start(folder, arguments).wait() == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("verb", VERBS)
def test_a_stopped_verb_leaves_nothing_temporary(verb: str, number: signal.Signals, place: Path) -> None:
    """Stopped at four moments of the time that it takes, as a user's Ctrl-C does it: the whole group of processes."""
    _stopped_at_moments(place, verb, number, 4)


@pytest.mark.parametrize(
    "number",
    # what is said of SIGTERM, and its code, are in tests/test_entry.py as well
    [pytest.param(signal.SIGINT, id="SIGINT"), pytest.param(signal.SIGTERM, id="SIGTERM", marks=pytest.mark.slow)],
)
def test_infer_stops_at_once(number: signal.Signals, tmp_path: Path) -> None:
    """The verb that loads no torch, in `make test`."""
    starved.prepare(tmp_path)
    _stopped_at_moments(tmp_path, "infer", number, 2)


def _stopped_at_moments(place: Path, verb: str, number: signal.Signals, count: int) -> None:
    out, temporary = place / "out", place / "tmp"
    temporary.mkdir(exist_ok=True)
    starved.empty(out)
    began = time.monotonic()
    with _start(place, VERBS[verb]) as process:
        process.communicate(timeout=600)
    assert process.returncode == 0
    duration = time.monotonic() - began
    stopped = 0
    for moment in range(count):
        starved.empty(out)
        starved.empty(temporary)
        with _start(place, VERBS[verb]) as process:
            time.sleep(duration * (moment + 0.5) / count)
            os.killpg(process.pid, number)
            _, said = process.communicate(timeout=120)
        if process.returncode == 0:
            continue  # it was faster this time
        stopped += 1
        if process.returncode != -number:  # the interpreter itself had not started yet
            assert process.returncode == 128 + number, said
            assert said.splitlines() == [{signal.SIGINT: "Interrupted.", signal.SIGTERM: "Terminated."}[number]]
        left = [path.relative_to(place).as_posix() for path in (*out.rglob(".*"), *temporary.rglob("*"))]
        assert left == [], f"{verb} at {moment}"
    assert stopped


def _start(place: Path, arguments: tuple[str, ...]) -> subprocess.Popen[str]:
    changed = {
        "PYTHONPATH": str(starved.ROOT),
        "TMPDIR": str(place / "tmp") if (place / "tmp").exists() else str(place),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "trt_qat", *arguments],
        cwd=place,
        env={**os.environ, **changed},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_hear_ctrl_c,
    )


def _hear_ctrl_c() -> None:
    """A shell starts what runs in its background deaf to SIGINT, and the suite may be that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
