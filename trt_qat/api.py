"""The verbs: a model and data in, an object out. No caches, no files of other stages, no configuration of everything.

Each verb takes its own section of :mod:`trt_qat.config`, or keywords that change single settings of it. Verbs that
compute with PyTorch take ``device``, see :func:`~trt_qat.model.device.torch_device`; between them models lie on the
CPU.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trt_qat.artifacts import (
    EngineArtifact,
    OnnxArtifact,
    existing_file,
    size_bytes,
    writable_folder,
)
from trt_qat.checkpoint import Model, load
from trt_qat.config import (
    DataSection,
    EngineSection,
    EvaluationSection,
    ExportSection,
    InferSection,
    ParitySection,
    QatSection,
    QuantizationSection,
    SensitivitySection,
    TrainSection,
)
from trt_qat.data.dataset import Dataset, calibration_images
from trt_qat.data.leaks import note_leaks
from trt_qat.engine.build import build_engine
from trt_qat.errors import ArtifactError, ConfigError, DatasetError, RunnerError
from trt_qat.evaluation.accuracy import Accuracy, measure_accuracy
from trt_qat.evaluation.bisect import bisect_layers
from trt_qat.evaluation.details import measure_details
from trt_qat.evaluation.latency import gpu_latencies, measure_latency
from trt_qat.evaluation.parity import Side, compare
from trt_qat.evaluation.parity_report import ParityReport
from trt_qat.evaluation.sensitivity import Ranking, rank_groups
from trt_qat.evaluation.torch_runner import TorchRunner
from trt_qat.footage.named import Data, footage_in
from trt_qat.given_data import (
    FOOTAGE,
    check_trainable_dataset,
    given_dataset,
    images_to_calibrate,
    labelled_by_side,
    labelled_dataset,
    labelled_footage,
)
from trt_qat.halving import halving
from trt_qat.mixed_precision.advice import NEEDS_CHANNELS, NEEDS_SYMMETRIC, Advice, Adviser, gpu_for_advice
from trt_qat.mixed_precision.exported import ExportedMeasure, check_budget_runtime
from trt_qat.mixed_precision.mixes import Budget, rank_candidates
from trt_qat.mixed_precision.mixes import keep_budget as keep_budget_by
from trt_qat.model.activation import has_silu
from trt_qat.model.cpu import tune_cpu
from trt_qat.model.device import computing_on, torch_device
from trt_qat.progress import SILENT, Progress
from trt_qat.provenance import provenance_of
from trt_qat.quantization.calibrate import Remember, batches, calibrate_, no_memory
from trt_qat.quantization.insert import quantize_model
from trt_qat.quantization.placement import Placement
from trt_qat.results import AccuracyDetails, Measure, ResultRow
from trt_qat.runtime.runner import Runner, class_names
from trt_qat.runtime.selection import open_runner, runtime_for
from trt_qat.targets.export import export as export_for_target
from trt_qat.training.activation import train_activation
from trt_qat.training.features.choose import check_features
from trt_qat.training.fp32 import train_fp32
from trt_qat.training.qat import train_qat


def train(
    model: Model,
    data: Data,
    out: str | Path,
    section: TrainSection | None = None,
    *,
    device: str = "auto",
    progress: Progress = SILENT,
    **settings: Any,
) -> Model:
    """Train a float detector with Ultralytics' trainer.

    Args:
        model: where to start from; its class count need not be the dataset's.
        out: folder for the run; ``out/weights/best.pt`` is the best epoch.
        settings: keys of the ``train`` section.

    Returns:
        The best epoch's detector.

    Raises:
        ArtifactError: the weights have their BatchNorm folded, or ``out`` cannot be written.
        DatasetError: the dataset cannot be trained on.
        ConfigError: no such ``device`` here.

    Examples:
        >>> random = trt_qat.load("yolov8n.yaml", imgsz=160)
        >>> trt_qat.train(random, "data.yaml", out="runs/fp32", epochs=1).source.name
        'best.pt'
    """
    tune_cpu()
    computes_on = torch_device(device)
    dataset = labelled_dataset(data, model.names)
    section = (section or TrainSection()).replace(**settings)
    best = train_fp32(model, dataset, Path(out), section, progress, computes_on)
    return load(best, model.imgsz)


def quantize(
    model: Model,
    data: Data | Sequence[str | Path | NDArray[np.uint8]],
    section: QuantizationSection | None = None,
    *,
    placement: Placement | None = None,
    remember: Remember = no_memory,
    device: str = "auto",
    progress: Progress = SILENT,
    **settings: Any,
) -> Model:
    """Put INT8 quantizers into a float model and calibrate them (post-training quantization).

    Args:
        model: float; left as it is.
        data: training images of what it names are used, see :data:`Data`; or all of these images: files, or uint8 BGR
            arrays (h, w, 3). At most ``quantization.images`` of them are read, evenly spaced.
        placement: where the quantizers go; None decides it from the network's graph.
        remember: where an earlier calibration of the same kind may be found.
        settings: keys of the ``quantization`` section, e.g. ``calibrator="mse"``.

    Returns:
        A copy whose convolutions are QuantConv2d; ``provenance["calibration"]`` says how the ranges were found.

    Raises:
        ArtifactError: the model is quantized already.
        DatasetError: no usable image, or another number of classes.
        QuantizationError: the network cannot be traced, or nothing is left to quantize.
        ConfigError: no such ``device`` here.

    Examples:
        >>> model = trt_qat.load("best.pt")
        >>> int8 = trt_qat.quantize(model, "data.yaml", calibrator="mse", images=64)
        >>> int8.stage, int8.provenance["calibration"]["calibrator"]
        ('ptq', 'mse')
    """
    if model.quantized is not None:
        raise ArtifactError(f"'{model.source}' is quantized already ({model.stage}). Give the float weights.")
    tune_cpu()
    computes_on = torch_device(device)
    section = (section or QuantizationSection()).replace(**settings)
    with images_to_calibrate(model, data, section.images, progress) as images:
        quantized = quantize_model(copy.deepcopy(model.network), model.names, section, placement)
        with computing_on(quantized.network, computes_on):
            calibration = calibrate_(quantized, images, model.imgsz, section, remember, progress)
        provenance = {**model.provenance, "calibration": calibration.as_dict()}
    return model.with_quantized(quantized, "ptq", provenance)


def sensitivity(
    model: Model,
    data: Data,
    section: SensitivitySection | None = None,
    *,
    evaluation: EvaluationSection | None = None,
    done: Ranking | None = None,
    keep: Callable[[Ranking], object] = lambda so_far: None,
    device: str = "auto",
    progress: Progress = SILENT,
    **settings: Any,
) -> Ranking:
    """Rank the scale groups of a calibrated model by what INT8 costs in each alone.

    Args:
        evaluation: how mAP or agreement is measured, where ``sensitivity.metric`` asks for it.
        done: what was measured before, which is not measured again.
        keep: told all that is measured after each group.
        settings: keys of the ``sensitivity`` section, e.g. ``metric="drop"``.

    Raises:
        QuantizationError: the model is float.
        DatasetError: no usable image.
        ConfigError: no such ``device`` here.

    Examples:
        >>> rows = trt_qat.sensitivity(int8, "data.yaml", images=4).rows
        >>> rows[0].error > rows[-1].error  # the most costly first; rows[0].convs says which layers
        True
    """
    tune_cpu()
    computes_on = torch_device(device)
    section = (section or SensitivitySection()).replace(**settings)
    evaluation = evaluation or EvaluationSection()
    labels = section.metric != "error"
    with (
        given_dataset(model, data, evaluation=evaluation, labels=labels, device=device, progress=progress) as dataset,
        computing_on(model.network, computes_on),
    ):

        def rank(batch: int) -> Ranking:
            smaller = section.replace(batch=batch)
            return rank_groups(model, dataset, smaller, evaluation, done=done, keep=keep, progress=progress)

        return halving(rank, section.batch, "sensitivity.batch", progress)


def replace_activation(
    model: Model,
    data: Data,
    out: str | Path,
    section: QatSection | None = None,
    *,
    resume: bool = False,
    provenance: Mapping[str, Any] | None = None,
    device: str = "auto",
    progress: Progress = SILENT,
    **settings: Any,
) -> Model:
    """Put another activation in SiLU's place and distil the network from the one with SiLU, before calibration.

    Args:
        model: float, with SiLU; left as it is.
        out: folder for ``best.safetensors``, ``last.safetensors``, the curve and what a resumed run needs.
        resume: go on with the run in ``out`` where it was interrupted; begin if there is none.
        provenance: what goes into the checkpoints and decides whether a run may be resumed; None makes one.
        settings: keys of the ``qat`` section; ``activation`` says which, ``activation_epochs`` how long.

    Returns:
        The best epoch's float model, to be quantized; :func:`finetune` takes ``model`` as its teacher.

    Raises:
        ConfigError: ``activation`` is ``keep``; the network has no SiLU, or one that its architecture does not name.
        ArtifactError: the model is quantized; ``resume`` with other settings than the run's.
        DatasetError: the dataset cannot be trained on, or has another number of classes.

    Examples:
        >>> fast = trt_qat.replace_activation(model, "data.yaml", "runs/act", activation="relu", activation_epochs=2)
        >>> int8 = trt_qat.quantize(fast, "data.yaml")
        >>> tuned = trt_qat.finetune(int8, "data.yaml", out="runs/x", teacher=model)
    """
    tune_cpu()
    section = (section or QatSection()).replace(**settings)
    dataset = _training_data(model, data, Path(out), device, progress)
    if provenance is None:
        provenance = _training_provenance(model, dataset, section)
    best = train_activation(
        model, dataset, Path(out), section, provenance, progress, device=torch_device(device), resume=resume
    )
    return load(best.path, model.imgsz)


def finetune(
    model: Model,
    data: Data,
    out: str | Path,
    section: QatSection | None = None,
    *,
    teacher: Model | None = None,
    ranking: SensitivitySection | None = None,
    resume: bool = False,
    provenance: Mapping[str, Any] | None = None,
    device: str = "auto",
    progress: Progress = SILENT,
    **settings: Any,
) -> Model:
    """Fine-tune a calibrated model with its quantizers in the loop (QAT).

    ``max_drop`` is not looked at here, see :func:`keep_budget`.

    Args:
        model: calibrated; left as it is.
        out: folder for ``best.safetensors``, ``last.safetensors``, the curves and what a resumed run needs.
        teacher: the float model that distillation follows; None is the one that ``model`` was calibrated from.
        ranking: how ``progressive="sensitivity"`` ranks the scale groups.
        resume: go on with the run in ``out`` where it was interrupted; begin if there is none.
        provenance: what goes into the checkpoints and decides whether a run may be resumed; None makes one.
        settings: keys of the ``qat`` section, e.g. ``epochs=2``.

    Returns:
        The best epoch's model, which may be the start itself.

    Raises:
        QuantizationError: the model is float.
        DatasetError: the dataset cannot be trained on, or has another number of classes.
        ArtifactError: ``qat.bn=freeze`` of folded weights; ``resume`` with other settings than the run's.
        ConfigError: no such ``device`` here, ``qat.amp`` of a type that it does not compute in, or ``qat.activation``
            of a model that still has SiLU.

    Examples:
        >>> tuned = trt_qat.finetune(int8, "data.yaml", out="runs/x", epochs=2)
        >>> tuned.stage, tuned.source.name
        ('qat', 'best.safetensors')
    """
    tune_cpu()
    computes_on = torch_device(device)
    section = (section or QatSection()).replace(**settings)
    check_features(section, model)
    if section.activation != "keep" and has_silu(model.network):
        raise ConfigError(
            f"qat.activation={section.activation}: '{model.source}' has SiLU. Put the other activation in its float "
            "network first (replace_activation), calibrate that, and fine-tune it."
        )
    dataset = _training_data(model, data, Path(out), device, progress)
    order: list[str] = []
    if section.progressive == "sensitivity":
        by_error = (ranking or SensitivitySection()).replace(metric="error")
        with computing_on(model.network, computes_on):
            ranked = rank_groups(model, dataset, by_error, EvaluationSection(), progress=progress)
        order = [row.group for row in reversed(ranked.rows)]
    if provenance is None:
        provenance = _training_provenance(model, dataset, section)
    best = train_qat(
        model,
        dataset,
        Path(out),
        section,
        provenance,
        progress,
        device=computes_on,
        order=order,
        teacher=None if teacher is None else teacher.network,
        resume=resume,
    )
    return load(best.path, model.imgsz)


def _training_data(model: Model, data: Data, out: Path, device: str, progress: Progress) -> Dataset:
    """What is trained on; footage is kept in the run's folder."""
    with given_dataset(model, data, folder=out / FOOTAGE, to_train=True, device=device, progress=progress) as dataset:
        check_trainable_dataset(model, dataset)
        return dataset


