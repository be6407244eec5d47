"""What about this layer? All that a run's record says of it, and what to try, from ``run.json`` alone."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from trt_qat.report import numbers
from trt_qat.report.layer_facts import Layer, Listed, Network, standing_out, weakest
from trt_qat.report.record import ConvRecord, ExportedRecord, KernelRecord, QuantizerRecord, RunRecord
from trt_qat.report.remedies import Remedy, remedies, tried_folder
from trt_qat.report.text_histogram import text_histogram
from trt_qat.results import Measure, file_content

HEADER: Final = ("layer", "SQNR, dB", "share of output error", "why it is listed")

WIDTH: Final = 110
UNMOVED: Final = 0.0005
"""Of a range: less is shown as 0.0 %."""


@dataclass(frozen=True)
class Section:
    """A part of an explanation.

    Args:
        key: in the JSON object.
        lines: for people.
        figures: the same as JSON values.
    """

    key: str
    title: str
    lines: tuple[str, ...]
    figures: Any


@dataclass(frozen=True)
class Explanation:
    """Everything about one layer.

    Args:
        compare: what to type when a remedy was run; None if none runs.
        measure: what figures against labels are.
    """

    layer: str
    sections: tuple[Section, ...]
    remedies: tuple[Remedy, ...]
    compare: str | None
    measure: Measure = "mAP"

    def as_text(self) -> str:
        """For a terminal."""
        blocks = ["\n".join([section.title, *_indented(section.lines)]) for section in self.sections]
        tried = [line for number, remedy in enumerate(self.remedies, 1) for line in _remedy_lines(number, remedy)]
        compare = [f"One at a time; then: {self.compare}"] if self.compare else []
        text = "\n\n".join([*blocks, "\n".join(["What to try, in this order", *tried]), *compare])
        return "\n".join(_printable(line) for line in text.split("\n"))

    def as_dict(self) -> dict[str, Any]:
        """The JSON object: a key per section, and ``try``; see :func:`~trt_qat.results.file_content`."""
        parts = {section.key: section.figures for section in self.sections}
        tried = [remedy.as_dict() for remedy in self.remedies]
        content: dict[str, Any] = file_content(
            {"measure": self.measure, "layer": self.layer, **parts, "try": tried, "compare": self.compare}
        )
        return content


def explain(layer: Layer, run: Path) -> Explanation:
    """Explain one layer.

    Args:
        run: the folder of the run, as the user names it; commands name its files.
    """
    parts = (_what, _range, _noise, _sensitivity, _shared, _lint, _compiler)
    sections = tuple(section for part in parts if (section := part(layer)) is not None)
    found = remedies(layer, run)
    runs = any(remedy.command and remedy.command.startswith("trt-qat run ") for remedy in found)
    compare = f"trt-qat compare {shlex.quote(str(run))} {shlex.quote(tried_folder(layer.network))}"
    return Explanation(layer.name, sections, found, compare if runs else None, layer.network.record.measure)


@dataclass(frozen=True)
class Overview:
    """The layers that matter, worst first, and what to type for the first."""

    rows: tuple[Listed, ...]
    command: str

    def cells(self) -> list[tuple[str, ...]]:
        """Rows under :data:`HEADER`."""
        rows = [(_label(row.layer), *_figures(row.layer), "; ".join(row.reasons)) for row in self.rows]
        return [tuple(map(_printable, row)) for row in rows]

    def as_dict(self) -> dict[str, Any]:
        """The JSON object."""
        rows = [
            {
                "layer": row.layer.name,
                "convolutions": list(row.layer.conv_names),
                "sqnr_db": row.layer.sqnr_db,
                "error_share": row.layer.error_share,
                "reasons": list(row.reasons),
            }
            for row in self.rows
        ]
        return {"layers": rows, "command": self.command}


def overview(record: RunRecord, run: Path, among: Sequence[Layer] | None = None) -> Overview:
    """List layers, worst first.

    Args:
        among: which; None for those of the network that stand out.
    """
    network = Network(record)
    rows = standing_out(network, among) or standing_out(network, network.layers)
    command = f"trt-qat explain {shlex.quote(str(run))} --layer {shlex.quote(rows[0].layer.name)}"
    return Overview(rows, _printable(command))


def _label(layer: Layer) -> str:
    return layer.label if layer.left_float is None else f"{layer.name} (float)"


def _figures(layer: Layer) -> tuple[str, str]:
    share = layer.error_share
    return numbers.decibels(layer.sqnr_db) if layer.group else "", "" if share is None else numbers.share(share)


def _remedy_lines(number: int, remedy: Remedy) -> list[str]:
    said = [*_wrapped(f"  {number}. {remedy.action}", 5), *_wrapped(f"     Why: {remedy.why}", 10)]
    said += _wrapped(f"     Brings: {remedy.expected}", 13)
    return said if remedy.command is None else [*said, f"     {remedy.command}"]  # whole, to be copied


def _printable(line: str) -> str:
    """Without what a terminal would obey: names come from a file."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in line)


def _indented(lines: Sequence[str]) -> list[str]:
    return [short for line in lines for short in _wrapped(f"  {line}", 4)]


