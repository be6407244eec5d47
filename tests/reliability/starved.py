"""The verbs without what they count on: disk, memory, a home, streams. What each must do then, and whether it does.

    python tests/reliability/starved.py [--verbs infer ...] [--faults "disk full" ...]

Prints a Markdown table of verbs and faults. Exit code 1 if anything is not as it must be.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = str(ROOT / "trt_qat" / "demo" / "detector.safetensors")
SETTINGS = """
model: {imgsz: 64}
quantization: {batch: 4, auto_images: 4}
qat: {epochs: 1, batch: 4}
evaluation: {latency_iterations: 3, latency_warmup: 1}
"""
_LIMITED_MEMORY = str(Path(__file__).with_name("limited_memory.py"))
_QUIET = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}  # threads that spin would slow whatever else runs
_COMMON = ("--data", "data/data.yaml", "--config", "settings.yaml")
VERBS: Mapping[str, tuple[str, ...]] = {
    "infer": ("infer", "data/images/val", "--model", "tiny.onnx", "--out", "out/annotated"),
    "export": ("export", "ptq.safetensors", "--target", "openvino", "--out", "out/int8.onnx"),
    "calibrate": ("calibrate", "--weights", WEIGHTS, *_COMMON, "--out", "out/ptq.safetensors"),
    "qat": ("qat", "--weights", "ptq.safetensors", *_COMMON, "--out", "out/qat"),
    "run": ("run", "--weights", WEIGHTS, *_COMMON, "--out", "out/run"),
}


@dataclass(frozen=True)
class Fault:
    """What is missing.

    Args:
        stops: whether the verb cannot do its work; then nothing may be left in ``out``.
        shell: run before the command, in mounts of its own; ``$0`` is the folder ``out``.
        environment: variables, None removes one.
        before: called in the process before the command starts.
        said: what the one line must hold, a regular expression; "" is no line at all.
            stdout: what standard output is.
        memory: megabytes beyond what loading takes; None is as many as there are.
    """

    stops: bool
    said: str = ""
    shell: str = ""
    environment: Mapping[str, str | None] = field(default_factory=dict)
    before: Callable[[], object] | None = None
    stdout: str = "pipe"
    memory: int | None = None


def _limited_file_size() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def _closed_stdout() -> None:
    os.close(1)


_RESULTS = {".safetensors", ".onnx", ".plan", ".pt", ".png", ".jpg", ".mp4"}
NO_SPACE = "No space left on device|File too large|Free some space"
FAULTS: Mapping[str, Fault] = {
    "disk full": Fault(True, NO_SPACE, 'mount -t tmpfs -o size=20k tmpfs "$0"'),
    "file-size limit": Fault(True, NO_SPACE, before=_limited_file_size),
    "read-only": Fault(True, "Read-only file system", 'mount -o bind "$0" "$0" && mount -o remount,bind,ro "$0"'),
    "no HOME": Fault(False, environment={"HOME": None, "XDG_CACHE_HOME": None, "XDG_CONFIG_HOME": None}),
    "HOME read-only": Fault(False, environment={"HOME": "/proc/1", "XDG_CACHE_HOME": None, "XDG_CONFIG_HOME": None}),
    "stdout closed": Fault(False, before=_closed_stdout),
    "stdout full": Fault(False, "Output cannot be written|output cannot be written", stdout="/dev/full"),
    "no terminal": Fault(False, before=os.setsid),
    "little memory": Fault(False, memory=250),
}


@dataclass(frozen=True)
class Outcome:
    """What a verb did, and what is wrong with that."""

    code: int
    stderr: str
    left: tuple[str, ...]
    faults: tuple[str, ...]


def prepare(place: Path) -> None:
    """A data set, settings, a small ONNX file and a calibrated checkpoint."""
    sys.path.insert(0, str(ROOT / "tests"))
    from tiny_onnx import write_tiny_detector

    place.mkdir(parents=True, exist_ok=True)
    (place / "settings.yaml").write_text(SETTINGS, encoding="utf-8")
    write_tiny_detector(place / "tiny.onnx")
    _run(place, ("data", "demo", "--train", "4", "--val", "2", "--out", "data"))


def prepare_checkpoint(place: Path) -> None:
    """The calibrated checkpoint that ``export`` and ``qat`` start from."""
    _run(place, (*VERBS["calibrate"][:-1], "ptq.safetensors"))


def meet(place: Path, verb: str, name: str) -> Outcome:
    """Run a verb with a fault."""
    fault, out = FAULTS[name], place / "out"
    empty(out)
    done = _run(place, VERBS[verb], fault)
    left = tuple(sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir()))
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    if fault.memory is not None:
        return Outcome(done.returncode, done.stderr, left, tuple(_faults_of_little_memory(done, lines, left)))
    faults = []
    if "Traceback" in done.stderr:
        faults.append("traceback")
    if fault.stops or fault.said:
        if done.returncode != 1:
            faults.append(f"exit code {done.returncode}")
        if len(lines) != 1 or not re.search(rf"^Error: .*({fault.said})", lines[0]):
            faults.append(f"said {lines[-2:]}")
    elif done.returncode or lines:
        faults.append(f"exit code {done.returncode}, said {lines[-2:]}")
    results = [file for file in left if Path(file).suffix in _RESULTS]  # a run's folder keeps its settings and tables
    if fault.stops and results:
        faults.append(f"left {', '.join(results)}")
    if not fault.stops and not left:
        faults.append("wrote nothing")
    if any(Path(file).name.startswith(".") for file in left):
        faults.append("left temporary files")
    return Outcome(done.returncode, done.stderr, left, tuple(faults))


def _faults_of_little_memory(
    done: subprocess.CompletedProcess[str], lines: Sequence[str], left: Sequence[str]
) -> Iterator[str]:
    """It either does with it, or says in one line that it cannot and leaves nothing half-written."""
    if done.returncode not in (0, 1) or "Traceback" in done.stderr:
        yield f"exit code {done.returncode}, said {lines[-2:]}"
    errors = [line for line in lines if line.startswith("Error: ")]
    if len(errors) != done.returncode:
        yield f"exit code {done.returncode}, errors {errors}"
    if any(Path(file).name.startswith(".") for file in left):
        yield "left temporary files"


def empty(folder: Path) -> None:
    """Make the folder, with nothing in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def can_mount() -> bool:
    """Whether this machine lets a process have mounts of its own."""
    return (
        shutil.which("unshare") is not None
        and not subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode
    )


