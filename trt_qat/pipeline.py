"""The stages as files: load, call the verb of :mod:`trt_qat.api`, save with provenance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from trt_qat import api, distributed
from trt_qat.artifacts import CheckpointArtifact, writable_folder, write_json
from trt_qat.checkpoint import Model, load, save
from trt_qat.config import Config
from trt_qat.data.dataset import Dataset
from trt_qat.data.usual_size import usual_size
from trt_qat.errors import ConfigError
from trt_qat.evaluation.head import decide_head
from trt_qat.evaluation.sensitivity import Ranking, SensitivityFile, sensitivity_key
from trt_qat.evaluation.sensitivity_chart import draw_sensitivity
from trt_qat.footage.dataset import Making
from trt_qat.footage.named import Data
from trt_qat.given_data import (
    FOOTAGE,
    footage_for,
    given_dataset,
    labelled_dataset,
    labelled_footage,
    trainable_dataset,
)
from trt_qat.lock import locked
from trt_qat.mixed_precision.advice import NEEDS_CHANNELS as ADVICE_NEEDS_CHANNELS
from trt_qat.mixed_precision.advice import NEEDS_SYMMETRIC, Advice, gpu_for_advice, with_any_ranges
from trt_qat.mixed_precision.exported import check_budget_runtime
from trt_qat.mixed_precision.files import BEST, undo_budget, write_budget
from trt_qat.mixed_precision.mixes import Budget
from trt_qat.model.device import torch_device
from trt_qat.progress import SILENT, Progress
from trt_qat.provenance import provenance_of
from trt_qat.quantization.calibration_cache import CalibrationCache
from trt_qat.quantization.head import plan_head
from trt_qat.training.activation import check_activation
from trt_qat.training.features.batchnorm import NEEDS_CHANNELS
from trt_qat.training.features.choose import check_features
from trt_qat.training.resume import check_resumable
from trt_qat.vision.size import shown_size

ACTIVATION = "activation"
"""The folder, in that of the fine-tuning, of the float network with another activation."""


def train(weights: Path, data: Data, out: Path, config: Config, progress: Progress = SILENT) -> CheckpointArtifact:
    """FP32 training. Writes ``out/weights/best.pt`` (Ultralytics') and ``out/best.safetensors``; returns the latter."""
    with locked(out):
        dataset, device = labelled_dataset(data, None), config.model.device
        model = sized(load(weights, config.model.fixed_imgsz), dataset, config, progress)
        best = api.train(model, dataset, out, config.train, device=device, progress=progress)
        return save(out / BEST, replace(best, provenance=_provenance(weights, dataset, config)), half=True)


def calibrate(weights: Path, data: Data, out: Path, config: Config, progress: Progress = SILENT) -> Model:
    """Quantize and calibrate a float model; writes one checkpoint. Processes of one job share the images."""
    writable_folder(out.parent)
    model = load(weights, config.model.fixed_imgsz)
    with given(model, data, config, progress, labels=False) as (model, dataset):
        return _saved(out, calibrated_model(model, weights, dataset, config, progress))


@contextmanager
def given(
    model: Model, data: Data, config: Config, progress: Progress, *, folder: Path | None = None, **need: bool
) -> Iterator[tuple[Model, Dataset]]:
    """Within: a model at its size, and the dataset that ``data`` names.

    Args:
        folder: of images and videos without labels; None is a temporary one.
        need: ``labels`` and ``to_train`` of :func:`trt_qat.given_data.footage_for`.
    """
    with given_dataset(model, data, folder=folder, progress=progress, **_how(config), **need) as dataset:
        yield sized(model, dataset, config, progress), dataset


def label(weights: Path, data: Data, out: Path, config: Config, progress: Progress = SILENT) -> Dataset:
    """Images and videos as a dataset in ``out`` whose labels are what the float weights detect."""
    with locked(out.absolute().parent, out.name):
        model = load(weights, config.model.fixed_imgsz)
        return labelled_footage(model, data, out, progress=progress, **_how(config))


def footage_of(
    model: Model, data: Data, folder: Path, config: Config, progress: Progress, *, to_train: bool = False
) -> Making | None:
    """See :func:`trt_qat.given_data.footage_for`."""
    return footage_for(model, data, folder, to_train=to_train, progress=progress, **_how(config))


def _how(config: Config) -> dict[str, Any]:
    auto = config.model.imgsz == "auto"
    return {
        "section": config.data,
        "evaluation": config.evaluation,
        "sized": (lambda model, dataset: sized(model, dataset, config, SILENT)) if auto else None,
        "device": config.model.device,
    }


def sensitivity(
    weights: Path, data: Data, out: Path, config: Config, progress: Progress = SILENT
) -> tuple[Ranking, Mapping[str, Any]]:
    """Rank the scale groups by what each costs alone; float weights are calibrated first. ``out`` is resumed.

    Writes ``out`` (JSON) after each group and a bar chart beside it (PNG) at the end; returns also what ``out`` holds.
    """
    with locked(out.parent, out.name), ExitStack() as stack:
        section, evaluation = config.sensitivity, config.evaluation
        labels = section.metric != "error"
        model, dataset = stack.enter_context(_calibrated(weights, data, config, progress, labels=labels))
        key = sensitivity_key(model, dataset, section, evaluation)
        file = SensitivityFile(out, key, len(model.require_quantized().placement.groups))
        done, said = file.read()
        if said:
            progress.note(said)
        ranking = api.sensitivity(
            model,
            dataset,
            section,
            evaluation=evaluation,
            done=done,
            keep=file.write,
            device=config.model.device,
            progress=progress,
        )
        draw_sensitivity(ranking.rows, out.with_suffix(".png"), dataset.measure)
        return ranking, file.write(ranking)


def qat(
    weights: Path, data: Data, out: Path, config: Config, progress: Progress = SILENT, resume: bool = False
) -> Budget | None:
    """Fine-tune a calibrated checkpoint (a float model is calibrated first) to ``out/best.safetensors``.

    With ``config.qat.max_drop`` set, layers are left float until that budget is met, see :func:`trt_qat.keep_budget`;
    the main process returns what that led to.

    Args:
        resume: go on with the run in ``out`` where it was interrupted; begin if there is none.
    """
    check_qat_settings(config)
    with locked(out):
        model = load(weights, config.model.fixed_imgsz)
        check_features(config.qat, model)  # before the time that labelling and calibration take
        check_activation(config.qat, model)
        with given(model, data, config, progress, folder=out / FOOTAGE, to_train=True) as (model, dataset):
            trainable_dataset(model, dataset, progress)
            if resume:
                check_resumable(out, _provenance(weights, dataset, config))
            start = replaced_activation(model, weights, dataset, out / ACTIVATION, config, progress, resume)
            if start.quantized is None:
                start = calibrated_model(start, weights, dataset, config, progress)
            teacher = None if config.qat.activation == "keep" else model
            return fine_tuned_model(start, weights, dataset, out, config, progress, resume, teacher)


def check_qat_settings(config: Config) -> None:
    """Refuse what would fail only after the training.

    Raises:
        ConfigError: ``qat.max_drop`` with a runtime that it cannot be measured on, ``qat.lsq`` with a toolkit that has
            no gradient for its ranges, ``qat.bn=freeze`` with one scale per weight or another activation,
            ``model.device`` that is not here.
    """
    torch_device(config.model.device)
    if config.qat.lsq and config.quantization.toolkit != "modelopt":
        raise ConfigError("qat.lsq needs quantization.toolkit=modelopt: the other one keeps its ranges fixed.")
    if config.qat.bn == "freeze" and config.quantization.weights == "tensor":
        raise ConfigError(NEEDS_CHANNELS)
    if config.qat.bn == "freeze" and config.qat.activation != "keep":
        raise ConfigError(
            f"qat.bn=freeze needs qat.activation=keep: the network with {config.qat.activation} is trained with its "
            "BatchNorm and folded before calibration. Leave one of them away."
        )
    if config.qat.max_drop is not None:
        check_budget_runtime(config.evaluation)


def advise(
    weights: Path,
    data: Data | None,
    out: Path,
    config: Config,
    gpu: str,
    batch: int,
    max_drop: float | None,
    mixes: int,
    progress: Progress = SILENT,
) -> tuple[Advice, Path]:
    """Compile, estimate and measure every form of a network for one GPU; ``out/advice.json`` holds what was found.

    Without ``data`` float weights get any ranges, which is enough for a compiler and for nothing else.
    """
    gpu_for_advice(gpu)
    if config.quantization.weights != "channel":  # before the time that calibration takes
        raise ConfigError(ADVICE_NEEDS_CHANNELS)
    if config.quantization.scheme != "symmetric":
        raise ConfigError(NEEDS_SYMMETRIC)
    with locked(out), ExitStack() as stack:
        dataset: Dataset | None = None
        if data is not None:
            folder = out / FOOTAGE
            model, dataset = stack.enter_context(_calibrated(weights, data, config, progress, folder=folder))
        else:
            model = load_for_no_data(weights, config, progress)
            model = model if model.quantized else with_any_ranges(model, config.quantization)
        advice = api.advise(
            model,
            dataset,
            out,
            gpu,
            batch=batch,
            max_drop=max_drop,
            mixes=mixes,
            evaluation=config.evaluation,
            ranking=config.sensitivity,
            progress=progress,
        )
        file = out / "advice.json"
        write_json(file, advice.as_dict())
        return advice, file


@contextmanager
def _calibrated(
    weights: Path, data: Data, config: Config, progress: Progress, *, folder: Path | None = None, labels: bool = True
) -> Iterator[tuple[Model, Dataset]]:
    """Within: a calibrated model from weights of any kind, and its dataset; see :func:`given`."""
    loaded = load(weights, config.model.fixed_imgsz)
    with given(loaded, data, config, progress, folder=folder, labels=labels) as (model, dataset):
        if model.quantized is None:
            model = calibrated_model(model, weights, dataset, config, progress)
        yield model, dataset


def sized(model: Model, dataset: Dataset, config: Config, progress: Progress) -> Model:
    """The model at the size that fits the training images, where ``model.imgsz`` is ``auto``; the same model else."""
    if config.model.imgsz != "auto":
        return model
    found = usual_size(dataset.train, max(model.imgsz))
    progress.note(
        f"model.imgsz=auto: {shown_size(found.imgsz)}, in which {found.fitting} of {found.images} images of "
        f"'{dataset.source}' are as large as in a square of {max(model.imgsz)}."
    )
    return replace(model, imgsz=found.imgsz)


def load_for_no_data(weights: Path, config: Config, progress: Progress) -> Model:
    """The model where no images can say its size: what the weights say counts for ``model.imgsz=auto``."""
    model = load(weights, config.model.fixed_imgsz)
    if config.model.imgsz == "auto" and model.quantized is None:
        size = shown_size(model.imgsz)
        progress.note(f"model.imgsz=auto: there are no images to look at; {size}, as the weights say.")
    return model


def calibrated_model(model: Model, weights: Path, dataset: Dataset, config: Config, progress: Progress) -> Model:
    """A float model calibrated, from the calibration cache where it fits.

    For OpenVINO the head's last convolutions may be INT8 too, see :func:`~trt_qat.evaluation.head.decide_head`.
    """
    cache = CalibrationCache(Path(config.data.calibration_cache), model.source.stem)
    model = replace(model, provenance=_provenance(weights, dataset, config))
    section, device = config.quantization, config.model.device
    plan = plan_head(model.network, section) if asks_about_head(config) else None
    placement = None if plan is None else plan.placement
    int8 = api.quantize(model, dataset, section, placement=placement, remember=cache, device=device, progress=progress)
    if plan is None:
        return int8
    return decide_head(int8, plan.groups, dataset, config.sensitivity.val_images, config.evaluation, progress)


def asks_about_head(config: Config) -> bool:
    """Whether it is to be measured if the head's last convolutions may be INT8."""
    return config.quantization.head_int8 == "auto" and config.export.target == "openvino"


def replaced_activation(
    model: Model, weights: Path, dataset: Dataset, out: Path, config: Config, progress: Progress, resume: bool = False
) -> Model:
    """A float model with ``qat.activation`` in SiLU's place, trained in a folder; the same model for ``keep``."""
    activation = config.qat.activation
    if activation == "keep":
        return model
    progress.note(
        f"qat.activation={activation}: FP32 is the network with SiLU; what is calibrated and fine-tuned has "
        f"{activation} in its place, distilled from it for {config.qat.activation_epochs} epochs."
    )
    provenance, device = _provenance(weights, dataset, config), config.model.device
    return api.replace_activation(
        model,
        dataset,
        writable_folder(out),
        config.qat,
        resume=resume,
        provenance=provenance,
        device=device,
        progress=progress,
    )


def fine_tuned_model(
    int8: Model,
    weights: Path,
    dataset: Dataset,
    out: Path,
    config: Config,
    progress: Progress,
    resume: bool = False,
    teacher: Model | None = None,
) -> Budget | None:
    """Fine-tune into a folder, and leave layers float until ``qat.max_drop`` is met, where it is set."""
    provenance = _provenance(weights, dataset, config)
    provenance |= {key: int8.provenance[key] for key in ("calibration", "head_last") if key in int8.provenance}
    if distributed.is_main():
        undo_budget(out, resume)
    section, ranking, export, evaluation = config.qat, config.sensitivity, config.export, config.evaluation
    tuned = api.finetune(
        int8,
        dataset,
        out,
        section,
        teacher=teacher,
        ranking=ranking,
        resume=resume,
        provenance=provenance,
        device=config.model.device,
        progress=progress,
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
    return provenance_of(weights, dataset, config.deciding())
