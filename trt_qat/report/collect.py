"""A finished run as its record: what its files say, and what only the networks at hand can say."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from trt_qat.artifacts import EngineArtifact, file_sha256
from trt_qat.checkpoint import Model
from trt_qat.config import Config
from trt_qat.data.dataset import Dataset, calibration_images
from trt_qat.data.images import images_sha256
from trt_qat.data.labelled import LabelledSplit, labelled_split
from trt_qat.engine.gpu import gpu_names
from trt_qat.errors import TrtQatError
from trt_qat.evaluation.group_sensitivity import GroupSensitivity
from trt_qat.evaluation.parity_report import ParityReport
from trt_qat.halving import halving
from trt_qat.linter.layout import Drawing
from trt_qat.linter.picture import layout
from trt_qat.mixed_precision.files import BudgetContent
from trt_qat.progress import Progress
from trt_qat.provenance import machine, package_versions
from trt_qat.quantization.calibrate import batches
from trt_qat.quantization.calibration import Calibration
from trt_qat.quantization.calibrators.base import Calibrator
from trt_qat.reading import printable
from trt_qat.report.disagreements import disagreements
from trt_qat.report.file_figures import compiler_record, lint_record
from trt_qat.report.layer_figures import placement_record
from trt_qat.report.record import (
    Budget,
    CalibrationRecord,
    CalibratorTried,
    Disagreements,
    EngineRecord,
    ExportedRecord,
    FileRecord,
    Inputs,
    Machine,
    Mix,
    Placement,
    RunRecord,
    SplitRecord,
    StageRecord,
    Step,
)
from trt_qat.report.settings import changed_settings
from trt_qat.report.training_curves import training_record
from trt_qat.results import ResultRow
from trt_qat.runtime.detector import Detector


@dataclass(frozen=True)
class ExportedFile:
    """An exported file of the run: its name in the record, of which step of the network, for which target."""

    name: str
    step: Step
    target: str
    file: Path


@dataclass(frozen=True)
class FinishedRun:
    """Everything that a run has made.

    Args:
        folder: of the run.
        weights: the file it started from.
        given: what was named as data.
        calibrated, tuned: the network before and after the fine-tuning; ``tuned`` is what is exported.
        ranking: what each scale group of ``calibrated`` costs alone.
        exported: every file with what was measured; one is named "fp32".
        deployed: the name of the exported file that the run is for.
        engine: built from the file named ``built_from``; None where none was built.
        stages: seconds of each, None where it is not known.
        warnings: what the user was told.
    """

    folder: Path
    weights: Path
    given: Sequence[Path]
    dataset: Dataset
    config: Config
    data_sha256: str
    calibrated: Model
    tuned: Model
    ranking: Sequence[GroupSensitivity]
    exported: Sequence[tuple[ExportedFile, ResultRow]]
    deployed: str
    engine: EngineArtifact | None
    built_from: str
    budget: BudgetContent | None
    parity: tuple[ParityReport, ...]
    stages: Mapping[str, float | None]
    warnings: Sequence[str]


def collect(run: FinishedRun, progress: Progress) -> RunRecord:
    """Measure the layers, compare the detections, compile and lint the files, and put all of it into one value.

    Raises:
        ArtifactError, RunnerError: a file of the run is missing or cannot be run.
    """
    calibration = run.tuned.provenance.get("calibration") or run.calibrated.provenance["calibration"]
    found, train = machine(), labelled_split(run.dataset, "train")
    return RunRecord(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=repeated(run.weights, run.given, run.folder, run.config),
        inputs=_inputs(run, train),
        settings=run.config.model_dump(mode="json"),
        seeds={"qat": run.config.qat.seed},
        versions=package_versions(),
        machine=Machine(cpu=found["cpu"], cores=found["cores"] or 0, gpus=gpu_names()),
        stages=tuple(StageRecord(name=name, seconds=seconds) for name, seconds in run.stages.items()),
        calibration=calibration_record(Calibration.from_dict(calibration)),
        placement=_placement(run, progress),
        training=training_record(
            run.folder / "qat",
            run.config.qat,
            _trained_on(train, run.config),
            run.tuned.provenance.get("training", {}),
            run.dataset.measure,
        ),
        budget=None if run.budget is None else _budget(run.budget),
        files=tuple(_file(run, *entry) for entry in progress.over(run.exported, "compiling for the report")),
        deployed=run.deployed,
        engine=None if run.engine is None else _engine(run, run.engine),
        parity=tuple(_without_folder(report, run.folder) for report in run.parity),
        drawing=_drawing(run),
        disagreements=_disagreements(run, progress),
        warnings=tuple(printable(line) for line in dict.fromkeys(run.warnings)),
        measure=run.dataset.measure,
    )


def _engine(run: FinishedRun, engine: EngineArtifact) -> EngineRecord:
    ran = any(row.runtime == "tensorrt" for _, row in run.exported)
    file = _record(engine.path, run.folder)
    return EngineRecord(file=file, flavor=engine.flavor, built_from=run.built_from, run=ran)


def repeated(weights: Path, data: Sequence[Path], folder: Path, config: Config) -> str:
    """The call of `trt-qat run` that makes the same again, with what differs from the defaults as ``--set``."""
    found = changed_settings(config.model_dump(mode="json"))
    changed = [f"--set {shlex.quote(f'{setting.key}={_as_yaml(setting.value)}')}" for setting in found]
    paths = [("--weights", weights), *(("--data", path) for path in data), ("--out", folder)]
    given = [f"{option} {shlex.quote(_shown(path))}" for option, path in paths]
    return " ".join(["trt-qat run", *given, *changed])


def _as_yaml(value: Any) -> str:
    """A setting as ``--set`` reads it; a word as it is, where YAML takes it for nothing else."""
    is_word = isinstance(value, str) and re.fullmatch(r"[A-Za-z_/-][\w./-]*", value) and yaml.safe_load(value) == value
    return value if is_word else json.dumps(value)


def _shown(path: Path) -> str:
    """A path below the working directory as it is; another one's name, which tells nothing of the machine."""
    try:
        return printable(path.absolute().relative_to(Path.cwd()).as_posix())
    except ValueError:
        return printable(path.name)