def _training_provenance(model: Model, dataset: Dataset, section: QatSection) -> dict[str, Any]:
    settings_read = {"model": {"imgsz": list(model.imgsz)}, "qat": section.model_dump(mode="json")}
    return {**model.provenance, **provenance_of(model.source, dataset, settings_read)}


def keep_budget(
    start: Model,
    tuned: Model,
    data: Data,
    max_drop: float,
    *,
    export: ExportSection | None = None,
    evaluation: EvaluationSection | None = None,
    ranking: SensitivitySection | None = None,
    progress: Progress = SILENT,
) -> Budget:
    """Leave the fewest layers of ``tuned`` float that keep mAP50-95 within a budget, measured on exported files.

    Args:
        start: the calibrated model that fine-tuning started from.
        tuned: what :func:`finetune` returned.
        max_drop: the budget in points of mAP50-95, or of agreement (0.2 is 0.002 as a fraction).
        ranking: on how many images the layers are ranked.

    Raises:
        ConfigError: the runtime does not run ONNX files.

    Examples:
        >>> budget = trt_qat.keep_budget(int8, tuned, "data.yaml", max_drop=5)
        >>> budget.met, budget.model.stage
        (True, 'qat')
    """
    tune_cpu()
    section, evaluation = ranking or SensitivitySection(), evaluation or EvaluationSection()
    with (
        given_dataset(start, data, evaluation=evaluation, progress=progress) as dataset,
        tempfile.TemporaryDirectory() as folder,
    ):
        images = calibration_images(dataset, section.images)
        measure = ExportedMeasure(tuned, dataset, export or ExportSection(), evaluation, Path(folder), progress)
        inputs = (make() for make in batches(images, start.imgsz, section.batch))
        return keep_budget_by(start, tuned, max_drop, measure, inputs, progress, of=dataset.measure)


