"""One picture that shows what the numbers mean: the same image through several models, side by side."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from trt_qat.artifacts import atomic_path
from trt_qat.config import InferSection
from trt_qat.errors import DatasetError
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

    Raises:
        DatasetError: none of these can be read.
        ArtifactError: ``out`` cannot be written.
    """
    detectors = [(title, Detector(runner, section)) for title, runner in runners]
    first = detectors[0][1]
    image, most = None, -1
    for path in images[:_CANDIDATES]:
        with contextlib.suppress(DatasetError):  # measuring has said which images are left out
            candidate = read_image_bgr(path)
            if (found := len(first(candidate))) > most:
                image, most = candidate, found
    if image is None:
        raise DatasetError(f"Not one of {len(images)} images can be read, so there is nothing to show.")
    panels = [_panel(title, annotate(image, detector(image), detector.names)) for title, detector in detectors]
    encoded = cv2.imencode(".jpg", np.hstack(panels), [cv2.IMWRITE_JPEG_QUALITY, 92])[1]
    with atomic_path(out) as temporary:
        temporary.write_bytes(encoded.tobytes())
    return out


def _panel(title: str, image_bgr: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = image_bgr.shape[:2]
    scaled = cv2.resize(image_bgr, (round(width * _HEIGHT / height), _HEIGHT), interpolation=cv2.INTER_AREA)
    header = np.full((36, scaled.shape[1], 3), 40, dtype=np.uint8)
    cv2.putText(header, title, (10, 25), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (255, 255, 255), 1, cv2.LINE_AA)
    return np.vstack([header, np.asarray(scaled, dtype=np.uint8)])