def _inputs(run: FinishedRun, train: LabelledSplit) -> Inputs:
    dataset = run.dataset
    images = calibration_images(dataset, run.config.quantization.images)
    weights = FileRecord(path=printable(run.weights.name), sha256="", size_bytes=0)
    if run.weights.is_file():
        weights = FileRecord(
            path=printable(run.weights.name),
            sha256=file_sha256(run.weights),
            size_bytes=run.weights.stat().st_size,
        )
    return Inputs(
        weights=weights,
        data=printable(dataset.source.name),
        data_sha256=run.data_sha256,
        train=_split(train, dataset.train),
        val=_split(labelled_split(dataset, "val"), dataset.val),
        classes=tuple(printable(dataset.names[index]) for index in sorted(dataset.names)),
        calibration_images=len(images),
        calibration_sha256=images_sha256(images),
        imgsz=run.tuned.imgsz,
    )


def _split(split: LabelledSplit, listed: Sequence[Path]) -> SplitRecord:
    return SplitRecord(images=len(listed), left_out=printable(str(split.left_out)) if split.left_out else "")


def _trained_on(train: LabelledSplit, config: Config) -> int:
    return max(1, round(len(train.images) * config.qat.fraction))


def calibration_record(calibration: Calibration) -> CalibrationRecord:
    """How the ranges were found, in words."""
    return CalibrationRecord(
        calibrator=in_words(calibration.calibrator),
        tried=tuple(
            CalibratorTried(calibrator=in_words(entry.calibrator), error=entry.error, chosen=entry.chosen)
            for entry in calibration.candidates
        ),
        groups={group: in_words(calibrator) for group, calibrator in calibration.groups.items()},
    )


def in_words(calibrator: Calibrator) -> str:
    """A calibrator with its settings, e.g. "percentile 99.99"."""
    content = calibrator.as_dict()
    settings = [str(value) for key, value in content.items() if key != "calibrator" and value is not None]
    return " ".join([content["calibrator"], *settings])


def _placement(run: FinishedRun, progress: Progress) -> Placement:
    section = run.config.sensitivity
    images = calibration_images(run.dataset, section.images)
    calibrated, tuned = run.calibrated.require_quantized(), run.tuned.require_quantized()

    def measure(batch: int) -> Placement:
        return placement_record(
            calibrated, tuned, [make() for make in batches(images, run.tuned.imgsz, batch)], run.ranking
        )

    return halving(measure, section.batch, "sensitivity.batch", progress)


def _budget(content: BudgetContent) -> Budget:
    chosen = content.chosen
    return Budget(
        max_drop_points=content.max_drop_points,
        met=content.met,
        mixes=tuple(
            Mix(
                groups=step.groups,
                order=step.order,
                weights=step.weights,
                drop_points=step.drop_points,
                map50_95=step.map50_95,
                latency_ms=step.latency_ms,
                chosen=(step.groups, step.weights) == (chosen.groups, chosen.weights),
            )
            for step in content.steps
        ),
    )


def _inside(file: Path, folder: Path) -> str:
    """A file of the run within its folder: where that lies is nobody's business who gets the record."""
    return printable(file.relative_to(folder).as_posix() if file.is_relative_to(folder) else file.name)


def _without_folder(report: ParityReport, folder: Path) -> ParityReport:
    sides = {
        name: side.model_copy(update={"model": _inside(Path(side.model), folder)})
        for name, side in (("first", report.first), ("second", report.second))
    }
    return report.model_copy(update=sides)


def _record(file: Path, folder: Path) -> FileRecord:
    return FileRecord(path=_inside(file, folder), sha256=file_sha256(file), size_bytes=file.stat().st_size)


def _file(run: FinishedRun, entry: ExportedFile, result: ResultRow) -> ExportedRecord:
    is_float = entry.step == "fp32"
    compiler, reason = None, "it is for another client than NVIDIA's compiler"
    if is_float or entry.target.startswith("tensorrt"):
        compiler, reason = compiler_record(entry.file)
    return ExportedRecord(
        name=entry.name,
        step=entry.step,
        target=entry.target,
        file=_record(entry.file, run.folder),
        result=replace(result, model=_inside(Path(result.model), run.folder)),
        lint=None if is_float else lint_record(entry.file, entry.target),
        compiler=compiler,
        not_compiled=printable(reason),
    )


def _drawing(run: FinishedRun) -> Drawing | None:
    try:
        return layout(_named(run, run.deployed).file)
    except TrtQatError:  # no pygraphviz, or too many boxes: the page says that there is no drawing
        return None


def _named(run: FinishedRun, name: str) -> ExportedFile:
    return next(entry for entry, _ in run.exported if entry.name == name)


def _disagreements(run: FinishedRun, progress: Progress) -> Disagreements:
    infer, runtime = run.config.infer, run.config.evaluation.runtime
    first, second = (_named(run, name) for name in ("fp32", run.deployed))
    open_detector = partial(Detector, section=infer, runtime=runtime)
    with open_detector(first.file) as ours, open_detector(second.file) as theirs:
        return disagreements((first.name, ours), (second.name, theirs), run.dataset.val, progress)
