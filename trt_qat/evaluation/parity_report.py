"""What a parity comparison found, as one frozen value that is also the schema of its file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from trt_qat.artifacts import write_json
from trt_qat.config import ParitySection
from trt_qat.reading import FileModel, read_json
from trt_qat.results import Fraction, LeftOut, Measure, Text, checked_measures, file_content

Cosine = Annotated[float, Field(ge=-1.001, le=1.001)]  # rounding takes it past 1
Count = Annotated[int, Field(ge=0)]
Error = Annotated[float, Field(ge=0)]

_SHOWN = 5
_ENOUGH_IMAGES = 128
"""From so many images on ``parity.max_drop`` holds as it is; chance grows with the root of what is missing."""

HEADER = ("output", "lowest cosine", "mean", "lowest PSNR", "largest error", "in image")


class ParitySide(FileModel):
    """One of the two: a file, what runs it, what it computes in and on which device."""

    model: Text
    runtime: Text
    precision: Text
    device: str

    def __str__(self) -> str:
        return f"'{self.model}' on {self.runtime}"


class OutputParity(FileModel):
    """How far an output, or a part of it, is off, image by image.

    Args:
        name: ``output0``, its parts ``output0 boxes`` and ``output0 scores``, ``output1`` ...
        cosine_lowest: over the images; a joint cosine of boxes and scores says nothing about scores, whose values are
            a thousandth of the boxes'.
        cosine_mean: the same, on average.
        psnr_lowest: dB, over the images; None if no value differs anywhere. Against the side of the input for boxes,
            1 for scores, the largest value for anything else.
        largest_error: absolute; pixels of the input for boxes.
        cosine_image: where the cosine is lowest.
        error_image: where the largest error is.
    """

    name: Text
    cosine_lowest: Cosine
    cosine_mean: Cosine
    psnr_lowest: float | None
    largest_error: Error
    cosine_image: Text
    error_image: Text

    def cells(self) -> tuple[str, ...]:
        """One row as text, in the order of :data:`HEADER`."""
        psnr = "equal" if self.psnr_lowest is None else f"{self.psnr_lowest:.1f} dB"
        lowest, mean = f"{self.cosine_lowest:.6f}", f"{self.cosine_mean:.6f}"
        return (self.name, lowest, mean, psnr, f"{self.largest_error:.4g}", self.error_image)


class MatchedDetections(FileModel):
    """Detections with a partner on the other side: the same class, boxes that overlap by at least ``iou``.

    Args:
        conf: scores at or below it are no detections.
        first: how many the first side has.
        first_matched: of these, how many have a partner.
        second: how many the second side has.
        second_matched: of these, how many have a partner.
    """

    conf: Fraction
    iou: Fraction
    first: Count
    first_matched: Count
    second: Count
    second_matched: Count

    def __str__(self) -> str:
        ours, theirs = f"{self.first_matched} of A's {self.first}", f"{self.second_matched} of B's {self.second}"
        return f"{ours} are matched by B, {theirs} by A"


class MapPair(FileModel):
    """mAP50-95 (or agreement) of both sides, fractions, on the images that were compared."""

    first: Fraction
    second: Fraction

    @property
    def drop_points(self) -> float:
        """What the second loses against the first, in points."""
        return 100 * (self.first - self.second)


class LayerParity(FileModel):
    """What one layer of the second side makes of the first side's values, against what the first makes of them.

    Args:
        layer: its name in the file, or that of the module.
        sqnr: signal over difference, dB, over the images; None if no value differs.
        cosine: the lowest over the images.
    """

    layer: Text
    sqnr: float | None
    cosine: Cosine

    def __str__(self) -> str:
        return f"{self.layer} ({'equal' if self.sqnr is None else f'{self.sqnr:.1f} dB'})"


class Bisection(FileModel):
    """The layers that both sides have, in the order of their execution, each given what the first side computed.

    Args:
        limit: dB; a layer below it differs.
        first: the first that differs, None if none does.
        layers: all of them.
        images: which were used.
    """

    limit: float
    first: str | None
    layers: tuple[LayerParity, ...]
    images: tuple[str, ...]

    def differing(self) -> list[LayerParity]:
        """Every layer below the limit, in order."""
        return [row for row in self.layers if row.sqnr is not None and row.sqnr < self.limit]

    def lowest(self) -> LayerParity:
        """The layer that is farthest off."""
        return min(self.layers, key=lambda row: float("inf") if row.sqnr is None else row.sqnr)

    def lines(self) -> list[str]:
        """What was found, for a person."""
        lines = [
            f"Layers: {len(self.layers)} on {len(self.images)} images, each given A's values; limit {self.limit:g} dB"
        ]
        if self.first is None:
            return [*lines, f"No layer differs by itself; the farthest off is {self.lowest()}"]
        first, *others = map(str, self.differing())
        lines.append(f"The first layer that differs is {first}")
        if others:
            more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
            lines.append(f"Behind it, below the limit as well: {', '.join(others[:_SHOWN])}{more}")
        return lines


class ParityReport(FileModel):
    """Two sides compared.

    Args:
        images: how many were compared.
        of: how many the val split has.
        left_out: what of the split could not be used.
        outputs: every output and its parts.
        logits: root mean square difference of the class scores' logits over their standard deviation, on the worst
            image; as :mod:`trt_qat.targets.check` measures it.
        measure: what the labels of the images give.
        map50_95: None where it was not measured, see ``not_measured``.
        not_measured: why not.
        thresholds: that held.
        broken: one line for each threshold that is not met.
        bisect: where the first layer differs, if it was asked for.
    """

    first: ParitySide
    second: ParitySide
    images: Annotated[int, Field(ge=1)]
    of: Annotated[int, Field(ge=1)]
    left_out: LeftOut | None
    outputs: tuple[OutputParity, ...]
    logits: Error
    detections: MatchedDetections
    map50_95: MapPair | None
    not_measured: str
    thresholds: dict[str, float | None]
    broken: tuple[str, ...]
    bisect: Bisection | None = None
    measure: Measure = "mAP"

    def worst_images(self, images: Sequence[Path]) -> list[Path]:
        """Those of ``images`` in which some output is farthest off, each once."""
        names = {name for row in self.outputs for name in (row.cosine_image, row.error_image)}
        return [image for image in images if image.name in names]

    def summary(self) -> str:
        """Which threshold is not met, with its numbers; empty if all are."""
        return f"{self.first} and {self.second} differ: {'; '.join(self.broken)}." if self.broken else ""

    def lines(self) -> list[str]:
        """Everything but the tables, for a person."""
        images = f"{self.images} of {self.of} val images" + (f"; {self.left_out}" if self.left_out else "")
        lines = [
            f"A: {self.first} ({self.first.precision})",
            f"B: {self.second} ({self.second.precision})",
            f"Compared on {images}",
            f"Logits: off by {self.logits:.3f} of their spread on the worst image",
            f"Detections (score {self.detections.conf:g}, IoU {self.detections.iou:g}): {self.detections}",
        ]
        if self.map50_95 is None:
            lines.append(f"{self.measure}50-95: not measured. {self.not_measured}")
        else:
            both, change = self.map50_95, -self.map50_95.drop_points
            lines.append(f"{self.measure}50-95: {both.first:.4f} and {both.second:.4f}, {change:+.2f} points")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """The JSON object, see :func:`~trt_qat.results.file_content`."""
        content: dict[str, Any] = file_content(self.model_dump(mode="json"))
        return content


class ParityReports(FileModel):
    """The content of a run's ``parity.json``."""

    comparisons: tuple[ParityReport, ...]


