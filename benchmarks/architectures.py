"""Which of Ultralytics' detectors calibrate, export and lint clean here, each with random weights.

    python benchmarks/architectures.py --out runs/architectures

Every architecture of the installed Ultralytics that detects boxes, in its smallest scale. Prints a Markdown table and
writes ``architectures.md``. It says what the code can take apart and put together again; accuracy needs trained
weights.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import ultralytics
from numpy.typing import NDArray

import trt_qat
from trt_qat.config import ExportSection, QuantizationSection
from trt_qat.errors import TrtQatError
from trt_qat.exporter.onnx_export import export_onnx
from trt_qat.linter.report import LintReport

IMGSZ = 128  # two cells at the coarsest level of a P6 model
OTHER_TASKS = ("-cls", "-seg", "-pose", "-obb", "-sem", "-depth")
# Files that hold one scale only; the others hold all, and the scale's letter goes behind the version.
ONE_SCALE = re.compile(r"yolov3|yolov9|yolov10|rtdetr-")
Images = list[NDArray[np.uint8]]


@dataclass(frozen=True)
class Row:
    """One architecture: how far it came, and what the lint said of the file."""

    name: str
    reached: str
    report: LintReport | None = None
    reason: str = ""
    seconds: float = 0.0

    def cells(self) -> tuple[str, ...]:
        """The columns of the table."""
        if self.report is None:
            return (self.name, self.reached, "-", "-", "-", f"{self.seconds:.0f}", self.reason)
        counts = self.report.counts
        warned = sorted({finding.rule for finding in self.report.findings if finding.severity == "warning"})
        found = f"{self.report.broken} / {self.report.slow} / {self.report.warnings}"
        convs = f"{counts.int8_convs} of {counts.convs}"
        note = self.reason or ", ".join(warned)
        return (self.name, self.reached, convs, str(counts.scale_groups), found, f"{self.seconds:.0f}", note)


HEADER = ("architecture", "reached", "INT8 convolutions", "scale groups", "broken / slow / warnings", "s", "note")


def architectures() -> list[str]:
    """Names that :func:`trt_qat.load` takes, the smallest scale of each file."""
    folder = Path(ultralytics.__file__).parent / "cfg" / "models"
    names = [path.stem for path in sorted(folder.rglob("*.yaml")) if not any(task in path.stem for task in OTHER_TASKS)]
    return [f"{name if ONE_SCALE.match(name) else _smallest(name)}.yaml" for name in names]


def _smallest(name: str) -> str:
    """``yolov8-ghost-p2`` -> ``yolov8n-ghost-p2``, ``yoloe-11`` -> ``yoloe-11n``."""
    return re.sub(r"^((?:yoloe-)?(?:yolo)?v?\d+)", r"\1n", name)


def try_one(name: str, images: Images, folder: Path) -> Row:
    """Load, quantize, export, lint. An error of ours is told by its line; anything else is a bug and says so."""
    started, reached = time.perf_counter(), "-"
    try:
        with _quiet():
            model = trt_qat.load(name, IMGSZ)
            reached = "loads"
            int8 = trt_qat.quantize(model, images, QuantizationSection(calibrator="max"))
            reached = "calibrates"
            section = ExportSection(precision="int8+fp32")
            report = trt_qat.lint(export_onnx(int8, folder / "x.onnx", section).path)
            reached = "exports"
    except TrtQatError as exc:
        return Row(name, reached, reason=str(exc), seconds=time.perf_counter() - started)
    except Exception as exc:  # noqa: BLE001  what this benchmark looks for
        reason = f"BUG, {type(exc).__name__}: {' '.join(str(exc).split())[:150]}"
        return Row(name, reached, reason=reason, seconds=time.perf_counter() - started)
    return Row(name, "lints clean" if not report.errors else reached, report, seconds=time.perf_counter() - started)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Within: what other packages print is not shown."""
    logging.getLogger("ultralytics").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def as_markdown(rows: list[Row]) -> str:
    """The table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (HEADER, *(row.cells() for row in rows))]
    return "\n".join([lines[0], "|---" * len(HEADER) + "|", *lines[1:], ""])


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--only", multiple=True, help="Names of this kind alone, e.g. --only yolov8n-p2.yaml; may be repeated.")
def main(out: Path, only: tuple[str, ...]) -> None:
    """Try every architecture."""
    out.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    images: Images = [random.integers(0, 256, (96, 128, 3), dtype=np.uint8) for _ in range(4)]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in only or architectures():
            rows.append(try_one(name, images, Path(folder)))
            click.echo(" | ".join(rows[-1].cells()))
    (out / "architectures.md").write_text(as_markdown(rows), encoding="utf-8")
    click.echo(as_markdown(rows))


if __name__ == "__main__":
    main()
