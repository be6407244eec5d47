"""Compiled engines as a page: a column per file, a bar per kernel, in the order of launch.

Plain SVG inside one HTML file: nothing is loaded from anywhere, and colours follow the reader's light or dark setting.
The thick bar is memory moved, the thin one the estimated time; all columns share one scale.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Final

from trt_qat.artifacts import write_text
from trt_qat.engine.compiled import CompiledEngine, Kernel
from trt_qat.engine.report import (
    HEADER,
    SIZES_HEADER,
    Inspected,
    estimate_table,
    kernel_cells,
    notes,
    size_cells,
)
from trt_qat.engine.roofline import Estimate

_ROW, _BAR, _THIN = 16, 7, 3  # pixels
_LABELS, _BARS, _GAP, _TOP = 250, 210, 30, 62
_GROUPS: Final = {  # class -> colours (light, dark), what it is called
    "int8": ("#1f6fd0", "#5aa2ff", "convolution in INT8"),
    "float": ("#8a3fc2", "#c58bf2", "convolution in float"),
    "matmul": ("#b0206a", "#f07ab3", "matrix product"),
    "pointwise": ("#c2620e", "#f0a35e", "pointwise"),
    "pool": ("#00808a", "#4cc4cd", "pool"),
    "moves": ("#7a7a7a", "#a8a8a8", "copy, reformat, cast"),
}
_STYLE: Final = """
.page { background: #ffffff; color: #1c1c1c; font: 13px Helvetica, Arial, sans-serif; }
svg text { font: 11px Helvetica, Arial, sans-serif; fill: #1c1c1c; }
svg text.dim { fill: #666666; } svg text.head { font-size: 14px; font-weight: bold; } svg .paper { fill: #ffffff; }
svg .axis { stroke: #cccccc; } svg .fused { stroke: #1c1c1c; stroke-width: 1; }
table { border-collapse: collapse; margin: 10px 0; } th, td { text-align: left; padding: 3px 12px 3px 0;
border-bottom: 1px solid #cccccc; } .scroll { overflow-x: auto; } p { max-width: 900px; }
%LIGHT%
@media (prefers-color-scheme: dark) {
.page { background: #16181c; color: #e6e6e6; } svg text { fill: #e6e6e6; } svg text.dim { fill: #9a9a9a; }
svg .paper { fill: #16181c; } svg .axis { stroke: #3c4048; } svg .fused { stroke: #e6e6e6; }
th, td { border-color: #3c4048; }
%DARK%
}
"""


def write_html(inspected: Sequence[Inspected], sm: int, out: Path) -> None:
    """Write the page: tables, notes and the drawing.

    Raises:
        ArtifactError: ``out`` cannot be written.
    """
    header, rows = estimate_table(inspected)
    title = " / ".join(entry.label for entry in inspected)
    parts = [
        "<!DOCTYPE html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        f'<style>{_style()}</style></head><body class="page">',
        f"<h1>What the compiler made of {escape(title)}</h1>",
        _table(HEADER, [kernel_cells(entry) for entry in inspected]),
        _table(SIZES_HEADER, [size_cells(entry) for entry in inspected]),
        _table(header, rows),
        *(f"<p>{escape(line)}</p>" for line in notes(inspected, sm)),
        f'<div class="scroll">{drawing(inspected, styled=False)}</div>',
        "</body></html>",
    ]
    write_text(out, "\n".join(parts) + "\n")


def write_svg(inspected: Sequence[Inspected], out: Path) -> None:
    """Write the drawing alone.

    Raises:
        ArtifactError: ``out`` cannot be written.
    """
    write_text(out, drawing(inspected) + "\n")


def drawing(inspected: Sequence[Inspected], styled: bool = True) -> str:
    """The kernels of each file as an SVG element.

    Args:
        styled: with its own style sheet, for a file by itself.
    """
    column = _LABELS + _BARS + _GAP
    rows = max((entry.engine.kernel_count for entry in inspected), default=0)
    width, height = column * len(inspected) + _GAP, _TOP + _ROW * rows + 20
    most = max((_moved(kernel) for entry in inspected for kernel in _kernels(entry)), default=0) or 1
    slowest = max((one.ms for entry in inspected if (shown := _timed(entry)) for one in shown.kernels), default=0.0)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'role="img" aria-label="Kernels of the compiled engines">',
        f"<style>{_style()}</style>" if styled else "",
        f'<rect class="paper" width="{width}" height="{height}"/>',
        *_legend(),
    ]
    for number, entry in enumerate(inspected):
        parts += _column(entry, _GAP + number * column, most, slowest)
    return "\n".join((*filter(None, parts), "</svg>"))


def _legend() -> Iterable[str]:
    x = _GAP
    for name, (_, _, what) in _GROUPS.items():
        yield f'<rect class="{name}" x="{x}" y="8" width="12" height="10"/>'
        yield f'<text x="{x + 17}" y="17">{escape(what)}</text>'
        x += 32 + 6 * len(what)
    yield f'<text class="dim" x="{x}" y="17">outlined: activation fused</text>'


def _column(entry: Inspected, x: int, most: int, slowest: float) -> Iterable[str]:
    engine, timed = entry.engine, _timed(entry)
    yield f'<text class="head" x="{x}" y="38">{escape(_shortened(entry.label, 34))}</text>'
    scale = f"thick: up to {most / 1e6:.2f} MB"
    if timed is not None:
        scale += f"; thin: up to {slowest * 1e3:.1f} us, estimated for {timed.gpu.label}"
    yield f'<text class="dim" x="{x}" y="52">{engine.kernel_count} kernels; {escape(scale)}</text>'
    left, bottom = x + _LABELS, _TOP + _ROW * engine.kernel_count
    yield f'<line class="axis" x1="{left}" x2="{left}" y1="{_TOP - 4}" y2="{bottom}"/>'
    times = [one.ms for one in timed.kernels] if timed is not None else [0.0] * engine.kernel_count
    for number, (kernel, ms) in enumerate(zip(engine.kernels, times, strict=True)):
        yield from _row(kernel, ms, x, _TOP + number * _ROW, engine, (most, slowest))


def _row(kernel: Kernel, ms: float, x: int, y: int, engine: CompiledEngine, scales: tuple[int, float]) -> Iterable[str]:
    group = _group(kernel)
    outline = " fused" if "activation" in kernel.fused else ""
    yield f"<g><title>{escape(_details(kernel, ms))}</title>"
    yield f'<text x="{x}" y="{y + 9}">{escape(_shortened(_label(kernel), 25))}</text>'
    if engine.detailed:
        types = f"{kernel.input_type}-&gt;{kernel.output_type}"
        yield f'<text class="dim" x="{x + _LABELS - 6}" y="{y + 9}" text-anchor="end">{types}</text>'
        moved = _BARS * _moved(kernel) / scales[0]
        yield f'<rect class="{group}{outline}" x="{x + _LABELS}" y="{y}" width="{moved:.1f}" height="{_BAR}"/>'
    if scales[1]:
        time = _BARS * ms / scales[1]
        yield (
            f'<rect class="{group}" opacity="0.55" x="{x + _LABELS}" y="{y + _BAR + 1}" '
            f'width="{time:.1f}" height="{_THIN}"/>'
        )
    yield "</g>"


def _label(kernel: Kernel) -> str:
    return kernel.name if kernel.module == "?" else kernel.module


def _details(kernel: Kernel, ms: float) -> str:
    lines = [kernel.name, f"{kernel.role} {'+'.join(kernel.fused)}".strip(), " ".join(kernel.onnx_nodes)]
    for what, tensors in (("in", kernel.inputs), ("out", kernel.outputs)):
        lines += [f"{what}: {tensor.dtype} {'x'.join(map(str, tensor.shape))}" for tensor in tensors]
    lines.append(f"{kernel.activation_bytes} bytes of activations, {kernel.weight_bytes} of weights, {kernel.macs} MAC")
    if ms:
        lines.append(f"estimated {ms * 1e3:.2f} us")
    return "\n".join(filter(None, lines))


def _group(kernel: Kernel) -> str:
    if kernel.role == "convolution":
        return "int8" if kernel.input_type in ("Int8", "FP8") else "float"
    return kernel.role if kernel.role in _GROUPS else "moves"


def _kernels(entry: Inspected) -> tuple[Kernel, ...]:
    return entry.engine.kernels


def _moved(kernel: Kernel) -> int:
    return kernel.activation_bytes + kernel.weight_bytes


def _timed(entry: Inspected) -> Estimate | None:
    """The estimate that the thin bars show: the first that knows kernels."""
    return next((one for one in entry.estimates if not one.lower_bound), None)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [("th", header), *(("td", row) for row in rows)]
    cells = ["".join(f"<{kind}>{escape(cell)}</{kind}>" for cell in line) for kind, line in lines]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in cells) + "</table>"


def _shortened(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _style() -> str:
    light, dark = (
        "\n".join(f"svg .{name} {{ fill: {colours[index]}; }}" for name, colours in _GROUPS.items()) for index in (0, 1)
    )
    return _STYLE.replace("%LIGHT%", light).replace("%DARK%", dark)