def advise(
    model: Model,
    data: Data | None,
    out: str | Path,
    gpu: str,
    *,
    batch: int = 1,
    max_drop: float | None = None,
    mixes: int = 40,
    evaluation: EvaluationSection | None = None,
    ranking: SensitivitySection | None = None,
    progress: Progress = SILENT,
) -> Advice:
    """Find the form in which a model should run on an RTX GPU: FP16, INT8, or a mix; no GPU is needed.

    TensorRT-RTX compiles every form; how long it takes is estimated from published rates and never measured, see
    :mod:`trt_qat.engine.roofline`.

    Args:
        model: calibrated, with scales per channel.
        data: its val split is what mAP or agreement is measured on; None measures none.
        out: folder for the ONNX file of every form.
        gpu: a key of :data:`trt_qat.engine.roofline.GPUS`, e.g. "rtx4090".
        batch: images per inference.
        max_drop: what INT8 may cost, points of mAP50-95 (or agreement); None recommends at any price.
        mixes: how many the compiler judges at most.
        ranking: on how many images groups are ranked, should the cheapest mix cost more than ``max_drop``.

    Raises:
        QuantizationError: the model is float.
        ConfigError: no such GPU, one whose compiler needs the GPU itself, scales per tensor, or zero points.
        MissingDependency: tensorrt-rtx is not installed.

    Examples:
        >>> advice = trt_qat.advise(int8, "data.yaml", "advice", gpu="rtx4060", mixes=3)
        >>> advice.recommended.estimate.total_ms <= advice.fp16.estimate.total_ms
        True
    """
    tune_cpu()
    card, evaluation, ranking = gpu_for_advice(gpu), evaluation or EvaluationSection(), ranking or SensitivitySection()
    placement = model.require_quantized().placement
    if placement.weights != "channel":
        raise ConfigError(NEEDS_CHANNELS)
    if placement.scheme != "symmetric":
        raise ConfigError(NEEDS_SYMMETRIC)
    check_budget_runtime(evaluation)
    folder, runtime = writable_folder(Path(out)), evaluation.runtime
    dataset: Dataset | None = None
    if data is not None:
        with given_dataset(model, data, folder=folder / FOOTAGE, evaluation=evaluation, progress=progress) as dataset:
            pass

    def accuracy(file: Path) -> float:
        with open_runner(file, runtime, evaluation.threads) as runner:
            return measure_accuracy(runner, dataset, evaluation, progress, file.name).map50_95  # type: ignore[arg-type]

    def rank(calibrated: Model) -> list[str]:
        images = calibration_images(dataset, ranking.images)  # type: ignore[arg-type]
        inputs = (make() for make in batches(images, calibrated.imgsz, ranking.batch))
        found = rank_candidates(calibrated.require_quantized(), inputs, calibrated.imgsz, progress)
        return [candidate.sensitivity.group for candidate in found]

    measure: Measure = "mAP" if dataset is None else dataset.measure
    adviser = Adviser(model, folder, None if dataset is None else accuracy, rank, progress, measure=measure)
    return adviser.advise(card, batch, max_drop, mixes)


