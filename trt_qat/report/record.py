"""``run.json``: everything a run found, in one file of one schema. Report, comparison and answers read only this.

What is None was not measured; where that can have several reasons, a field beside it says why. Figures that JSON cannot
say, an infinite SQNR, are None as well: no value differs.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, JsonValue, model_validator

from trt_qat.artifacts import write_text
from trt_qat.evaluation.parity_report import ParityReport
from trt_qat.linter.layout import Drawing
from trt_qat.reading import FileModel, read_json
from trt_qat.results import Fraction, Measure, Milliseconds, ResultRow, Text, checked_measures, other_names

FORMAT: Final = "trt_qat-run-1"
FILE: Final = "run.json"
Step = Literal["fp32", "ptq", "qat"]
Count = Annotated[int, Field(ge=0)]
Size = Annotated[float, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern="^([0-9a-f]{64})?$")]
Base64 = Annotated[str, Field(pattern="^[A-Za-z0-9+/]+={0,2}$")]


class FileRecord(FileModel):
    """A file by name; ``path`` is relative to the run's folder where it lies in it, else its name."""

    path: Text
    sha256: Sha256
    size_bytes: Count


class SplitRecord(FileModel):
    """Images of a split.

    Args:
        left_out: why some were not used, one line; empty if all were.
    """

    images: Count
    left_out: str = ""


class Inputs(FileModel):
    """What the run started from.

    Args:
        weights: ``sha256`` is empty for random weights.
        data: name of the file or folder.
        data_sha256: see :func:`trt_qat.provenance.data_fingerprint`.
        classes: names in the order of their ids.
        calibration_images: how many training images gave the ranges.
        imgsz: height and width of the network's input in pixels.
    """

    weights: FileRecord
    data: Text
    data_sha256: Sha256
    train: SplitRecord
    val: SplitRecord
    classes: tuple[str, ...]
    calibration_images: Count
    calibration_sha256: Sha256
    imgsz: tuple[int, int]


class Machine(FileModel):
    """Where it ran. Latencies of two records compare only where these are equal."""

    cpu: str
    cores: Count
    gpus: tuple[str, ...]


class CalibratorTried(FileModel):
    """A calibrator that ``auto`` compared: the output error with it, see :mod:`trt_qat.model.output_error`."""

    calibrator: Text
    error: float
    chosen: bool


class CalibrationRecord(FileModel):
    """How the ranges were found.

    Args:
        calibrator: in words, e.g. "percentile 99.99".
        tried: empty where the calibrator was given.
        groups: scale groups with a calibrator of their own.
    """

    calibrator: Text
    tried: tuple[CalibratorTried, ...]
    groups: dict[str, str]


class QuantizerRecord(FileModel):
    """One quantizer at one step.

    Args:
        step: of the network, "ptq" or "qat".
        amax: 127 steps; values beyond +-amax are clipped. Of a weight the mean over its channels.
        sqnr_db: signal to quantization noise of its own input, dB; None if no value differs.
        ends: with ``quantization.scheme=asymmetric`` the values beyond which an activation is clipped, instead.
    """

    step: Step
    amax: Size
    sqnr_db: float | None
    ends: tuple[float, float] | None = None

    @property
    def range(self) -> tuple[float, float]:
        """Values below the first and above the second are clipped."""
        return (-self.amax, self.amax) if self.ends is None else self.ends

    @property
    def reach(self) -> float:
        """The largest magnitude that is not clipped."""
        return max(abs(end) for end in self.range)


class Histogram(FileModel):
    """Values that a quantizer reads, in equal bins from ``low`` to ``high``.

    Args:
        low, high: smallest and largest value seen.
        counts: values per bin.
        clipped: share of the values beyond the range.
        below_one_step: share of the values, zeros apart, that round to zero.
        images: how many were looked at.
    """

    low: float
    high: float
    counts: Annotated[tuple[Count, ...], Field(min_length=1)]
    clipped: Fraction
    below_one_step: Fraction
    images: Count


class ConvRecord(FileModel):
    """A convolution in INT8 that reads the group's tensor.

    Args:
        weights: its weight's quantizer at each step.
        macs: multiply-accumulates per image.
        input_max: largest magnitude that it itself reads; other members of the group may reach further.
        input_channels: per group of the convolution.
    """

    name: Text
    weights: tuple[QuantizerRecord, ...]
    macs: Count
    input_max: Size | None = None
    input_channels: Count
    output_channels: Count
    kernel: tuple[int, int]
    depthwise: bool