def _wrapped(line: str, indent: int) -> list[str]:
    return textwrap.wrap(line, WIDTH, subsequent_indent=indent * " ", drop_whitespace=True) or [line]


# The sections ----------------------------------------------------------------------------------------------------


def _what(layer: Layer) -> Section:
    network = layer.network
    if layer.left_float is not None:
        reason = layer.left_float.reason
        macs = sum(kernel.macs for kernel in layer.kernels(network.float_file))
        work = (f"{macs / 1e6:.1f} M multiply-accumulates per image.",) if macs else ()
        figures = {"precision": "float", "reason": reason, "macs": macs or None}
        return Section("what", layer.name, (f"It stays float: {reason}.", *work), figures)
    lines = [_conv_line(conv, network.macs) for conv in layer.convs]
    scales = "a scale per output channel" if network.record.placement.weights == "channel" else "one scale per weight"
    lines.append(f"INT8: reads scale group {layer.group.name if layer.group else ''}, weights with {scales}.")
    convolutions = [
        {
            "name": conv.name,
            "kernel": list(conv.kernel),
            "input_channels": conv.input_channels,
            "output_channels": conv.output_channels,
            "depthwise": conv.depthwise,
            "macs": conv.macs,
            "macs_share": conv.macs / max(1, network.macs),
        }
        for conv in layer.convs
    ]
    return Section("what", layer.label, tuple(lines), {"precision": "int8", "convolutions": convolutions})


def _conv_line(conv: ConvRecord, all_macs: int) -> str:
    kind = "depthwise convolution" if conv.depthwise else "convolution"
    return (
        f"{conv.name}: {kind} {conv.kernel[0]}x{conv.kernel[1]}, "
        f"{conv.input_channels} → {conv.output_channels} channels, "
        f"{conv.macs / 1e6:.1f} M multiply-accumulates per image, "
        f"{numbers.share(conv.macs / max(1, all_macs))} of all in INT8."
    )


def _range(layer: Layer) -> Section | None:
    group, last, histogram = layer.group, layer.activation, layer.histogram
    if group is None or last is None:
        return None
    calibration = layer.network.record.calibration
    calibrator = calibration.groups.get(group.name, calibration.calibrator)
    own = ", this group's own" if group.name in calibration.groups else ""
    tried = f", the best of {len(calibration.tried)} tried" if calibration.tried and not own else ""
    ranges = {entry.step: entry.reach for entry in group.activation}
    lines = [f"{e.step.upper()}: {numbers.span(e.range, 4)}{_moved(ranges, e.step)}" for e in group.activation]
    lines[0] += f", by {calibrator}{own}{tried}"
    figures: dict[str, Any] = {"ranges": ranges, "calibrator": calibrator}
    if histogram is not None and layer.bulk is not None:
        lines += text_histogram(histogram, last.range)
        lines.append(
            f"{numbers.share(histogram.clipped)} clipped, {numbers.share(histogram.below_one_step)} round to zero; "
            f"99.9 % lie within {layer.bulk:.3g} ({histogram.images} images, heights logarithmic)."
        )
        figures |= {"histogram": histogram.model_dump(mode="json"), "bulk": layer.bulk}
    return Section("range", "Range of what it reads", tuple(lines), figures)


def _moved(ranges: dict[Any, float], step: str) -> str:
    before = ranges.get("ptq")
    if step != "qat" or not before:
        return ""
    change = ranges["qat"] / before - 1
    return f" ({change:+.1%} by the fine-tuning)" if abs(change) >= UNMOVED else " (as calibrated)"


def _noise(layer: Layer) -> Section | None:
    group, network = layer.group, layer.network
    if group is None:
        return None
    place = network.rank(layer, lambda entry: entry.sqnr_db, lowest_first=True)
    ranked = "" if place is None else f", {weakest(place)} of {len(network.groups)}"
    lines = [f"What it reads: {_steps(group.activation)}{ranked}."]
    weights = []
    for conv in layer.convs:
        last = conv.weights[-1].sqnr_db if conv.weights else None
        of_all = None if last is None else network.weight_rank(last)
        ranked = "" if of_all is None else f", {weakest(of_all)} of {network.weight_count}"
        lines.append(f"Weights of {conv.name}: {_steps(conv.weights)}{ranked}.")
        weights.append({"name": conv.name, "sqnr_db": _by_step(conv.weights), "rank": of_all})
    for row in layer.noise:
        over = " ".join(numbers.decibels(value) for value in row.sqnr_db)
        what = "what it reads" if row.kind == "activation" else f"weights of {row.layer}"
        drift = f"; the range drifted by {row.drift[-1]:+.1%}" if row.drift and abs(row.drift[-1]) >= UNMOVED else ""
        lines.append(f"Epoch by epoch on one batch, {what}: {over} dB{drift}.")
    figures = {
        "activation": {"sqnr_db": _by_step(group.activation), "rank": place, "of": len(network.groups)},
        "weights": weights,
        "epochs": [row.model_dump(mode="json") for row in layer.noise],
    }
    return Section("sqnr", "Signal to quantization noise", tuple(lines), figures)


