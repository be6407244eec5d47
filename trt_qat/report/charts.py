"""The report's charts: matplotlib draws, the page colours.

Each is an SVG for the inside of an HTML page: text stays text, every colour is a variable of the page's style sheet,
so that a chart follows light, dark and print. What tells series apart is never the colour alone. Small ones, which
stand beside each other where there is room, stay readable on a phone.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from xml.etree import ElementTree

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from trt_qat.report.answer import FileRow, file_label
from trt_qat.report.layer_facts import Layer
from trt_qat.report.numbers import decibels, fraction, number, share, short, signed, span
from trt_qat.report.record import ExportedRecord, Histogram, Training
from trt_qat.results import AccuracyDetails, Measure

# colour in matplotlib's file -> variable of the page
_INK, _DIM, _GRID, _FP32, _PTQ, _QAT, _PAPER = (f"#0{n}0{n}0{n}" for n in range(1, 8))
_VARIABLES: Final = {
    **{_INK: "--ink", _DIM: "--dim", _GRID: "--line"},
    **{_FP32: "--fp32", _PTQ: "--ptq", _QAT: "--qat", _PAPER: "--paper"},
}
_STEP_COLOURS: Final = {"fp32": _FP32, "ptq": _PTQ, "qat": _QAT}
_STEP_HATCHES: Final = {"fp32": "", "ptq": "////", "qat": ""}
MARKERS: Final = {"square": "s", "up": "^", "circle": "o", "diamond": "D", "down": "v", "plus": "P", "cross": "X"}
"""What the page calls a point's shape, and matplotlib."""
_MARKERS: Final = "osD^vPX*<>ph"
_DASHES: Final = ("-", "--", ":", "-.")
_LARGEST: Final = 1e30  # nothing that was measured comes near; beyond it matplotlib's arithmetic ends
_SHOWN_CLASSES: Final = 16
_SHOWN_BINS: Final = 256
_NAME: Final = 28  # characters
_STYLE: Final[dict[Any, Any]] = {
    "font.size": 9.0,
    "axes.labelsize": 9.0,
    "axes.edgecolor": _DIM,
    "axes.labelcolor": _DIM,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "xtick.color": _DIM,
    "ytick.color": _DIM,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "ytick.minor.size": 0.0,
    "text.color": _INK,
    "text.parse_math": False,  # names of classes are no formulas
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 2.2,
    "lines.linewidth": 1.8,
    "hatch.linewidth": 0.8,
    "hatch.color": _PAPER,
    "svg.fonttype": "none",
    "axes.unicode_minus": True,
}


@dataclass(frozen=True)
class Chart:
    """A chart with its title and what it says, in a sentence; ``svg`` is markup, the other two are text."""

    title: str
    message: str
    svg: str


def markers(rows: Sequence[FileRow]) -> list[str]:
    """The shape of each file's point: steps differ in colour and shape, files of one step in shape."""
    more = iter(_cycle(list(MARKERS)[3:]))
    seen: set[str] = set()
    return [next(more) if row.file.step in seen else _add(seen, row.file.step) for row in rows]


def _add(seen: set[str], step: str) -> str:
    seen.add(step)
    return {"fp32": "square", "ptq": "up", "qat": "circle"}[step]


