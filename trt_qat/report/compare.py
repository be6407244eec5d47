"""Is B worse than A, and by more than chance? From run records and result files alone, without models or images.

A bootstrap over the images says what is chance: every row keeps its figure on the same thousand draws of the images
(see :mod:`trt_qat.evaluation.bootstrap`), and between which values 95 % of the differences lie is their interval.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from trt_qat.errors import ConfigError, ConsistencyError
from trt_qat.reading import read_json
from trt_qat.report.record import Machine, read_record, record_file
from trt_qat.results import NO_ACCURACY, Measure, ResultRow, file_content, read_rows

_DIGITS: Final = 3  # of a point; figures are kept with as many
_RATIO_DIGITS: Final = 4


@dataclass(frozen=True)
class MapDifference:
    """Second minus first, in points of mAP50-95 (or agreement), and between which values 95 % of the resamples lie."""

    points: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.points:+.2f} points, 95 % of resamples {self.low:+.2f} to {self.high:+.2f}"

    @property
    def is_chance(self) -> bool:
        """Whether it cannot be told from chance: the interval holds zero."""
        return self.low <= 0 <= self.high


def points(first: ResultRow, second: ResultRow) -> float:
    """Second minus first in points of mAP50-95 (or agreement)."""
    return round(100 * (second.map50_95 - first.map50_95), _DIGITS)


def map_difference(first: ResultRow, second: ResultRow) -> MapDifference | None:
    """How far two rows are apart; None where one has no details, so that chance cannot be told.

    Raises:
        ConsistencyError: one is mAP and the other agreement, they were measured on other images or labels, or with
            another number of resamples.
    """
    if first.measure != second.measure:
        raise ConsistencyError(
            f"'{first.model}' has {_against(first)} and '{second.model}' {_against(second)}: they do not compare. "
            "Evaluate both on one dataset."
        )
    if first.images != second.images:
        raise ConsistencyError(_other_images(first, second, f" ({first.images} and {second.images})"))
    if first.details is None or second.details is None:
        return None
    if first.details.images_sha256 != second.details.images_sha256:
        raise ConsistencyError(_other_images(first, second))
    drawn = [np.array(row.details.resampled) for row in (first, second) if row.details]
    if len(drawn[0]) != len(drawn[1]) or not len(drawn[0]):
        raise ConsistencyError(
            f"'{first.model}' has {len(drawn[0])} resamples and '{second.model}' {len(drawn[1])}: they are no pairs. "
            "Evaluate both again."
        )
    low, high = np.percentile(100 * (drawn[1] - drawn[0]), [2.5, 97.5])
    return MapDifference(points(first, second), round(float(low), _DIGITS), round(float(high), _DIGITS))


def paired_difference(first: ResultRow, second: ResultRow) -> MapDifference | None:
    """:func:`map_difference`, None also where the two were measured on other images and are no pair."""
    try:
        return map_difference(first, second)
    except ConsistencyError:
        return None


def _against(row: ResultRow) -> str:
    return "agreement with the FP32 model" if row.measure == "agreement" else "mAP, against people's labels"


def _other_images(first: ResultRow, second: ResultRow, counts: str = "") -> str:
    return (
        f"'{first.model}' and '{second.model}' were measured on other images or labels{counts}. Evaluate both on the "
        "same split."
    )


@dataclass(frozen=True)
class Tolerance:
    """How much worse B may be.

    Args:
        points: of mAP50-95, or of agreement.
        latency_ratio: median of B over that of A; None accepts any.
    """

    points: float = 0.5
    latency_ratio: float | None = None


@dataclass(frozen=True)
class Pair:
    """One model of A and what became of it in B.

    Args:
        name, second_name: of the models in A and in B.
        measure: what was measured of both.
        map50_95: of both, fractions.
        difference: None where chance cannot be told.
        latency_ratio: median of B over that of A; None where A's is 0.
        accurate, quick: whether B is within the tolerance.
        verdict: the same in words.
    """

    name: str
    second_name: str
    measure: Measure
    map50_95: tuple[float, float]
    points: float
    difference: MapDifference | None
    latency_ratio: float | None
    accurate: bool
    quick: bool
    verdict: str

    def __str__(self) -> str:
        name = self.name if self.name == self.second_name else f"{self.name} -> {self.second_name}"
        before, after = self.map50_95
        return f"{name}: {self.measure}50-95 {before:.4f} to {after:.4f}: {self.verdict}."


@dataclass(frozen=True)
class Comparison:
    """B against A.

    Args:
        notes: what a reader must know beside the verdicts, one line each.
    """

    first: str
    second: str
    tolerance: Tolerance
    pairs: tuple[Pair, ...]
    notes: tuple[str, ...]

    @property
    def worse(self) -> tuple[Pair, ...]:
        """The pairs in which B is beyond the tolerance."""
        return tuple(pair for pair in self.pairs if not (pair.accurate and pair.quick))

    def lines(self) -> Iterator[str]:
        """Everything in words; control characters in names out of a file, which a terminal would obey, are escaped."""
        for line in (*map(str, self.pairs), *self.notes):
            yield line if line.isprintable() else repr(line)[1:-1]

    def as_dict(self) -> dict[str, Any]:
        """A JSON object (:func:`~trt_qat.results.file_content`); ``worse`` names the models of A that B is worse at."""
        content: dict[str, Any] = file_content({**asdict(self), "worse": [pair.name for pair in self.worse]})
        return content


@dataclass(frozen=True)
class Side:
    """A run or a result file.

    Args:
        rows: by name: that of the exported file in a run ("fp32", "qat"), else that of the model's file.
        machine: where it was measured; a result file does not say.
    """

    path: Path
    rows: dict[str, ResultRow]
    machine: Machine | None = None

    @property
    def is_run(self) -> bool:
        """Whether it is a run's record."""
        return self.machine is not None

    def by_file(self) -> dict[str, str]:
        """The rows' names by those of the models' files."""
        return {Path(row.model).name: name for name, row in self.rows.items()}


