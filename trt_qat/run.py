"""``trt-qat run``: all stages in one folder. A stage whose inputs are as they were is not done again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from trt_qat import api, pipeline
from trt_qat.artifacts import EngineArtifact, file_sha256, writable_folder
from trt_qat.checkpoint import Model, load, save
from trt_qat.config import Config, Flavor
from trt_qat.data.dataset import Dataset, calibration_images
from trt_qat.data.images import images_sha256
from trt_qat.engine.build import choose_flavor
from trt_qat.engine.engine_file import read_sidecar, sidecar_path
from trt_qat.engine.gpu import gpu_names
from trt_qat.errors import ArtifactError, ConfigError
from trt_qat.evaluation.parity_report import ParityReport, read_parity, write_parity
from trt_qat.evaluation.picture import comparison_picture
from trt_qat.evaluation.sensitivity import SensitivityFile, ranking_of, sensitivity_key
from trt_qat.footage.named import Data, given_in
from trt_qat.given_data import FOOTAGE, trainable_dataset
from trt_qat.lock import locked
from trt_qat.manifest import Manifest
from trt_qat.mixed_precision.files import BEST, REPORT, kept_budget, read_budget
from trt_qat.mixed_precision.mixes import Budget
from trt_qat.progress import SILENT, Noting, Progress
from trt_qat.provenance import data_fingerprint, machine, package_versions, provenance_of
from trt_qat.report.collect import ExportedFile, FinishedRun, collect
from trt_qat.report.markdown import write_markdown
from trt_qat.report.page import write_report
from trt_qat.report.record import FILE as RECORD
from trt_qat.report.record import Step, read_record, schema_sha256, write_record
from trt_qat.results import ResultRow, read_rows, write_rows
from trt_qat.runtime.selection import open_runner
from trt_qat.targets.base import check_scheme
from trt_qat.targets.export import fitting
from trt_qat.training.activation import check_activation
from trt_qat.training.features.choose import check_features
from trt_qat.training.resume import check_resumable

_AFTER_ALL = ("the record", "the report")  # stages that the record does not tell of


@dataclass(frozen=True)
class RunResult:
    """What ``run`` leaves behind. ``budget``: what ``qat.max_drop`` led to, where it is set; ``report``: the page.

    ``parity``: the fine-tuned network against its files; a threshold that is not met stands in ``broken``.
    ``engine``: None with ``quantization.scheme=asymmetric``, which TensorRT does not take.
    """

    rows: list[ResultRow]
    checkpoints: dict[str, Path]
    exported: dict[str, Path]
    engine: EngineArtifact | None
    result_json: Path
    picture: Path
    budget: Budget | None
    parity: tuple[ParityReport, ...]
    parity_json: Path
    record: Path
    report: Path


def run(
    weights: Path, data: Data, out: Path, config: Config, progress: Progress = SILENT, *, anew: bool = False
) -> RunResult:
    """Checkpoint and dataset to a calibrated, fine-tuned, exported, built and evaluated INT8 detector.

    Images and videos without labels become a dataset in ``out/footage`` first, whose labels are the float model's own
    detections.

    ``out/manifest.json`` says for each finished stage from what it was made; called again, only what is missing or
    would come out otherwise is made, and fine-tuning goes on where it was interrupted.

    Args:
        anew: make everything again.
    """
    if config.export.nms:  # before hours of work
        raise ConfigError(
            "export.nms=true: `run` measures the files that it exports, which needs raw outputs. Leave it away, and "
            "export OUT/qat/best.safetensors with --nms afterwards."
        )
    check_scheme(config.quantization.scheme, config.export.target)
    pipeline.check_qat_settings(config)
    noting = Noting(progress)
    with locked(out), noting.with_warnings():
        model = load(weights, config.model.fixed_imgsz)
        check_features(config.qat, model)
        check_activation(config.qat, model)
        manifest = Manifest(out, noting, anew=anew)
        dataset = _dataset(model, data, out, config, manifest, noting)
        model = pipeline.sized(model, dataset, config, noting)
        return _Run(
            model, weights, tuple(map(Path, given_in(data))), dataset, out, config, manifest, noting, anew
        ).result()


def _dataset(model: Model, data: Data, out: Path, config: Config, manifest: Manifest, progress: Noting) -> Dataset:
    """What is trained and measured on."""
    making = pipeline.footage_of(model, data, out / FOOTAGE, config, progress, to_train=True)
    if making is None:
        return trainable_dataset(model, data, progress)
    if not making.is_made():  # its images are too many to be files of the stage
        making.files[0].unlink(missing_ok=True)
    manifest.stage("the footage", {"key": making.key}, making.files, making.make)
    return trainable_dataset(model, making.as_given(making.out), progress)


@dataclass(frozen=True)
class _Run:
    """One call: what every stage needs, and the stages in their order."""

    model: Model
    weights: Path
    given: tuple[Path, ...]
    dataset: Dataset
    out: Path
    config: Config
    manifest: Manifest
    progress: Noting
    anew: bool

    def result(self) -> RunResult:
        """Do every stage that is not done."""
        told = tuple(self.progress.lines)
        int8 = self.calibrated(*self.replaced(self.float_checkpoint()))
        ranking = self.sensitivity(int8)
        tuned, budget = self.fine_tuned(int8)
        exported = self.exported({"fp32": self.model, "ptq": int8, "qat": tuned})
        files = {entry.name: entry.file for entry in exported}
        engine = self.engine(files[self.compared]) if self.for_tensorrt else None
        result = self.evaluated(exported)
        picture = self.picture(files)
        parity = self.parity(files[self.compared])
        record = self.record(int8, tuned, ranking, exported, engine, result, parity, told)
        return RunResult(
            rows=list(read_rows(result)),
            checkpoints=self.checkpoints,
            exported=files,
            engine=engine,
            result_json=result,
            picture=picture,
            budget=budget,
            parity=read_parity(parity),
            parity_json=parity,
            record=record,
            report=self.report(record),
        )

    @property
    def checkpoints(self) -> dict[str, Path]:
        """What is kept of each step of the network's way."""
        return {
            "fp32": self.out / "fp32.safetensors",
            "ptq": self.out / "ptq.safetensors",
            "qat": self.out / "qat" / BEST,
        }

    @cached_property
    def data(self) -> str:
        """The hash of the dataset."""
        return data_fingerprint(self.dataset)

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """What every checkpoint carries."""
        return provenance_of(self.weights, self.dataset, self.config.deciding())

    @cached_property
    def flavor(self) -> Flavor:
        """The TensorRT that builds the engine, which is also the target of the file that it builds it from."""
        return choose_flavor(self.config.engine.flavor)[0]

    def stage(
        self, name: str, inputs: Mapping[str, JsonValue], files: Sequence[Path], make: Callable[[], object]
    ) -> None:
        """See :meth:`Manifest.stage`; the versions of the packages are inputs of each."""
        self.manifest.stage(name, {**inputs, "versions": {**package_versions()}}, files, make)

    def float_checkpoint(self) -> Path:
        """The float weights as they were read."""
        file = self.checkpoints["fp32"]
        weights = file_sha256(self.weights) if self.weights.is_file() else str(self.weights)
        self.stage(
            "the float checkpoint",
            {"weights": weights, "imgsz": list(self.model.imgsz)},
            (file,),
            lambda: save(file, replace(self.model, provenance=self.provenance)),
        )
        return file

    def replaced(self, checkpoint: Path) -> tuple[Model, Path]:
        """What is calibrated, and its checkpoint: the float model, or it with ``qat.activation`` in SiLU's place."""
        if self.config.qat.activation == "keep":
            return self.model, checkpoint
        folder = self.out / "qat" / pipeline.ACTIVATION
        file = folder / BEST
        self.stage(
            "the activation",
            {
                "checkpoint": file_sha256(checkpoint),
                "data": self.data,
                "settings": self.config.qat.model_dump(mode="json"),
            },
            (file, folder / "last.safetensors"),
            lambda: pipeline.replaced_activation(
                self.model, self.weights, self.dataset, folder, self.config, self.progress, self.resumable(folder)
            ),
        )
        return load(file), file

    def calibrated(self, model: Model, checkpoint: Path) -> Model:
        """Post-training quantization.

        Args:
            model: float.
            checkpoint: where it is kept.
        """
        file, section = self.checkpoints["ptq"], self.config.quantization
        images = images_sha256(calibration_images(self.dataset, section.images))
        self.stage(
            "the calibration",
            {
                "checkpoint": file_sha256(checkpoint),
                "images": images,
                "settings": section.model_dump(mode="json"),
                **self.head(),
            },
            (file,),
            lambda: save(
                file,
                pipeline.calibrated_model(model, self.weights, self.dataset, self.config, self.progress),
            ),
        )
        # a checkpoint holds folded weights; qat.bn=freeze wants those of the file that was given
        return replace(load(file), with_batchnorm=model.with_batchnorm)

    def head(self) -> dict[str, JsonValue]:
        """What decides besides whether the head's last convolutions are INT8, where that is asked."""
        if not pipeline.asks_about_head(self.config):
            return {}
        read = {"sensitivity": {"val_images"}, "evaluation": {"batch", "conf", "iou", "max_det"}}
        return {"head": {"data": self.data, **self.config.model_dump(mode="json", include=read)}}

    def sensitivity(self, int8: Model) -> Path:
        """What INT8 costs per scale group of the calibrated network."""
        path, config = self.out / "sensitivity.json", self.config
        section, evaluation = config.sensitivity, config.evaluation
        key = sensitivity_key(int8, self.dataset, section, evaluation)
        file = SensitivityFile(path, key, len(int8.require_quantized().placement.groups))
        self.stage(
            "the sensitivity",
            {"key": key},
            (path,),
            lambda: file.write(
                api.sensitivity(
                    int8,
                    self.dataset,
                    section,
                    evaluation=evaluation,
                    done=file.read()[0],
                    keep=file.write,
                    device=config.model.device,
                    progress=self.progress,
                )
            ),
        )
        return path

    def fine_tuned(self, int8: Model) -> tuple[Model, Budget | None]:
        """Quantization-aware fine-tuning, to the budget where there is one."""
        config, folder = self.config, self.out / "qat"
        read = ("qat", "sensitivity") if config.qat.max_drop is None else ("qat", "sensitivity", "export", "evaluation")
        files = [folder / BEST, folder / "last.safetensors"]
        files += [] if config.qat.max_drop is None else [folder / REPORT]
        self.stage(
            "the fine-tuning",
            {
                "checkpoint": file_sha256(self.checkpoints["ptq"]),
                "data": self.data,
                "settings": config.model_dump(mode="json", include=set(read)),
            },
            files,
            lambda: pipeline.fine_tuned_model(
                int8,
                self.weights,
                self.dataset,
                writable_folder(folder),
                config,
                self.progress,
                self.resumable(folder),
                None if config.qat.activation == "keep" else self.model,
            ),
        )
        tuned = load(folder / BEST)
        return tuned, None if config.qat.max_drop is None else kept_budget(folder, tuned)

    def resumable(self, folder: Path) -> bool:
        """Whether fine-tuning goes on with what is in ``folder``; it begins anew where that is of another run."""
        if self.anew or not (folder / "last.safetensors").is_file():
            return False
        try:
            check_resumable(folder, self.provenance)
        except ArtifactError as exc:
            self.progress.note(f"Fine-tuning from its start: {str(exc).partition('. ')[0]}.")
            return False
        return True

    @property
    def for_tensorrt(self) -> bool:
        """Whether TensorRT takes the network's INT8, so that an engine is built."""
        return self.config.quantization.scheme == "symmetric"

    def exported(self, models: Mapping[Step, Model]) -> list[ExportedFile]:
        """What is measured here, each for OpenVINO; the fine-tuned model also for the configured target, and for
        TensorRT and for what builds the engine here.
        """
        engines: tuple[str, ...] = ("tensorrt", self.flavor) if self.for_tensorrt else ()
        deployed = dict.fromkeys((*engines, self.config.export.target))
        wanted: list[tuple[str, Step, str]] = [(step, step, "openvino") for step in models]
        wanted += [(f"qat_{target}", "qat", target) for target in deployed if target != "openvino"]
        return [self.export(name, step, models[step], target) for name, step, target in wanted]

    @property
    def deployed(self) -> str:
        """The name of the exported file that the run is for."""
        target = self.config.export.target
        return "qat" if target == "openvino" else f"qat_{target}"

    @property
    def compared(self) -> str:
        """The name of the exported file that the engine is built from, else of the one that the run is for."""
        return f"qat_{self.flavor}" if self.for_tensorrt else self.deployed

    def export(self, name: str, step: Step, model: Model, target: str) -> ExportedFile:
        """The ONNX file of one of them for one target."""
        file = self.out / f"{name}.onnx"
        section = fitting(self.config.export.replace(target=target, format="onnx"), model)
        self.stage(
            f"the {step.upper()} file{f' for {target}' if name != step else ''}",
            {"checkpoint": file_sha256(self.checkpoints[step]), "settings": section.model_dump(mode="json")},
            (file,),
            lambda: api.export(model, file, section, progress=self.progress),
        )
        return ExportedFile(name, step, target, file)

    def engine(self, onnx: Path) -> EngineArtifact:
        """The TensorRT engine of the fine-tuned model."""
        plan, section = self.out / "qat.plan", self.config.engine
        sidecar = sidecar_path(plan)
        self.stage(
            "the engine",
            {
                "onnx": file_sha256(onnx),
                "settings": section.model_dump(mode="json"),
                "flavor": self.flavor,
                "gpus": list(gpu_names()),
            },
            (plan, sidecar),
            lambda: api.build(onnx, plan, section, progress=self.progress),
        )
        return EngineArtifact(plan, sidecar, read_sidecar(plan).flavor)

    def evaluated(self, exported: Sequence[ExportedFile]) -> Path:
        """Accuracy, latency and size of every file. All of them in one stage: latencies compare side by side alone."""
        file, section = self.out / "result.json", self.config.evaluation
        files = [entry.file for entry in exported]

        def measure() -> None:
            write_rows(file, api.evaluate(files, self.dataset, section, details=True, progress=self.progress))

        self.stage(
            "the evaluation",
            {
                "files": {path.name: file_sha256(path) for path in files},
                "data": self.data,
                "settings": section.model_dump(mode="json"),
                "machine": machine(),
                "details": True,
            },
            (file,),
            measure,
        )
        return file

    def picture(self, files: Mapping[str, Path]) -> Path:
        """A picture of what the figures mean."""
        picture = self.out / "picture.jpg"

        def draw() -> None:
            with open_runner(files["fp32"], "openvino") as fp32, open_runner(files["qat"], "openvino") as qat:
                runners = [("FP32", fp32), ("QAT INT8", qat)]
                comparison_picture(runners, self.dataset.val, self.config.infer, picture)

        self.stage(
            "the picture",
            {
                "files": [file_sha256(files[name]) for name in ("fp32", "qat")],
                "data": self.data,
                "settings": self.config.infer.model_dump(mode="json"),
            },
            (picture,),
            draw,
        )
        return picture

    def record(
        self,
        int8: Model,
        tuned: Model,
        sensitivity: Path,
        exported: Sequence[ExportedFile],
        engine: EngineArtifact | None,
        result: Path,
        parity: Path,
        told: Sequence[str],
    ) -> Path:
        """Everything that was found, in one file.

        Args:
            told: what the user was told before the first stage.
        """
        file, budget = self.out / RECORD, self.out / "qat" / REPORT

        def write() -> None:
            rows = read_rows(result)
            stages = {name: stage for name, stage in self.manifest.stages.items() if name not in _AFTER_ALL}
            finished = FinishedRun(
                folder=self.out,
                weights=self.weights,
                given=self.given,
                dataset=self.dataset,
                config=self.config,
                data_sha256=self.data,
                calibrated=int8,
                tuned=tuned,
                ranking=ranking_of(sensitivity),
                exported=[(entry, row) for entry, row in zip(exported, rows, strict=True)],
                deployed=self.deployed,
                engine=engine,
                built_from=self.compared,
                budget=None if self.config.qat.max_drop is None else read_budget(budget),
                parity=read_parity(parity),
                stages={name: stage.seconds for name, stage in stages.items()},
                warnings=[*told, *(line for stage in stages.values() for line in stage.notes)],
            )
            write_record(self.out, collect(finished, self.progress))

        read = [self.checkpoints["ptq"], self.checkpoints["qat"], sensitivity, result, parity]
        read += [] if engine is None else [engine.path]
        self.stage(
            _AFTER_ALL[0],
            {
                "files": {path.name: file_sha256(path) for path in (*read, *(entry.file for entry in exported))},
                "data": self.data,
                "settings": self.config.model_dump(mode="json"),
                "machine": machine(),
                "told": list(told),
                "schema": schema_sha256(),  # a record of another one could not be read
            },
            (file,),
            write,
        )
        return file

    def report(self, record: Path) -> Path:
        """The record as a page, and as Markdown."""
        page, text = self.out / "report.html", self.out / "report.md"

        def write() -> None:
            content = read_record(record)
            write_report(content, page)
            write_markdown(content, text)

        self.stage(_AFTER_ALL[1], {"record": file_sha256(record)}, (page, text), write)
        return page

    def parity(self, onnx: Path) -> Path:
        """The file that the engine is built from, or that is deployed, against its network, and on two runtimes."""
        file, config = self.out / "parity.json", self.config
        checkpoint = self.checkpoints["qat"]

        def compare() -> None:
            # ONNX Runtime, which has no fast FP16, runs once
            pairs = [(checkpoint, onnx, (None, "openvino")), (onnx, onnx, ("onnxruntime", "openvino"))]
            reports = [
                api.parity(
                    first,
                    second,
                    self.dataset,
                    config.parity,
                    runtimes=runtimes,
                    evaluation=config.evaluation,
                    infer=config.infer,
                    device=config.model.device,
                    progress=self.progress,
                )
                for first, second, runtimes in pairs
            ]
            write_parity(file, reports)

        self.stage(
            "the parity",
            {
                "files": {path.name: file_sha256(path) for path in (checkpoint, onnx)},
                "data": self.data,
                "settings": config.model_dump(mode="json", include={"parity", "evaluation", "infer"}),
                "machine": machine(),
            },
            (file,),
            compare,
        )
        return file
