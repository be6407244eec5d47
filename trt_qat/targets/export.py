"""Export for a target: settle what it leaves open, write, check in the client itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trt_qat.artifacts import OnnxArtifact, atomic_path
from trt_qat.checkpoint import Model
from trt_qat.config import ExportSection, InferSection, Precision
from trt_qat.data.images import Image
from trt_qat.progress import SILENT, Progress
from trt_qat.targets.base import check_out, check_scheme, target_from_name
from trt_qat.targets.check import check_batches, check_computed_right
from trt_qat.targets.nms import build_in_nms, check_nms_form


def export(
    model: Model,
    out: Path,
    section: ExportSection,
    progress: Progress = SILENT,
    images: Sequence[Image] = (),
    thresholds: InferSection | None = None,
) -> OnnxArtifact:
    """Write ``out`` for ``section.target``; it stands there only if its client computes it right.

    Args:
        images: what the client is checked on, files or uint8 BGR arrays; without any, two generated images are.
        thresholds: of the NMS that ``section.nms`` builds into the file.

    Raises:
        ConfigError: no such target, a format that it does not take, one that NMS cannot be built into, or zero points
            that the target does not take.
        ArtifactError: ``out`` has another suffix than the format's, or cannot be written.
        ExportError: the model cannot be written like that, or the client computes the file wrongly.
    """
    form = check_out(out, section)
    check_nms_form(section)
    target = target_from_name(section.target)
    int8 = form.precision or target.precision
    precision = section.precision or (int8 if model.quantized else _float_of(int8))
    if model.quantized is not None and precision.startswith("int8"):
        check_scheme(model.quantized.placement.scheme, target.name)
    settled = section.replace(precision=precision, opset=section.opset or target.opset)
    with atomic_path(out) as temporary:
        form.write(model, temporary, settled)
        if settled.check:
            check_computed_right(model, temporary, settled, progress, images)
        if settled.nms:
            batches = check_batches(model, settled, images) if settled.check else []
            build_in_nms(temporary, target, thresholds or InferSection(), batches)
        if out.is_dir():  # an earlier OpenVINO folder, which check_out allows to be replaced
            out.replace(temporary.parent / "replaced")
    return OnnxArtifact(out, precision)


def fitting(section: ExportSection, model: Model) -> ExportSection:
    """The section with its precision left to the target where it is INT8 and the model float, or the other way round.

    For whoever exports several models with one section; a user who asks for INT8 of a float model gets an error.
    """
    precision = section.precision
    fits = precision is None or precision.startswith("int8") == (model.quantized is not None)
    return section if fits else section.replace(precision=None)


def _float_of(precision: Precision) -> Precision:
    return "fp16" if precision.endswith("fp16") else "fp32"
