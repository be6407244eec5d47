"""The run as Markdown: the answer and its tables, for a terminal, a repository or a comment on a change."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from trt_qat.artifacts import write_text
from trt_qat.report.answer import answer, file_label, file_rows, what_agreement_is
from trt_qat.report.layer_facts import layer_label
from trt_qat.report.layers import worst_layers
from trt_qat.report.numbers import (
    NOTHING,
    decibels,
    fraction,
    megabytes,
    number,
    seconds,
    share,
    short,
    signed,
    span,
    target_name,
)
from trt_qat.report.record import GroupRecord, RunRecord, Step
from trt_qat.report.settings import changed_settings

FILE: Final = "report.md"
_WORST: Final = 10
_SPECIAL: Final = re.compile(r"([\\`*_{}\[\]<>#|~$&!])")


def write_markdown(record: RunRecord, out: Path) -> Path:
    """Write :func:`markdown_report`, whole or not at all.

    Raises:
        ArtifactError: it cannot be written.
    """
    write_text(out, markdown_report(record))
    return out


def markdown_report(record: RunRecord) -> str:
    """The report without its charts; names from outside are escaped."""
    inputs = record.inputs
    sections = (
        (
            f"# INT8 for {_text(inputs.weights.path)} on {_text(inputs.data)}",
            (_text(answer(record)), what_agreement_is(record), _files(record)),
        ),
        ("## Worst layers", (_layers(record),)),
        ("## Calibrators", (_calibrators(record),)),
        ("## Fine-tuning", (_epochs(record),)),
        ("## Compiler", (_compiler(record),)),
        ("## Left float", (_float_layers(record),)),
        ("## Lint", (_lint(record),)),
        ("## Parity", (_parity(record),)),
        ("## Mixes tried", (_mixes(record),)),
        ("## Disagreement", (_disagreement(record),)),
        ("## Warnings", ("\n".join(f"- {_text(line)}" for line in record.warnings),)),
        ("## Provenance", (_provenance(record), _settings(record))),
    )
    shown = ([title, *filter(None, parts)] for title, parts in sections if any(parts))
    return "\n\n".join("\n\n".join(section) for section in shown) + "\n"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are text already; the first column is left-aligned, the others to the right."""
    lines = [tuple(header), (":---", *("---:" for _ in header[1:])), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) if len(lines) > 2 else ""


def _text(value: str) -> str:
    """A text from outside in one line, in which nothing is markup."""
    return _SPECIAL.sub(r"\\\1", " ".join(value.split()))


def _code(value: str) -> str:
    return f"`{' '.join(value.split()).replace('`', chr(39))}`"


def _files(record: RunRecord) -> str:
    measure = record.measure
    figures = f"{measure}50-95", "points", "95 %", f"{measure}50"
    header = ("file", *figures, "MB", "ms median", "p90", "precision", "runtime")
    table = _table(
        header,
        (
            (
                _text(row.label),
                fraction(row.file.result.map50_95),
                "" if row.points is None else signed(row.points),
                row.interval_text,
                fraction(row.file.result.map50),
                megabytes(row.file.file.size_bytes),
                number(row.file.result.latency_ms.median),
                number(row.file.result.latency_ms.p90),
                _text(row.file.result.precision),
                _text(row.file.result.runtime),
            )
            for row in file_rows(record)
        ),
    )
    images = record.files[0].result.images
    figure = "Agreement" if measure == "agreement" else measure
    how = f"{figure} on {images} val images, letterboxed; points: difference to FP32 with its paired 95 % interval "
    how += "over the images. Latency: one forward pass, all files in turns."
    engine = record.engine
    if engine is not None and not engine.run:
        how += f" The engine {_text(engine.file.path)} was built, not run: no GPU is here."
    return f"{table}\n\n{how}"


def _layers(record: RunRecord) -> str:
    header = ("layer", "SQNR PTQ, dB", "QAT", "range PTQ", "QAT", "share of the output error")
    return _table(
        header,
        (
            (
                _text(layer.label),
                *(_sqnr(layer.group, step) for step in ("ptq", "qat")),
                *(_range(layer.group, step) for step in ("ptq", "qat")),
                NOTHING if layer.error_share is None else share(layer.error_share),
            )
            for layer in worst_layers(record)[:_WORST]
            if layer.group is not None
        ),
    )


def _sqnr(group: GroupRecord, step: Step) -> str:
    entry = group.at(step)
    return "" if entry is None else decibels(entry.sqnr_db)


