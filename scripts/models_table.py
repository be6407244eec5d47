"""FP32, PTQ and QAT of several trained detectors in one table, each measured on its exported file.

    python scripts/models_table.py --data data.yaml --out runs/models runs/fam/*/weights/best.pt

A row is called after its weights' run folder. Per row: mAP50-95 of the three files on OpenVINO with the paired
bootstrap against FP32 (docs/compare.md), what `trt-qat lint` says of the TensorRT file, whether TensorRT-RTX builds it
and what its compiler makes of it (SM 89, no GPU), and where INT8 costs: each scale group quantized alone, as
`trt-qat sensitivity` does, summed over depthwise convolutions, attention and the rest. Rows that OUT has already are
kept, so a killed run goes on.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from pydantic import Field
from torch import nn

import trt_qat
from trt_qat.artifacts import write_json, write_text
from trt_qat.checkpoint import Model, save
from trt_qat.engine.compile import compile_onnx
from trt_qat.errors import EngineError
from trt_qat.metadata import Layout
from trt_qat.model.graph import convolutions
from trt_qat.model.loading import is_end_to_end
from trt_qat.reading import FileModel, checked, read_json
from trt_qat.report.compare import map_difference
from trt_qat.results import ResultRow

SM = 89
KINDS = ("depthwise", "attention", "other")


class Kind(FileModel):
    """What INT8 costs in the scale groups of one kind, each quantized alone.

    Args:
        groups: how many there are.
        share: of the sum of all groups' output errors.
    """

    groups: int
    share: float


class Built(FileModel):
    """What TensorRT-RTX made of the TensorRT file.

    Args:
        error: why it did not build it; empty if it did.
        convolutions: kernels by the type they read and write, e.g. ``Int8->Float``.
        products: matrix products that are no convolutions, by the type they read.
    """

    error: str = ""
    kernels: int = 0
    convolutions: dict[str, int] = Field(default_factory=dict)
    products: dict[str, int] = Field(default_factory=dict)


class Row(FileModel):
    """One detector.

    Args:
        layout: of its raw file: nms_free where nothing is suppressed.
        int8_convs: of ``convs`` in the TensorRT file.
        costly: the three scale groups that cost most alone, with their share of all groups' error.
    """

    name: str
    parameters: int
    imgsz: tuple[int, int]
    layout: Layout
    fp32: ResultRow
    ptq: ResultRow
    qat: ResultRow
    errors: int
    warnings: int
    int8_convs: int
    convs: int
    built: Built
    kinds: dict[str, Kind]
    costly: dict[str, float]
    seconds: float


class Table(FileModel):
    """The content of ``OUT/models.json``."""

    rows: tuple[Row, ...] = ()


def make(name: str, weights: Path, data: Path, out: Path, imgsz: tuple[int, int] | None, qat: dict[str, Any]) -> Row:
    """Quantize, fine-tune, export, lint, build and measure one detector."""
    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    model = trt_qat.load(weights, imgsz)
    int8 = trt_qat.quantize(model, data)
    save(out / "ptq.safetensors", int8)
    tuned = trt_qat.finetune(int8, data, out / "qat", resume=True, **qat)
    files = []
    for stage, detector in (("fp32", model), ("ptq", int8), ("qat", tuned)):
        files.append(out / f"{stage}.onnx")
        trt_qat.export(detector, files[-1], target="openvino")
    for_tensorrt = out / "tensorrt.onnx"
    trt_qat.export(tuned, for_tensorrt, target="tensorrt")
    lint = trt_qat.lint(for_tensorrt)
    fp32, ptq, best = trt_qat.evaluate(files, data, details=True, latency_iterations=3)
    ranked = trt_qat.sensitivity(int8, data, metric="error", images=8)
    errors = {row.group: row.error or 0.0 for row in ranked.rows}
    total = sum(errors.values()) or 1.0
    return Row(
        name=name,
        parameters=sum(parameter.numel() for parameter in model.network.parameters()),
        imgsz=model.imgsz,
        layout="nms_free" if is_end_to_end(model.network) else "raw",
        fp32=fp32,
        ptq=ptq,
        qat=best,
        errors=lint.errors,
        warnings=lint.warnings,
        int8_convs=lint.counts.int8_convs,
        convs=lint.counts.convs,
        built=built(tuned, out),
        kinds=by_kind(int8, errors),
        costly={group: error / total for group, error in sorted(errors.items(), key=lambda item: -item[1])[:3]},
        seconds=round(time.perf_counter() - started, 1),
    )


def built(model: Model, out: Path) -> Built:
    """Build the engine, and ask the compiler what is in it."""
    file = out / "tensorrt_rtx.onnx"
    trt_qat.export(model, file, target="tensorrt-rtx")
    try:
        trt_qat.build(file, out / "rtx.plan", flavor="tensorrt-rtx")
        engine = compile_onnx(file, SM)
    except EngineError as exc:
        return Built(error=str(exc))
    products = Counter(
        kernel.input_type for kernel in engine.kernels if kernel.is_product and not kernel.is_convolution
    )
    convs = {f"{read}->{written}": len(found) for (read, written), found in engine.convolutions.items()}
    return Built(kernels=engine.kernel_count, convolutions=convs, products=dict(products))


def by_kind(model: Model, errors: Mapping[str, float]) -> dict[str, Kind]:
    """Each scale group's error counted to the kind of its convolutions."""
    quantized = model.require_quantized()
    modules = convolutions(quantized.network)
    attention = tuple(
        f"{name}."
        for name, module in quantized.network.named_modules()
        if "attn" in type(module).__name__.lower() or "attention" in type(module).__name__.lower()
    )
    kinds = {
        group.name: "attention"
        if any(conv.startswith(attention) for conv in group.convs)
        else "depthwise"
        if any(is_depthwise(modules[conv]) for conv in group.convs)
        else "other"
        for group in quantized.placement.groups
    }
    total = sum(errors.values()) or 1.0
    return {
        kind: Kind(
            groups=sum(found == kind for found in kinds.values()),
            share=round(sum(error for group, error in errors.items() if kinds[group] == kind) / total, 4),
        )
        for kind in KINDS
    }


