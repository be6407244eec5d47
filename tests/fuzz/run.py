"""Fuzz every target for FUZZ_SECONDS in all (600): a process each, with a limit of time and of memory per input.

    python tests/fuzz/run.py [--seconds N] [--only NAME ...] [--jobs N]
    python tests/fuzz/run.py --replay FILE

Prints a table and exits with 1 on a finding. An input that was found is saved in runs/fuzz/; copied to
tests/fuzz/regressions/ it is replayed by the tests from then on.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]
SECONDS_PER_INPUT = 10
FOUND = Path("runs/fuzz")
_GRACE = 60  # seconds that a process gets to start, and to end after its time


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=float(os.environ.get("FUZZ_SECONDS") or 600))
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--replay", type=Path)
    parser.add_argument("--target", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.replay:
        return _replay(given.replay)
    if given.target:
        _fuzz(given.target, given.seconds, given.seed, given.report)
        return 0
    from parsers import TARGETS

    names = [name for name in TARGETS if not given.only or name in given.only]
    return _all(names, given.seconds * given.jobs / len(names), given.jobs)


def _all(names: list[str], seconds: float, jobs: int) -> int:
    rows, findings = [], []
    with tempfile.TemporaryDirectory(prefix="fuzz-run-") as folder:
        waiting, running = list(reversed(names)), {}
        while waiting or running:
            while waiting and len(running) < jobs:
                name = waiting.pop()
                report = Path(folder, name)
                report.mkdir()
                seed = int.from_bytes(os.urandom(4), "big")
                command = [sys.executable, str(Path(__file__).resolve()), "--target", name]
                command += ["--seconds", str(seconds), "--seed", str(seed), "--report", str(report)]
                log = (report / "log").open("wb")
                process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
                running[name] = (process, report, time.monotonic() + seconds + _GRACE)
            time.sleep(0.1)
            for name, (process, report, latest) in list(running.items()):
                if process.poll() is None and time.monotonic() < latest:
                    continue
                hangs = process.poll() is None
                if hangs:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                del running[name]
                tried, accepted, found = _collected(name, report, process.returncode, hangs)
                rows.append((name, str(tried), str(accepted), str(len(found))))
                findings += found
    header = ("target", "inputs tried", "accepted", "findings")
    rows.append(("all", *(str(sum(int(row[column]) for row in rows)) for column in (1, 2, 3))))
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(4)]
    for row in (header, tuple("-" * width for width in widths), *rows):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
    for finding in findings:
        path = _saved(finding)
        print(f"\n{finding['target']}: {finding['what']}\n  {finding['where']}\n  {path}")
    if findings:
        print(f"\nA finding that is fixed becomes a test: cp {FOUND}/NAME.json tests/fuzz/regressions/")
    return int(bool(findings))


def _collected(name: str, report: Path, code: int, hangs: bool) -> tuple[int, int, list[dict[str, Any]]]:
    """Inputs tried, inputs accepted, and what was found, an input that killed the process included."""
    lines = (report / "findings").read_text().splitlines() if (report / "findings").exists() else []
    found = [json.loads(line) for line in lines]
    counts = (report / "counts").read_text().split() if (report / "counts").exists() else ["0", "0"]
    if hangs or code:
        last = (report / "last").read_bytes() if (report / "last").exists() else b""
        said = (report / "log").read_bytes()[-100_000:].decode("utf-8", "replace").splitlines()[-8:]
        what = "hangs, and no signal interrupts it" if hangs else f"the process ended with {code}"
        found.append(_finding(name, last, what, " | ".join(line.strip()[:150] for line in said)))
    return int(counts[0]), int(counts[1]), found


def _fuzz(name: str, seconds: float, seed: int, report: Path) -> None:
    """In a process of its own: try inputs until the time is over, each kind of finding once."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded
    from parsers import TARGETS
    from per_input import TookTooLong, limited_memory, limited_time, quiet_stderr
    from target import parsed

    target = TARGETS[name]
    warnings.simplefilter("ignore")  # as the command does
    strategy = target.inputs()
    counts = {"tried": 0, "accepted": 0}
    kinds: set[str] = set()

    class TimeIsOver(BaseException):
        pass

    def judge(content: bytes) -> None:
        if time.monotonic() > end:
            raise TimeIsOver
        (report / "last").write_bytes(content)
        counts["tried"] += 1
        try:
            with limited_time(SECONDS_PER_INPUT), quiet_stderr() as said:
                counts["accepted"] += parsed(target, content)
                noise = said()
            if noise.strip():
                _note(kinds, report, _finding(name, content, "writes to stderr", noise.strip().splitlines()[0][:200]))
        except (Exception, TookTooLong) as exc:
            _note(kinds, report, _finding(name, content, _what(exc), _where(exc)))
        if counts["tried"] % 50 == 1:
            (report / "counts").write_text(f"{counts['tried']} {counts['accepted']}")

    options = settings(
        max_examples=500, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    _warm(target)
    end = time.monotonic() + seconds
    with limited_memory(), contextlib.suppress(TimeIsOver):
        for offset in itertools.count():
            seeded(seed + offset)(options(given(strategy)(judge)))()
    (report / "counts").write_text(f"{counts['tried']} {counts['accepted']}")


def _warm(target: Any) -> None:
    """One input before the limit of memory holds: what it imports is mapped."""
    from per_input import quiet_stderr
    from target import parsed

    with quiet_stderr(), contextlib.suppress(Exception):
        parsed(target, b"")


def _note(kinds: set[str], report: Path, finding: dict[str, Any]) -> None:
    kind = f"{finding['what'].partition(':')[0]} {finding['where']}"  # values in a message make no other kind
    kind = finding["what"] if finding["what"] == "writes to stderr" else kind
    if kind in kinds or len(kinds) > 50:
        return
    kinds.add(kind)
    with (report / "findings").open("a") as stream:
        stream.write(json.dumps(finding) + "\n")


def _what(exc: BaseException) -> str:
    return f"{type(exc).__name__}: {' '.join(str(exc).split())[:200]}"


def _where(exc: BaseException) -> str:
    """The last line of trt_qat or of these targets that the exception came through, and where it was raised."""
    frames = traceback.extract_tb(exc.__traceback__)
    own = [frame for frame in frames if "/trt_qat/" in frame.filename or frame.filename.endswith("_targets.py")]
    chosen = [*own[-1:], *frames[-1:]]
    places = [f"{Path(frame.filename).name}:{frame.name}:{frame.lineno}" for frame in chosen]
    return " <- ".join(reversed(dict.fromkeys(places)))


def _finding(name: str, content: bytes, what: str, where: str) -> dict[str, Any]:
    return {"target": name, "what": what, "where": where, "base64": base64.b64encode(content).decode()}


def _saved(finding: dict[str, Any]) -> Path:
    FOUND.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(finding["base64"].encode()).hexdigest()[:8]
    path = FOUND / f"{finding['target']}-{digest}.json"
    path.write_text(json.dumps(finding, indent=1) + "\n")
    return path


def _replay(path: Path) -> int:
    from parsers import TARGETS
    from target import parsed

    finding = json.loads(path.read_text())
    accepted = parsed(TARGETS[finding["target"]], base64.b64decode(finding["base64"]))
    print("accepted" if accepted else "refused with one line")
    return 0


if __name__ == "__main__":
    sys.exit(main())