def accuracy_against_latency(rows: Sequence[FileRow]) -> Chart:
    """A point per file; its bar is the interval of its difference to FP32."""
    reference = next((row for row in rows if row.file.step == "fp32"), None)
    measure = rows[0].file.result.measure

    def draw(axes: Axes) -> None:
        for row, marker in zip(rows, markers(rows), strict=True):
            colour, result = _STEP_COLOURS[row.file.step], row.file.result
            at = result.latency_ms.median, result.map50_95
            if reference is not None and row.interval is not None:
                ends = [reference.file.result.map50_95 + points / 100 for points in row.interval]
                axes.plot([at[0]] * 2, ends, color=colour, linewidth=1.0, solid_capstyle="butt")
            look: dict[str, Any] = {"color": colour, "markersize": 8, "markeredgecolor": _PAPER, "linestyle": "none"}
            axes.plot(*at, MARKERS[marker], label=_named(row.label), **look)
        if reference is not None:
            axes.axhline(reference.file.result.map50_95, color=_FP32, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        slowest = max(row.file.result.latency_ms.median for row in rows)
        axes.set(xlabel="median latency, ms per image", ylabel=f"{measure}50-95", xlim=(0, 1.1 * slowest or 1))
        axes.margins(y=0.15)
        axes.set_ylim(top=min(1.0, axes.get_ylim()[1]))
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, handlelength=1.0)

    said = "; ".join(
        f"{row.label} {fraction(row.file.result.map50_95)} at {number(row.file.result.latency_ms.median)} ms"
        for row in rows
    )
    return _chart(
        f"{_figure_name(measure)} against latency", f"{said}.", draw, (5.0, 3.4), above=14 + 13 * -(-len(rows) // 2)
    )


def _figure_name(measure: Measure) -> str:
    return "Agreement" if measure == "agreement" else "Accuracy"


def per_class(files: Sequence[ExportedRecord]) -> Chart | None:
    """mAP50-95 (or agreement) of each class; of many, those that change most."""
    measured = [(entry, entry.result.details) for entry in files if entry.result.details is not None]
    if not measured or not measured[0][1].per_class:
        return None
    tables = [{row.name: row.map50_95 for row in details.per_class} for _, details in measured]
    changes = {name: tables[-1][name] - tables[0][name] for name in tables[0] if name in tables[-1]}
    if not changes:
        return None
    chosen = sorted(changes, key=lambda name: -abs(changes[name]))[:_SHOWN_CLASSES]
    names = sorted(chosen, key=lambda name: changes[name])

    def draw(axes: Axes) -> None:
        _bars(axes, [_named(name) for name in names], _series(measured, [[t.get(n) for n in names] for t in tables]))

    lowest, last = min(changes, key=lambda name: changes[name]), file_label(measured[-1][0])
    said = f"{last} changes most for the worse on {_named(lowest)}: {signed(100 * changes[lowest])} points."
    if len(changes) > len(names):
        said += f" The {len(names)} of {len(changes)} classes that change most; all are in the table."
    return _chart(
        f"{measured[0][0].result.measure}50-95 per class",
        said,
        draw,
        (4.6, 0.8 + 0.16 * (1 + len(measured)) * len(names)),
        above=26,
        left=_room(names),
    )


def per_size(files: Sequence[ExportedRecord]) -> Chart | None:
    """mAP50-95 (or agreement) of small, medium and large objects."""
    measured = [(entry, entry.result.details) for entry in files if entry.result.details is not None]
    names = [row.size for row in measured[0][1].sizes if row.labels] if measured else []
    if not names:
        return None
    tables = [{row.size: row.map50_95 for row in details.sizes} for _, details in measured]

    def draw(axes: Axes) -> None:
        _bars(axes, list(names), _series(measured, [[table.get(name) for name in names] for table in tables]))

    found = [(name, tables[0].get(name), tables[-1].get(name)) for name in names]
    changes = [f"{n} {signed(100 * (b - a))}" for n, a, b in found if a is not None and b is not None]
    said = f"{file_label(measured[-1][0])} against {file_label(measured[0][0])}: {', '.join(changes)} points."
    return _chart(
        f"{measured[0][0].result.measure}50-95 by size",
        said,
        draw,
        (4.6, 0.8 + 0.16 * (1 + len(measured)) * len(names)),
        above=26,
        left=_room(names),
    )


def curves(fp32: ExportedRecord, int8: ExportedRecord) -> tuple[Chart, ...]:
    """Precision over recall, then F1, precision and recall over the confidence threshold."""
    one, other = fp32.result.details, int8.result.details
    if one is None or other is None:
        return ()
    kinds = (
        ("Precision over recall", "precision_of_recall", "recall", "precision"),
        ("F1 over confidence", "f1", "confidence threshold", "F1"),
        ("Precision over confidence", "precision", "confidence threshold", "precision"),
        ("Recall over confidence", "recall", "confidence threshold", "recall"),
    )
    return tuple(_curve(title, field, (x, y), (fp32, one), (int8, other)) for title, field, x, y in kinds)


def activation_histogram(layer: Layer, histogram: Histogram) -> Chart:
    """Values that a layer's quantizer reads, on a logarithmic scale, with the ranges of PTQ and QAT."""
    steps = [] if layer.group is None else [(entry.step, entry.range) for entry in layer.group.activation]
    low, high = (-_LARGEST, _LARGEST) if layer.activation is None else layer.activation.range
    edges, counts = _bins(histogram)

    def draw(axes: Axes) -> None:
        middles = (edges[:-1] + edges[1:]) / 2
        inside = (middles >= low) & (middles <= high)
        axes.stairs(np.where(inside, counts, 0), edges, fill=True, color=_FP32, alpha=0.55)
        axes.stairs(np.where(inside, 0, counts), edges, fill=True, color=_PTQ, hatch="////")
        for step, (least, most) in steps:
            look: dict[str, Any] = {
                "color": _STEP_COLOURS[step],
                "linestyle": "--" if step == "ptq" else "-",
                "linewidth": 1.4,
            }
            axes.axvline(_bounded(most), label=f"{step.upper()} {span((least, most))}", **look)
            if edges[0] <= least:
                axes.axvline(_bounded(least), **look)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: _power(value))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylim(bottom=0.5)
        axes.set(xlabel="value", ylabel="values per bin")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.24), ncols=2, columnspacing=1.2)

    ranges = " and ".join(f"{step.upper()} {span(ends)}" for step, ends in steps)
    noise = "no value differs" if layer.sqnr_db is None else f"SQNR {decibels(layer.sqnr_db)} dB"
    lost = f"{share(histogram.clipped)} of the values are clipped, {share(histogram.below_one_step)} round to zero"
    said = f"{noise[0].upper()}{noise[1:]}; range {ranges}; {lost}."
    return _chart(layer.label, said, draw, (3.7, 2.3), above=24)