def is_depthwise(conv: nn.Conv2d) -> bool:
    """Whether each channel has a filter of its own."""
    return 1 < conv.groups == conv.in_channels


def as_markdown(table: Table) -> str:
    """The two tables of docs/models.md."""
    lines = [
        "| model | parameters | FP32 | PTQ | QAT | PTQ - FP32, points (95 %) | QAT - FP32 | lint errors | engine |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in table.rows:
        maps = " | ".join(f"{of.map50_95:.4f}" for of in (row.fp32, row.ptq, row.qat))
        apart = " | ".join(_difference(row.fp32, int8) for int8 in (row.ptq, row.qat))
        engine = row.built.error or "built"
        lines.append(f"| {row.name} | {row.parameters / 1e6:.1f} M | {maps} | {apart} | {row.errors} | {engine} |")
    lines += [
        "",
        "| model | INT8 convolutions | kernels | convolutions in them | products | depthwise | attention | costliest |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in table.rows:
        kernels, products = (
            ", ".join(f"{count} {kind}" for kind, count in found.items()) or "-"
            for found in (row.built.convolutions, row.built.products)
        )
        shares = " | ".join(
            f"{row.kinds[kind].groups} groups, {row.kinds[kind].share:.0%}" if row.kinds[kind].groups else "-"
            for kind in KINDS[:2]
        )
        costly = ", ".join(f"`{group}` {share:.0%}" for group, share in row.costly.items())
        of = f"{row.int8_convs} of {row.convs}"
        lines.append(f"| {row.name} | {of} | {row.built.kernels} | {kernels} | {products} | {shares} | {costly} |")
    return "\n".join(lines) + "\n"


def _difference(fp32: ResultRow, int8: ResultRow) -> str:
    found = map_difference(fp32, int8)
    return f"{found.points:+.2f} ({found.low:+.2f} to {found.high:+.2f})" if found else ""


@click.command()
@click.argument("weights", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--data", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--epochs", default=2, show_default=True, help="Of QAT.")
@click.option("--batch", default=8, show_default=True, help="Of QAT.")
@click.option("--amp", default="none", show_default=True, help="qat.amp.")
@click.option("--fraction", default=1.0, show_default=True, help="qat.fraction.")
@click.option("--imgsz", nargs=2, type=int, help="Height and width; the weights' own size without it.")
def main(weights: tuple[Path, ...], data: Path, out: Path, imgsz: tuple[int, int] | None, **qat: Any) -> None:
    """Make the table."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "models.json"
    content = read_json(file, "Table") if file.is_file() else {}
    table = checked(Table, content, file, "Delete it, and its rows are made again.")
    for path in weights:
        name = path.parent.parent.name if path.parent.name == "weights" else path.parent.name
        if name in {row.name for row in table.rows}:
            continue
        try:
            row = make(name, path, data, out / name, imgsz, qat)
        except Exception as exc:  # noqa: BLE001  a row that fails is named, the others are still wanted
            click.echo(f"== left out: {name} ({type(exc).__name__}: {' '.join(str(exc).split())[:300]})")
            continue
        table = Table(rows=(*table.rows, row))
        write_json(file, table.model_dump(mode="json"))
        write_text(out / "models.md", as_markdown(table))
        click.echo(f"{name}: {row.seconds:.0f} s")
    click.echo(as_markdown(table))


if __name__ == "__main__":
    main()