def _run(place: Path, verb: Sequence[str], fault: Fault | None = None) -> subprocess.CompletedProcess[str]:
    fault = fault or Fault(False)
    program = ["-m", "trt_qat"] if fault.memory is None else [_LIMITED_MEMORY, str(fault.memory)]
    command = [sys.executable, *program, *verb]
    if fault.shell:
        command = ["unshare", "-rm", "sh", "-c", f'{fault.shell} && exec "$@"', str(place / "out"), *command]
    changed = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(place), **_QUIET, **fault.environment}
    environment = {key: value for key, value in changed.items() if value is not None}
    stdout = subprocess.PIPE if fault.stdout == "pipe" else os.open(fault.stdout, os.O_WRONLY)
    return subprocess.run(
        command,
        cwd=place,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=600,
        preexec_fn=fault.before,
    )


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--verbs", nargs="+", default=list(VERBS), choices=list(VERBS))
    parser.add_argument("--faults", nargs="+", default=list(FAULTS), choices=list(FAULTS))
    given = parser.parse_args()
    faults = [name for name in given.faults if can_mount() or not FAULTS[name].shell]
    print(f"| | {' | '.join(faults)} |\n|---|{'---|' * len(faults)}", flush=True)
    wrong = []
    with tempfile.TemporaryDirectory(prefix="starved-") as folder:
        prepare(Path(folder))
        prepare_checkpoint(Path(folder))
        for verb in given.verbs:
            cells = []
            for name in faults:
                outcome = meet(Path(folder), verb, name)
                cells.append("WRONG" if outcome.faults else f"exit {outcome.code}")
                wrong += [f"{verb}, {name}: {fault}" for fault in outcome.faults]
            print(f"| {verb} | {' | '.join(cells)} |", flush=True)
    print("\n".join(wrong))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
