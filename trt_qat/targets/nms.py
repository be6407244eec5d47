"""NMS, or an end-to-end head's best rows, in an exported file, and the gate for it: what our own post-processing finds.

The raw file is written and checked first, as ever; the tail is put behind it afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from trt_qat.config import ExportSection, InferSection
from trt_qat.errors import ConfigError, ExportError, MissingDependency
from trt_qat.metadata import Layout, output_layout
from trt_qat.onnx_reading import metadata_texts
from trt_qat.targets.base import Arrays, Target
from trt_qat.vision.postprocess import detections_from_output

# A client may fuse the two files' operators differently; OpenVINO computes the float part in BF16 where the CPU has it
_BOX_LIMIT, _SCORE_LIMIT = 0.01, 0.05  # of the input's side; of a score
_LEAST_SHARE = 0.9  # of the detections of both, which rounding moves over a threshold now and then


def check_nms_form(section: ExportSection) -> None:
    """Refuse NMS in a file of another format than ONNX, before any long work starts.

    Raises:
        ConfigError: see above.
    """
    if section.nms and section.format != "onnx":
        raise ConfigError(
            f"NMS is built into ONNX files only, export.format is '{section.format}'. Use format onnx, or leave --nms "
            "away: trt_qat and Ultralytics suppress boxes themselves."
        )


def build_in_nms(raw: Path, target: Target, thresholds: InferSection, batches: Arrays) -> None:
    """Put NMS behind a raw ONNX file, in place.

    Args:
        batches: what the client computes both files on, to find the same detections; none for no check.

    Raises:
        ExportError: the file is no raw detector, the client does not run the result, or finds something else.
    """
    from trt_qat.exporter.output_forms import with_nms

    compute = target.form("onnx").compute
    try:
        before = compute(raw, batches) if batches else []
    except MissingDependency:  # said when the raw file was not checked
        batches, before = [], []
    model = onnx.load(raw)
    layout = output_layout(metadata_texts(model))
    onnx.save(with_nms(model, thresholds, by_loop=not target.nms_operator), str(raw))
    if not batches:
        return
    try:
        after = compute(raw, batches)
    except Exception as exc:  # a client's errors share no base class
        reason = " ".join(str(exc).split())[:300].rstrip(".")
        raise ExportError(f"{target.client} does not run the file with NMS: {reason}. Leave --nms away.") from exc
    pairs = [
        (_detected(output, thresholds, layout), found)
        for outputs, rows in zip(before, after, strict=True)
        for output, found in zip(outputs, rows, strict=True)
    ]
    if not _agree(pairs, thresholds, side=max(batches[0].shape[2:])):
        raise ExportError(
            f"{target.client} computes the NMS of the file otherwise than trt_qat. Nothing was written. Leave --nms "
            "away, or --no-check to write it all the same."
        )


def _detected(raw: NDArray[np.float32], thresholds: InferSection, layout: Layout) -> NDArray[np.float32]:
    """Rows (n, 6) of a raw output (4 + classes, anchors), as the file with NMS has them."""
    found = detections_from_output(raw, thresholds.conf, thresholds.iou, thresholds.max_det, layout=layout)
    return np.column_stack([found.boxes_xyxy, found.scores, found.class_ids]).astype(np.float32)


def _agree(
    pairs: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]], thresholds: InferSection, side: int
) -> bool:
    """Whether rows above the score are the wanted ones, (n, 6) each, and zeros behind them, but for rounding."""
    if any(found.shape != (thresholds.max_det, 6) or found[found[:, 4] == 0].any() for _, found in pairs):
        return False
    limits = np.array([_BOX_LIMIT * side] * 4 + [_SCORE_LIMIT, 0.5], np.float32)
    hits: list[bool] = []
    for wanted, padded in pairs:
        found = padded[padded[:, 4] > thresholds.conf]
        close = (np.abs(wanted[:, None] - found[None]) <= limits).all(axis=2)
        hits += [*close.any(axis=1), *close.any(axis=0)]
    return not hits or float(np.mean(hits)) >= _LEAST_SHARE
