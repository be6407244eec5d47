"""What a calibration needs again, in files: the histograms, so that another calibrator needs no second pass, and the
answer of ``auto`` beside them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from trt_qat import distributed
from trt_qat.artifacts import atomic_path, write_json
from trt_qat.config import QuantizationSection
from trt_qat.data.images import Image, images_sha256
from trt_qat.errors import ConfigError
from trt_qat.model.output_error import MEASURE
from trt_qat.quantization.auto import CANDIDATES
from trt_qat.quantization.calibration import Calibration
from trt_qat.quantization.histogram import SAMPLES_PER_IMAGE, ActivationHistogram, Histograms
from trt_qat.quantization.insert import QuantizedModel


@dataclass(frozen=True)
class CalibrationCache:
    """Finds the files of a calibration in a folder; a :data:`~trt_qat.quantization.calibrate.Remember`.

    Args:
        folder: made when something is kept.
        stem: what the files' names begin with, e.g. that of the weights; it decides nothing.
    """

    folder: Path
    stem: str

    def __call__(
        self, model: QuantizedModel, images: Sequence[Image], imgsz: int, section: QuantizationSection
    ) -> CachedCalibration:
        """The files of this calibration, whether they are there or not."""
        key = cache_key(model, images_sha256(images), imgsz, section.histogram_bins)
        histograms = self.folder / f"{self.stem}-{key}.safetensors"
        return CachedCalibration(
            histograms, histograms.with_name(f"{histograms.stem}-auto-{choice_key(key, section)}.json")
        )


@dataclass(frozen=True)
class CachedCalibration:
    """The files of one calibration. In a job of several processes the main one reads and writes them."""

    histograms_file: Path
    choice_file: Path

    def histograms(self, make: Callable[[], Histograms]) -> Histograms:
        """See :class:`~trt_qat.quantization.calibrate.CalibrationMemory`."""
        found = distributed.broadcast(load_histograms(self.histograms_file))  # all agree on whether there is a pass
        if found is not None:
            return found
        made = make()
        if distributed.is_main():
            save_histograms(self.histograms_file, made)
        return made

    def choice(self, make: Callable[[], Calibration]) -> Calibration:
        """See :class:`~trt_qat.quantization.calibrate.CalibrationMemory`."""
        found = distributed.broadcast(load_choice(self.choice_file))
        if found is not None:
            return found
        made = make()
        if distributed.is_main():
            write_json(self.choice_file, made.as_dict())
        return made


def cache_key(model: QuantizedModel, data_sha256: str, imgsz: int, bins: int) -> str:
    """Everything that decides the histograms, as one hash: weights, images, preprocessing, placement, bins.

    The calibrator is left out on purpose: changing it needs no new pass over the images.
    """
    digest = hashlib.sha256()
    for name, tensor in model.network.state_dict().items():
        if "quantizer" not in name:
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes())
    scheme = f"power-of-two-limit-{SAMPLES_PER_IMAGE}-samples"
    recipe = [data_sha256, "letterbox-114-rgb-255", scheme, imgsz, bins, model.placement.as_dict()["groups"]]
    digest.update(json.dumps(recipe, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def choice_key(histograms_key: str, section: QuantizationSection) -> str:
    """Everything that decides the choice of ``auto``, as one hash.

    Args:
        histograms_key: of :func:`cache_key`; holds weights, images and placement.
    """
    candidates = [calibrator.as_dict() for calibrator in CANDIDATES]
    settings = [section.auto_images, section.auto_per_group, section.toolkit, section.batch]
    recipe = [histograms_key, candidates, MEASURE, *settings]
    return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:16]


def load_choice(path: Path) -> Calibration | None:
    """Read a choice; None if there is none or it is damaged (it is then made anew)."""
    try:
        found = Calibration.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError):
        return None
    tried = tuple(candidate.calibrator for candidate in found.candidates)
    chosen = [candidate.calibrator for candidate in found.candidates if candidate.chosen]
    known = tried == CANDIDATES and set(found.groups.values()) <= set(CANDIDATES)
    return found if known and chosen == [found.calibrator] else None


def save_histograms(path: Path, histograms: Histograms) -> None:
    """Write a calibration cache, whole or not at all."""
    tensors = {f"{name}.counts": histogram.counts for name, histogram in histograms.items()}
    limits = {name: [histogram.limit, histogram.maximum] for name, histogram in histograms.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"limits": json.dumps(limits)})


def load_histograms(path: Path) -> Histograms | None:
    """Read a calibration cache; None if there is none or it is damaged (it is then made anew)."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="np") as stream:
            limits = json.loads(stream.metadata()["limits"])
            return {
                name: ActivationHistogram(stream.get_tensor(f"{name}.counts"), float(limit), float(maximum))
                for name, (limit, maximum) in limits.items()
            }
    except (SafetensorError, KeyError, ValueError, TypeError, OSError):
        return None
