"""The answer: what INT8 costs and brings, in one line and one table."""

from __future__ import annotations

from dataclasses import dataclass

from trt_qat.report.compare import paired_difference, points
from trt_qat.report.numbers import fraction, number, signed, target_name
from trt_qat.report.record import ExportedRecord, RunRecord
from trt_qat.results import NO_ACCURACY, NOT_ONE


@dataclass(frozen=True)
class FileRow:
    """An exported file with its difference to FP32.

    Args:
        label: e.g. "QAT for TensorRT".
        points: mAP50-95 (or agreement) minus FP32's, in points; None for FP32 itself and where there is no FP32 file.
        interval: 95 % of that difference over the images, None if it cannot be said.
    """

    label: str
    file: ExportedRecord
    points: float | None
    interval: tuple[float, float] | None

    @property
    def interval_text(self) -> str:
        """``−0.32 to +0.61``; empty if there is none."""
        return "" if self.interval is None else " to ".join(signed(end) for end in self.interval)

    @property
    def by_chance(self) -> bool | None:
        """Whether the difference is no more than chance; None if that cannot be said."""
        return None if self.interval is None else self.interval[0] <= 0 <= self.interval[1]


def file_rows(record: RunRecord) -> tuple[FileRow, ...]:
    """All exported files, in their order."""
    reference = record.float_file
    return tuple(_row(entry, reference) for entry in record.files)


def file_label(entry: ExportedRecord) -> str:
    """``QAT for TensorRT``; the target is left away for the files that are compared on the CPU."""
    step = entry.step.upper()
    return step if entry.name == entry.step else f"{step} for {target_name(entry.target)}"


def answer(record: RunRecord) -> str:
    """What INT8 costs and brings, in one line."""
    int8, fp32 = record.int8_file, record.float_file
    if int8 is None:
        return "This run has no INT8 file."
    if record.measure == "agreement":
        said, beside = f"agrees with FP32 to {fraction(int8.result.map50_95)}", "agreement50-95; FP32 itself"
    else:
        said, beside = f"reaches an mAP50-95 of {fraction(int8.result.map50_95)}", "FP32"
    said = f"INT8 for {target_name(int8.target)} {said}"
    if fp32 is not None:
        said += f" ({beside} {fraction(fp32.result.map50_95)}: {_difference(_row(int8, fp32))})"
        gained = " and ".join(filter(None, (_size(int8, fp32), _cpu_speed(record, fp32))))
        said += f", is {gained}" if gained else ""
    gpu = int8.result.gpu_latency
    if gpu is None:
        return f"{said}; not run on a GPU."
    return f"{said}; on the GPU it takes {number(gpu.compute_ms.median, 2)} ms per image."


def what_agreement_is(record: RunRecord) -> str:
    """What a reader must know of a run whose labels FP32 made, one paragraph; empty for any other."""
    if record.measure != "agreement":
        return ""
    return f"{NO_ACCURACY} {NOT_ONE}"


def times(value: float, of: float) -> float | None:
    """How many times ``of`` is in ``value``; None if that is no number."""
    return value / of if of > 0 else None


def _row(entry: ExportedRecord, reference: ExportedRecord | None) -> FileRow:
    if reference is None or entry is reference:
        return FileRow(file_label(entry), entry, None, None)
    difference = points(reference.result, entry.result)
    paired = paired_difference(reference.result, entry.result)
    return FileRow(file_label(entry), entry, difference, None if paired is None else (paired.low, paired.high))


def _difference(row: FileRow) -> str:
    said = f"{signed(row.points or 0.0)} points"
    if row.by_chance is None:
        return f"{said}, interval not measured"
    verdict = "no more than chance" if row.by_chance else "more than chance"
    return f"{said}, 95 % {row.interval_text}, {verdict}"


def _size(int8: ExportedRecord, fp32: ExportedRecord) -> str:
    ratio = times(fp32.file.size_bytes, int8.file.size_bytes)
    if ratio is None:
        return ""
    return f"{ratio:.1f} times smaller" if ratio >= 1 else f"{1 / ratio:.1f} times larger"


def _cpu_speed(record: RunRecord, fp32: ExportedRecord) -> str:
    """Of the INT8 file of the last step that is for a CPU; without one, of the fastest."""
    timed = [entry for entry in record.files if entry.step == "qat"] or record.files
    fastest = min(timed, key=lambda entry: (entry.target != "openvino", entry.result.latency_ms.median))
    ratio = times(fp32.result.latency_ms.median, fastest.result.latency_ms.median)
    if ratio is None or fastest is fp32:
        return ""
    return f"{ratio:.1f} times as fast on this CPU (for {target_name(fastest.target)})"