class GroupRecord(FileModel):
    """A scale group: tensors that share one scale because a concat, split, max-pool or upsample connects them.

    Args:
        name: of the placement.
        convs: the convolutions that read it, at least one.
        adds: modules whose residual add reads it.
        activation: its quantizer at each step.
        histogram: of what the quantizer of the last step reads.
        error: the output error when this group alone is INT8, see
            :class:`~trt_qat.quantization.divergence.OutputDivergence`.
        map50_95_drop: what that costs in mAP50-95 (or agreement), a fraction.
    """

    name: Text
    convs: Annotated[tuple[ConvRecord, ...], Field(min_length=1)]
    adds: tuple[str, ...]
    activation: tuple[QuantizerRecord, ...]
    histogram: Histogram | None
    error: float | None
    map50_95_drop: float | None

    def at(self, step: Step) -> QuantizerRecord | None:
        """The activation quantizer at a step."""
        return next((entry for entry in self.activation if entry.step == step), None)


class FloatLayer(FileModel):
    """A convolution that stays float, and why."""

    name: Text
    reason: Text


class Placement(FileModel):
    """Where the quantizers are in the deployed network: groups in the order in which the network computes them."""

    weights: Literal["channel", "tensor"]
    groups: Annotated[tuple[GroupRecord, ...], Field(min_length=1)]
    float_layers: tuple[FloatLayer, ...]
    measured_on: Count  # images


class Epoch(FileModel):
    """One epoch of the fine-tuning; 0 is the start.

    Args:
        map50_95: of the fake-quantized network, see :mod:`trt_qat.training.qat`.
        losses: the parts of the training loss; empty for the start.
        learning_rate: None for the start.
        seconds: since the start.
    """

    epoch: Count
    map50_95: Fraction
    losses: dict[str, float]
    learning_rate: float | None
    seconds: Size | None


class LayerNoise(FileModel):
    """A quantizer over the epochs, from the error monitor: SQNR in dB (None: no noise) and drift of its range."""

    kind: Literal["activation", "weight"]
    layer: Text
    sqnr_db: tuple[float | None, ...]
    drift: tuple[float, ...]


class Training(FileModel):
    """The fine-tuning.

    Args:
        best: the epoch that was kept; 0 is the calibrated network itself.
        stopped: why it ended before its last epoch; empty if it did not.
        noise: empty where the monitor was off.
    """

    epochs: tuple[Epoch, ...]
    best: Count
    seed: int
    images: Count
    stopped: str
    noise: tuple[LayerNoise, ...]


class Mix(FileModel):
    """A mixed precision that ``qat.max_drop`` tried, measured on its exported file."""

    groups: tuple[str, ...]
    order: str
    weights: str
    drop_points: float
    map50_95: Fraction
    latency_ms: Milliseconds
    chosen: bool


class Budget(FileModel):
    """What ``qat.max_drop`` led to."""

    max_drop_points: Size
    met: bool
    mixes: tuple[Mix, ...]


class LintFinding(FileModel):
    """A finding of the lint."""

    rule: Text
    severity: Literal["broken", "slow", "warning", "info"]
    node: str
    module: str
    message: str
    advice: str


class LintRecord(FileModel):
    """What the lint says of a file for its target."""

    target: Text
    errors: Count
    warnings: Count
    counts: dict[str, int]
    findings: tuple[LintFinding, ...]


class KernelRecord(FileModel):
    """One launch on the GPU, see :class:`trt_qat.engine.compiled.Kernel`."""

    name: str
    role: str
    module: str
    input_type: str
    output_type: str
    fused: tuple[str, ...]
    activation_bytes: Count
    weight_bytes: Count
    macs: Count


class CompilerRecord(FileModel):
    """What NVIDIA's compiler made of a file, without a GPU; never a latency.

    Args:
        sm: compute capability that it was compiled for.
    """

    flavor: Text
    version: str
    sm: int | None
    plan_bytes: Count
    activation_bytes: Count
    weight_bytes: Count
    kernels: tuple[KernelRecord, ...]


class ExportedRecord(FileModel):
    """A file that the run exported.

    Args:
        name: unique in the run: "fp32", "ptq", "qat", "qat_tensorrt" ...
        result: accuracy, latency and size, with ``details``.
        lint: None for a float file.
        compiler: None where it was not compiled, see ``not_compiled``.
    """

    name: Text
    step: Step
    target: Text
    file: FileRecord
    result: ResultRow
    lint: LintRecord | None
    compiler: CompilerRecord | None
    not_compiled: str = ""


class EngineRecord(FileModel):
    """The TensorRT engine. ``run`` is False where it was built and never run: no GPU is here."""

    file: FileRecord
    flavor: Text
    built_from: Text
    run: bool


class ShownBox(FileModel):
    """A detection in an image.

    Args:
        xyxy: in pixels of the shown picture.
        matched: it has a partner in the other network's detections.
    """

    xyxy: tuple[float, float, float, float]
    class_id: Count
    score: Fraction
    matched: bool