def read_side(path: Path) -> Side:
    """Read one side.

    Args:
        path: a run's folder, its ``run.json``, or what ``evaluate --json`` wrote.

    Raises:
        ArtifactError: missing, or something else; the line names the field.
        ConsistencyError: a result file measured one model twice.
    """
    file = record_file(path)
    if not isinstance(read_json(file, "Run record or result file"), list):
        record = read_record(file)
        return Side(path, {entry.name: entry.result for entry in record.files}, record.machine)
    rows = read_rows(file)
    counts = Counter(Path(row.model).name for row in rows)
    names = [Path(row.model).name if counts[Path(row.model).name] == 1 else row.model for row in rows]
    if len(set(names)) < len(names):
        raise ConsistencyError(f"'{file}' measured one model twice. Evaluate each of the two into a file of its own.")
    return Side(path, dict(zip(names, rows, strict=True)))


def compare(first: Path, second: Path, tolerance: Tolerance, models: Sequence[str] = ()) -> Comparison:
    """B against A, model by model.

    Args:
        first, second: see :func:`read_side`.
        models: names to compare, "NAME" or "NAME=NAME IN B"; by default every name that both have, between a run and a
            result file every model file that both have, or the only row of either.

    Raises:
        ArtifactError: a side cannot be read.
        ConfigError: a name is not there, or the two have nothing in common.
        ConsistencyError: two rows are of other images, or latency is to be judged across machines.
    """
    a, b = read_side(first), read_side(second)
    names = [_asked(name, a, b) for name in models] or _common(a, b)
    notes = list(_notes(a, b, tolerance, names, everything=not models))
    return Comparison(
        str(first),
        str(second),
        tolerance,
        tuple(_pair(name, other, a.rows[name], b.rows[other], tolerance) for name, other in names),
        tuple(notes),
    )


def _asked(text: str, a: Side, b: Side) -> tuple[str, str]:
    name, _, other = (text, "", text) if text in a.rows else text.partition("=")
    for side, wanted in ((a, name), (b, other or name)):
        if wanted not in side.rows:
            raise ConfigError(f"--model '{wanted}' is not in '{side.path}', which has {_listed(side.rows)}.")
    return name, other or name


