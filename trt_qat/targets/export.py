"""Export for a target: settle what it leaves open, write, check in the client itself."""

from __future__ import annotations

from pathlib import Path

from trt_qat.artifacts import OnnxArtifact
from trt_qat.checkpoint import Model
from trt_qat.config import ExportSection, Precision
from trt_qat.errors import ConfigError
from trt_qat.progress import SILENT, Progress
from trt_qat.targets.base import target_from_name


def export(model: Model, out: Path, section: ExportSection, progress: Progress = SILENT) -> OnnxArtifact:
    """Write ``out`` for ``section.target``.

    Raises:
        ConfigError: no such target, or a format that it does not take.
        ExportError: the model cannot be written like that, or the client computes the file wrongly.
    """
    del progress
    target = target_from_name(section.target)
    if section.format not in target.writers:
        raise ConfigError(
            f"Target '{target.name}' has no format '{section.format}'. Known: {', '.join(target.writers)}."
        )
    precision = section.precision or (target.precision if model.quantized else _float_of(target.precision))
    section = section.replace(precision=precision, opset=section.opset or target.opset)
    target.writers[section.format](model, out, section)
    return OnnxArtifact(out, precision)


def _float_of(precision: Precision) -> Precision:
    return "fp16" if precision.endswith("fp16") else "fp32"
