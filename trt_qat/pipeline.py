"""The stages as files: load, call the verb of :mod:`trt_qat.api`, save with provenance. ``run`` is all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trt_qat import api, distributed
from trt_qat.artifacts import CheckpointArtifact, EngineArtifact, ResultRow, writable_folder, write_json
from trt_qat.checkpoint import Model, load, save
from trt_qat.config import Config
from trt_qat.data.dataset import Dataset, load_dataset
from trt_qat.evaluation.picture import comparison_picture
from trt_qat.evaluation.report import markdown_report
from trt_qat.evaluation.sensitivity import Ranking, SensitivityFile, sensitivity_key
from trt_qat.evaluation.sensitivity_chart import draw_sensitivity
from trt_qat.mixed_precision.exported import check_budget_runtime
from trt_qat.mixed_precision.mixes import Budget
from trt_qat.progress import SILENT, Progress
from trt_qat.provenance import provenance_of
from trt_qat.quantization.calibration_cache import CalibrationCache
from trt_qat.runtime.selection import open_runner
from trt_qat.training.features.choose import check_features
from trt_qat.training.resume import check_resumable

MIXES_FILE = "mixed_precision.json"
ALL_INT8_FILE = "best_int8.safetensors"


def train(weights: Path, data: Path, out: Path, config: Config, progress: Progress = SILENT) -> CheckpointArtifact:
    """FP32 training. Writes ``out/weights/best.pt`` (Ultralytics') and ``out/best.safetensors``; returns the latter."""
    writable_folder(out)
    model = load(weights, config.model.imgsz)
    dataset = load_dataset(data)
    best = api.train(model, dataset, out, config.train, progress=progress)
    best = replace(best, provenance=_provenance(weights, dataset, config))
    return save(out / "best.safetensors", best, half=True)


def calibrate(weights: Path, data: Path, out: Path, config: Config, progress: Progress = SILENT) -> Model:
    """Quantize and calibrate a float model; writes one checkpoint. Processes of one job share the images."""
    writable_folder(out.parent)
    model = load(weights, config.model.imgsz)
    int8 = _quantized(model, weights, api.dataset_for(model, data), config, progress)
    return _saved(out, int8)


@dataclass(frozen=True)
class QatResult:
    """The best checkpoint, and what ``qat.max_drop`` led to where it is set (in the main process)."""

    checkpoint: Path
    budget: Budget | None


def qat(
    weights: Path, data: Path, out: Path, config: Config, progress: Progress = SILENT, resume: bool = False
) -> QatResult:
    """Fine-tune a calibrated checkpoint (a float model is calibrated first) to ``out/best.safetensors``.

    With ``config.qat.max_drop`` set, layers are left float until that budget is met, see :func:`trt_qat.keep_budget`.

    Args:
        resume: go on with the run in ``out`` where it was interrupted; begin if there is none.
    """
    model = load(weights, config.model.imgsz)
    dataset = api.dataset_for(model, data)
    check_features(config.qat, model)  # before the time that calibration takes
    if resume:
        check_resumable(out, _provenance(weights, dataset, config))
    if model.quantized is None:
        model = _quantized(model, weights, dataset, config, progress)
    return _fine_tuned(model, weights, dataset, out, config, progress, resume)


def sensitivity(weights: Path, data: Path, out: Path, config: Config, progress: Progress = SILENT) -> SensitivityResult:
    """Rank the scale groups by what each costs alone; float weights are calibrated first. ``out`` is resumed.

    Writes ``out`` (JSON) after each group and a bar chart beside it (PNG) at the end.
    """
    writable_folder(out.parent)
    model = load(weights, config.model.imgsz)
    dataset = api.dataset_for(model, data)
    if model.quantized is None:
        model = _quantized(model, weights, dataset, config, progress)
    key = sensitivity_key(model, dataset, config.sensitivity, config.evaluation)
    file = SensitivityFile(out, key, len(model.require_quantized().placement.groups))
    done, said = file.read()
    if said:
        progress.note(said)
    ranking = api.sensitivity(
        model,
        dataset,
        config.sensitivity,
        evaluation=config.evaluation,
        done=done,
        keep=file.write,
        progress=progress,
    )
    return SensitivityResult(ranking, file.write(ranking), out, draw_sensitivity(ranking.rows, out.with_suffix(".png")))


@dataclass(frozen=True)
class SensitivityResult:
    """A finished ranking and its files."""

    ranking: Ranking
    content: Mapping[str, Any]
    json_file: Path
    chart: Path


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


def run(weights: Path, data: Path, out: Path, config: Config, progress: Progress = SILENT) -> RunResult:
    """Checkpoint and dataset to a calibrated, fine-tuned, exported, built and evaluated INT8 detector."""
    _check_budget(config)
    writable_folder(out)
    model = load(weights, config.model.imgsz)
    check_features(config.qat, model)
    dataset = api.dataset_for(model, data)
    model = replace(model, provenance=_provenance(weights, dataset, config))
    _saved(out / "fp32.safetensors", model)
    int8 = _saved(out / "ptq.safetensors", _quantized(model, weights, dataset, config, progress))
    fine_tuned = _fine_tuned(int8, weights, dataset, out / "qat", config, progress)
    tuned = load(fine_tuned.checkpoint)
    exported = _exported(model, int8, tuned, out, config, progress)
    plan = api.build(exported["qat_tensorrt"], out / "qat.plan", config.engine, progress=progress)
    rows = api.evaluate(list(exported.values()), dataset, config.evaluation, progress=progress)
    write_json(out / "result.json", [row.as_dict() for row in rows])
    (out / "report.md").write_text(markdown_report(rows, model.provenance), encoding="utf-8")
    with open_runner(exported["fp32"], "openvino") as first, open_runner(exported["qat"], "openvino") as second:
        picture = comparison_picture(
            [("FP32", first), ("QAT INT8", second)], dataset.val, config.infer, out / "picture.jpg"
        )
    checkpoints = {
        "fp32": out / "fp32.safetensors",
        "ptq": out / "ptq.safetensors",
        "qat": fine_tuned.checkpoint,
    }
    return RunResult(
        rows, checkpoints, exported, plan, out / "result.json", out / "report.md", picture, fine_tuned.budget
    )


def _exported(
    model: Model, int8: Model, tuned: Model, out: Path, config: Config, progress: Progress
) -> dict[str, Path]:
    """What is measured here, each for OpenVINO, and the fine-tuned model for TensorRT and the configured target."""
    targets = dict.fromkeys(("tensorrt", config.export.target))
    files: list[tuple[str, Model, str]] = [("fp32", model, "openvino"), ("ptq", int8, "openvino")]
    files += [
        ("qat", tuned, "openvino"),
        *((f"qat_{target}", tuned, target) for target in targets if target != "openvino"),
    ]
    return {
        name: api.export(
            which, out / f"{name}.onnx", config.export.replace(target=target, format="onnx"), progress=progress
        ).path
        for name, which, target in progress.over(files, "exporting")
    }


def _quantized(model: Model, weights: Path, dataset: Dataset, config: Config, progress: Progress) -> Model:
    """A float model calibrated, from the calibration cache where it fits."""
    cache = CalibrationCache(Path(config.data.calibration_cache), model.source.stem)
    model = replace(model, provenance=_provenance(weights, dataset, config))
    return api.quantize(model, dataset, config.quantization, remember=cache, progress=progress)


def _fine_tuned(
    int8: Model,
    weights: Path,
    dataset: Dataset,
    out: Path,
    config: Config,
    progress: Progress,
    resume: bool = False,
) -> QatResult:
    _check_budget(config)
    writable_folder(out)
    provenance = _provenance(weights, dataset, config)
    if "calibration" in int8.provenance:
        provenance["calibration"] = int8.provenance["calibration"]
    if distributed.is_main():
        _undo_mixed_precision(out, resume)
    tuned = api.finetune(
        int8,
        dataset,
        out,
        config.qat,
        ranking=config.sensitivity,
        resume=resume,
        provenance=provenance,
        progress=progress,
    )
    best = out / "best.safetensors"
    if config.qat.max_drop is None or not distributed.is_main():
        return QatResult(best, None)
    budget = api.keep_budget(
        int8,
        tuned,
        dataset,
        config.qat.max_drop,
        export=config.export,
        evaluation=config.evaluation,
        sensitivity=config.sensitivity,
        progress=progress,
    )
    if budget.model is not tuned:
        best.replace(out / ALL_INT8_FILE)
        save(best, budget.model)
    write_json(out / MIXES_FILE, budget.report)
    return QatResult(best, budget)


def _check_budget(config: Config) -> None:
    if config.qat.max_drop is not None:
        check_budget_runtime(config.evaluation)


def _undo_mixed_precision(out: Path, resume: bool) -> None:
    """An earlier run in the folder may have left some groups float in ``best``."""
    if resume and (out / ALL_INT8_FILE).is_file():
        (out / ALL_INT8_FILE).replace(out / "best.safetensors")
    for stale in (MIXES_FILE, ALL_INT8_FILE):
        (out / stale).unlink(missing_ok=True)


def _saved(path: Path, model: Model) -> Model:
    if distributed.is_main():
        save(path, model)
    distributed.barrier()
    return model


def _provenance(weights: Path, dataset: Dataset, config: Config) -> dict[str, Any]:
    return provenance_of(weights, dataset, config.model_dump(mode="json"))
