"""What TensorRT-RTX's compiler makes of YOLOv8, FP16 against INT8, as the tables of docs/compiler.md. Needs no GPU.

    python scripts/compiler_table.py --out runs/compiler [--size n --size x] [--mixes 12]

Random weights: a compiler looks at types and shapes, so there is no mAP here; `trt-qat advise --data` measures it for a
trained network. First table: kernels and megabytes of every form by compute capability. Second: for each RTX GPU and
batch the estimate of each form and of the best mix, which is what `trt-qat advise --weights yolov8n.yaml --gpu rtx4090
--batch 8` prints. Rows that OUT/rows.json has are kept, so that a killed run goes on.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from trt_qat.artifacts import write_json
from trt_qat.checkpoint import load
from trt_qat.config import QuantizationSection
from trt_qat.engine.compile import compile_onnx
from trt_qat.engine.compiled import CompiledEngine
from trt_qat.engine.roofline import GPUS
from trt_qat.mixed_precision.advice import Adviser, with_any_ranges
from trt_qat.model.cpu import tune_cpu

CAPABILITIES = (75, 86, 89, 120)
BATCHES = (1, 8)
Row = dict[str, object]


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for rows.json and tables.md.")
@click.option("--size", "sizes", multiple=True, default=("n", "s", "m", "x"), show_default=True)
@click.option("--mixes", default=12, show_default=True, help="Mixes that the compiler judges per GPU and batch.")
def main(out: Path, sizes: tuple[str, ...], mixes: int) -> None:
    """Make the tables of docs/compiler.md."""
    tune_cpu()
    out.mkdir(parents=True, exist_ok=True)
    rows: dict[str, Row] = json.loads(text) if (text := _text(out / "rows.json")) else {}
    for size in sizes:
        _add_rows(size, out, mixes, rows)
    lines = [*_by_capability(rows, sizes), "", *_by_gpu(rows, sizes)]
    (out / "tables.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    click.echo("\n".join(lines))


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def _add_rows(size: str, out: Path, mixes: int, rows: dict[str, Row]) -> None:
    folder = out / size
    folder.mkdir(exist_ok=True)
    model = with_any_ranges(load(f"yolov8{size}.yaml", 640), QuantizationSection())
    adviser = Adviser(model, folder, None, lambda _: ())
    for batch in BATCHES:
        for gpu in (gpu for gpu in GPUS.values() if gpu.runs_rtx):
            key = f"{size} {gpu.name} {batch}"
            if key not in rows:
                rows[key] = adviser.advise(gpu, batch, None, mixes).as_dict()
                click.echo(f"{key}: {rows[key]['sentence']}")
                write_json(out / "rows.json", rows)
    for capability in CAPABILITIES:
        for stem in ("fp16", "int8_channel", "int8_tensor", "int8_factored"):
            key = f"{size} sm{capability} {stem}"
            if key not in rows:
                rows[key] = _counts(compile_onnx(folder / f"{stem}.onnx", capability, 1))
                write_json(out / "rows.json", rows)


def _counts(engine: CompiledEngine) -> Row:
    return {
        "kernels": engine.kernel_count,
        "activations": engine.activation_bytes / 1e6,
        "weights": engine.weight_bytes / 1e6,
        "plan": engine.plan_bytes / 1e6,
        "convolutions": {" -> ".join(pair): len(found) for pair, found in engine.convolutions.items()},
    }


def _by_capability(rows: dict[str, Row], sizes: tuple[str, ...]) -> list[str]:
    lines = [
        "| model | SM | form | kernels | activations, MB | weights, MB | plan, MB | convolutions |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key, row in _sorted(rows, sizes):
        size, capability, form = key.split()
        if capability.startswith("sm"):
            convolutions = ", ".join(f"{count} {pair}" for pair, count in row["convolutions"].items())  # type: ignore[attr-defined]
            lines.append(
                f"| YOLOv8{size} | {capability[2:]} | {form} | {row['kernels']} | {row['activations']:.1f} | "
                f"{row['weights']:.1f} | {row['plan']:.1f} | {convolutions} |"
            )
    return lines


def _by_gpu(rows: dict[str, Row], sizes: tuple[str, ...]) -> list[str]:
    """Estimated milliseconds; the recommended form in bold."""
    names = ("FP16", "INT8 per channel", "INT8 per tensor", "INT8 per channel, factored", "mixed")
    lines = [f"| model | GPU | batch | {' | '.join(names)} | FP16 / best |", "|---|---|---|---|---|---|---|---|---|"]
    for key, row in _sorted(rows, sizes):
        size, gpu, batch = key.split()
        if gpu not in GPUS:
            continue
        found = {form["form"]: form for form in row["forms"]}  # type: ignore[attr-defined]
        cells = [_cell(found.get(name), str(row["recommended"])) for name in names]
        gain = found["FP16"]["estimated_ms"] / found[row["recommended"]]["estimated_ms"]
        lines.append(f"| YOLOv8{size} | {GPUS[gpu].label} | {batch} | {' | '.join(cells)} | {gain:.2f} |")
    return lines


def _sorted(rows: dict[str, Row], sizes: tuple[str, ...]) -> list[tuple[str, Row]]:
    return [(key, row) for size in sizes for key, row in rows.items() if key.split()[0] == size]


def _cell(form: dict[str, object] | None, recommended: str) -> str:
    if form is None:
        return ""
    text = f"{form['estimated_ms']:.3f}" + (f" ({form['int8_groups']} groups INT8)" if form["form"] == "mixed" else "")
    return f"**{text}**" if form["form"] == recommended else text


if __name__ == "__main__":
    main()
