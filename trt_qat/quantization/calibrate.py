"""Calibration as a whole: images through the float network, histograms to ranges, ranges into the quantizers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trt_qat import distributed
from trt_qat.config import QuantizationSection
from trt_qat.data.images import Image, evenly_spaced, network_batch
from trt_qat.errors import ConsistencyError
from trt_qat.halving import halving
from trt_qat.progress import SILENT, Progress
from trt_qat.quantization.auto import choose_calibrator
from trt_qat.quantization.auto_per_group import choose_per_group
from trt_qat.quantization.calibration import Calibration
from trt_qat.quantization.calibrators.base import calibrator_from_section
from trt_qat.quantization.histogram import Histograms
from trt_qat.quantization.insert import QuantizedModel
from trt_qat.quantization.observe import collect_histograms
from trt_qat.quantization.partial_pass import NothingKept, PassMemory
from trt_qat.vision.letterbox import LetterboxTransform, letterbox
from trt_qat.vision.self_check import check_preprocessing
from trt_qat.vision.size import ImageSize


class CalibrationMemory(Protocol):
    """Asked for what an earlier calibration of the same kind left; ``make`` computes it where there is nothing."""

    def histograms(self, make: Callable[[], Histograms]) -> Histograms:
        """The histograms."""

    def choice(self, make: Callable[[], Calibration]) -> Calibration:
        """The answer of calibrator ``auto``."""

    def partial(self, batch: int) -> PassMemory:
        """What an interrupted pass in batches of this size has counted."""


class NoMemory:
    """Computes everything anew."""

    def histograms(self, make: Callable[[], Histograms]) -> Histograms:
        """See :class:`CalibrationMemory`."""
        return make()

    def choice(self, make: Callable[[], Calibration]) -> Calibration:
        """See :class:`CalibrationMemory`."""
        return make()

    def partial(self, batch: int) -> PassMemory:
        """See :class:`CalibrationMemory`."""
        del batch
        return NothingKept()


# Finds the memory of one calibration: a network, its images, the image size, the settings.
Remember = Callable[[QuantizedModel, Sequence[Image], ImageSize, QuantizationSection], CalibrationMemory]


def no_memory(
    model: QuantizedModel, images: Sequence[Image], imgsz: ImageSize, section: QuantizationSection
) -> CalibrationMemory:
    """Remember nothing."""
    del model, images, imgsz, section
    return NoMemory()


def calibrate_(
    model: QuantizedModel,
    images: Sequence[Image],
    imgsz: ImageSize,
    section: QuantizationSection,
    remember: Remember = no_memory,
    progress: Progress = SILENT,
) -> Calibration:
    """Set every activation range, in place. Processes of one job (see :mod:`trt_qat.distributed`) share the images.

    Args:
        images: files, or uint8 BGR arrays (h, w, 3); all of them are used.
        imgsz: height and width of the input in pixels.

    Raises:
        QuantizationError: no image, or activations that are all zero.
        DatasetError: an image cannot be read.
        NotEnoughMemory: one image at a time is too much.
        ConsistencyError: images are prepared otherwise than in training, or a range exceeds what was seen.
    """
    check_preprocessing(_prepared)
    memory = remember(model, images, imgsz, section)
    smaller = partial(halving, batch=section.batch, key="quantization.batch", progress=progress)
    histograms = memory.histograms(
        lambda: smaller(lambda batch: _histograms(model, images, imgsz, section.replace(batch=batch), memory, progress))
    )
    if section.calibrator == "auto":
        calibration = memory.choice(
            lambda: smaller(
                lambda batch: _choose(model, histograms, images, imgsz, section.replace(batch=batch), progress)
            )
        )
    else:
        calibration = Calibration(calibrator_from_section(section))
    ranges = calibration.ranges(histograms)
    _check_ranges(ranges, histograms)
    model.load_amax_(ranges)
    return calibration


def _prepared(image: NDArray[np.uint8], imgsz: ImageSize) -> tuple[NDArray[np.float32], LetterboxTransform]:
    return network_batch([image], imgsz), letterbox(image, imgsz)[1]


def _check_ranges(ranges: Mapping[str, Tensor], histograms: Histograms) -> None:
    """A range above every value that was seen wastes codes; no calibrator means that.

    Raises:
        ConsistencyError: there is one.
    """
    for group, histogram in histograms.items():
        found = float(ranges[f"activation.{group}"])
        sides = [histogram] if histogram.below is None else [histogram, histogram.below]
        if not found <= max(1e-12, *(side.limit for side in sides)):
            largest = max(side.maximum for side in sides)
            raise ConsistencyError(
                f"The range of '{group}' is {found:.4g}, but no value of it was above {largest:.4g}. "
                "Nothing is saved; the calibrator is wrong."
            )


def batches(images: Sequence[Image], imgsz: ImageSize, batch: int) -> list[Callable[[], Tensor]]:
    """Makers of the network inputs, float32 (at most ``batch``, 3, *imgsz) in [0, 1]; nothing is read before."""
    return [partial(_tensor, images[first : first + batch], imgsz) for first in range(0, len(images), batch)]


def _tensor(images: Sequence[Image], imgsz: ImageSize) -> Tensor:
    return torch.from_numpy(network_batch(images, imgsz))


def _histograms(
    model: QuantizedModel,
    images: Sequence[Image],
    imgsz: ImageSize,
    section: QuantizationSection,
    memory: CalibrationMemory,
    progress: Progress,
) -> Histograms:
    # each process takes whole batches: a batch's size can move the last bit of a convolution
    mine = batches(images, imgsz, section.batch)[distributed.rank() :: distributed.world_size()]
    kept = memory.partial(section.batch)
    if kept.done:
        progress.note(f"Calibration goes on after {kept.done} of {len(mine)} batches.")
    inputs = (make() for make in progress.over(mine[kept.done :], "calibrating"))
    return collect_histograms(model, inputs, section.histogram_bins, kept)


def _choose(
    model: QuantizedModel,
    histograms: Histograms,
    images: Sequence[Image],
    imgsz: ImageSize,
    section: QuantizationSection,
    progress: Progress,
) -> Calibration:
    some = batches(evenly_spaced(images, section.auto_images), imgsz, section.batch)
    calibration = choose_calibrator(model, histograms, some, progress)
    if section.auto_per_group:
        calibration = choose_per_group(model, histograms, calibration, some, progress)
    return calibration