def _range(group: GroupRecord, step: Step) -> str:
    entry = group.at(step)
    return "" if entry is None else span(entry.range)


def _calibrators(record: RunRecord) -> str:
    tried = sorted(record.calibration.tried, key=lambda entry: entry.error)
    rows = ((_text(row.calibrator) + (", chosen" if row.chosen else ""), number(row.error, 4)) for row in tried)
    return _table(("calibrator", "output error"), rows) or f"{_text(record.calibration.calibrator)}, given."


def _epochs(record: RunRecord) -> str:
    rows = (
        (
            f"{epoch.epoch}{', kept' if epoch.epoch == record.training.best else ''}",
            fraction(epoch.map50_95),
            _text(", ".join(f"{name} {short(value)}" for name, value in epoch.losses.items())),
        )
        for epoch in record.training.epochs
    )
    return _table(("epoch", f"{record.measure}50-95, fake-quantized", "losses"), rows)


def _compiler(record: RunRecord) -> str:
    rows = (
        (
            _text(file_label(entry)),
            str(len(made.kernels)),
            megabytes(made.activation_bytes),
            megabytes(made.weight_bytes),
            megabytes(made.plan_bytes),
        )
        for entry in record.files
        if (made := entry.compiler) is not None
    )
    table = _table(("file", "kernels", "activations, MB", "weights, MB", "plan, MB"), rows)
    return f"{table}\n\nRead from the compiler's words; nothing was run." if table else ""


def _float_layers(record: RunRecord) -> str:
    return "\n".join(f"- {_text(layer_label(row.name))}: {_text(row.reason)}" for row in record.placement.float_layers)


def _lint(record: RunRecord) -> str:
    return "\n".join(
        f"- {_text(file_label(entry))}, for {_text(target_name(entry.lint.target))}: {entry.lint.errors} errors, "
        f"{entry.lint.warnings} warnings"
        for entry in record.files
        if entry.lint is not None
    )


def _parity(record: RunRecord) -> str:
    return "\n".join(
        f"- {_text(str(pair.first))} and {_text(str(pair.second))}: {_text('; '.join(pair.broken) or 'all met')}"
        for pair in record.parity
    )


def _mixes(record: RunRecord) -> str:
    if record.budget is None:
        return ""
    rows = (
        (
            f"{len(mix.groups)}{', chosen' if mix.chosen else ''}",
            number(mix.drop_points, 2),
            fraction(mix.map50_95),
            number(mix.latency_ms),
        )
        for mix in record.budget.mixes
    )
    return _table(("groups left float", "lost points", f"{record.measure}50-95", "ms"), rows)


def _disagreement(record: RunRecord) -> str:
    found = record.disagreements
    worst = (f"- {_text(entry.image)}: {entry.differing} without a partner" for entry in found.worst)
    agreeing = f"In {found.agreeing} of {found.images} images every detection has a partner in the other network."
    return "\n".join((agreeing, *(("", *worst) if found.worst else ())))


def _provenance(record: RunRecord) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in _facts(record))


def _facts(record: RunRecord) -> Iterator[tuple[str, str]]:
    inputs, machine = record.inputs, record.machine
    yield "repeat", _code(record.command)
    yield "weights", f"{_text(inputs.weights.path)}, sha256 {_code(inputs.weights.sha256 or 'none: random weights')}"
    counts = f"{inputs.train.images} train and {inputs.val.images} val images, {len(inputs.classes)} classes"
    counts += ", labelled by the FP32 model" if record.measure == "agreement" else ""
    yield "data", f"{_text(inputs.data)}, {counts}, sha256 {_code(inputs.data_sha256 or 'none')}"
    yield "calibration", f"{inputs.calibration_images} images, sha256 {_code(inputs.calibration_sha256 or 'none')}"
    yield "seeds", _text(", ".join(f"{name} {seed}" for name, seed in record.seeds.items()))
    gpus = ", ".join(machine.gpus) or "no GPU"
    yield "machine", _text(f"{machine.cpu}, {machine.cores} cores; {gpus}")
    yield "versions", _text(", ".join(f"{name} {version}" for name, version in record.versions.items()))
    yield "stages", _text("; ".join(f"{s.name} {seconds(s.seconds)}" for s in record.stages))
    yield "made", _text(record.created)


def _settings(record: RunRecord) -> str:
    rows = (
        (_text(row.key), _text(str(row.value)), _text(str(row.default))) for row in changed_settings(record.settings)
    )
    return _table(("setting that differs", "value", "default"), rows)