def write_parity(path: Path, reports: Sequence[ParityReport]) -> None:
    """Write what :func:`read_parity` reads, whole or not at all.

    Raises:
        ArtifactError: it cannot be written.
    """
    content = {"comparisons": [report.as_dict() for report in reports]}
    checked_measures(ParityReports, content, path, "Nothing was written.")
    write_json(path, content)


def read_parity(path: Path) -> tuple[ParityReport, ...]:
    """The comparisons of a run.

    Raises:
        ArtifactError: missing, not JSON, or something else.
    """
    return checked_measures(ParityReports, read_json(path, "Parity file"), path, "Remove it and run again.").comparisons


def broken_thresholds(report: ParityReport, section: ParitySection) -> Iterator[str]:
    """One line for each threshold of the section that the report does not meet."""
    parts = [row for row in report.outputs if any(other.name.startswith(f"{row.name} ") for other in report.outputs)]
    for row in report.outputs:
        if row in parts:  # what is joint of boxes and scores is judged by these
            continue
        if section.min_cosine is not None and row.cosine_lowest < section.min_cosine:
            yield (
                f"{row.name} has a cosine of {row.cosine_lowest:.4f} in '{row.cosine_image}' "
                f"(parity.min_cosine={section.min_cosine:g})"
            )
        if section.min_psnr is not None and row.psnr_lowest is not None and row.psnr_lowest < section.min_psnr:
            yield f"{row.name} has a PSNR of {row.psnr_lowest:.1f} dB (parity.min_psnr={section.min_psnr:g})"
    if section.max_logits is not None and report.logits > section.max_logits:
        yield f"logits are off by {report.logits:.3f} of their spread (parity.max_logits={section.max_logits:g})"
    if section.min_matched is not None:
        yield from _too_few_matched(report.detections, section.min_matched)
    if section.max_drop is not None and report.map50_95 is not None:
        drop, allowed = (
            report.map50_95.drop_points,
            section.max_drop * max(1.0, math.sqrt(_ENOUGH_IMAGES / report.images)),
        )
        if drop > allowed:
            few = f", {allowed:.1f} on so few images" if report.images < _ENOUGH_IMAGES else ""
            yield f"{report.measure}50-95 falls by {drop:.2f} points (parity.max_drop={section.max_drop:g}{few})"


def _too_few_matched(found: MatchedDetections, share: float) -> Iterator[str]:
    """A share counts as too small where chance does not explain it: two standard deviations of so many draws."""
    sides = (("A", found.first, found.first_matched, "B"), ("B", found.second, found.second_matched, "A"))
    for side, count, matched, other in sides:
        allowed = math.floor((1 - share) * count + 2 * math.sqrt((1 - share) * share * count))
        if count - matched > allowed:
            yield (
                f"{count - matched} of {side}'s {count} detections are not matched by {other} (at most {allowed} for "
                f"parity.min_matched={share:g})"
            )