def export(
    model: Model,
    out: str | Path,
    section: ExportSection | None = None,
    *,
    thresholds: InferSection | None = None,
    device: str = "cpu",
    progress: Progress = SILENT,
    **settings: Any,
) -> OnnxArtifact:
    """Write a model for the client that runs it, and check that this client computes it right.

    Args:
        out: file or folder; the target's formats say which suffix.
        thresholds: of the NMS that ``nms=True`` builds into the file.
        device: where the network is traced and computes what the file is compared with; on the CPU the file is the same
            on every machine, so ``auto`` is the CPU here.
        settings: keys of the ``export`` section, e.g. ``target="openvino"``.

    Raises:
        ConfigError: no such ``device`` here.
        ExportError: INT8 was asked of a float model, the graph fails ONNX's checks, or the client computes it wrongly.
        ArtifactError: ``out`` cannot be written.

    Examples:
        >>> trt_qat.export(int8, "best_int8.onnx", target="tensorrt").precision
        'int8+fp16'
    """
    tune_cpu()
    section = (section or ExportSection()).replace(**settings)
    with computing_on(model.network, torch_device("cpu" if device == "auto" else device)):
        return export_for_target(model, Path(out), section, progress, thresholds=thresholds)


def build(
    onnx: str | Path,
    out: str | Path,
    section: EngineSection | None = None,
    *,
    progress: Progress = SILENT,
    **settings: Any,
) -> EngineArtifact:
    """Build a TensorRT engine from an ONNX file; precision is what the file says.

    Args:
        out: ``*.plan`` (a plain plan, with a JSON side-car) or ``*.engine`` (Ultralytics' header before the plan).
        settings: keys of the ``engine`` section, e.g. ``flavor="tensorrt-rtx"``.

    Raises:
        ArtifactError, ConfigError, MissingDependency, EngineError: see
            :func:`~trt_qat.engine.build.build_engine`.

    Examples:
        >>> trt_qat.build("best_int8.onnx", "best_int8.plan", flavor="tensorrt-rtx").flavor
        'tensorrt-rtx'
    """
    return build_engine(Path(onnx), Path(out), (section or EngineSection()).replace(**settings), progress)


