"""Kill ``trt-qat run`` at moments in every stage, run it again, and compare what it leaves with an unbroken run's.

    python tests/reliability/killed_runs.py [--moments 40] [--images 12] [--keep FOLDER]

Prints a Markdown table, one row per moment. Exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = """
model: {imgsz: 64}
quantization: {batch: 4, calibrator: mse}
qat: {epochs: 3, batch: 4}
export: {check: false}
evaluation: {latency_iterations: 3, latency_warmup: 1}
"""
_TIMES = {"latency_ms", "build_seconds", "time"}  # what no two runs have in common


@dataclass(frozen=True)
class Moment:
    """When a run is killed.

    Args:
        stage: that it is in then.
        seconds: after the stage before has ended.
        number: of the signal.
    """

    stage: str
    seconds: float
    number: signal.Signals


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=40)
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--keep", type=Path, help="folder to work in, which is then kept")
    given = parser.parse_args()
    if given.keep:
        return _compare(given.keep, given.moments, given.images)
    with tempfile.TemporaryDirectory(prefix="killed-") as folder:
        return _compare(Path(folder), given.moments, given.images)


def _compare(place: Path, count: int, images: int) -> int:
    place.mkdir(parents=True, exist_ok=True)
    (place / "settings.yaml").write_text(SETTINGS, encoding="utf-8")
    _command(place, "data", "demo", "--train", str(images), "--val", "6", "--out", "data").wait()
    durations = _unbroken(place)
    wanted = _contents(place / "run")
    shutil.rmtree(place / "run")
    print("| killed in stage | after, s | by | at once left | goes on with | equal at the end |")
    print("|---|---|---|---|---|---|", flush=True)
    failures = 0
    for moment in _moments(durations, count):
        row, equal = _killed(place, moment, list(durations), wanted)
        print(f"| {' | '.join(row)} |", flush=True)
        failures += not equal
    print(f"\n{count - failures} of {count} runs that were killed end as the unbroken one.")
    return int(failures > 0)


def _unbroken(place: Path) -> dict[str, float]:
    """Run once; the stages in their order and how long each took."""
    durations, before = {}, time.monotonic()
    with _start(place) as process:
        while process.poll() is None:
            for stage in _finished(place / "run"):
                if stage not in durations:
                    now = time.monotonic()
                    durations[stage], before = now - before, now
            time.sleep(0.01)
    if process.returncode:
        raise SystemExit(f"The unbroken run failed: {(place / 'log').read_text()}")
    for stage in _finished(place / "run"):
        durations.setdefault(stage, time.monotonic() - before)
    return durations


def _moments(durations: Mapping[str, float], count: int) -> list[Moment]:
    """Spread over the stages: each in turn, at a place in it drawn at random; two of three are SIGKILL."""
    draw = random.Random(0)
    stages = [list(durations)[index % len(durations)] for index in range(count)]
    stages.sort(key=list(durations).index)
    numbers = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)
    return [
        Moment(stage, draw.random() * durations[stage], numbers[index % len(numbers)])
        for index, stage in enumerate(stages)
    ]


def _killed(
    place: Path, moment: Moment, stages: list[str], wanted: Mapping[str, object]
) -> tuple[tuple[str, ...], bool]:
    folder = place / "run"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(place / "calib", ignore_errors=True)
    before = stages[: stages.index(moment.stage)]
    with _start(place) as process:
        while process.poll() is None and len(_finished(folder)) < len(before):
            time.sleep(0.005)
        time.sleep(moment.seconds)
        done = len(_finished(folder))
        os.killpg(process.pid, moment.number)
    code = process.returncode
    stage = stages[done] if done < len(stages) else "after the last"
    left = "nothing temporary" if not _temporary(folder) else f"{len(_temporary(folder))} temporary"
    # who has done everything may be ended by the signal itself while the interpreter closes: 143 in a shell as well
    allowed = (143, 0, -signal.SIGTERM) if done == len(stages) else (143,)
    faults = [f"exit code {code}"] if moment.number == signal.SIGTERM and code not in allowed else []
    faults += ["temporary files after SIGTERM"] if moment.number == signal.SIGTERM and _temporary(folder) else []
    with _start(place) as process:
        pass
    log = (place / "log").read_text(encoding="utf-8")
    reused = log.count("Reusing ") - log.count("Reusing the calibration's")
    inside = re.findall(r"(?:Fine-tuning|Calibration) goes on after [^.]*", log)
    found = _contents(folder)
    faults += [f"exit code {process.returncode} on going on"] if process.returncode else []
    faults += sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    faults += [f"left {name}" for name in _temporary(folder)]
    goes_on = "; ".join([f"{reused} stages", *inside])
    said = f"NO: {', '.join(faults)}" if faults else "yes"
    return (stage, f"{moment.seconds:.2f}", moment.number.name, left, goes_on, said), not faults


def _start(place: Path) -> subprocess.Popen[bytes]:
    arguments = ("--weights", str(ROOT / "trt_qat" / "demo" / "detector.safetensors"), "--data", "data/data.yaml")
    return _command(place, "run", *arguments, "--config", "settings.yaml", "--out", "run")


def _command(place: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """The command in a process group of its own, so that its children are killed with it."""
    # threads that wait by spinning would slow a machine that does something else besides
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(place), **threads}
    with (place / "log").open("wb") as log:
        command = [sys.executable, "-m", "trt_qat", *arguments]
        return subprocess.Popen(command, cwd=place, env=environment, stdout=log, stderr=log, start_new_session=True)


def _finished(folder: Path) -> list[str]:
    try:
        return list(json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["stages"])
    except FileNotFoundError:
        return []


def _temporary(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob(".*"))


def _contents(folder: Path) -> dict[str, object]:
    """Every file by name; without what is a measured time, and TensorBoard's log, whose name holds the time."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or ".tfevents." in name:
            continue
        if name in ("manifest.json", "run.json", "report.html", "report.md"):  # measured times, or made of them
            found[name] = _finished(folder) if name == "manifest.json" else _without_times(path.read_text())
        elif path.suffix == ".json":
            found[name] = _timeless(json.loads(path.read_text(encoding="utf-8")))
        elif name == "qat/results.csv":
            with path.open(newline="") as stream:
                found[name] = [_timeless(row) for row in csv.DictReader(stream)]
        else:
            found[name] = path.read_bytes()
    return found


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(inside) for key, inside in value.items() if key.strip() not in _TIMES}
    return [_timeless(inside) for inside in value] if isinstance(value, list) else value


def _without_times(page: str) -> str:
    """The table's last three columns are latencies."""
    return re.sub(r"(\|[^|\n]*){3}\|$", "", page, flags=re.MULTILINE)


if __name__ == "__main__":
    sys.exit(main())