def training_charts(training: Training, measure: Measure) -> tuple[Chart, ...]:
    """Fake-quantized mAP or agreement, losses, learning rate and SQNR over the epochs."""
    charts = (_accuracy_over_epochs(training, measure), _losses(training), _learning_rate(training), _noise(training))
    return tuple(chart for chart in charts if chart is not None)


def _accuracy_over_epochs(training: Training, measure: Measure) -> Chart | None:
    if not training.epochs:
        return None
    xs, ys = [e.epoch for e in training.epochs], [e.map50_95 for e in training.epochs]
    best = next((e for e in training.epochs if e.epoch == training.best), None)

    def draw(axes: Axes) -> None:
        axes.plot(xs, ys, color=_QAT, marker="o", markersize=4)
        axes.plot(xs[:1], ys[:1], "s", color=_PTQ, markersize=8, label=f"start {fraction(ys[0])}", linestyle="none")
        if best is not None:
            label = f"kept: epoch {best.epoch}, {fraction(best.map50_95)}"
            axes.plot([best.epoch], [best.map50_95], "*", color=_QAT, markersize=13, label=label, linestyle="none")
        axes.set(xlabel="epoch", ylabel=f"{measure}50-95, fake-quantized")
        axes.legend(loc="best")
        _whole_epochs(axes)

    said = f"From {fraction(ys[0])} at the start"
    said += "." if best is None else f" to {fraction(best.map50_95)} in epoch {best.epoch}, which was kept."
    return _chart(f"{measure}50-95 while fine-tuning", said, draw, (4.4, 2.8))


def _losses(training: Training) -> Chart | None:
    names = list(dict.fromkeys(name for epoch in training.epochs for name in epoch.losses))
    if not names:
        return None
    of = {name: [(e.epoch, e.losses[name]) for e in training.epochs if name in e.losses] for name in names}

    def draw(axes: Axes) -> None:
        for name, dash, marker in zip(names, _cycle(_DASHES), _cycle(_MARKERS), strict=False):
            xs, ys = zip(*of[name], strict=True)
            axes.plot(
                xs,
                [_bounded(value) for value in ys],
                dash,
                color=_INK,
                marker=marker,
                markersize=4,
                linewidth=1.3,
                label=_named(name),
            )
        axes.set(xlabel="epoch", ylabel="loss")
        axes.legend(loc="best")
        _whole_epochs(axes)

    said = "; ".join(f"{name} from {short(values[0][1])} to {short(values[-1][1])}" for name, values in of.items())
    return _chart("Losses", f"{said}.", draw, (4.4, 2.8))


