"""What a calibration needs again, in files: the histograms, so that another calibrator needs no second pass, and the
answer of ``auto`` beside them.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import logging
import math
import os
import re
import stat
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from trt_qat import distributed
from trt_qat.artifacts import atomic_path, existing_file, write_json
from trt_qat.config import QuantizationSection, Scheme, WeightScales
from trt_qat.data.images import Image, images_sha256
from trt_qat.errors import ArtifactError, ConfigError
from trt_qat.model.output_error import MEASURE
from trt_qat.quantization.auto import CANDIDATES
from trt_qat.quantization.calibration import Calibration, CalibrationContent
from trt_qat.quantization.histogram import SAMPLES_PER_IMAGE, ActivationHistogram, Histograms
from trt_qat.quantization.insert import QuantizedModel
from trt_qat.quantization.partial_pass import PartialPass
from trt_qat.reading import FileModel, checked, parse_json, read_json, shortened
from trt_qat.vision.size import ImageSize

LOG = logging.getLogger(__name__)


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
        self, model: QuantizedModel, images: Sequence[Image], imgsz: ImageSize, section: QuantizationSection
    ) -> CachedCalibration:
        """The files of this calibration, whether they are there or not."""
        key = cache_key(model, images_sha256(images), imgsz, section.histogram_bins)
        histograms = self.folder / f"{self.stem}-{key}.safetensors"
        choice = histograms.with_name(
            f"{histograms.stem}-auto-{choice_key(key, section, model.placement.weights)}.json"
        )
        groups = tuple(group.name for group in model.placement.groups)
        return CachedCalibration(groups, section.histogram_bins, histograms, choice, model.placement.scheme)


@dataclass(frozen=True)
class CachedCalibration:
    """The files of one calibration. In a job of several processes the main one reads and writes them.

    Args:
        groups: the scale groups of the placement.
        bins: of each histogram.
        scheme: decides whether histograms are two-sided.
    """

    groups: tuple[str, ...]
    bins: int
    histograms_file: Path
    choice_file: Path
    scheme: Scheme = "symmetric"

    def histograms(self, make: Callable[[], Histograms]) -> Histograms:
        """See :class:`~trt_qat.quantization.calibrate.CalibrationMemory`."""
        # all agree on whether there is a pass
        found = distributed.broadcast(load_histograms(self.histograms_file, self.groups, self.bins, self.scheme))
        if found is not None:
            return found
        made = make()
        if distributed.is_main():
            _make_way(self.histograms_file)
            save_histograms(self.histograms_file, made)
            for part in self.histograms_file.parent.glob(f"{glob.escape(self.histograms_file.stem)}.part-*"):
                part.unlink(missing_ok=True)
        return made

    def choice(self, make: Callable[[], Calibration]) -> Calibration:
        """See :class:`~trt_qat.quantization.calibrate.CalibrationMemory`."""
        found = distributed.broadcast(load_choice(self.choice_file, self.groups))
        if found is not None:
            return found
        made = make()
        if distributed.is_main():
            _make_way(self.choice_file)
            write_json(self.choice_file, made.content().model_dump(mode="json"))
        return made

    def partial(self, batch: int) -> PartialPass:
        """See :class:`~trt_qat.quantization.calibrate.CalibrationMemory`; each process of a job has its own file."""
        name = f"{self.histograms_file.stem}.part-{batch}-{distributed.rank()}of{distributed.world_size()}.safetensors"
        file = self.histograms_file.with_name(name)
        found = load_histograms(file, self.groups, self.bins, self.scheme)
        done = _batches_done(file) if found else 0
        start = found if found and done else {}
        return PartialPass(lambda batches, so_far: save_histograms(file, so_far, batches), done, start)


def cache_key(model: QuantizedModel, data_sha256: str, imgsz: ImageSize, bins: int) -> str:
    """Everything that decides the histograms, as one hash: weights, images, preprocessing, placement, scheme, bins.

    The calibrator is left out on purpose: changing it needs no new pass over the images.
    """
    digest = hashlib.sha256()
    for name, tensor in model.network.state_dict().items():
        if "quantizer" not in name:
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes())
    counted = f"power-of-two-limit-{SAMPLES_PER_IMAGE}-samples"
    if model.placement.scheme == "asymmetric":
        counted += "-two-sided"
    recipe = [data_sha256, "letterbox-114-rgb-255", counted, imgsz, bins, model.placement.as_dict()["groups"]]
    digest.update(json.dumps(recipe, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def choice_key(histograms_key: str, section: QuantizationSection, weights: WeightScales) -> str:
    """Everything that decides the choice of ``auto``, as one hash.

    Args:
        histograms_key: of :func:`cache_key`; holds weights, images and placement.
    """
    candidates = [calibrator.as_dict() for calibrator in CANDIDATES]
    settings = [section.auto_images, section.auto_per_group, section.toolkit, section.batch, weights]
    recipe = [histograms_key, candidates, MEASURE, *settings]
    return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:16]


def load_choice(path: Path, groups: Collection[str] | None = None) -> Calibration | None:
    """Read a choice; None if there is none, or it is damaged: it is then made anew, and a line says so.

    Args:
        groups: the scale groups that there are; None leaves them unchecked.
    """
    if not os.path.lexists(path):
        return None
    try:
        content = checked(CalibrationContent, read_json(path, "Answer of 'auto'"), path, "It is made anew.")
        found = Calibration.from_content(content)
        tried = tuple(candidate.calibrator for candidate in found.candidates)
        chosen = [candidate.calibrator for candidate in found.candidates if candidate.chosen]
        if tried != CANDIDATES or not set(found.groups.values()) <= set(CANDIDATES) or chosen != [found.calibrator]:
            raise ArtifactError(f"'{path}' is the answer among other calibrators. It is made anew.")
        if groups is not None and not set(found.groups) <= set(groups):
            raise ArtifactError(f"'{path}' names a scale group that the network does not have. It is made anew.")
    except (ArtifactError, ConfigError) as exc:
        _note(exc)
        return None
    return found


_BELOW = ":below"  # no name of a traced tensor has a colon
_BEYOND_FLOAT32 = 2.0**128  # activations are float32
_MOST_COUNTED = 2.0**53  # a larger whole number is no longer exact, and sums over bins could become infinite


class Span(FileModel):
    """Edge and largest value of a histogram, as :class:`ActivationHistogram` has them; both 0 if nothing was seen."""

    limit: Annotated[float, Field(ge=0)]
    maximum: Annotated[float, Field(ge=0, lt=_BEYOND_FLOAT32)]

    @model_validator(mode="after")
    def _fits(self) -> Span:
        smallest = 2.0 ** math.frexp(self.maximum)[1] if self.maximum else 0.0
        if self.limit != smallest:
            raise ValueError(f"limit must be {smallest:g}, the smallest power of two above the maximum")
        return self


class CacheHeader(FileModel):
    """What a calibration cache says beside its counts, which are one float64 tensor ``<group>.counts`` each.

    Of a two-sided histogram the values below zero are an entry ``<group>:below`` of their own.
    """

    limits: dict[str, Span]


def save_histograms(path: Path, histograms: Histograms, batches: int | None = None) -> None:
    """Write a calibration cache, whole or not at all.

    Args:
        batches: how many were counted, where more are to come.

    Raises:
        ArtifactError: the histograms are not what :func:`load_histograms` would take.
    """
    sides = dict(_sides(histograms))
    tensors = {f"{name}.counts": histogram.counts for name, histogram in sides.items()}
    limits = {name: {"limit": entry.limit, "maximum": entry.maximum} for name, entry in sides.items()}
    header = checked(CacheHeader, {"limits": limits}, path, "This is a fault of trt_qat.")
    for name, counts in tensors.items():
        _check_counts(counts, name, path)
    counted = {} if batches is None else {"batches": str(batches)}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"limits": json.dumps(header.model_dump()["limits"])} | counted)


def load_histograms(
    path: Path, groups: Collection[str] | None = None, bins: int | None = None, scheme: Scheme = "symmetric"
) -> Histograms | None:
    """Read a calibration cache; None if there is none, or it is damaged: it is then made anew, and a line says so.

    Args:
        groups: the scale groups that must be there, and no others; None leaves them unchecked.
        bins: of each histogram; None leaves them unchecked.
        scheme: decides whether histograms are two-sided, for ``groups``.
    """
    wanted = None if groups is None else {*groups, *(f"{name}{_BELOW}" for name in groups if scheme == "asymmetric")}
    if not os.path.lexists(path):
        return None
    try:
        return _read_histograms(path, wanted, bins)
    except ArtifactError as exc:
        _note(exc)
        return None


def _sides(histograms: Histograms) -> Iterator[tuple[str, ActivationHistogram]]:
    for name, histogram in histograms.items():
        yield name, histogram
        if histogram.below is not None:
            yield f"{name}{_BELOW}", histogram.below


def _make_way(path: Path) -> None:
    """Remove a pipe or a socket that has the cache's name, which nothing else is given."""
    with contextlib.suppress(OSError):
        mode = path.lstat().st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
            path.unlink()


