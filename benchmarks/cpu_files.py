"""How fast several INT8 files are on OpenVINO, in one interleaved run: files of trt-qat, and NNCF's OpenVINO model.

    python benchmarks/cpu_files.py runs/activation/FP32.onnx runs/activation/*_PTQ.onnx runs/activation/nncf.xml --out .

The first file is an ONNX file of trt-qat; ratios are against it, and against the file named by ``--base``. A machine's
speed drifts, so that only times of one run compare; nothing else should run. Writes ``cpu_files.json`` and
``cpu_files.md`` (medians and the 90th percentile of milliseconds for one image, float part in FP32).
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

import click

from trt_qat.artifacts import write_json, write_text
from trt_qat.config import EvaluationSection
from trt_qat.evaluation.latency import measure_latency
from trt_qat.provenance import machine
from trt_qat.results import Latency
from trt_qat.runtime.openvino import OpenVinoRunner
from trt_qat.runtime.runner import Runner

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.placement import CompiledRunner


def opened(file: Path, like: Runner, stack: ExitStack) -> Runner:
    """A runner of an ONNX file, or of an OpenVINO model with the input and the metadata of ``like``."""
    import openvino

    if file.suffix == ".onnx":
        return stack.enter_context(OpenVinoRunner(file))
    return stack.enter_context(CompiledRunner(openvino.Core().read_model(file), like))


def as_markdown(files: tuple[Path, ...], found: list[Latency], base: Path) -> str:
    """One row per file."""
    reference = found[files.index(base)].median
    lines = [f"| file | ms median | p90 | against {files[0].stem} | against {base.stem} |", "|---|---|---|---|---|"]
    lines += [
        f"| {file.stem} | {latency.median:.2f} | {latency.p90:.2f} | {found[0].median / latency.median:.2f}x "
        f"| {reference / latency.median:.2f}x |"
        for file, latency in zip(files, found, strict=True)
    ]
    return "\n".join(lines) + "\n"


@click.command()
@click.argument("files", type=click.Path(exists=True, path_type=Path), nargs=-1, required=True)
@click.option("--base", type=click.Path(exists=True, path_type=Path), help="One of the files; the last by default.")
@click.option("--iterations", default=200, show_default=True)
@click.option("--threads", default=0, show_default=True, help="0 leaves it to OpenVINO.")
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(files: tuple[Path, ...], base: Path | None, iterations: int, threads: int, out: Path) -> None:
    """Time every file in turn, round after round."""
    out.mkdir(parents=True, exist_ok=True)
    base = base or files[-1]
    section = EvaluationSection(latency_iterations=iterations, latency_warmup=20, threads=threads)
    with ExitStack() as stack:
        like = stack.enter_context(OpenVinoRunner(files[0], threads))
        runners = [like, *(opened(file, like, stack) for file in files[1:])]
        found = measure_latency(runners, section)
    rows = {str(file): vars(latency) for file, latency in zip(files, found, strict=True)}
    write_json(out / "cpu_files.json", {"machine": machine(), "iterations": iterations, "files": rows})
    write_text(out / "cpu_files.md", as_markdown(files, found, base))
    click.echo(as_markdown(files, found, base))


if __name__ == "__main__":
    main()
