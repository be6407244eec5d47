"""The stages in order, each a function of files and one configuration; ``run`` is all of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trt_qat import distributed
from trt_qat.artifacts import (
    CheckpointArtifact,
    EngineArtifact,
    OnnxArtifact,
    ResultRow,
    existing_file,
    file_sha256,
    writable_folder,
    write_json,
)
from trt_qat.config import Config, Precision, RuntimeName
from trt_qat.data.dataset import (
    Dataset,
    calibration_images,
    check_class_count,
    dataset_fingerprint,
    dataset_sha256,
    evenly_spaced,
    load_dataset,
    ultralytics_data,
)
from trt_qat.data.progress import Note, Progress, Report, no_note, no_report, silent
from trt_qat.engine.build import build_engine
from trt_qat.errors import ArtifactError, BudgetMissed, RunnerError
from trt_qat.evaluation.accuracy import measure_accuracy
from trt_qat.evaluation.latency import measure_latency
from trt_qat.evaluation.mixed_precision import ALL_INT8, REPORT, check_budget_runtime, keep_budget
from trt_qat.evaluation.picture import comparison_picture
from trt_qat.evaluation.report import markdown_table
from trt_qat.evaluation.sensitivity import SensitivityResult, rank_groups
from trt_qat.evaluation.torch_runner import TorchRunner
from trt_qat.export.onnx_export import export_onnx
from trt_qat.model.loading import LoadedModel, load_model, load_unfolded, trainable_network
from trt_qat.quantization.auto_calibrator import Calibration, choice_key, choose_calibrator, load_choice, save_choice
from trt_qat.quantization.calibration import (
    Histograms,
    cache_key,
    collect_histograms,
    load_histograms,
    save_histograms,
)
from trt_qat.quantization.group_calibrators import choose_per_group
from trt_qat.quantization.insert import QuantizedModel, quantize_model
from trt_qat.runtime.runner import Runner, class_names
from trt_qat.runtime.selection import open_runner
from trt_qat.training.checkpoint import Checkpoint, load_checkpoint, package_versions, save_checkpoint
from trt_qat.training.detection_trainer import tune_cpu
from trt_qat.training.fp32 import train_fp32
from trt_qat.training.qat import train_qat
from trt_qat.training.resume import check_resumable
from trt_qat.vision.image import read_image_bgr
from trt_qat.vision.letterbox import network_input


def train(weights: Path, data: Path, out: Path, config: Config, report: Report = no_report) -> CheckpointArtifact:
    """FP32 training. Writes ``out/weights/best.pt`` (Ultralytics') and ``out/best.safetensors``; returns the latter."""
    writable_folder(out)
    dataset = load_dataset(data)
    tune_cpu()
    torch.manual_seed(config.train.seed)
    network = trainable_network(weights, dataset.names)
    best = train_fp32(network, ultralytics_data(dataset), out, config.model, config.train, report)
    return save_checkpoint(
        out / "best.safetensors",
        load_model(best),
        "fp32",
        config.model.imgsz,
        _provenance(weights, dataset, config),
        half=True,
    )


@dataclass(frozen=True)
class CalibrationResult:
    """What ``calibrate`` leaves behind: a checkpoint, and how its ranges were found."""

    path: Path
    calibration: Calibration


def calibrate(weights: Path, data: Path, out: Path, config: Config, progress: Progress = silent) -> CalibrationResult:
    """Quantize and calibrate a float model; writes one checkpoint. Processes of one job share the images."""
    writable_folder(out.parent)
    model = load_float(weights)
    dataset = _dataset_for(model, data)
    quantized, calibration = _calibrated(model, dataset, config, progress)
    if distributed.is_main():
        provenance = {**_provenance(weights, dataset, config), "calibration": calibration.as_dict()}
        save_checkpoint(out, quantized, "ptq", config.model.imgsz, provenance)
    distributed.barrier()
    return CalibrationResult(out, calibration)


def qat(
    weights: Path,
    data: Path,
    out: Path,
    config: Config,
    progress: Progress = silent,
    report: Report = no_report,
    resume: bool = False,
) -> CheckpointArtifact:
    """Fine-tune a calibrated checkpoint (a float model is calibrated first); returns ``out/best.safetensors``.

    With ``config.qat.max_drop`` set, layers are left float until that budget is met, see
    :func:`~trt_qat.evaluation.mixed_precision.keep_budget`.

    Args:
        resume: go on with the run in ``out`` where it was interrupted; begin if there is none.

    Raises:
        BudgetMissed: it cannot be met; ``out`` is complete all the same.
    """
    check_budget_runtime(config)
    writable_folder(out)
    unfolded = load_unfolded(weights) if config.qat.bn == "freeze" else None
    checkpoint = load_any(weights, config)
    dataset = _dataset_for(checkpoint, data)
    provenance = _provenance(weights, dataset, config)
    if resume:
        check_resumable(out, provenance)  # before the time that calibration takes
    if checkpoint.quantized is None:
        quantized, calibration = _calibrated(_loaded(checkpoint, weights), dataset, config, progress)
        provenance["calibration"] = calibration.as_dict()
    else:
        quantized = checkpoint.quantized
        if "calibration" in checkpoint.provenance:
            provenance["calibration"] = checkpoint.provenance["calibration"]
    with quantized.quantizers_off():  # the copy stays float: it is the teacher
        teacher = copy.deepcopy(quantized.network)
    data_dict = ultralytics_data(dataset)
    order: list[str] = []
    if config.qat.progressive == "sensitivity":
        order = _least_costly_first(quantized, dataset, out, config, progress)
    if distributed.is_main():
        _undo_mixed_precision(out, resume)
    best = train_qat(
        quantized,
        teacher,
        data_dict,
        out,
        config.model,
        config.qat,
        provenance,
        report,
        unfolded_network=unfolded,
        order=order,
        resume=resume,
    )
    if config.qat.max_drop is None or not distributed.is_main():
        return best
    calibrated = Checkpoint(quantized.network, quantized.names, "ptq", config.model.imgsz, quantized, {})
    batches = _calibration_batches(dataset, config.sensitivity.images, config.data.batch, config.model.imgsz)
    return keep_budget(calibrated, best.path, dataset, batches, config, progress)


def _undo_mixed_precision(out: Path, resume: bool) -> None:
    """An earlier run in the folder may have left some groups float in ``best``."""
    if resume and (out / ALL_INT8).is_file():
        (out / ALL_INT8).replace(out / "best.safetensors")
    for stale in (REPORT, ALL_INT8):
        (out / stale).unlink(missing_ok=True)


def _least_costly_first(
    model: QuantizedModel, dataset: Dataset, out: Path, config: Config, progress: Progress
) -> list[str]:
    """Every scale group, the one whose quantization changes the output least first."""
    imgsz = config.model.imgsz
    batches = _calibration_batches(dataset, config.sensitivity.images, config.data.batch, imgsz)
    by_error = config.with_values("sensitivity", metric="error")
    ranking = rank_groups(model, imgsz, dataset, batches, by_error, out / "sensitivity.json", progress, no_note)
    return [row.group for row in reversed(ranking.rows)]


def sensitivity(
    weights: Path, data: Path, out: Path, config: Config, progress: Progress = silent, note: Note = no_note
) -> SensitivityResult:
    """Rank the scale groups by what each costs alone; float weights are calibrated first. ``out`` is resumed.

    Writes ``out`` (JSON) after each group and a bar chart beside it (PNG) at the end.
    """
    writable_folder(out.parent)
    checkpoint = load_any(weights, config)
    dataset = _dataset_for(checkpoint, data)
    if checkpoint.quantized is None:
        model, imgsz = _calibrated(_loaded(checkpoint, weights), dataset, config, progress)[0], config.model.imgsz
    else:
        model, imgsz = checkpoint.quantized, checkpoint.imgsz
    batches = _calibration_batches(dataset, config.sensitivity.images, config.data.batch, imgsz)
    return rank_groups(model, imgsz, dataset, batches, config, out, progress, note)


def export(weights: Path, out: Path, config: Config) -> OnnxArtifact:
    """Write the ONNX file of a checkpoint or float model in ``config.export.precision``."""
    checkpoint = load_any(weights, config)
    return export_onnx(checkpoint, out, config.export, checkpoint.imgsz)


def engine(onnx: Path, out: Path, config: Config) -> EngineArtifact:
    """Build the TensorRT plan of an ONNX file."""
    return build_engine(onnx, out, config.engine)


def evaluate(
    models: Sequence[Path],
    data: Path,
    config: Config,
    runtime: RuntimeName | None = None,
    progress: Progress = silent,
) -> list[ResultRow]:
    """mAP, latency and size of each model. Latency is measured interleaved over all of them.

    Args:
        runtime: None lets the file decide: ``*.plan`` TensorRT, checkpoints PyTorch, ``*.onnx`` the configured one.
    """
    with ExitStack() as stack:
        runners = [stack.enter_context(_open(model, config, runtime)) for model in models]
        accuracies = []
        for model, runner in zip(models, runners, strict=True):
            dataset = load_dataset(data, _names(runner))
            accuracies.append(
                measure_accuracy(runner, dataset, config.evaluation, config.data.batch, progress, model.name)
            )
        latencies = measure_latency(runners, config.evaluation, progress)
    return [
        ResultRow(
            model=str(model),
            precision=runner.metadata.get("precision", "fp32"),
            runtime=runner.name,
            map50_95=round(accuracy.map50_95, 5),
            map50=round(accuracy.map50, 5),
            images=accuracy.images,
            size_bytes=model.stat().st_size,
            latency_ms=latency,
        )
        for model, runner, accuracy, latency in zip(models, runners, accuracies, latencies, strict=True)
    ]


@dataclass(frozen=True)
class RunResult:
    """What ``run`` leaves behind. ``missed``: the QAT model does not meet ``qat.max_drop``; all else is there."""

    rows: list[ResultRow]
    checkpoints: dict[str, Path]
    onnx: dict[str, Path]
    engine: EngineArtifact
    result_json: Path
    report: Path
    picture: Path
    missed: BudgetMissed | None


def run(
    weights: Path, data: Path, out: Path, config: Config, progress: Progress = silent, report: Report = no_report
) -> RunResult:
    """Checkpoint and dataset to a calibrated, fine-tuned, exported, built and evaluated INT8 detector."""
    check_budget_runtime(config)
    writable_folder(out)
    model = load_float(weights)
    dataset = _dataset_for(model, data)
    imgsz, provenance = config.model.imgsz, _provenance(weights, dataset, config)
    float_file = save_checkpoint(out / "fp32.safetensors", model, "fp32", imgsz, provenance).path
    ptq_file = calibrate(float_file, data, out / "ptq.safetensors", config, progress).path
    qat_file, missed = out / "qat" / "best.safetensors", None
    try:
        qat(ptq_file, data, out / "qat", config, progress, report)
    except BudgetMissed as exc:  # its best model goes through the other stages like any other
        missed = exc
    exports = (
        ("fp32", float_file, _float_of(config.export.precision)),
        ("ptq", ptq_file, config.export.precision),
        ("qat", qat_file, config.export.precision),
        ("qat_tensorrt", qat_file, "int8+fp16"),
    )
    onnx = {
        name: export(file, out / f"{name}.onnx", with_precision(config, precision)).path
        for name, file, precision in progress(exports, "exporting")
    }
    plan = engine(onnx["qat_tensorrt"], out / "qat.plan", config)
    rows = evaluate([onnx["fp32"], onnx["ptq"], onnx["qat"]], data, config, progress=progress)
    write_json(out / "result.json", [row.as_dict() for row in rows])
    (out / "report.md").write_text(_report(rows, provenance), encoding="utf-8")
    with open_runner(onnx["fp32"], "openvino") as first, open_runner(onnx["qat"], "openvino") as second:
        picture = comparison_picture(
            [("FP32", first), ("QAT INT8", second)], dataset.val, config.infer, out / "picture.jpg"
        )
    checkpoints = {"fp32": float_file, "ptq": ptq_file, "qat": qat_file}
    return RunResult(rows, checkpoints, onnx, plan, out / "result.json", out / "report.md", picture, missed)


def load_float(weights: Path) -> LoadedModel:
    """A float model from ``*.pt``, ``*.yaml`` or an FP32 ``*.safetensors``.

    Raises:
        ArtifactError: missing, unreadable, or a quantized checkpoint.
    """
    tune_cpu()
    if weights.suffix != ".safetensors":
        return load_model(weights)
    checkpoint = load_checkpoint(weights)
    if checkpoint.quantized is not None:
        raise ArtifactError(f"'{weights}' is quantized already ({checkpoint.stage}). Give the float weights.")
    return LoadedModel(checkpoint.network, checkpoint.names, weights)


def load_any(weights: Path, config: Config) -> Checkpoint:
    """A trt_qat checkpoint, or a float model as if it were one."""
    tune_cpu()
    if weights.suffix == ".safetensors":
        return load_checkpoint(weights)
    model = load_model(weights)
    return Checkpoint(model.network, model.names, "fp32", config.model.imgsz, None, {})


def with_precision(config: Config, precision: str) -> Config:
    """The configuration with another export precision."""
    return Config.model_validate(
        {**config.model_dump(), "export": {**config.export.model_dump(), "precision": precision}}
    )


def _loaded(checkpoint: Checkpoint, source: Path) -> LoadedModel:
    return LoadedModel(checkpoint.network, checkpoint.names, source)


def _dataset_for(model: LoadedModel | Checkpoint, data: Path) -> Dataset:
    dataset = load_dataset(data, model.names)
    check_class_count(dataset, model.names)
    return dataset


def _calibrated(
    model: LoadedModel, dataset: Dataset, config: Config, progress: Progress
) -> tuple[QuantizedModel, Calibration]:
    """Quantize and set the ranges, from the calibration cache where it fits."""
    quantized = quantize_model(copy.deepcopy(model.network), model.names, config.quantization)
    images = calibration_images(dataset, config.data.calibration_images)
    bins, imgsz = config.quantization.histogram_bins, config.model.imgsz
    key = cache_key(quantized, dataset_sha256(images), imgsz, bins)
    cache = Path(config.data.calibration_cache) / f"{model.source.stem}-{key}.safetensors"
    histograms = distributed.broadcast(load_histograms(cache))  # all must agree on whether there is a pass
    if histograms is None:
        batches = _batches(images, config.data.batch)
        mine = batches[distributed.rank() :: distributed.world_size()]  # whole ones: their size can move a last bit
        inputs = (_letterboxed(paths, imgsz) for paths in progress(mine, "calibrating"))
        histograms = collect_histograms(quantized, inputs, bins)
        if distributed.is_main():
            save_histograms(cache, histograms)
    section = config.quantization
    if section.calibrator == "auto":
        calibration = _chosen(quantized, histograms, images, config, cache, key, progress)
    else:
        calibration = Calibration.given(section.calibrator, section.percentile)
    quantized.load_amax_(calibration.ranges(histograms))
    return quantized, calibration


def _chosen(
    quantized: QuantizedModel,
    histograms: Histograms,
    images: Sequence[Path],
    config: Config,
    cache: Path,
    key: str,
    progress: Progress,
) -> Calibration:
    """The answer of calibrator ``auto``, from the file beside the histograms where it fits."""
    section, batch = config.quantization, config.data.batch
    file = cache.with_name(f"{cache.stem}-auto-{choice_key(key, section, batch)}.json")
    known = distributed.broadcast(load_choice(file))
    if known is not None:
        return known
    some = _batches(evenly_spaced(images, section.auto_images), batch)
    inputs = [partial(_letterboxed, paths, config.model.imgsz) for paths in some]
    calibration = choose_calibrator(quantized, histograms, inputs, progress)
    if section.auto_per_group:
        calibration = choose_per_group(quantized, histograms, calibration, inputs, progress)
    if distributed.is_main():
        save_choice(file, calibration)
    return calibration


def _batches(images: Sequence[Path], size: int) -> list[Sequence[Path]]:
    return [images[i : i + size] for i in range(0, len(images), size)]


def _letterboxed(paths: Sequence[Path], imgsz: int) -> Tensor:
    return torch.from_numpy(np.concatenate([network_input(read_image_bgr(path), imgsz)[0] for path in paths]))


def _calibration_batches(dataset: Dataset, count: int, batch: int, imgsz: int) -> Iterator[Tensor]:
    for paths in _batches(calibration_images(dataset, count), batch):
        yield _letterboxed(paths, imgsz)


def _provenance(weights: Path, dataset: Dataset, config: Config) -> dict[str, Any]:
    return {
        "weights": weights.name,
        "weights_sha256": file_sha256(weights) if weights.is_file() else "",
        "data": dataset.source.name,
        "data_fingerprint": dataset_fingerprint(dataset.train),
        "versions": package_versions(),
        "config": config.model_dump(mode="json"),
        "seed": config.qat.seed,
    }


def _open(model: Path, config: Config, runtime: RuntimeName | None) -> Runner:
    existing_file(model, "Model")
    by_suffix: dict[str, RuntimeName] = {".plan": "tensorrt", ".safetensors": "torch", ".pt": "torch"}
    chosen = runtime or by_suffix.get(model.suffix.lower(), config.evaluation.runtime)
    if chosen != "torch":
        return open_runner(model, chosen, config.evaluation.threads)
    if by_suffix.get(model.suffix.lower()) != "torch":
        raise RunnerError(f"Runtime 'torch' needs a checkpoint (*.pt, *.safetensors), found '{model}'.")
    checkpoint = load_any(model, config)
    precision: Precision = "fp32" if checkpoint.quantized is None else "int8+fp32"
    return TorchRunner(checkpoint.network, checkpoint.names, checkpoint.imgsz, config.evaluation.threads, precision)


def _names(runner: Runner) -> dict[int, str] | None:
    return class_names(runner.metadata) or None


def _float_of(precision: Precision) -> Precision:
    return "fp16" if precision.endswith("fp16") else "fp32"


def _report(rows: Sequence[ResultRow], provenance: dict[str, Any]) -> str:
    sha256 = provenance["weights_sha256"][:16] or "none: random weights"
    versions = ", ".join(f"{name} {version}" for name, version in provenance["versions"].items())
    return (
        "# FP32, PTQ and QAT, measured on the exported files\n\n"
        + markdown_table(rows)
        + "\nmAP as fractions on the val split, square letterboxed input. Latency: one forward pass, interleaved.\n"
        + f"\nWeights `{provenance['weights']}` (sha256 {sha256}), "
        + f"data `{provenance['data']}`; {versions}.\n"
        + "\nThe TensorRT plan was built, not run: running it needs an NVIDIA GPU.\n"
    )
