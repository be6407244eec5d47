"""One picture that shows what the numbers mean: the same image through several models, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from trt_qat.artifacts import atomic_path
from trt_qat.config import InferSection
from trt_qat.runtime.detector import Detector
from trt_qat.runtime.runner import Runner
from trt_qat.vision.draw import annotate
from trt_qat.vision.image import read_image_bgr

_CANDIDATES = 24
_HEIGHT = 480


def comparison_picture(
    runners: Sequence[tuple[str, Runner]], images: Sequence[Path], section: InferSection, out: Path
) -> Path:
    """Write a JPEG with one annotated panel per model.

    Args:
        runners: (title, runner), left to right.
        images: the one on which the first model finds most is shown (of the first 24).
    """
    detectors = [(title, Detector(runner, section)) for title, runner in runners]
    first = detectors[0][1]
    chosen = max(images[:_CANDIDATES], key=lambda path: len(first(read_image_bgr(path))))
    image = read_image_bgr(chosen)
    panels = [_panel(title, annotate(image, detector(image), detector.names)) for title, detector in detectors]
    with atomic_path(out) as temporary:
        cv2.imwrite(str(temporary), np.hstack(panels), [cv2.IMWRITE_JPEG_QUALITY, 92])
    return out


def _panel(title: str, image_bgr: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = image_bgr.shape[:2]
    scaled = cv2.resize(image_bgr, (round(width * _HEIGHT / height), _HEIGHT), interpolation=cv2.INTER_AREA)
    header = np.full((36, scaled.shape[1], 3), 40, dtype=np.uint8)
    cv2.putText(header, title, (10, 25), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (255, 255, 255), 1, cv2.LINE_AA)
    return np.vstack([header, np.asarray(scaled, dtype=np.uint8)])