def _learning_rate(training: Training) -> Chart | None:
    points = [(e.epoch, e.learning_rate) for e in training.epochs if e.learning_rate is not None]
    if not points:
        return None
    xs, ys = zip(*points, strict=True)

    def draw(axes: Axes) -> None:
        axes.plot(xs, [_bounded(value) for value in ys], color=_INK, marker="o", markersize=4, linewidth=1.3)
        axes.set(xlabel="epoch", ylabel="learning rate")
        axes.set_ylim(bottom=0)
        _whole_epochs(axes)

    return _chart("Learning rate", f"From {short(ys[0])} to {short(ys[-1])}.", draw, (4.4, 2.8))


def _noise(training: Training) -> Chart | None:
    epochs, kinds = [epoch.epoch for epoch in training.epochs], {}
    for kind in ("activation", "weight"):
        rows = [row.sqnr_db for row in training.noise if row.kind == kind]
        length = min((len(row) for row in (*rows, epochs)), default=0) if rows else 0
        columns = [[_bounded(value) for row in rows if (value := row[at]) is not None] for at in range(length)]
        if columns and all(columns):
            kinds[kind] = [(float(np.median(column)), float(np.min(column))) for column in columns]
    if not kinds:
        return None

    def draw(axes: Axes) -> None:
        for (kind, values), colour in zip(kinds.items(), (_QAT, _PTQ), strict=False):
            for which, dash in ((0, "-"), (1, "--")):
                label = f"{kind}s, {'lowest' if which else 'median'}"
                ys = [value[which] for value in values]
                axes.plot(epochs[-len(ys) :], ys, dash, color=colour, marker="os"[which], markersize=4, label=label)
        axes.set(xlabel="epoch", ylabel="SQNR, dB")
        axes.legend(loc="best")
        _whole_epochs(axes)

    said = "; ".join(
        f"lowest of the {kind}s from {decibels(values[0][1])} to {decibels(values[-1][1])} dB"
        for kind, values in kinds.items()
    )
    return _chart("Noise of the quantizers", f"{said[0].upper()}{said[1:]}.", draw, (4.4, 2.8))


def _curve(
    title: str,
    field: str,
    axis_names: tuple[str, str],
    fp32: tuple[ExportedRecord, AccuracyDetails],
    int8: tuple[ExportedRecord, AccuracyDetails],
) -> Chart:
    one, other = (np.asarray(getattr(details.curves, field)) for _, details in (fp32, int8))
    names = [_named(file_label(entry)) for entry, _ in (fp32, int8)]

    def draw(axes: Axes) -> None:
        for values, name, colour, dash, width in (
            (other, names[1], _QAT, "-", 2.6),
            (one, names[0], _INK, "--", 1.2),
        ):
            axes.plot(np.linspace(0, 1, len(values)), values, dash, color=colour, linewidth=width, label=name)
        axes.set(xlabel=axis_names[0], ylabel=axis_names[1], xlim=(0, 1), ylim=(0, 1.02))
        axes.legend(loc="best")

    if field == "f1" and len(one) and len(other):
        best = [
            f"{n} {v.max():.3f} at {v.argmax() / max(1, len(v) - 1):.2f}"
            for n, v in zip(names, (one, other), strict=True)
        ]
        said = f"Highest: {'; '.join(best)}."
    elif len(one) and len(one) == len(other) and np.abs(other - one).max() < 5e-4:
        said = "The two are the same."
    elif len(one) and len(one) == len(other):
        at = int(np.argmax(np.abs(other - one)))
        said = (
            f"Farthest apart at {at / max(1, len(one) - 1):.2f}: {names[0]} {one[at]:.3f}, {names[1]} {other[at]:.3f}."
        )
    else:
        said = "The two cannot be compared."
    return _chart(title, said, draw, (4.4, 2.8))


def _series(
    measured: Sequence[tuple[ExportedRecord, AccuracyDetails]], values: Sequence[Sequence[float | None]]
) -> list[tuple[ExportedRecord, list[float]]]:
    return [
        (entry, [0.0 if value is None else value for value in row])
        for (entry, _), row in zip(measured, values, strict=True)
    ]


