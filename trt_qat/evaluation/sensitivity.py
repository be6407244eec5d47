"""What quantizing each scale group alone costs: everything float except that group, measured group by group.

One network serves for all: its quantizers are switched, and the float outputs are computed once.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, model_validator
from torch import Tensor

from trt_qat.artifacts import write_json
from trt_qat.checkpoint import Model
from trt_qat.config import EvaluationSection, SensitivityMetric, SensitivitySection
from trt_qat.data.dataset import Dataset, calibration_images, label_path
from trt_qat.data.images import images_sha256
from trt_qat.errors import ArtifactError
from trt_qat.evaluation.accuracy import Accuracy, measure_accuracy
from trt_qat.evaluation.group_sensitivity import GroupSensitivity
from trt_qat.evaluation.torch_runner import TorchRunner
from trt_qat.progress import SILENT, Progress
from trt_qat.quantization.calibrate import batches
from trt_qat.quantization.divergence import OutputDivergence
from trt_qat.quantization.insert import QuantizedModel
from trt_qat.reading import FileModel, read_json, shortened, shown_name
from trt_qat.results import Measure, checked_measures, file_content

Cost = Callable[[], float]


class AccuracyOnSubset:
    """Fake-quant mAP or agreement on the first images of the val split.

    Args:
        model: calibrated; its quantizers may be switched between calls.
        images: how many val images.
        section: thresholds, images per forward pass, threads.
    """

    def __init__(self, model: Model, dataset: Dataset, images: int, section: EvaluationSection) -> None:
        self._runner = TorchRunner(model, section.threads)
        self._dataset = replace(dataset, val=dataset.val[:images])
        self._section = section

    def __call__(self) -> Accuracy:
        """The accuracy with the quantizers that are on now."""
        return measure_accuracy(self._runner, self._dataset, self._section)

    def drop_from(self, of_float: float) -> Cost:
        """A function that measures ``of_float`` less the mAP50-95 (or agreement) now."""
        return lambda: of_float - self().map50_95


def measure_groups(
    model: QuantizedModel,
    error: Cost | None,
    drop: Cost | None,
    done: Sequence[GroupSensitivity] = (),
    progress: Progress = SILENT,
    keep: Callable[[list[GroupSensitivity]], object] = lambda so_far: None,
) -> list[GroupSensitivity]:
    """Measure each group alone; the worst comes first.

    Args:
        error: the output error with the quantizers that are on, None to leave it out.
        drop: that of mAP or agreement likewise.
        done: groups measured before, which are not measured again.
        keep: told all that is measured, sorted, after each group.
    """
    rows = {row.group: row for row in done}
    left = [group for group in model.placement.groups if group.name not in rows]
    for group in progress.over(left, "measuring groups"):
        with model.only([group.name]):
            rows[group.name] = GroupSensitivity(
                group.name, group.convs, error() if error else None, drop() if drop else None
            )
        keep(_worst_first(rows.values()))
    return _worst_first(rows.values())


def _worst_first(rows: Iterable[GroupSensitivity]) -> list[GroupSensitivity]:
    return sorted(rows, key=lambda row: (-row.cost, -(row.error or 0.0), row.group))


def sensitivity_key(
    detector: Model, dataset: Dataset, section: SensitivitySection, evaluation: EvaluationSection
) -> dict[str, Any]:
    """Everything that decides the figures, as JSON values: two files with one key hold the same figures."""
    model, imgsz = detector.require_quantized(), detector.imgsz
    weights = {name: value for name, value in model.network.state_dict().items() if "quantizer" not in name}
    placement = json.dumps(model.placement.as_dict(), sort_keys=True)
    key: dict[str, Any] = {
        "metric": section.metric,
        "weights": _tensors_sha256(weights),
        "ranges": _tensors_sha256(model.amax()),
        "placement": hashlib.sha256(placement.encode()).hexdigest()[:16],
        "imgsz": list(imgsz),
    }
    if section.metric != "drop":
        chosen = calibration_images(dataset, section.images)
        key |= {"images": len(chosen), "data": images_sha256(chosen)[:16]}
    if section.metric != "error":
        val = dataset.val[: section.val_images]
        labels = [label for label in map(label_path, val) if label.is_file()]
        key |= {} if dataset.measure == "mAP" else {"measure": dataset.measure}
        key |= {"val_images": len(val), "val_data": images_sha256([*val, *labels])[:16]}
        key |= {"evaluation": evaluation.model_dump(include={"conf", "iou", "max_det"})}
    return key


def _tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}:{tuple(tensor.shape)};".encode())
        digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes())
    return digest.hexdigest()[:16]


class SensitivityContent(FileModel):
    """The JSON file of a ranking.

    Args:
        key: see :func:`sensitivity_key`.
        groups: how many there are; ``layers`` has those that are measured.
        float_figures: the float model's accuracy, under the name ``float``; empty where it was not measured.
        measure: what the labels give; it says nothing where ``metric`` is "error".
    """

    key: dict[str, Any]
    metric: SensitivityMetric
    groups: Annotated[int, Field(ge=1)]
    float_figures: Annotated[dict[str, Any], Field(alias="float")]
    layers: tuple[GroupSensitivity, ...]
    measure: Measure = "mAP"

    @model_validator(mode="after")
    def _fits(self) -> SensitivityContent:
        names = [row.group for row in self.layers]
        if len(set(names)) != len(names) or len(names) > self.groups:
            raise ValueError(f"layers has {len(names)} groups of {self.groups}, or one twice")
        drop = self.float_figures.get("map50_95")
        if self.float_figures and not (isinstance(drop, float | int) and 0 <= drop <= 1):
            raise ValueError(f"float.map50_95 = {shortened(drop)} is no fraction")
        for row in self.layers:
            for measured, value in (("error", row.error), ("drop", row.map50_95_drop)):
                if (value is not None) != (self.metric in (measured, "both")):
                    raise ValueError(f"group {shortened(row.group)} does not hold what metric {self.metric!r} measures")
        return self


def ranking_of(path: Path) -> tuple[GroupSensitivity, ...]:
    """The groups that a file ranks, the most costly first.

    Raises:
        ArtifactError: missing, not JSON, or something else.
    """
    content = read_json(path, "Sensitivity file")
    return checked_measures(SensitivityContent, content, path, "Remove it and run again.").layers


@dataclass(frozen=True)
class SensitivityFile:
    """The JSON file of a ranking, rewritten after each group so that an interrupted run can go on."""

    path: Path
    key: Mapping[str, Any]
    groups: int

    def write(self, ranking: Ranking) -> dict[str, Any]:
        """Write what is measured so far, whole or not at all; returns the content."""
        content = {
            "measure": self.key.get("measure", "mAP"),
            "key": dict(self.key),
            "metric": self.key["metric"],
            "groups": self.groups,
            "float": dict(ranking.float_figures),
            "layers": [row.as_dict() for row in ranking.rows],
        }
        written: dict[str, Any] = file_content(content)
        checked_measures(SensitivityContent, written, self.path, "Nothing was written.")
        write_json(self.path, written)
        return written

    def read(self) -> tuple[Ranking | None, str]:
        """What an earlier run left under the same key, and a line that says so.

        Another key, or another file altogether, gives nothing but the line that says why.
        """
        if not os.path.lexists(self.path):
            return None, ""
        try:
            found_there = read_json(self.path, "Sensitivity file")
            content = checked_measures(SensitivityContent, found_there, self.path, "")
        except ArtifactError as exc:
            return None, f"Starting anew: '{self.path}' is not a readable sensitivity file. {exc}".rstrip()
        found, rows, figures = content.key, list(content.layers), content.float_figures
        wanted = dict(self.key)
        other = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        if other:
            names = ", ".join(map(shown_name, other[:10]))
            return None, f"Starting anew: '{self.path}' was made with other {names}."
        said = f"Continuing '{self.path}': {len(rows)} of {self.groups} groups are measured already."
        return Ranking(rows, figures), said


@dataclass(frozen=True)
class Ranking:
    """Scale groups, the most costly first; ``float_figures`` is the float model's accuracy where it was measured."""

    rows: list[GroupSensitivity]
    float_figures: Mapping[str, Any]


