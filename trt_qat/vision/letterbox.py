"""Letterbox and its inverse: ONE preprocessing for calibration, evaluation and deployment.

Equal to Ultralytics' ``LetterBox(auto=False, scaleup=True, center=True)`` bit for bit (tested): keep
the aspect ratio, resize bilinearly, pad with gray 114 on both sides.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

PAD_VALUE = 114


@dataclass(frozen=True)
class LetterboxTransform:
    """Maps image pixels to network pixels: ``network = image * ratio + pad``.

    The two ratios differ where the shorter side was rounded to whole pixels; one ratio for both, as is common, puts
    boxes up to half a network pixel aside, which costs small objects a point of mAP50-95.
    """

    ratio_wh: tuple[float, float]
    pad_left: int
    pad_top: int
    size_wh: tuple[int, int]

    def boxes_to_image(self, boxes_xyxy: NDArray[np.float32]) -> NDArray[np.float32]:
        """Network-pixel boxes, shape (n, 4), back to pixels of the original image, clipped to it."""
        offset = np.array([self.pad_left, self.pad_top] * 2, dtype=np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is clipped to the image
            boxes = (boxes_xyxy - offset) / np.array(self.ratio_wh * 2, dtype=np.float32)
        limits = np.array(self.size_wh * 2, dtype=np.float32)
        return np.asarray(np.clip(boxes, 0, limits), dtype=np.float32)


def letterbox(image_bgr: NDArray[np.uint8], imgsz: int) -> tuple[NDArray[np.uint8], LetterboxTransform]:
    """Resize and pad to a square.

    Args:
        image_bgr: uint8, shape (h, w, 3).
        imgsz: side of the square in pixels.

    Returns:
        uint8 image of shape (imgsz, imgsz, 3) and the transform that was applied.
    """
    resized = fit(image_bgr, imgsz)
    half_w, half_h = (imgsz - resized.shape[1]) / 2, (imgsz - resized.shape[0]) / 2
    # the two 0.1 make an odd rest go to the right and bottom, as in Ultralytics
    left, right = round(half_w - 0.1), round(half_w + 0.1)
    top, bottom = round(half_h - 0.1), round(half_h + 0.1)
    padded = cv2.copyMakeBorder(resized, top, bottom, left, right, cv2.BORDER_CONSTANT, value=(PAD_VALUE,) * 3)
    size_wh = image_bgr.shape[1], image_bgr.shape[0]
    ratio_wh = resized.shape[1] / size_wh[0], resized.shape[0] / size_wh[1]
    return np.asarray(padded, dtype=np.uint8), LetterboxTransform(ratio_wh, left, top, size_wh)


def fit(image_bgr: NDArray[np.uint8], imgsz: int) -> NDArray[np.uint8]:
    """The letterbox without its padding: the longer side becomes ``imgsz``, the shorter one is rounded."""
    height, width = image_bgr.shape[:2]
    ratio = min(imgsz / height, imgsz / width)
    new_wh = max(1, round(width * ratio)), max(1, round(height * ratio))  # a thin image keeps one pixel
    if (width, height) == new_wh:
        return image_bgr
    return np.asarray(cv2.resize(image_bgr, new_wh, interpolation=cv2.INTER_LINEAR), dtype=np.uint8)


def network_input(image_bgr: NDArray[np.uint8], imgsz: int) -> tuple[NDArray[np.float32], LetterboxTransform]:
    """Image to network input: letterbox, BGR to RGB, HWC to CHW, divide by 255.

    Returns:
        float32, shape (1, 3, imgsz, imgsz), values in [0, 1], and the letterbox transform.
    """
    square, transform = letterbox(image_bgr, imgsz)
    chw = np.ascontiguousarray(square[..., ::-1].transpose(2, 0, 1))
    return (chw.astype(np.float32) / np.float32(255.0))[None], transform