def _common(a: Side, b: Side) -> list[tuple[str, str]]:
    if a.is_run == b.is_run:
        both = [(name, name) for name in a.rows if name in b.rows]
    else:
        files = b.by_file()
        both = [(name, files[file]) for file, name in a.by_file().items() if file in files]
    if not both and len(a.rows) == len(b.rows) == 1:
        both = [(next(iter(a.rows)), next(iter(b.rows)))]
    if not both:
        raise ConfigError(
            f"'{a.path}' has {_listed(a.rows)} and '{b.path}' {_listed(b.rows)}: no name is in both. Say which to "
            "compare with --model NAME_IN_A=NAME_IN_B."
        )
    return both


def _listed(names: dict[str, ResultRow]) -> str:
    return ", ".join(names)


def _notes(a: Side, b: Side, tolerance: Tolerance, names: Sequence[tuple[str, str]], everything: bool) -> Iterator[str]:
    """What to know beside the verdicts.

    Raises:
        ConsistencyError: latency is to be judged, and the machines differ.
    """
    if a.machine and b.machine and a.machine != b.machine:
        machines = f"A ran on {_machine(a.machine)} and B on {_machine(b.machine)}"
        if tolerance.latency_ratio is not None:
            raise ConsistencyError(
                f"{machines}: their latencies do not compare. Leave --max-latency-ratio away, or run both on one."
            )
        yield f"{machines}: their latencies do not compare."
    elif not _same_file(a.path, b.path):
        yield (
            "The latencies of A and B were measured in different runs, not interleaved, and a machine's speed drifts. "
            "Evaluate both models in one command to compare them."
        )
    if any(a.rows[name].measure == "agreement" for name, _ in names):
        yield NO_ACCURACY
    if not all(a.rows[name].details and b.rows[other].details for name, other in names):
        files = [row.model for name, other in names for row in (a.rows[name], b.rows[other]) if not row.details]
        command = shlex.join(["trt-qat", "evaluate", *dict.fromkeys(files)])
        yield f"What is chance needs details: {command} --data DATA --details --json FILE"
    for which, side, compared in (("A", a, {name for name, _ in names}), ("B", b, {other for _, other in names})):
        alone = [name for name in side.rows if name not in compared]
        if alone and everything:
            yield f"Only in {which}, not compared: {', '.join(alone)}."


def _machine(machine: Machine) -> str:
    return f"{machine.cpu} ({', '.join((f'{machine.cores} cores', *machine.gpus))})"


def _same_file(first: Path, second: Path) -> bool:
    return record_file(first).resolve() == record_file(second).resolve()


def _pair(name: str, other: str, a: ResultRow, b: ResultRow, tolerance: Tolerance) -> Pair:
    difference, moved = map_difference(a, b), points(a, b)
    before, after = a.latency_ms.median, b.latency_ms.median
    ratio = round(after / before, _RATIO_DIGITS) if before else None
    accurate = moved >= -tolerance.points
    quick = tolerance.latency_ratio is None or (ratio is not None and ratio <= tolerance.latency_ratio)
    verdict = _accuracy_verdict(difference, moved, None if accurate else tolerance.points)
    verdict += _latency_verdict(before, after, ratio, None if quick else tolerance.latency_ratio)
    if a.runtime != b.runtime:
        verdict += f" ({a.runtime} and {b.runtime})"
    return Pair(name, other, a.measure, (a.map50_95, b.map50_95), moved, difference, ratio, accurate, quick, verdict)


def _accuracy_verdict(difference: MapDifference | None, moved: float, broken: float | None) -> str:
    """The words for a difference in points; ``broken`` is the tolerance that it is beyond."""
    side = "worse" if moved < 0 else "better"
    text = f"B is {side} by {abs(moved):.2f} points" if moved else "B is neither better nor worse"
    beyond = "" if broken is None else f" and more than the tolerance of {broken:g}"
    if difference is None:
        return f"{text}{beyond}; whether that is chance cannot be told without details"
    text += f" (95 % of resamples: {difference.low:+.2f} to {difference.high:+.2f})"
    if not difference.is_chance:
        return f"{text}: more than chance{beyond}"
    return f"{text}: cannot be told from chance{beyond and f', yet{beyond[4:]}'}"


def _latency_verdict(before: float, after: float, ratio: float | None, broken: float | None) -> str:
    if ratio is None:
        return "; no latency to compare with"
    text = f"; latency {before:.3g} to {after:.3g} ms, times {ratio:.2f}"
    return text if broken is None else f"{text}, more than the tolerance of {broken:g}"
