"""The page of a run: one HTML file that loads nothing, runs nothing and is made of the run record alone.

What the record says is text to the template, wherever it comes from: everything is escaped, pictures are JPEGs that
are encoded anew, and the page's own policy forbids scripts and requests.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from trt_qat.artifacts import write_text
from trt_qat.evaluation.parity_report import HEADER as PARITY_HEADER
from trt_qat.report import charts, numbers
from trt_qat.report.answer import answer, file_label, file_rows, what_agreement_is
from trt_qat.report.drawing import drawn_network
from trt_qat.report.layer_facts import Layer, layer_label
from trt_qat.report.layers import anchors, worst_layers
from trt_qat.report.pictures import pictures
from trt_qat.report.record import ConvRecord, ExportedRecord, GroupRecord, KernelRecord, RunRecord, Step
from trt_qat.report.settings import changed_settings

PAGE: Final = "report.html"
_HISTOGRAMS: Final = 6
_KERNELS: Final = 12


@dataclass(frozen=True)
class ClassRow:
    """A class in the compared files.

    Args:
        map50_95: mAP or agreement of each file, None where it has no such class.
        points: of the last against the first.
    """

    name: str
    labels: int
    images: int
    map50_95: tuple[float | None, ...]
    points: float | None


def write_report(record: RunRecord, out: Path) -> Path:
    """Write the page, whole or not at all.

    Raises:
        ArtifactError: it cannot be written.
    """
    write_text(out, html_page(record))
    return out


def html_page(record: RunRecord) -> str:
    """The page as text; the same record gives the same text."""
    environment = _environment()
    style = environment.loader.get_source(environment, "report.css")[0]  # type: ignore[union-attr]
    return environment.get_template("report.html.j2").render(style=style, **_values(record))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("trt_qat.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        function.__name__: function
        for function in (
            *(
                numbers.coordinate,
                numbers.fraction,
                numbers.megabytes,
                numbers.number,
                numbers.seconds,
                numbers.short,
                numbers.signed,
            ),
            *(numbers.target_name, numbers.thousands, file_label, layer_label),
        )
    }
    environment.filters |= {
        "json": lambda value: json.dumps(value, ensure_ascii=False),
        "share": lambda value: numbers.share(value).replace(" ", "\u00a0"),  # no line break splits it in a table
        "range_at": _range_at,
        "when": _when,
        "sqnr_at": _sqnr_at,
        "weight_sqnr": _weight_sqnr,
    }
    return environment


def _values(record: RunRecord) -> dict[str, Any]:
    """What the template shows, section by section."""
    rows, layers = file_rows(record), worst_layers(record)
    compiled = [entry for entry in record.files if entry.compiler is not None]
    values = {
        "record": record,
        "answer": answer(record),
        "what_agreement_is": what_agreement_is(record),
        "measure": record.measure,
        "rows": rows,
        "markers": charts.markers(rows),
        "scatter": charts.accuracy_against_latency(rows),
        **_accuracy(record),
        "network": drawn_network(record),
        "anchors": anchors(record),
        "layers": layers,
        "group_names": {layer.group.name: layer.label for layer in layers if layer.group is not None},
        "best_sqnr": max((layer.sqnr_db for layer in layers if layer.sqnr_db is not None), default=0.0),
        "largest_share": max((layer.error_share or 0.0 for layer in layers), default=0.0),
        "has_drops": any(group.map50_95_drop is not None for group in record.placement.groups),
        "histograms": list(_histograms(layers)),
        "training_charts": charts.training_charts(record.training, record.measure),
        "compiled": compiled,
        "not_compiled": [entry for entry in record.files if entry.compiler is None and entry.not_compiled],
        "kernel_roles": _kernel_roles(compiled),
        "largest_kernels": [(entry, _largest(entry)) for entry in compiled],
        "parity_header": PARITY_HEADER,
        "pictures": pictures(record),
        "sides": [_label_of(record, name) for name in (record.disagreements.first, record.disagreements.second)],
        "changed": changed_settings(record.settings),
        "settings_yaml": yaml.safe_dump(record.settings, sort_keys=False, allow_unicode=True),
        "written": [*(entry.file for entry in record.files), *([record.engine.file] if record.engine else [])],
    }
    return {**values, "contents": list(_contents(values))}


def _accuracy(record: RunRecord) -> dict[str, Any]:
    compared = [entry for step in ("fp32", "ptq", "qat") if (entry := _of_step(record, step)) is not None]
    fp32, int8 = record.float_file, record.int8_file
    return {
        "compared": compared,
        "classes": list(_class_rows(compared)),
        "class_charts": (charts.per_class(compared), charts.per_size(compared)),
        "curves": charts.curves(fp32, int8) if fp32 is not None and int8 is not None else (),
    }


def _histograms(layers: list[Layer]) -> Iterator[charts.Chart]:
    """Of the worst that have one."""
    seen = [(layer, layer.histogram) for layer in layers if layer.histogram is not None]
    yield from (charts.activation_histogram(layer, histogram) for layer, histogram in seen[:_HISTOGRAMS] if histogram)


def _of_step(record: RunRecord, step: str) -> ExportedRecord | None:
    """The file of a step that is named as it, else its first."""
    return record.file(step) or next((entry for entry in record.files if entry.step == step), None)


def _class_rows(compared: list[ExportedRecord]) -> Iterator[ClassRow]:
    details = [entry.result.details for entry in compared if entry.result.details is not None]
    tables = [{row.name: row.map50_95 for row in found.per_class} for found in details]
    for row in details[0].per_class if details else ():
        values = tuple(table.get(row.name) for table in tables)
        first, last = values[0], values[-1]
        points = None if first is None or last is None else 100 * (last - first)
        yield ClassRow(row.name, row.labels, row.images, values, points)


def _kernel_roles(compiled: list[ExportedRecord]) -> list[tuple[str, list[tuple[int, int]]]]:
    """Role, then for each file how many kernels have it and the bytes that they move."""
    kernels = [entry.compiler.kernels for entry in compiled if entry.compiler is not None]
    roles = dict.fromkeys(kernel.role for of_file in kernels for kernel in of_file)
    return [
        (role, [_counted([kernel for kernel in of_file if kernel.role == role]) for of_file in kernels])
        for role in roles
    ]


def _counted(kernels: list[KernelRecord]) -> tuple[int, int]:
    return len(kernels), sum(map(_moved, kernels))


def _largest(entry: ExportedRecord) -> list[KernelRecord]:
    kernels = entry.compiler.kernels if entry.compiler is not None else ()
    return sorted(kernels, key=lambda kernel: -_moved(kernel))[:_KERNELS]


def _moved(kernel: KernelRecord) -> int:
    return kernel.activation_bytes + kernel.weight_bytes


def _label_of(record: RunRecord, name: str) -> str:
    entry = record.file(name)
    return name if entry is None else file_label(entry)


def _sqnr_at(group: GroupRecord, step: Step) -> str:
    entry = group.at(step)
    return numbers.NOTHING if entry is None else numbers.decibels(entry.sqnr_db)


def _range_at(group: GroupRecord, step: Step) -> str:
    entry = group.at(step)
    return numbers.NOTHING if entry is None else numbers.span(entry.range)


def _when(created: str) -> str:
    """``26 November 2026, 14:58 UTC``; as it is where it is no such time."""
    try:
        time = datetime.fromisoformat(created.replace("Z", "+00:00"))
    except ValueError:
        return created
    return f"{time.day} {time:%B %Y, %H:%M %Z}"


def _weight_sqnr(conv: ConvRecord) -> str:
    """Of the last step."""
    return numbers.decibels(conv.weights[-1].sqnr_db) if conv.weights else numbers.NOTHING


def _contents(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The sections that are there."""
    record: RunRecord = values["record"]
    for anchor, title, there in (
        ("speed", "Latency", True),
        ("classes", "Classes", values["classes"]),
        ("curves", "Curves", values["curves"]),
        ("layers", "Layers", True),
        ("ranges", "Ranges", values["histograms"]),
        ("calibrators", "Calibrators", True),
        ("training", "Fine-tuning", True),
        ("compiler", "Compiler", True),
        ("float", "Float layers", True),
        ("lint", "Lint", True),
        ("parity", "Parity", record.parity),
        ("mixes", "Mixes", record.budget),
        ("images", "Images", True),
        ("warnings", "Warnings", record.warnings),
        ("provenance", "Provenance", True),
    ):
        if there:
            yield anchor, title