def _steps(quantizers: Sequence[QuantizerRecord]) -> str:
    return (
        ", ".join(f"{entry.step.upper()} {numbers.decibels(entry.sqnr_db)} dB" for entry in quantizers)
        or "not measured"
    )


def _by_step(quantizers: Sequence[QuantizerRecord]) -> dict[str, float | None]:
    return {entry.step: entry.sqnr_db for entry in quantizers}


def _sensitivity(layer: Layer) -> Section | None:
    group, network, share = layer.group, layer.network, layer.error_share
    if group is None or (group.error is None and group.map50_95_drop is None):
        return None
    place = network.rank(layer, lambda entry: entry.error_share, lowest_first=False)
    lines = []
    if group.error is not None:
        of_all = f"all groups' sum, number {place} of {len(network.groups)}"
        of_sum = "" if share is None else f", {numbers.share(share)} of {of_all}"
        lines.append(f"Output error with this group alone in INT8: {group.error:.3g}{of_sum}.")
    if group.map50_95_drop is not None:
        lines.append(f"{network.figure} with this group alone in INT8: {-100 * group.map50_95_drop:+.2f} points.")
    figures = {
        "error": group.error,
        "share": share,
        "rank": place,
        "of": len(network.groups),
        "map50_95_drop": group.map50_95_drop,
    }
    return Section("sensitivity", "Sensitivity", tuple(lines), figures)


def _shared(layer: Layer) -> Section | None:
    group = layer.group
    if group is None:
        return None
    others = [conv for conv in group.convs if conv.name not in layer.conv_names]
    writers = _writers(layer)
    lines = [f"Also read by {_named([conv.name for conv in others])}."] if others else []
    lines += [f"Also read by the residual adds of {_named(group.adds)}."] if group.adds else []
    lines += [f"Written by {_named(writers)}."] if writers else []
    reaches = {conv.name: conv.input_max for conv in group.convs if conv.input_max is not None}
    if len(reaches) > 1:
        widest = max(reaches, key=lambda name: reaches[name])
        listed = ", ".join(f"{name} {reach:.3g}" for name, reach in reaches.items())
        lines.append(f"Largest value that each reads: {listed}; {widest} needs the most of the range.")
    figures = {
        "group": group.name,
        "convolutions": [conv.name for conv in others],
        "adds": list(group.adds),
        "written_by": writers,
        "input_max": reaches,
    }
    return Section("shares_scale", "What shares its scale", tuple(lines) or ("Nothing else.",), figures)


def _writers(layer: Layer) -> list[str]:
    """The modules whose results lie on the scale that it reads, as the drawing of the exported file shows them."""
    drawing = layer.network.record.drawing
    if drawing is None:
        return []
    own = {box.key for box in drawing.boxes if box.kind == "int8" and box.module in layer.conv_names}
    groups = {edge.group for edge in drawing.edges if edge.end in own and edge.group is not None}
    return list(dict.fromkeys(box.module or box.key for box in drawing.boxes if box.group in groups))


def _named(names: Sequence[str]) -> str:
    return ", ".join(names)


def _lint(layer: Layer) -> Section:
    lines, figures = [], []
    seen: dict[tuple[str, str, str], list[str]] = {}
    for file, finding in layer.findings:
        seen.setdefault((finding.severity, finding.rule, finding.message), []).append(file.name)
        figures.append({"file": file.name, **finding.model_dump(mode="json")})
    for (severity, rule, message), files in seen.items():
        lines.append(f"{severity}: {rule}: {message} ({_named(files)})")
    linted = [file.name for file in layer.network.record.files if file.lint is not None]
    return Section("lint", "Lint", tuple(lines) or (f"Nothing at its nodes in {_named(linted)}.",), figures)


def _compiler(layer: Layer) -> Section | None:
    network = layer.network
    shown = network.compiled_file, network.float_file
    files = [file for file in shown if file is not None and file.compiler is not None]
    if not files:
        return None
    lines: list[str] = []
    for file in files:
        kernels = layer.kernels(file)
        lines.append(f"{file.name}: {len(kernels)} kernels, {_megabytes(kernels)} MB moved.")
        lines += [f"  {_kernel_line(kernel)}" for kernel in kernels]
    figures = {file.name: [kernel.model_dump(mode="json") for kernel in layer.kernels(file)] for file in files}
    return Section("compiler", f"What NVIDIA's compiler makes of it{_target(files[0])}", tuple(lines), figures)


def _target(file: ExportedRecord) -> str:
    compiled = file.compiler
    return f" ({compiled.flavor} {compiled.version}, SM {compiled.sm}, not run)" if compiled else ""


def _kernel_line(kernel: KernelRecord) -> str:
    fused = f", with {_named(kernel.fused)}" if kernel.fused else ""
    return f"{kernel.role} {kernel.input_type} → {kernel.output_type}{fused}, {_megabytes([kernel])} MB"


def _megabytes(kernels: Sequence[KernelRecord]) -> str:
    return numbers.megabytes(sum(kernel.activation_bytes + kernel.weight_bytes for kernel in kernels))