def _bars(axes: Axes, names: Sequence[str], series: Sequence[tuple[ExportedRecord, list[float]]]) -> None:
    """Horizontal bars, a group of them per name."""
    height = 0.8 / len(series)
    for number_, (entry, values) in enumerate(series):
        places = [at + (number_ - (len(series) - 1) / 2) * height for at in range(len(names))]
        hatch = _STEP_HATCHES[entry.step]
        look: dict[str, Any] = {"edgecolor": _PAPER, "linewidth": 0.5, "hatch": hatch}
        axes.barh(places, values, height, color=_STEP_COLOURS[entry.step], label=_named(file_label(entry)), **look)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.grid(visible=False, axis="y")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(series), columnspacing=1.4)


def _bins(histogram: Histogram) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Edges and counts of at most so many bins as can be seen."""
    counts = np.asarray(histogram.counts, dtype=float)
    joined = -(-len(counts) // _SHOWN_BINS)
    padded = np.pad(counts, (0, -len(counts) % joined)).reshape(-1, joined).sum(1)
    low, high = _bounded(histogram.low), _bounded(histogram.high)
    low, high = (low, high) if low < high else (low - 0.5, low + 0.5)
    return np.linspace(low, low + (high - low) * len(padded) * joined / len(counts), len(padded) + 1), padded


def _power(value: float) -> str:
    """A count for an axis: ``100``, ``10 k``, ``1 M``."""
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:g}"


def _bounded(value: float) -> float:
    return min(max(float(value), -_LARGEST), _LARGEST)


def _named(name: str) -> str:
    """A name for a chart: one line, not too long, nothing that XML cannot say."""
    text = "".join(character if character.isprintable() else " " for character in name)
    return text if len(text) <= _NAME else f"{text[: _NAME - 1]}\u2026"


def _room(names: Sequence[str]) -> float:
    """For names beside an axis, points."""
    return 12 + 4.9 * max((len(_named(name)) for name in names), default=0)


def _cycle(values: Sequence[str]) -> Iterable[str]:
    while True:
        yield from values


def _whole_epochs(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _chart(
    title: str,
    message: str,
    draw: Callable[[Axes], None],
    inches: tuple[float, float],
    *,
    above: float = 8.0,
    left: float = 46.0,
) -> Chart:
    """A drawn chart.

    Args:
        above, left: room for a legend and for the names of the ticks, points.
    """
    title = _named(title)
    # whatever style the user has; the salt: ids depend on the content alone, and are unique on the page
    with style.context(_STYLE | {"svg.hashsalt": title + message}, after_reset=True):
        figure = Figure(figsize=inches)
        FigureCanvasSVG(figure)
        figure.patch.set_alpha(0)
        width, height = (72 * side for side in inches)
        axes = figure.add_axes((left / width, 34 / height, 1 - (left + 8) / width, 1 - (34 + above) / height))
        axes.patch.set_alpha(0)
        draw(axes)
        stream = io.StringIO()
        with warnings.catch_warnings():  # a name in letters that matplotlib's font lacks: the browser has them
            warnings.simplefilter("ignore")
            figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return Chart(title, message, _inline(stream.getvalue(), f"{title}. {message}"))


def _inline(text: str, label: str) -> str:
    """The element for the inside of an HTML page: no style sheet of its own, no unused ids, colours of the page."""
    root = ElementTree.fromstring(text)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    referred = set(re.findall(r"#([\w.-]+)", " ".join(value for el in root.iter() for value in el.attrib.values())))
    for element in root.iter():
        element.tag = element.tag.partition("}")[2]
        kept = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        if kept.get("id") not in referred:
            kept.pop("id", None)
        for name in ("fill", "stroke"):  # an attribute knows no variables everywhere
            if name in kept:
                kept["style"] = f"{kept.get('style', '')}; {name}: {kept.pop(name)}".removeprefix("; ")
        if "style" in kept:
            kept["style"] = _page_style(kept["style"])
        element.attrib.clear()
        element.attrib.update(kept)
    box = root.attrib["viewBox"]
    root.attrib.clear()
    root.attrib.update({"viewBox": box, "role": "img", "aria-label": label})
    return ElementTree.tostring(root, encoding="unicode")


def _page_style(attribute: str) -> str:
    """An element's ``style`` with the page's colours and its font."""
    coloured = re.sub("#[0-9a-f]{6}", lambda found: f"var({_VARIABLES.get(found[0], '--ink')})", attribute)
    return re.sub("font-family: [^;]*;? ?", "", coloured)
