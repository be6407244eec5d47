"""What an evaluation found of one model, as frozen values that are also the schema of ``result.json``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field

from trt_qat.artifacts import write_json
from trt_qat.reading import FileModel, ModelType, checked, read_json

_STRICT: Final = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)  # these classes are their files' schema
Fraction = Annotated[float, Field(ge=0, le=1)]
Milliseconds = Annotated[float, Field(ge=0)]
OutputError = Annotated[float, Field(ge=-1e-3)]  # rounding takes a zero slightly below it
Text = Annotated[str, Field(min_length=1)]
CURVE_POINTS: Final = 101
Measure = Literal["mAP", "agreement"]
"""What counting detections against labels gives: mAP where people made the labels, agreement with the FP32 model where
that made them. Both are counted alike, and nothing that a user sees calls the second by the name of the first."""
_AGREEMENT_KEYS: Final = {
    key: key.replace("map", "agreement")
    for key in (
        *("map50_95", "map50", "map75", "map95", "map50_95_drop"),
        *("fake_quant_map50_95", "start_fake_quant_map50_95", "float_map50_95", "int8_map50_95"),
    )
}
_OTHER_KEYS: Final = _AGREEMENT_KEYS | {theirs: ours for ours, theirs in _AGREEMENT_KEYS.items()}
NO_ACCURACY: Final = (
    "Agreement with the FP32 model is no accuracy: its own detections are the labels, and what it misses or invents, "
    "nobody sees."
)
NOT_ONE: Final = (
    "FP32 itself does not reach 1: were every box right, the interpolation of precision over recall would end at "
    "0.995, and boxes that it was not sure enough of to call them labels count against it as against INT8."
)


def other_names(content: Any, measure: Measure = "mAP") -> Any:
    """JSON values with the names of keys exchanged wherever agreement was measured; done twice, they are as before.

    In a file an object that says ``"measure": "agreement"``, and all that it holds, has ``agreement50_95`` where one of
    mAP has ``map50_95``; Python calls it ``map50_95`` either way. A key of the other kind gets the wrong name by this,
    so that the schema refuses it.
    """
    if isinstance(content, dict):
        measure = content.get("measure", measure)
        names = _OTHER_KEYS if measure == "agreement" else {}
        return {names.get(key, key): other_names(value, measure) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [other_names(value, measure) for value in content]
    return content


def file_content(content: Any) -> Any:
    """JSON values as they are written: under the names of what was measured; ``measure`` only where it is not mAP."""
    return other_names(_without_map(content))


def _without_map(content: Any) -> Any:
    if isinstance(content, dict):
        return {k: _without_map(v) for k, v in content.items() if (k, v) != ("measure", "mAP")}
    return [_without_map(value) for value in content] if isinstance(content, list | tuple) else content


def checked_measures(schema: type[ModelType], content: Any, path: Path, advice: str) -> ModelType:
    """:func:`~trt_qat.reading.checked` of what :func:`file_content` wrote.

    Raises:
        ArtifactError: see there; the line calls a field as the file does.
    """
    try:
        renamed = other_names(content)
    except RecursionError:  # nested deeper than any of these files: the schema says so
        renamed = content
    return checked(schema, renamed, path, advice, say=_as_in_file if renamed != content else str)


def _as_in_file(said: str) -> str:
    return re.sub(r"[a-z]\w*", lambda found: _OTHER_KEYS.get(found[0], found[0]), said)


@dataclass(frozen=True)
class Latency:
    """Milliseconds per forward pass, warm-up apart."""

    __pydantic_config__ = _STRICT

    median: Milliseconds
    p90: Milliseconds
    p99: Milliseconds


@dataclass(frozen=True)
class GpuLatency:
    """What the GPU took by its own clock, between two CUDA events.

    Args:
        compute_ms: the engine alone, on images that are there.
        with_copies_ms: with the images' way to the GPU and the results' way back.
        clocks: of each GPU, right after: ``clocks.sm``, ``clocks.mem``, ``clocks.max.sm`` as nvidia-smi writes them;
            none where it is missing.
    """

    __pydantic_config__ = _STRICT

    compute_ms: Latency
    with_copies_ms: Latency
    clocks: tuple[dict[str, str], ...] = ()


@dataclass(frozen=True)
class LeftOut:
    """Images of a split that could not be used.

    Args:
        images: how many.
        of: how many the split has.
        reason: why the first of them.
    """

    __pydantic_config__ = _STRICT

    images: Annotated[int, Field(ge=0)]
    of: Annotated[int, Field(ge=0)]
    reason: str

    def __str__(self) -> str:
        return f"{self.images} of {self.of} images left out, the first: {self.reason}"


@dataclass(frozen=True)
class ClassAccuracy:
    """One class that has a label in the split.

    Args:
        labels: how many boxes of it there are.
        images: in how many images.
    """

    __pydantic_config__ = _STRICT

    name: str
    map50_95: Fraction
    map50: Fraction
    labels: Annotated[int, Field(ge=1)]
    images: Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class SizeAccuracy:
    """Objects of one size, by COCO's areas in the image's own pixels: below 32^2, up to 96^2, above.

    Args:
        size: "small", "medium" or "large".
        labels: boxes of that size; where there are none, the figures are None.
    """

    __pydantic_config__ = _STRICT

    size: Literal["small", "medium", "large"]
    map50_95: Fraction | None
    map50: Fraction | None
    labels: Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class Curves:
    """Mean over the classes at IoU 0.5; each of :data:`CURVE_POINTS` values, for axes from 0 to 1.

    Args:
        precision_of_recall: interpolated, over recall.
        precision: over the confidence threshold.
        recall: over the confidence threshold.
        f1: over the confidence threshold.
    """

    __pydantic_config__ = _STRICT

    precision_of_recall: tuple[Fraction, ...]
    precision: tuple[Fraction, ...]
    recall: tuple[Fraction, ...]
    f1: tuple[Fraction, ...]


@dataclass(frozen=True)
class AccuracyDetails:
    """What stands behind one mAP.

    Args:
        per_class: in the order of the class ids.
        sizes: small, medium, large.
        map75: mAP at IoU 0.75.
        map95: mAP at IoU 0.95.
        images_sha256: of the names and sizes of the images that were measured and their labels, in their order; two
            results with the same one are paired.
        resampled: mAP50-95 on each draw of the paired bootstrap, see :mod:`trt_qat.evaluation.bootstrap`; the draws
            depend on the number of images alone, so that two results with one ``images_sha256`` are paired.
    """

    __pydantic_config__ = _STRICT

    per_class: tuple[ClassAccuracy, ...]
    sizes: tuple[SizeAccuracy, ...]
    map75: Fraction
    map95: Fraction
    curves: Curves
    images_sha256: str
    resampled: tuple[Fraction, ...]


@dataclass(frozen=True)
class ResultRow:
    """One measured model. mAP as fractions (0.418), never percent; ``images`` counts those that were measured.

    ``measure`` is "agreement" where the labels are the FP32 model's own detections: counted as mAP is, never called so.
    """

    __pydantic_config__ = _STRICT

    model: Text
    precision: Text
    runtime: Text
    map50_95: Fraction
    map50: Fraction
    images: Annotated[int, Field(ge=1)]
    size_bytes: Annotated[int, Field(ge=0)]
    latency_ms: Latency
    left_out: LeftOut | None = None
    gpu_latency: GpuLatency | None = None
    details: AccuracyDetails | None = None
    measure: Measure = "mAP"

    def as_dict(self) -> dict[str, Any]:
        """The JSON object of the documented ``--json`` contract.

        ``left_out`` is there where images were left out, ``gpu_latency`` where a GPU was timed, ``details`` where they
        were asked for, ``measure`` where it is not mAP; see :func:`other_names`.
        """
        content: dict[str, Any] = file_content({k: v for k, v in asdict(self).items() if v is not None})
        return content


class ResultRows(FileModel):
    """The rows of a result file."""

    rows: tuple[ResultRow, ...]


def read_rows(path: Path) -> tuple[ResultRow, ...]:
    """The rows of a ``result.json``, or of what ``evaluate --json`` wrote.

    Raises:
        ArtifactError: missing, not JSON, or a row is something else; the line names the row and the field.
    """
    content = read_json(path, "Result file")
    return checked_measures(ResultRows, {"rows": content}, path, "Evaluate again.").rows


def write_rows(path: Path, rows: Iterable[ResultRow]) -> None:
    """Write what :func:`read_rows` reads, whole or not at all.

    Raises:
        ArtifactError: a figure is not finite or out of its range, or the file cannot be written.
    """
    content = [row.as_dict() for row in rows]
    checked_measures(ResultRows, {"rows": content}, path, "Nothing was written.")
    write_json(path, content)