def evaluate(
    models: Sequence[str | Path | Model],
    data: Data,
    section: EvaluationSection | None = None,
    *,
    runtime: str | None = None,
    labels_from: str | Path | Model | None = None,
    footage: DataSection | None = None,
    device: str = "auto",
    details: bool = False,
    progress: Progress = SILENT,
    **settings: Any,
) -> list[ResultRow]:
    """mAP (or agreement), latency and size of each model, on the dataset's val split; latency interleaved over all.

    Args:
        models: ``*.onnx``, ``*.plan``, OpenVINO folders, checkpoints, or models in memory.
        runtime: None lets the file decide: ``*.plan`` TensorRT, checkpoints PyTorch, others ``evaluation.runtime``.
        labels_from: the float model that labels images and videos without labels; None is the first float one of
            ``models``.
        footage: how such images and videos become a dataset.
        device: of models that run on PyTorch.
        details: also what stands behind each figure; that takes seconds more.
        settings: keys of the ``evaluation`` section, e.g. ``threads=1``.

    Raises:
        DatasetError: no usable image or no box in the val split, another number of classes, or no float model that
            labels.
        ArtifactError, RunnerError, MissingDependency: a model cannot be read or run.
        ConfigError: no such ``device`` here.

    Examples:
        >>> rows = trt_qat.evaluate(["best.pt", "best_int8.onnx"], "data.yaml")
        >>> [(row.precision, row.runtime) for row in rows]
        [('fp32', 'torch'), ('int8+fp16', 'openvino')]
    """
    section = (section or EvaluationSection()).replace(**settings)
    with ExitStack() as stack:
        runners = [stack.enter_context(_open(model, section, runtime, device)) for model in models]
        labels = [str(model.source if isinstance(model, Model) else model) for model in models]
        accuracies: list[tuple[Accuracy, AccuracyDetails | None]] = []
        measure: Measure = "mAP"
        if footage_in(data) is not None:
            sides = [Side(*pair) for pair in zip(labels, runners, strict=True)]
            if labels_from is not None:
                of = stack.enter_context(_open(labels_from, section, None, device))
                sides = [Side(str(labels_from.source if isinstance(labels_from, Model) else labels_from), of)]
            data = stack.enter_context(labelled_by_side(sides, data, footage, section, progress))
        elif labels_from is not None:
            raise DatasetError(
                f"'{data.source if isinstance(data, Dataset) else data}' is a dataset with labels of its own: no model "
                "labels it. Give its folder of images to measure agreement, or leave labels_from (--labels-from) away."
            )
        for label, runner in zip(labels, runners, strict=True):
            dataset = labelled_dataset(data, class_names(runner.metadata) or None)
            if not accuracies:
                measure = dataset.measure
                note_leaks(dataset, progress)
            measured = partial(_accuracy, runner, dataset, section, progress, Path(label).name, details)
            accuracies.append(halving(measured, section.batch, "evaluation.batch", progress))
        for left_out in dict.fromkeys(accuracy.left_out for accuracy, _ in accuracies if accuracy.left_out):
            progress.note(f"val: {left_out}")
        latencies = measure_latency(runners, section, progress)
        on_gpu = gpu_latencies(runners, section, progress)
    return [
        ResultRow(
            model=label,
            precision=runner.metadata.get("precision", "unknown"),
            runtime=runner.name,
            map50_95=round(accuracy.map50_95, 5),
            map50=round(accuracy.map50, 5),
            images=accuracy.images,
            size_bytes=size_bytes(Path(label)),
            latency_ms=latency,
            left_out=accuracy.left_out,
            gpu_latency=gpu_latency,
            details=behind,
            measure=measure,
        )
        for label, runner, (accuracy, behind), latency, gpu_latency in zip(
            labels, runners, accuracies, latencies, on_gpu, strict=True
        )
    ]


