"""``trt-qat run``: all stages in one folder. A stage whose inputs are as they were is not done again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from trt_qat import api, pipeline
from trt_qat.artifacts import EngineArtifact, file_sha256, writable_folder, write_text
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
from trt_qat.evaluation.report import markdown_report
from trt_qat.lock import locked
from trt_qat.manifest import Manifest
from trt_qat.mixed_precision.files import BEST, REPORT, kept_budget
from trt_qat.mixed_precision.mixes import Budget
from trt_qat.progress import SILENT, Progress
from trt_qat.provenance import data_fingerprint, machine, package_versions, provenance_of
from trt_qat.results import ResultRow, read_rows, write_rows
from trt_qat.runtime.selection import open_runner
from trt_qat.targets.export import fitting
from trt_qat.training.features.choose import check_features
from trt_qat.training.resume import check_resumable


@dataclass(frozen=True)
class RunResult:
    """What ``run`` leaves behind. ``budget``: what ``qat.max_drop`` led to, where it is set.

    ``parity``: the fine-tuned network against its files; a threshold that is not met stands in ``broken``.
    """

    rows: list[ResultRow]
    checkpoints: dict[str, Path]
    exported: dict[str, Path]
    engine: EngineArtifact
    result_json: Path
    report: Path
    picture: Path
    budget: Budget | None
    parity: tuple[ParityReport, ...]
    parity_json: Path


def run(
    weights: Path, data: Path, out: Path, config: Config, progress: Progress = SILENT, *, anew: bool = False
) -> RunResult:
    """Checkpoint and dataset to a calibrated, fine-tuned, exported, built and evaluated INT8 detector.

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
    pipeline.check_qat_settings(config)
    with locked(out):
        model = load(weights, config.model.fixed_imgsz)
        check_features(config.qat, model)
        dataset = api.trainable_dataset(model, data, progress)
        model = pipeline.sized(model, dataset, config, progress)
        return _Run(model, weights, dataset, out, config, Manifest(out, progress, anew=anew), progress, anew).result()


@dataclass(frozen=True)
class _Run:
    """One call: what every stage needs, and the stages in their order."""

    model: Model
    weights: Path
    dataset: Dataset
    out: Path
    config: Config
    manifest: Manifest
    progress: Progress
    anew: bool

    def result(self) -> RunResult:
        """Do every stage that is not done."""
        int8 = self.calibrated(self.float_checkpoint())
        tuned, budget = self.fine_tuned(int8)
        exported = self.exported({"fp32": self.model, "ptq": int8, "qat": tuned})
        engine = self.engine(exported[f"qat_{self.flavor}"])
        result = self.evaluated(exported)
        report, picture = self.report(result, exported)
        parity = self.parity(exported[f"qat_{self.flavor}"])
        return RunResult(
            rows=list(read_rows(result)),
            checkpoints=self.checkpoints,
            exported=exported,
            engine=engine,
            result_json=result,
            report=report,
            picture=picture,
            budget=budget,
            parity=read_parity(parity),
            parity_json=parity,
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

    def calibrated(self, checkpoint: Path) -> Model:
        """Post-training quantization."""
        file, section = self.checkpoints["ptq"], self.config.quantization
        images = images_sha256(calibration_images(self.dataset, section.images))
        self.stage(
            "the calibration",
            {"checkpoint": file_sha256(checkpoint), "images": images, "settings": section.model_dump(mode="json")},
            (file,),
            lambda: save(
                file,
                pipeline.calibrated_model(self.model, self.weights, self.dataset, self.config, self.progress),
            ),
        )
        # a checkpoint holds folded weights; qat.bn=freeze wants those of the file that was given
        return replace(load(file), with_batchnorm=self.model.with_batchnorm)

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
                int8, self.weights, self.dataset, writable_folder(folder), config, self.progress, self.resumable(folder)
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

    def exported(self, models: Mapping[str, Model]) -> dict[str, Path]:
        """What is measured here, each for OpenVINO; the fine-tuned model also for TensorRT, for what builds the engine
        here, and for the configured target.
        """
        deployed = dict.fromkeys(("tensorrt", self.flavor, self.config.export.target))
        files = [(step, step, "openvino") for step in models]
        files += [(f"qat_{target}", "qat", target) for target in deployed if target != "openvino"]
        return {name: self.export(name, step, models[step], target) for name, step, target in files}

    def export(self, name: str, step: str, model: Model, target: str) -> Path:
        """The ONNX file of one of them for one target."""
        file = self.out / f"{name}.onnx"
        section = fitting(self.config.export.replace(target=target, format="onnx"), model)
        self.stage(
            f"the {step.upper()} file{f' for {target}' if name != step else ''}",
            {"checkpoint": file_sha256(self.checkpoints[step]), "settings": section.model_dump(mode="json")},
            (file,),
            lambda: api.export(model, file, section, progress=self.progress),
        )
        return file

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

    def evaluated(self, exported: Mapping[str, Path]) -> Path:
        """mAP, latency and size of every file. All of them in one stage: latencies compare side by side alone."""
        file, section = self.out / "result.json", self.config.evaluation

        def measure() -> None:
            rows = api.evaluate(list(exported.values()), self.dataset, section, progress=self.progress)
            write_rows(file, rows)

        self.stage(
            "the evaluation",
            {
                "files": {path.name: file_sha256(path) for path in exported.values()},
                "data": self.data,
                "settings": section.model_dump(mode="json"),
                "machine": machine(),
            },
            (file,),
            measure,
        )
        return file

    def report(self, result: Path, exported: Mapping[str, Path]) -> tuple[Path, Path]:
        """The table as a page, and a picture of what it means."""
        page, picture = self.out / "report.md", self.out / "picture.jpg"
        provenance = load(self.checkpoints["fp32"]).provenance

        def write() -> None:
            write_text(page, markdown_report(read_rows(result), provenance))
            with open_runner(exported["fp32"], "openvino") as fp32, open_runner(exported["qat"], "openvino") as qat:
                runners = [("FP32", fp32), ("QAT INT8", qat)]
                comparison_picture(runners, self.dataset.val, self.config.infer, picture)

        self.stage(
            "the report",
            {
                "result": file_sha256(result),
                "files": [file_sha256(exported[name]) for name in ("fp32", "qat")],
                "data": self.data,
                "settings": self.config.infer.model_dump(mode="json"),
            },
            (page, picture),
            write,
        )
        return page, picture

    def parity(self, onnx: Path) -> Path:
        """The file that the engine is built from against the network it is of, and on two runtimes."""
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