def rank_groups(
    model: Model,
    dataset: Dataset,
    section: SensitivitySection,
    evaluation: EvaluationSection,
    *,
    done: Ranking | None = None,
    keep: Callable[[Ranking], object] = lambda so_far: None,
    progress: Progress = SILENT,
) -> Ranking:
    """Measure every group alone with ``section.metric``.

    Args:
        model: calibrated; its quantizers are switched while this runs and are as before afterwards.
        evaluation: how mAP or agreement is measured, where it is.
        done: what was measured before, which is not measured again.
        keep: told all that is measured, sorted, after each group.
    """
    quantized = model.require_quantized()
    figures = dict(done.float_figures) if done else {}
    rows = list(done.rows) if done else []
    error = drop = None
    unfinished = len(rows) < len(quantized.placement.groups)
    if unfinished and section.metric != "drop":
        images = calibration_images(dataset, section.images)
        error = OutputDivergence(quantized, (make() for make in batches(images, model.imgsz, section.batch)))
    if unfinished and section.metric != "error":
        on_val = AccuracyOnSubset(model, dataset, section.val_images, evaluation)
        if not figures:
            with quantized.quantizers_off():
                figures = on_val().as_dict()
        drop = on_val.drop_from(figures["map50_95"])
    rows = measure_groups(quantized, error, drop, rows, progress, lambda so_far: keep(Ranking(so_far, figures)))
    return Ranking(rows, figures)