def parity(
    first: str | Path | Model,
    second: str | Path | Model,
    data: Data,
    section: ParitySection | None = None,
    *,
    runtimes: tuple[str | None, str | None] = (None, None),
    imgsz: int | Sequence[int] | None = None,
    bisect: bool = False,
    evaluation: EvaluationSection | None = None,
    infer: InferSection | None = None,
    footage: DataSection | None = None,
    device: str = "auto",
    progress: Progress = SILENT,
    **settings: Any,
) -> ParityReport:
    """Compare what two files, or one file on two runtimes, compute of the same images.

    Args:
        first: ``*.onnx``, ``*.plan``, an OpenVINO folder, a checkpoint (float or fake-quantized), or a model in memory.
        second: likewise.
        data: images of the val split are taken, evenly spaced; labels are needed for mAP or agreement only.
        runtimes: of either; None lets the file decide, as :func:`evaluate` does.
        imgsz: side or (height, width) of the input that checkpoints are run at; None is their own.
        bisect: also look for the first layer that differs, on the images where the two differ most.
        evaluation: the runtime of ``*.onnx``, how mAP or agreement is measured, and images per forward pass.
        infer: what counts as a detection.
        footage: how images and videos without labels become a dataset; the first float one of the two labels them.
        device: where a checkpoint computes: "auto", "cpu", "cuda", "cuda:N".
        settings: keys of the ``parity`` section, e.g. ``images=64``.

    Returns:
        The figures; ``broken`` names every threshold that is not met.

    Raises:
        ConsistencyError: two different networks, or other sizes of input.
        ArtifactError, RunnerError, MissingDependency: a side cannot be read or run; one file on one runtime twice.
        DatasetError: no usable image, or another number of classes.

    Examples:
        >>> report = trt_qat.parity("best_int8.onnx", "best_int8.onnx", "data.yaml", runtimes=("onnxruntime", None))
        >>> report.broken, report.second.runtime
        ((), 'openvino')
    """
    section = (section or ParitySection()).replace(**settings)
    evaluation = evaluation or EvaluationSection()
    _check_two(first, second, [_runtime(*side, evaluation) for side in zip((first, second), runtimes, strict=True)])
    with ExitStack() as stack:
        ours, theirs = (
            Side(
                str(model.source if isinstance(model, Model) else model),
                stack.enter_context(_open(model, evaluation, runtime, device, imgsz)),
            )
            for model, runtime in zip((first, second), runtimes, strict=True)
        )
        if footage_in(data) is not None:
            data = stack.enter_context(
                labelled_by_side((ours, theirs), data, footage, evaluation, progress, needed=False)
            )
        names = class_names(ours.runner.metadata) or class_names(theirs.runner.metadata)
        dataset = labelled_dataset(data, names or None)

        def measure(batch: int) -> ParityReport:
            smaller, shown = evaluation.replace(batch=batch), infer or InferSection()
            return compare(ours, theirs, dataset, section, evaluation=smaller, infer=shown, progress=progress)

        report = halving(measure, evaluation.batch, "evaluation.batch", progress)
        if not bisect:
            return report
        found = bisect_layers(ours, theirs, report.worst_images(dataset.val), section.bisect_sqnr, progress)
        return report.model_copy(update={"bisect": found})