def _batches_done(path: Path) -> int:
    """How many batches a file that :func:`load_histograms` has read counts; 0 if it does not say."""
    with safe_open(path, framework="np") as stream:
        said = (stream.metadata() or {}).get("batches", "")
    return int(said) if re.fullmatch("[0-9]{1,9}", said) else 0


def _read_histograms(path: Path, groups: Collection[str] | None, bins: int | None) -> Histograms:
    existing_file(path, "Calibration cache")
    try:
        with safe_open(path, framework="np") as stream:
            text = (stream.metadata() or {}).get("limits", "null")
            content = {"limits": parse_json(text, f"The header of calibration cache '{path}'")}
            limits = checked(CacheHeader, content, path, "It is made anew.").limits
            if groups is not None and set(groups) != set(limits):
                odd = sorted(set(groups) ^ set(limits))[0]
                raise ArtifactError(f"'{path}' is of other scale groups, e.g. {shortened(odd)}. It is made anew.")
            if {f"{name}.counts" for name in limits} != set(stream.keys()):
                raise ArtifactError(f"'{path}' has other tensors than its header says. It is made anew.")
            sides = {
                name: ActivationHistogram(_counts(stream, f"{name}.counts", bins, path), span.limit, span.maximum)
                for name, span in limits.items()
            }
            return {
                name: replace(side, below=sides.get(f"{name}{_BELOW}"))
                for name, side in sides.items()
                if not name.endswith(_BELOW)
            }
    except (SafetensorError, OSError) as exc:
        raise ArtifactError(f"'{path}' is not a readable calibration cache ({exc}). It is made anew.") from exc


def _counts(stream: Any, name: str, bins: int | None, path: Path) -> NDArray[np.float64]:
    kind, shape = stream.get_slice(name).get_dtype(), list(stream.get_slice(name).get_shape())
    if kind != "F64" or len(shape) != 1 or (bins is not None and shape != [bins]):
        wanted = "one axis" if bins is None else f"shape [{bins}]"
        raise ArtifactError(f"'{path}': {shortened(name)} is {kind} {shape}, not float64 of {wanted}. It is made anew.")
    counts: NDArray[np.float64] = stream.get_tensor(name)
    _check_counts(counts, name, path)
    return counts


def _check_counts(counts: NDArray[np.float64], name: str, path: Path) -> None:
    if not ((counts >= 0) & (counts <= _MOST_COUNTED)).all():  # NaN is neither
        raise ArtifactError(
            f"'{path}': {shortened(name)} has a count that is negative, too large or no number. It is made anew."
        )


def _note(exc: Exception) -> None:
    if distributed.is_main():
        LOG.warning("%s", exc)
