"""Images in which two exported files find different objects, with both files' boxes."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from trt_qat.data.images import evenly_spaced
from trt_qat.errors import DatasetError
from trt_qat.evaluation.agreement import matched
from trt_qat.progress import SILENT, Progress
from trt_qat.report.record import Disagreement, Disagreements, ShownBox
from trt_qat.runtime.detector import Detector
from trt_qat.vision.detections import Detections
from trt_qat.vision.image import read_image_bgr

SHOWN = 8
IMAGES = 512
"""More are not looked at: the worst eight of so many are bad enough to learn from."""
IOU = 0.5
"""Boxes that overlap by half are one object, as in mAP50."""
_SIDE = 720  # pixels of the longer side in the page, sharp on a phone and at half a desktop's width
_QUALITY = 80


def disagreements(
    first: tuple[str, Detector], second: tuple[str, Detector], images: Sequence[Path], progress: Progress = SILENT
) -> Disagreements:
    """The images with the most score in boxes that only one of the two detectors finds.

    Args:
        first, second: the name of the exported file in the record, and what runs it; thresholds are those of the
            first.
        images: those that cannot be read are passed over; measuring has said which.
    """
    looked_at = agreeing = 0
    found: list[tuple[float, Path, tuple[ShownBoxes, ShownBoxes]]] = []
    for path in progress.over(evenly_spaced(images, IMAGES), "comparing detections"):
        try:
            image = read_image_bgr(path)
        except DatasetError:
            continue
        ours, theirs = first[1](image), second[1](image)
        pair = matched(ours, theirs, IOU), matched(theirs, ours, IOU)
        weight = float(ours.scores[~pair[0]].sum() + theirs.scores[~pair[1]].sum())
        looked_at += 1
        agreeing += weight == 0
        if weight:
            found.append((weight, path, ((ours, pair[0]), (theirs, pair[1]))))
    found.sort(key=lambda entry: (-entry[0], entry[1].name))
    return Disagreements(
        first=first[0],
        second=second[0],
        images=looked_at,
        agreeing=agreeing,
        conf=first[1].section.conf,
        iou=IOU,
        worst=tuple(_shown(path, pair) for _, path, pair in found[:SHOWN]),
    )


ShownBoxes = tuple[Detections, NDArray[np.bool_]]


def _shown(path: Path, pair: tuple[ShownBoxes, ShownBoxes]) -> Disagreement:
    image = read_image_bgr(path)
    height, width = image.shape[:2]
    scale = min(1.0, _SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    jpeg = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1]
    ours, theirs = (_boxes(boxes, scale) for boxes in pair)
    return Disagreement(
        image=path.name, jpeg=base64.b64encode(jpeg.tobytes()).decode(), size_wh=size, fp32=ours, int8=theirs
    )


def _boxes(boxes: ShownBoxes, scale: float) -> tuple[ShownBox, ...]:
    found, partner = boxes
    rows = zip(found.boxes_xyxy.tolist(), found.class_ids.tolist(), found.scores.tolist(), partner, strict=True)
    return tuple(
        ShownBox(xyxy=tuple(round(side * scale, 1) for side in xyxy), class_id=class_id, score=score, matched=bool(has))
        for xyxy, class_id, score, has in rows
    )
