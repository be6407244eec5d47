"""Letterbox and its inverse: ONE preprocessing for calibration, evaluation and deployment.

Equal to Ultralytics' ``LetterBox(auto=False, scaleup=True, center=True)`` bit for bit (tested): keep
the aspect ratio, resize bilinearly, pad with gray 114 on both sides.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from trt_qat.vision.size import ImageSize

PAD_VALUE = 114
_WHITE = np.float32(255)
_PAD_SHARE = np.float32(PAD_VALUE) / _WHITE


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


def letterbox(image_bgr: NDArray[np.uint8], imgsz: ImageSize) -> tuple[NDArray[np.uint8], LetterboxTransform]:
    """Resize and pad.

    Args:
        image_bgr: uint8, shape (h, w, 3).
        imgsz: height and width to fill, pixels.

    Returns:
        uint8 image of shape (*imgsz, 3) and the transform that was applied.
    """
    resized, transform = _placed(image_bgr, imgsz)
    top, left = transform.pad_top, transform.pad_left
    bottom, right = imgsz[0] - resized.shape[0] - top, imgsz[1] - resized.shape[1] - left
    padded = cv2.copyMakeBorder(resized, top, bottom, left, right, cv2.BORDER_CONSTANT, value=(PAD_VALUE,) * 3)
    return np.asarray(padded, dtype=np.uint8), transform


def fit(image_bgr: NDArray[np.uint8], imgsz: ImageSize) -> NDArray[np.uint8]:
    """The letterbox without its padding: one side becomes that of ``imgsz``, the other one is rounded."""
    height, width = image_bgr.shape[:2]
    ratio = min(imgsz[0] / height, imgsz[1] / width)
    new_wh = max(1, round(width * ratio)), max(1, round(height * ratio))  # a thin image keeps one pixel
    if (width, height) == new_wh:
        return image_bgr
    return np.asarray(cv2.resize(image_bgr, new_wh, interpolation=cv2.INTER_LINEAR), dtype=np.uint8)


def network_input(
    image_bgr: NDArray[np.uint8], imgsz: ImageSize, out: NDArray[np.float32] | None = None
) -> tuple[NDArray[np.float32], LetterboxTransform]:
    """Image to network input: letterbox, BGR to RGB, HWC to CHW, divide by 255.

    The picture goes from the resized image straight to its place in the input; the letterbox itself is never made.

    Args:
        image_bgr: uint8, shape (h, w, 3).
        imgsz: height and width of the input, pixels.
        out: what to fill, float32, shape (3, *imgsz), e.g. one image of a batch; None makes it.

    Returns:
        float32, shape (1, 3, *imgsz), values in [0, 1], a view of ``out`` where that is given; and the letterbox
        transform.
    """
    resized, transform = _placed(image_bgr, imgsz)
    if out is None:
        out = np.empty((3, *imgsz), dtype=np.float32)
    top, left = transform.pad_top, transform.pad_left
    bottom, right = top + resized.shape[0], left + resized.shape[1]
    for band in (out[:, :top], out[:, bottom:], out[:, top:bottom, :left], out[:, top:bottom, right:]):
        band[...] = _PAD_SHARE
    for plane, stored in zip(out, reversed(cv2.split(resized)), strict=True):
        np.divide(stored, _WHITE, out=plane[top:bottom, left:right], dtype=np.float32)
    return out[None], transform


def _placed(image_bgr: NDArray[np.uint8], imgsz: ImageSize) -> tuple[NDArray[np.uint8], LetterboxTransform]:
    """The resized image, and where it goes."""
    resized = fit(image_bgr, imgsz)
    # the 0.1 makes an odd rest go to the right and bottom, as in Ultralytics
    top, left = (round((wanted - found) / 2 - 0.1) for wanted, found in zip(imgsz, resized.shape, strict=False))
    size_wh = image_bgr.shape[1], image_bgr.shape[0]
    ratio_wh = resized.shape[1] / size_wh[0], resized.shape[0] / size_wh[1]
    return resized, LetterboxTransform(ratio_wh, left, top, size_wh)
