"""The measure of mixed precision: a model as an exported file on the runtime that deploys it."""

from __future__ import annotations

from pathlib import Path

from trt_qat.checkpoint import Model
from trt_qat.config import EvaluationSection, ExportSection
from trt_qat.data.dataset import Dataset
from trt_qat.errors import ConfigError
from trt_qat.evaluation.accuracy import measure_accuracy
from trt_qat.evaluation.latency import measure_latency
from trt_qat.mixed_precision.budget_search import Measured
from trt_qat.progress import SILENT, Progress
from trt_qat.runtime.selection import open_runner
from trt_qat.targets.export import export, fitting


class ExportedMeasure:
    """mAP (or agreement) of each model's file, and its latency interleaved with that of the all-INT8 model.

    Args:
        all_int8: what each latency is measured beside.
        section: how files are exported; the target is the one of ``evaluation.runtime``, and a precision that does not
            fit a model (INT8 of the float one) is that target's own.
        folder: for the files, which may be removed afterwards.

    Raises:
        ConfigError: see :func:`check_budget_runtime`.
    """

    def __init__(
        self,
        all_int8: Model,
        dataset: Dataset,
        section: ExportSection,
        evaluation: EvaluationSection,
        folder: Path,
        progress: Progress = SILENT,
    ) -> None:
        check_budget_runtime(evaluation)
        self._dataset = dataset
        self._section = section.replace(target=evaluation.runtime, format="onnx", nms=False, check=False)
        self._evaluation = evaluation
        self._folder = folder
        self._progress = progress
        self._all_int8 = self._export(all_int8, "int8")

    def __call__(self, model: Model) -> Measured:
        """Export and measure a model."""
        evaluation = self._evaluation
        onnx = self._export(model, "measured")
        with (
            open_runner(onnx, evaluation.runtime, evaluation.threads) as runner,
            open_runner(self._all_int8, evaluation.runtime, evaluation.threads) as all_int8,
        ):
            accuracy = measure_accuracy(runner, self._dataset, evaluation, self._progress, "a mix")
            latency, int8_latency = measure_latency([runner, all_int8], evaluation, self._progress)
        return Measured(accuracy.map50_95, latency.median, int8_latency.median)

    def _export(self, model: Model, stem: str) -> Path:
        return export(model, self._folder / f"{stem}.onnx", fitting(self._section, model)).path


def check_budget_runtime(evaluation: EvaluationSection) -> None:
    """Refuse a budget that could not be measured, before any training.

    Raises:
        ConfigError: the runtime does not run ONNX files that are made for it.
    """
    if evaluation.runtime not in ("openvino", "onnxruntime"):
        raise ConfigError(
            f"qat.max_drop is measured on ONNX files, which evaluation.runtime={evaluation.runtime} does not "
            "run. Use openvino or onnxruntime."
        )
