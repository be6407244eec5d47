"""Draw detections on an image."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping

import cv2
import numpy as np
from numpy.typing import NDArray

from trt_qat.vision.detections import Detections

_FARTHEST = 1 << 20  # pixels; OpenCV draws with 32-bit coordinates


def annotate(image_bgr: NDArray[np.uint8], detections: Detections, names: Mapping[int, str]) -> NDArray[np.uint8]:
    """A copy of the image with boxes, class names and scores.

    Args:
        image_bgr: uint8, shape (h, w, 3).
        detections: in pixels of that image.
        names: class id to name; an unknown id is drawn as its number.
    """
    canvas: NDArray[np.uint8] = image_bgr.copy()
    thickness = max(1, round(min(canvas.shape[:2]) / 320))
    font_scale = max(0.4, min(canvas.shape[:2]) / 900)
    for box, score, class_id in zip(detections.boxes_xyxy, detections.scores, detections.class_ids, strict=True):
        left, top, right, bottom = (int(v) for v in np.round(np.nan_to_num(box).clip(-_FARTHEST, _FARTHEST)))
        color = _class_color(int(class_id))
        cv2.rectangle(canvas, (left, top), (right, bottom), color, thickness)
        label = f"{names.get(int(class_id), str(int(class_id)))} {score:.2f}"
        (text_w, text_h), baseline = cv2.getTextSize(label, cv2.FONT_HERSHEY_SIMPLEX, font_scale, thickness)
        # above the box where there is room, else inside; never off the right edge
        text_bottom = top - 2 if top - text_h - baseline >= 0 else top + text_h + baseline
        text_left = max(0, min(left, canvas.shape[1] - text_w))
        cv2.rectangle(
            canvas, (text_left, text_bottom - text_h - 2), (text_left + text_w, text_bottom + baseline), color, -1
        )
        cv2.putText(
            canvas,
            label,
            (text_left, text_bottom),
            cv2.FONT_HERSHEY_SIMPLEX,
            font_scale,
            (255, 255, 255),
            thickness,
            cv2.LINE_AA,
        )
    return canvas


def _class_color(class_id: int) -> tuple[int, int, int]:
    # the golden ratio spreads neighbouring ids over the hue circle
    red, green, blue = colorsys.hsv_to_rgb((class_id * 0.618034) % 1.0, 0.85, 0.75)
    return int(blue * 255), int(green * 255), int(red * 255)
