"""The gate: a file's own client must compute what the network computes, else there is no file.

A right file is not equal to the network: sums in another order end on the other side of a rounding edge, which moves a
value by a whole step and what follows with it; and OpenVINO computes the float part in BF16 where the CPU has it.
Measured with three trained YOLOv8n on these images and on photographs (docs/targets.md): right files are off by 0.02
to 0.15 (logits, of their spread) and 0.001 to 0.006 (boxes, of the image's side); files that OpenVINO computes wrongly
by at least 0.27 and 0.017, one convolution without its bias by at least 0.28. The limits lie between.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from trt_qat.checkpoint import Model
from trt_qat.config import ExportSection
from trt_qat.data.images import Image, network_batch
from trt_qat.errors import ExportError, MissingDependency
from trt_qat.memory import check_memory
from trt_qat.model.loading import raw_output
from trt_qat.progress import Progress
from trt_qat.targets.base import target_from_name
from trt_qat.vision.size import ImageSize, shown_size

COUNT = 2
LOGIT_LIMIT = 0.2
BOX_LIMIT = 0.01
LEAST_SCORE = 1e-6  # below it a client's sigmoid is not exact, and nothing depends on it
_ADVICE = "Nothing was written. Choose another target or precision, or --no-check to write it all the same."


@dataclass(frozen=True)
class Difference:
    """How far a client's output is from the network's.

    Args:
        logits: root mean square error of the class scores' logits over their standard deviation.
        boxes: root mean square error of the boxes over the sides of the input.
    """

    logits: float
    boxes: float

    @property
    def is_fault(self) -> bool:
        """Whether it is more than rounding does."""
        return not (self.logits <= LOGIT_LIMIT and self.boxes <= BOX_LIMIT)


def check_computed_right(
    model: Model, file: Path, section: ExportSection, progress: Progress, images: Sequence[Image] = ()
) -> None:
    """Let the client of ``section`` compute ``file`` on two images.

    Args:
        images: generated ones without any.

    Raises:
        ExportError: the client refuses the file, or computes something else than the network.
        DatasetError: an image cannot be read.
    """
    target = target_from_name(section.target)
    batches = check_batches(model, section, images)
    try:
        outputs = target.form(section.format).compute(file, batches)
    except MissingDependency as exc:
        progress.note(f"'{file.name}' is not checked in {target.client}: {exc}")
        return
    except Exception as exc:  # a client's errors share no base class
        check_memory(exc)
        raise ExportError(f"{target.client} does not run '{file.name}': {_one_line(exc)} {_ADVICE}") from exc
    for batch, found in zip(batches, outputs, strict=True):
        expected = _network_output(model, batch, section)
        if found.shape != expected.shape:
            raise ExportError(
                f"{target.client} computes '{file.name}' to shape {found.shape}, the network to {expected.shape}. "
                f"{_ADVICE}"
            )
        imgsz = batch.shape[2], batch.shape[3]
        off = difference(found, expected, imgsz)
        if off.is_fault:
            raise ExportError(
                f"{target.client} computes '{file.name}' wrongly at {shown_size(imgsz)}: class scores are off by "
                f"{off.logits:.2f} of their spread (at most {LOGIT_LIMIT}), boxes by {off.boxes * max(imgsz):.1f} "
                f"pixels (at most {BOX_LIMIT * max(imgsz):.1f}). {_ADVICE}"
            )


def check_batches(model: Model, section: ExportSection, images: Sequence[Image] = ()) -> list[NDArray[np.float32]]:
    """Two images as the file of ``section`` takes them: generated ones without any; at two sizes if it takes any."""
    chosen = list(images[:COUNT]) or generated_images(model.imgsz)
    sizes = [model.imgsz, _other_size(model.imgsz)] if section.dynamic_size else [model.imgsz]
    return [batch for size in sizes for batch in _batches(network_batch(chosen, size), section)]


def _other_size(imgsz: ImageSize) -> ImageSize:
    """Another height and another width, for a file that takes any."""
    height, width = imgsz
    return (width, height + 32) if (width, height + 32) != imgsz else (height + 32, width + 32)


def difference(found: NDArray[np.float32], expected: NDArray[np.float32], imgsz: ImageSize) -> Difference:
    """Compare two outputs of shape (batch, 4 + classes, anchors); NaN where ``found`` is not finite.

    Scores are compared as logits: on an image without objects all of them are nearly 0, and a broken file's too.
    """
    logits, wanted = _logits(found[:, 4:]), _logits(expected[:, 4:])
    spread = max(float(wanted.std()), 1e-6)
    height, width = imgsz
    sides = np.array([width, height, width, height], dtype=np.float32)[:, None]  # of x, y, width and height
    return Difference(_rms(logits - wanted) / spread, _rms((found[:, :4] - expected[:, :4]) / sides))


def generated_images(imgsz: ImageSize) -> list[Image]:
    """Two images that excite every layer: smooth colours, hard-edged shapes and noise; the same at every call."""
    return [_generated(imgsz, seed) for seed in range(COUNT)]


def _generated(imgsz: ImageSize, seed: int) -> NDArray[np.uint8]:
    random = np.random.default_rng(seed)
    (height, width), shorter = imgsz, min(imgsz)
    smooth = cv2.resize(random.random((6, 6, 3)), (width, height), interpolation=cv2.INTER_CUBIC)
    image = np.clip(255 * smooth + 8 * random.standard_normal(smooth.shape), 0, 255).astype(np.uint8)
    for _ in range(8):
        x, y, half = (int(value) for value in random.integers((0, 0, shorter // 40), (width, height, shorter // 8)))
        color = [int(value) for value in random.integers(0, 256, 3)]
        cv2.rectangle(image, (x - half, y - half), (x + half, y + half), color, -1)
        cv2.circle(image, (width * y // height, height * x // width), half, color[::-1], max(1, half // 3))
    return np.asarray(image, dtype=np.uint8)


def _batches(images: NDArray[np.float32], section: ExportSection) -> list[NDArray[np.float32]]:
    """The images in batches that the file takes; more than one at once where the batch is dynamic."""
    if section.dynamic_batch:
        return [images]
    size = section.batch
    return [np.resize(images[start : start + size], (size, *images.shape[1:])) for start in range(0, len(images), size)]


def _network_output(model: Model, batch: NDArray[np.float32], section: ExportSection) -> NDArray[np.float32]:
    float_file = not str(section.precision).startswith("int8")
    off = model.quantized.quantizers_off() if model.quantized and float_file else contextlib.nullcontext()
    device = next(model.network.parameters()).device
    with off:
        return np.asarray(raw_output(model.network, torch.from_numpy(batch).to(device)).cpu().numpy())


def _logits(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    clipped = np.clip(scores.astype(np.float64), LEAST_SCORE, 1 - LEAST_SCORE)
    return np.asarray(np.log(clipped / (1 - clipped)))


def _rms(values: NDArray[Any]) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def _one_line(exc: Exception) -> str:
    text = " ".join(str(exc).split())[:300].rstrip(".")
    return f"{text or type(exc).__name__}."
