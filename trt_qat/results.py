"""What an evaluation found of one model, as frozen values that are also the schema of ``result.json``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field

from trt_qat.artifacts import write_json
from trt_qat.reading import FileModel, checked, read_json

_STRICT: Final = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)  # these classes are their files' schema
Fraction = Annotated[float, Field(ge=0, le=1)]
Milliseconds = Annotated[float, Field(ge=0)]
OutputError = Annotated[float, Field(ge=-1e-3)]  # rounding takes a zero slightly below it
Text = Annotated[str, Field(min_length=1)]
CURVE_POINTS: Final = 101
Measure = Literal["mAP", "agreement"]


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
        were asked for, ``measure`` where it is not mAP.
        """
        return {k: v for k, v in asdict(self).items() if v is not None and (k, v) != ("measure", "mAP")}


class ResultRows(FileModel):
    """The rows of a result file."""

    rows: tuple[ResultRow, ...]


def read_rows(path: Path) -> tuple[ResultRow, ...]:
    """The rows of a ``result.json``, or of what ``evaluate --json`` wrote.

    Raises:
        ArtifactError: missing, not JSON, or a row is something else; the line names the row and the field.
    """
    content = read_json(path, "Result file")
    return checked(ResultRows, {"rows": content}, path, "Evaluate again.").rows


def write_rows(path: Path, rows: Iterable[ResultRow]) -> None:
    """Write what :func:`read_rows` reads, whole or not at all.

    Raises:
        ArtifactError: a figure is not finite or out of its range, or the file cannot be written.
    """
    content = [row.as_dict() for row in rows]
    checked(ResultRows, {"rows": content}, path, "Nothing was written.")
    write_json(path, content)