class Disagreement(FileModel):
    """An image in which the FP32 and the INT8 file find different objects.

    Args:
        image: its name.
        jpeg: the picture, scaled down, base64.
        size_wh: of that picture in pixels.
    """

    image: Text
    jpeg: Base64
    size_wh: tuple[int, int]
    fp32: tuple[ShownBox, ...]
    int8: tuple[ShownBox, ...]

    @property
    def differing(self) -> int:
        """Boxes without a partner, of both."""
        return sum(not box.matched for box in (*self.fp32, *self.int8))


class Disagreements(FileModel):
    """The images in which the two files disagree most.

    Args:
        first, second: names of the exported files that were compared.
        images: how many were looked at.
        agreeing: in how many of them each detection has a partner.
        conf, iou: what counts as a detection, and as the same one.
    """

    first: Text
    second: Text
    images: Count
    agreeing: Count
    conf: Fraction
    iou: Fraction
    worst: tuple[Disagreement, ...]


class StageRecord(FileModel):
    """A stage of the run and how long it took when it was done."""

    name: Text
    seconds: Size | None


class RunRecord(FileModel):
    """The content of ``run.json``.

    Args:
        created: ISO 8601, UTC.
        command: repeats the run; paths of other folders are shortened to names.
        settings: the whole configuration, section by section.
        seeds: what decided by chance, by name.
        deployed: name of the exported file that the run is for: of the fine-tuned network, for ``export.target``.
        engine: None where TensorRT does not take the network's INT8: ``quantization.scheme=asymmetric``.
        warnings: everything that a user was told, in order.
        measure: what every figure against labels is: mAP, or agreement with the FP32 model where that made the labels.
    """

    format: Literal["trt_qat-run-1"] = FORMAT
    created: Text
    command: Text
    inputs: Inputs
    settings: dict[str, JsonValue]
    seeds: dict[str, int]
    versions: dict[str, str]
    machine: Machine
    stages: tuple[StageRecord, ...]
    calibration: CalibrationRecord
    placement: Placement
    training: Training
    budget: Budget | None
    files: Annotated[tuple[ExportedRecord, ...], Field(min_length=1)]
    deployed: Text
    engine: EngineRecord | None
    parity: tuple[ParityReport, ...]
    drawing: Drawing | None
    disagreements: Disagreements
    warnings: tuple[str, ...]
    measure: Measure = "mAP"

    @model_validator(mode="after")
    def _names_once(self) -> RunRecord:
        for what, names in (
            ("file", [entry.name for entry in self.files]),
            ("group", [group.name for group in self.placement.groups]),
        ):
            if len(set(names)) != len(names):
                raise ValueError(f"a {what} is there twice")
        named = [self.deployed, self.disagreements.first, self.disagreements.second]
        for name in named if self.engine is None else [*named, self.engine.built_from]:
            if self.file(name) is None:
                raise ValueError(f"'{name}' is named, but no file of the run")
        return self

    @model_validator(mode="after")
    def _one_measure(self) -> RunRecord:
        for what, measure in (
            *((f"file '{entry.name}'", entry.result.measure) for entry in self.files),
            *((f"the parity of {pair.first}", pair.measure) for pair in self.parity),
        ):
            if measure != self.measure:
                raise ValueError(f"{what} says {measure}, the run {self.measure}")
        return self

    def file(self, name: str) -> ExportedRecord | None:
        """The exported file of that name."""
        return next((entry for entry in self.files if entry.name == name), None)

    @property
    def float_file(self) -> ExportedRecord | None:
        """The FP32 file."""
        return next((entry for entry in self.files if entry.step == "fp32"), None)

    @property
    def int8_file(self) -> ExportedRecord | None:
        """The file that the run is for."""
        return self.file(self.deployed)


def schema_sha256() -> str:
    """Hex SHA-256 of the schema, so that what depends on it is made again when it changes."""
    return hashlib.sha256(json.dumps(RunRecord.model_json_schema(), sort_keys=True).encode()).hexdigest()


def record_file(run: Path) -> Path:
    """``run.json`` of a run's folder, or the file itself."""
    return run / FILE if run.is_dir() else run


def read_record(run: Path) -> RunRecord:
    """The record of a run.

    Args:
        run: its folder, or ``run.json`` itself.

    Raises:
        ArtifactError: missing, not JSON, or something else; the line names the field.
    """
    file = record_file(run)
    content = read_json(file, "Run record")
    return checked_measures(RunRecord, content, file, "Run `trt-qat run` in its folder again.")


def write_record(folder: Path, record: RunRecord) -> Path:
    """Write ``folder/run.json``, whole or not at all, under the names of :func:`~trt_qat.results.other_names`.

    Raises:
        ArtifactError: it cannot be written.
    """
    file = folder / FILE
    content = other_names(record.model_dump(mode="json"))
    write_text(file, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return file