def _check_two(first: str | Path | Model, second: str | Path | Model, runtimes: Sequence[str]) -> None:
    """Refuse to compare a file with itself."""
    if isinstance(first, Model) or isinstance(second, Model) or runtimes[0] != runtimes[1]:
        return
    with suppress(OSError, ValueError):  # one of them is not there, which opening it says
        if Path(first).samefile(second):
            raise RunnerError(
                f"'{first}' on {runtimes[0]} would be compared with itself. Give another file, or another runtime "
                "for one of them (--runtime-a, --runtime-b)."
            )


def _accuracy(
    runner: Runner,
    dataset: Dataset,
    section: EvaluationSection,
    progress: Progress,
    label: str,
    details: bool,
    batch: int,
) -> tuple[Accuracy, AccuracyDetails | None]:
    section = section.replace(batch=batch)
    if details:
        return measure_details(runner, dataset, section, progress, label)
    return measure_accuracy(runner, dataset, section, progress, label), None


def label(
    model: Model,
    data: Data,
    out: str | Path,
    section: DataSection | None = None,
    *,
    evaluation: EvaluationSection | None = None,
    device: str = "auto",
    progress: Progress = SILENT,
    **settings: Any,
) -> Dataset:
    """Make a dataset of images and videos without labels: the model's own confident detections are the labels.

    What is measured on it is agreement with this model (``labelled_by`` is "model"), never mAP. A part is held out, the
    end of each video and the last images. The verbs do the same where they are given images and videos.

    Args:
        model: float, or calibrated, which has the same weights.
        out: new or empty folder, or one of an earlier call; nothing is written elsewhere.
        evaluation: how the detections are suppressed: as for mAP.
        settings: keys of the ``data`` section, e.g. ``frames=256``.

    Raises:
        DatasetError: nothing can be read, ``data`` is a dataset with labels, or the model is fine-tuned.
        ArtifactError: ``out`` holds other files, or cannot be written.
        ConfigError: no such ``device`` here.

    Examples:
        >>> dataset = trt_qat.label(model, "street.mp4", out="runs/footage", frames=64)
        >>> dataset.labelled_by, len(dataset.train) > len(dataset.val) > 0
        ('model', True)
    """
    tune_cpu()
    section = (section or DataSection()).replace(**settings)
    return labelled_footage(
        model, data, Path(out), section=section, evaluation=evaluation, device=device, progress=progress
    )


def _runtime(model: str | Path | Model, runtime: str | None, section: EvaluationSection) -> str:
    """What runs a model: the runtime that was asked for, else what its name says."""
    if isinstance(model, Model) or (runtime is None and _is_checkpoint(Path(model))):
        return "torch"
    return runtime or runtime_for(Path(model), section.runtime)


def _open(
    model: str | Path | Model,
    section: EvaluationSection,
    runtime: str | None,
    device: str,
    imgsz: int | Sequence[int] | None = None,
) -> Runner:
    if isinstance(model, Model):
        return TorchRunner(model, section.threads, torch_device(device))
    path, chosen = Path(model), _runtime(model, runtime, section)
    if chosen != "torch":
        return open_runner(path, chosen, section.threads)
    existing_file(path, "Model")
    if not _is_checkpoint(path):
        raise RunnerError(f"Runtime 'torch' needs a checkpoint (*.pt, *.safetensors), found '{path}'.")
    tune_cpu()
    return TorchRunner(load(path, imgsz), section.threads, torch_device(device))


def _is_checkpoint(path: Path) -> bool:
    return path.suffix.lower() in (".safetensors", ".pt")
