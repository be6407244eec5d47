"""What ``scripts/gpu_check.sh`` needs Python for: single checks, and the report that is sent back.

A check prints what it found and exits 0 (passed), 1 (failed) or 77 (cannot be done here; the last line says why).
"""

from __future__ import annotations

import getpass
import importlib.metadata
import importlib.util
import json
import platform
import re
import subprocess
import sys
import tarfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from unittest.mock import patch

import click
import numpy as np
from numpy.typing import NDArray

from trt_qat.engine.gpu import gpu_names, nvidia_smi
from trt_qat.errors import TrtQatError
from trt_qat.redact import redacted_message

if TYPE_CHECKING:
    from trt_qat.runtime.runner import Runner

Floats = NDArray[np.float32]
ROOT = Path(__file__).resolve().parent.parent
SKIPPED = 77
RANGE_TOLERANCE = 0.02  # largest values; a GPU convolves in TF32, which keeps 10 bits
BATCHES, ROUNDS = 64, 8  # of images that differ; each is run so often
RESULT = "gpu_check"
NO_GPU = "No usable NVIDIA GPU here (libcuda finds none): nothing of the GPU was checked."
_SMI = ("name", "driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "clocks.max.mem", "power.limit")
_SMI += ("temperature.gpu", "memory.total", "pstate", "mig.mode.current")
_GPU_TIMES = ("gpu_ms", "gpu_with_copies_ms")
_PACKAGES = ("cuda-python", "cuda-bindings", "pycuda", "torch", "tensorrt", "tensorrt-rtx", "nvidia-cudnn-cu13")

Out = click.argument("out", type=click.Path(path_type=Path, exists=True, file_okay=False))
File = click.Path(path_type=Path)
Json = click.option("--json", "json_file", type=File, required=True)


@click.group()
def cli() -> None:
    """Parts of scripts/gpu_check.sh."""


@cli.command()
def gpu() -> None:
    """Exit 0 where there is a GPU; else say so."""
    if not gpu_names():
        click.echo(NO_GPU)
        sys.exit(1)


@cli.command()
@Json
def machine(json_file: Path) -> None:
    """What the figures depend on."""
    from trt_qat.provenance import machine as processor
    from trt_qat.provenance import package_versions

    found = {
        "gpus": list(gpu_names()),
        "nvidia_smi": nvidia_smi(_SMI),
        "cuda_of_torch": _cuda_of_torch(),
        "system": f"{platform.system()} {platform.machine()}",
        **processor(),
        "versions": {**package_versions(), **_versions(_PACKAGES)},
    }
    _written(json_file, found)


@cli.command()
@click.argument("xml", type=File)
@Json
def tests(xml: Path, json_file: Path) -> None:
    """tests/gpu: the memory layer, engines and training on the real device."""
    if importlib.util.find_spec("pytest") is None:
        _skip("pytest is not installed: pip install 'trt_qat[dev]'.")
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-m", "gpu", "-q", "-rs", f"--junitxml={xml}"]
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    counts = _counts(xml) if xml.is_file() else {}
    _written(json_file, counts)
    if counts and counts["tests"] == counts["skipped"]:
        _skip(f"All {counts['tests']} tests of tests/gpu are skipped here.")
    sys.exit(1 if code else 0)


@cli.command()
@click.argument("first", type=File)
@click.argument("second", type=File)
@Json
def ranges(first: Path, second: Path, json_file: Path) -> None:
    """Do two calibrations of the same weights find the same ranges?"""
    from trt_qat.checkpoint import load

    a, b = (load(file).require_quantized().amax() for file in (first, second))
    off = {name: float((a[name] - b[name]).abs().max() / a[name].abs().max()) for name in a}
    worst = max(off, key=lambda name: off[name])
    equal = sum(value == 0.0 for value in off.values())
    found = {"ranges": len(off), "equal": equal, "worst": worst, "off_by": off[worst], "allowed": RANGE_TOLERANCE}
    _written(json_file, found)
    sys.exit(0 if a.keys() == b.keys() and off[worst] <= RANGE_TOLERANCE else 1)


@cli.command()
@click.argument("first", type=File)
@click.argument("second", type=File)
@Json
def same(first: Path, second: Path, json_file: Path) -> None:
    """Are two files equal byte for byte?"""
    equal = first.read_bytes() == second.read_bytes()
    _written(json_file, {"equal": equal, "bytes": [first.stat().st_size, second.stat().st_size]})
    sys.exit(0 if equal else 1)


@cli.command()
@click.argument("plan", type=File)
def runs(plan: Path) -> None:
    """Exit 77 where this GPU is none that the plan's flavor runs on."""
    _check_runs(plan)


@cli.command()
@click.argument("amp")
def computes(amp: str) -> None:
    """Exit 77 where this GPU does not compute in the type that ``qat.amp`` names."""
    import torch

    if amp == "bfloat16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False):
        _skip(f"{gpu_names()[0]} does not compute in bfloat16.")


@cli.command()
@click.argument("fp16", type=File)
@click.argument("int8", type=File)
@Json
def latency(fp16: Path, int8: Path, json_file: Path) -> None:
    """FP16 against INT8 by CUDA events, in turn; and as the caller sees it, copies included."""
    from trt_qat.config import EvaluationSection
    from trt_qat.evaluation.latency import measure_gpu_latency, measure_latency
    from trt_qat.runtime.tensorrt import TensorRtRunner

    _check_runs(int8)
    section = EvaluationSection(latency_iterations=300, latency_warmup=100)
    try:
        with TensorRtRunner(fp16) as first, TensorRtRunner(int8) as second:
            on_gpu = measure_gpu_latency([first, second], section)
            seen = measure_latency([first, second], section)
            shape = list(first.input_shape)
    except TrtQatError as exc:
        _fail(str(exc))
    names = ("fp16", "int8")
    computed = [found.compute_ms for found in on_gpu]
    found = {
        "input": shape,
        "gpu_ms": {name: vars(value) for name, value in zip(names, computed, strict=True)},
        "gpu_with_copies_ms": {name: vars(value.with_copies_ms) for name, value in zip(names, on_gpu, strict=True)},
        "seen_ms": {name: vars(value) for name, value in zip(names, seen, strict=True)},
        "int8_speed_up": round(computed[0].median / computed[1].median, 3) if computed[1].median else None,
        "clocks_after": nvidia_smi(_SMI),
    }
    _written(json_file, found)


@cli.command()
@click.argument("plan", type=File)
@Json
def requests(plan: Path, json_file: Path) -> None:
    """Is every result the same whichever way it comes (enqueued, as a graph, from several threads), and how fast?"""
    from trt_qat.runtime.runner import image_size
    from trt_qat.runtime.tensorrt import TensorRtRunner

    _check_runs(plan)
    try:
        with TensorRtRunner(plan) as runner:
            shape = (runner.input_shape[0] or 1, 3, *image_size(runner.metadata, runner.input_shape))
            batches = np.random.default_rng(0).random((BATCHES, *shape), dtype=np.float32)
            expected, graph = _run_all(runner, batches, 1)
        with patch("trt_qat.runtime.tensorrt.open_graphs", return_value=None), TensorRtRunner(plan) as runner:
            results = {"enqueued": _run_all(runner, batches, 1)}
        with TensorRtRunner(plan, mode="throughput") as runner:
            for threads in range(1, runner.parallel + 1):
                results[f"{threads} in flight"] = _run_all(runner, batches, threads)
    except TrtQatError as exc:
        _fail(str(exc))
    ways = {"graph": graph, **{name: figures for name, (_, figures) in results.items()}}
    off_by = {name: _difference(outputs, expected) for name, (outputs, _) in results.items()}
    found = {"input": list(shape), "ways": ways, "off_by": off_by, "clocks_after": nvidia_smi(_SMI)}
    _written(json_file, found)
    sys.exit(1 if any(off_by.values()) else 0)


@cli.command()
@Out
@click.argument("name")
@click.argument("outcome")
@click.argument("started", type=float)
@click.argument("ended", type=float)
def note(out: Path, name: str, outcome: str, started: float, ended: float) -> None:
    """Add a step to OUT/steps.jsonl and say how it went."""
    lines = [line for line in _read(out / "logs" / f"{name}.log").splitlines() if line.strip()]
    reason = "" if outcome == "passed" or not lines else _without_names(lines[-1], out)[:300]
    step = {"step": name, "outcome": outcome, "seconds": round(ended - started, 1), "reason": reason}
    with (out / "steps.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(step) + "\n")
    click.echo(f"{outcome:8} {step['seconds']:7.1f} s  {name}{f': {reason}' if reason else ''}")


@cli.command()
@Out
def report(out: Path) -> None:
    """Write OUT/gpu_check.md and, with every JSON file and log, OUT/gpu_check.tar.gz."""
    page = _without_names(report_page(out), out)
    (out / f"{RESULT}.md").write_text(page, encoding="utf-8")
    packed = [out / "steps.jsonl", *sorted((out / "json").glob("*.json")), *sorted((out / "logs").glob("*.log"))]
    with tarfile.open(out / f"{RESULT}.tar.gz", "w:gz") as archive:
        _add(archive, f"{RESULT}.md", page)
        for file in packed:
            _add(archive, file.relative_to(out).as_posix(), _without_names(_read(file), out))
    click.echo(f"Report: {out / RESULT}.tar.gz (its first page: {out / RESULT}.md)")


def report_page(out: Path) -> str:
    """The report as Markdown, from what the steps have left in ``out``."""
    steps = [json.loads(line) for line in _read(out / "steps.jsonl").splitlines()]
    figures = {file.stem: json.loads(_read(file)) for file in sorted((out / "json").glob("*.json"))}
    about = figures.pop("machine", {})
    gpus = ", ".join(about.get("gpus", []))
    failed = [step["step"] for step in steps if step["outcome"] == "failed"]
    verdict = f"**Failed: {', '.join(failed)}.**" if failed else "No step failed."
    lines = ["# GPU check", "", f"GPU: {gpus}. {verdict}" if gpus else NO_GPU, ""]
    lines += ["| step | outcome | seconds | |", "|---|---|---|---|"]
    lines += [f"| {s['step']} | {s['outcome']} | {s['seconds']} | {_cell(s['reason'])} |" for s in steps]
    lines += _latency_lines(figures) + _request_lines(figures)
    for title, content in {"Machine": about, **figures}.items():
        lines += ["", f"## {title}", "", "```json", json.dumps(content, indent=1), "```"]
    return "\n".join([*lines, ""])


def _latency_lines(figures: Mapping[str, Any]) -> list[str]:
    measured = {name: figures[name] for name in ("latency", "latency_large") if "gpu_ms" in figures.get(name, {})}
    if not measured:
        return []
    lines = [
        "",
        "Median milliseconds of the GPU by CUDA events, FP16 and INT8 in turn; with copies in brackets:",
        "",
    ]
    lines += ["| input | FP16 | INT8 | FP16 / INT8 |", "|---|---|---|---|"]
    for found in measured.values():
        alone, copied = ([found[key][name]["median"] for name in ("fp16", "int8")] for key in _GPU_TIMES)
        cells = (found["input"], *(f"{a} ({b})" for a, b in zip(alone, copied, strict=True)), found["int8_speed_up"])
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def _request_lines(figures: Mapping[str, Any]) -> list[str]:
    measured = {name: figures[name] for name in ("requests", "requests_large") if "ways" in figures.get(name, {})}
    lines = []
    for found in measured.values():
        lines += ["", f"INT8, input {found['input']}, from Python, every result compared with the first way's:", ""]
        lines += ["| | images/s | ms median | p99 | off by |", "|---|---|---|---|---|"]
        for name, way in found["ways"].items():
            times = way["ms"]
            cells = (name, way["images_per_s"], times["median"], times["p99"], found["off_by"].get(name, ""))
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def _check_runs(plan: Path) -> None:
    from trt_qat.engine.engine_file import read_sidecar

    if not plan.is_file():
        _fail(f"'{plan.name}' was not built, see the step before.")
    flavor, gpus = read_sidecar(plan).flavor, gpu_names()
    if flavor == "tensorrt-rtx" and gpus and "RTX" not in gpus[0]:
        _skip(f"tensorrt-rtx engines do not run on {gpus[0]}; install tensorrt to build one that does.")


def _run_all(runner: Runner, batches: Floats, threads: int) -> tuple[list[Floats], dict[str, Any]]:
    """The first output of each batch, and images per second and milliseconds per call of so many threads."""

    def timed(batch: Floats) -> tuple[Floats, float]:
        started = time.perf_counter()
        output = runner.infer(batch)[0]
        return output, (time.perf_counter() - started) * 1e3

    with ThreadPoolExecutor(threads) as pool:
        outputs = [output for output, _ in pool.map(timed, batches)]  # every request has recorded its graph then
        started = time.perf_counter()
        milliseconds = [taken for _, taken in pool.map(timed, [*batches] * ROUNDS)]
        seconds = time.perf_counter() - started
    median, p90, p99 = (round(float(value), 3) for value in np.percentile(milliseconds, (50, 90, 99)))
    images = len(milliseconds) * batches.shape[1]
    return outputs, {"images_per_s": round(images / seconds, 1), "ms": {"median": median, "p90": p90, "p99": p99}}


def _difference(outputs: Sequence[Floats], expected: Sequence[Floats]) -> float:
    return max(float(np.abs(one - other).max()) for one, other in zip(outputs, expected, strict=True))


def _cuda_of_torch() -> dict[str, Any]:
    try:
        import torch
    except ImportError:
        return {}
    return {"built_for": torch.version.cuda, "available": torch.cuda.is_available(), "gpus": torch.cuda.device_count()}


def _versions(packages: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _counts(xml: Path) -> dict[str, int]:
    suite = next(iter(ElementTree.parse(xml).getroot().iter("testsuite")))  # our own pytest's file
    return {name: int(suite.get(name, "0")) for name in ("tests", "failures", "errors", "skipped")}


def _without_names(text: str, out: Path) -> str:
    """A text as it may be sent: paths of this machine and the names of its user and itself are taken out."""
    places = {str(out.resolve()): "OUT", str(ROOT): ".", str(Path.home()): "~"}
    for place in sorted(places, key=len, reverse=True):
        if len(place) > 1:
            text = text.replace(place, places[place])
    text = re.sub(r"(?<![\w.~])/(?:home|Users|root)/[^\s'\":]*", "PATH", text)
    for name in (getpass.getuser(), platform.node()):
        if len(name) > 2:  # a shorter one would take letters out of words
            text = re.sub(rf"(?<![\w]){re.escape(name)}(?![\w])", "***", text)
    return "\n".join(redacted_message(line) for line in text.split("\n"))


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


def _add(archive: tarfile.TarFile, name: str, text: str) -> None:
    content = text.encode()
    entry = tarfile.TarInfo(f"{RESULT}/{name}")  # without owner and time
    entry.size = len(content)
    archive.addfile(entry, BytesIO(content))


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")


def _written(file: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=1)
    file.write_text(text + "\n", encoding="utf-8")
    click.echo(text)


def _skip(reason: str) -> NoReturn:
    click.echo(reason)
    sys.exit(SKIPPED)


def _fail(reason: str) -> NoReturn:
    click.echo(reason)
    sys.exit(1)


if __name__ == "__main__":
    cli()
