"""The stages as files: load, call the verb of :mod:`trt_qat.api`, save with provenance. ``run`` is all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trt_qat import api, distributed
from trt_qat.artifacts import CheckpointArtifact, EngineArtifact, ResultRow, writable_folder, write_rows
from trt_qat.checkpoint import Model, load, save
from trt_qat.config import Config
from trt_qat.data.dataset import Dataset, load_dataset
from trt_qat.errors import ConfigError
from trt_qat.evaluation.picture import comparison_picture
from trt_qat.evaluation.report import markdown_report
from trt_qat.evaluation.sensitivity import Ranking, SensitivityFile, sensitivity_key
from trt_qat.evaluation.sensitivity_chart import draw_sensitivity
from trt_qat.mixed_precision.exported import check_budget_runtime
from trt_qat.mixed_precision.files import BEST, undo_budget, write_budget
from trt_qat.mixed_precision.mixes import Budget
from trt_qat.progress import SILENT, Progress
from trt_qat.provenance import provenance_of
from trt_qat.quantization.calibration_cache import CalibrationCache
from trt_qat.runtime.selection import open_runner
from trt_qat.targets.export import fitting
from trt_qat.training.features.choose import check_features
from trt_qat.training.resume import check_resumable


@dataclass(frozen=True)
class RunResult:
    """What ``run`` leaves behind. ``budget``: what ``qat.max_drop`` led to, where it is set."""

    rows: list[ResultRow]
    checkpoints: dict[str, Path]
    exported: dict[str, Path]
    engine: EngineArtifact
    result_json: Path
    report: Path
    picture: Path
    budget: Budget | None


def train(weights: Path, data: Path, out: Path, config: Config, progress: Progress = SILENT) -> CheckpointArtifact:
    """FP32 training. Writes ``out/weights/best.pt`` (Ultralytics') and ``out/best.safetensors``; returns the latter."""
    writable_folder(out)
    dataset = load_dataset(data)
    best = api.train(load(weights, config.model.imgsz), dataset, out, config.train, progress=progress)
    return save(out / BEST, replace(best, provenance=_provenance(weights, dataset, config)), half=True)


def calibrate(weights: Path, data: Path, out: Path, config: Config, progress: Progress = SILENT) -> Model:
    """Quantize and calibrate a float model; writes one checkpoint. Processes of one job share the images."""
    writable_folder(out.parent)
    model = load(weights, config.model.imgsz)
    return _saved(out, _quantized(model, weights, api.dataset_for(model, data), config, progress))


def sensitivity(
    weights: Path, data: Path, out: Path, config: Config, progress: Progress = SILENT
) -> tuple[Ranking, Mapping[str, Any]]:
    """Rank the scale groups by what each costs alone; float weights are calibrated first. ``out`` is resumed.

    Writes ``out`` (JSON) after each group and a bar chart beside it (PNG) at the end; returns also what ``out`` holds.
    """
    writable_folder(out.parent)
    model, dataset = _calibrated(weights, data, config, progress)
    section, evaluation = config.sensitivity, config.evaluation
    key = sensitivity_key(model, dataset, section, evaluation)
    file = SensitivityFile(out, key, len(model.require_quantized().placement.groups))
    done, said = file.read()
    if said:
        progress.note(said)
    ranking = api.sensitivity(
        model, dataset, section, evaluation=evaluation, done=done, keep=file.write, progress=progress
    )
    draw_sensitivity(ranking.rows, out.with_suffix(".png"))
    return ranking, file.write(ranking)


def qat(
    weights: Path, data: Path, out: Path, config: Config, progress: Progress = SILENT, resume: bool = False
) -> Budget | None:
    """Fine-tune a calibrated checkpoint (a float model is calibrated first) to ``out/best.safetensors``.

    With ``config.qat.max_drop`` set, layers are left float until that budget is met, see :func:`trt_qat.keep_budget`;
    the main process returns what that led to.

    Args:
        resume: go on with the run in ``out`` where it was interrupted; begin if there is none.
    """
    check_qat_settings(config)
    writable_folder(out)
    model = load(weights, config.model.imgsz)
    dataset = api.trainable_dataset(model, data)
    check_features(config.qat, model)  # before the time that calibration takes, like the next check
    if resume:
        check_resumable(out, _provenance(weights, dataset, config))
    if model.quantized is None:
        model = _quantized(model, weights, dataset, config, progress)
    return _fine_tuned(model, weights, dataset, out, config, progress, resume)


def run(weights: Path, data: Path, out: Path, config: Config, progress: Progress = SILENT) -> RunResult:
    """Checkpoint and dataset to a calibrated, fine-tuned, exported, built and evaluated INT8 detector."""
    check_qat_settings(config)
    writable_folder(out)
    model = load(weights, config.model.imgsz)
    check_features(config.qat, model)
    dataset = api.trainable_dataset(model, data)
    checkpoints = {"fp32": out / "fp32.safetensors", "ptq": out / "ptq.safetensors", "qat": out / "qat" / BEST}
    model = _saved(checkpoints["fp32"], replace(model, provenance=_provenance(weights, dataset, config)))
    int8 = _saved(checkpoints["ptq"], _quantized(model, weights, dataset, config, progress))
    budget = _fine_tuned(int8, weights, dataset, writable_folder(out / "qat"), config, progress)
    exported = _exported(model, int8, load(checkpoints["qat"]), out, config, progress)
    engine = api.build(exported["qat_tensorrt"], out / "qat.plan", config.engine, progress=progress)
    rows = api.evaluate(list(exported.values()), dataset, config.evaluation, progress=progress)
    result, report, picture = out / "result.json", out / "report.md", out / "picture.jpg"
    write_rows(result, rows)
    report.write_text(markdown_report(rows, model.provenance), encoding="utf-8")
    with open_runner(exported["fp32"], "openvino") as first, open_runner(exported["qat"], "openvino") as second:
        comparison_picture([("FP32", first), ("QAT INT8", second)], dataset.val, config.infer, picture)
    return RunResult(rows, checkpoints, exported, engine, result, report, picture, budget)


def check_qat_settings(config: Config) -> None:
    """Refuse what would fail only after the training.

    Raises:
        ConfigError: ``qat.max_drop`` with a runtime that it cannot be measured on, ``qat.lsq`` with a toolkit that has
            no gradient for its ranges.
    """
    if config.qat.lsq and config.quantization.toolkit != "modelopt":
        raise ConfigError("qat.lsq needs quantization.toolkit=modelopt: the other one keeps its ranges fixed.")
    if config.qat.max_drop is not None:
        check_budget_runtime(config.evaluation)


def _exported(
    model: Model, int8: Model, tuned: Model, out: Path, config: Config, progress: Progress
) -> dict[str, Path]:
    """What is measured here, each for OpenVINO, and the fine-tuned model for TensorRT and the configured target."""
    deployed = dict.fromkeys(("tensorrt", config.export.target))
    files = [("fp32", model, "openvino"), ("ptq", int8, "openvino"), ("qat", tuned, "openvino")]
    files += [(f"qat_{target}", tuned, target) for target in deployed if target != "openvino"]
    sections = {target: config.export.replace(target=target, format="onnx") for _, _, target in files}
    return {
        name: api.export(which, out / f"{name}.onnx", fitting(sections[target], which), progress=progress).path
        for name, which, target in progress.over(files, "exporting")
    }


def _calibrated(weights: Path, data: Path, config: Config, progress: Progress) -> tuple[Model, Dataset]:
    """A calibrated model from weights of any kind, and its dataset."""
    model = load(weights, config.model.imgsz)
    dataset = api.dataset_for(model, data)
    if model.quantized is None:
        model = _quantized(model, weights, dataset, config, progress)
    return model, dataset


def _quantized(model: Model, weights: Path, dataset: Dataset, config: Config, progress: Progress) -> Model:
    """A float model calibrated, from the calibration cache where it fits."""
    cache = CalibrationCache(Path(config.data.calibration_cache), model.source.stem)
    model = replace(model, provenance=_provenance(weights, dataset, config))
    return api.quantize(model, dataset, config.quantization, remember=cache, progress=progress)


def _fine_tuned(
    int8: Model, weights: Path, dataset: Dataset, out: Path, config: Config, progress: Progress, resume: bool = False
) -> Budget | None:
    provenance = _provenance(weights, dataset, config)
    if "calibration" in int8.provenance:
        provenance["calibration"] = int8.provenance["calibration"]
    if distributed.is_main():
        undo_budget(out, resume)
    section, ranking, export, evaluation = config.qat, config.sensitivity, config.export, config.evaluation
    tuned = api.finetune(
        int8, dataset, out, section, ranking=ranking, resume=resume, provenance=provenance, progress=progress
    )
    if section.max_drop is None or not distributed.is_main():
        return None
    budget = api.keep_budget(
        int8, tuned, dataset, section.max_drop, export=export, evaluation=evaluation, ranking=ranking, progress=progress
    )
    write_budget(out, tuned, budget)
    return budget


def _saved(path: Path, model: Model) -> Model:
    if distributed.is_main():
        save(path, model)
    distributed.barrier()
    return model


def _provenance(weights: Path, dataset: Dataset, config: Config) -> dict[str, Any]:
    return provenance_of(weights, dataset, config.model_dump(mode="json"))
