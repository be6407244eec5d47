"""Whether the head's last convolutions are INT8 too, decided by what that costs in mAP on images of the calibration.

Not by the error of the raw outputs: of these convolutions' rounding each anchor gets its own, which moves the outputs
half as much again as all other INT8 layers together (traffic signs: 0.095 instead of 0.063) and no detection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from trt_qat.checkpoint import Model
from trt_qat.config import EvaluationSection
from trt_qat.data.dataset import Dataset, calibration_images
from trt_qat.errors import DatasetError
from trt_qat.evaluation.accuracy import measure_accuracy
from trt_qat.evaluation.torch_runner import TorchRunner
from trt_qat.progress import SILENT, Progress
from trt_qat.results import Measure, other_names

LIMIT = 0.002
"""Most that it may cost, a fraction: what chance moves on a hundred images."""
REASON = "role head_last"  # what a placement says of convolutions that are float by that role


@dataclass(frozen=True)
class HeadDecision:
    """What was measured on how many images: mAP50-95 (or agreement) with these convolutions float, and in INT8."""

    float_map: float
    int8_map: float
    images: int
    measure: Measure
    limit: float = LIMIT

    @property
    def int8(self) -> bool:
        """Whether they are INT8."""
        return self.float_map - self.int8_map <= self.limit

    def as_dict(self) -> dict[str, Any]:
        """A JSON form for the checkpoint's provenance, under the names of :func:`~trt_qat.results.other_names`."""
        figures = {"float_map50_95": self.float_map, "int8_map50_95": self.int8_map}
        content = {"int8": self.int8, **figures, "images": self.images, "measure": self.measure}
        return dict(other_names(content))

    def __str__(self) -> str:
        return (
            f"the head's last convolutions are {'INT8' if self.int8 else 'float'}: {self.measure}50-95 on "
            f"{self.images} training images is {self.int8_map:.4f} with them in INT8, {self.float_map:.4f} with them "
            f"float; {self.limit * 100:g} points less are allowed"
        )


def decide_head(
    model: Model,
    groups: Sequence[str],
    dataset: Dataset,
    images: int,
    section: EvaluationSection,
    progress: Progress = SILENT,
    limit: float = LIMIT,
) -> Model:
    """The model with these groups as they are, or float where INT8 costs more than ``limit`` there.

    Args:
        model: calibrated, with quantizers in all groups; left as it is. ``provenance["head_last"]`` of what is
            returned says what was measured; it says nothing where the images have no labels, and the groups are float.
        groups: of :func:`~trt_qat.quantization.head.plan_head`.
        images: how many training images are looked at, evenly spaced.
    """
    quantized = model.require_quantized()
    seen = replace(dataset, val=tuple(calibration_images(dataset, images)))
    runner = TorchRunner(model, section.threads)
    try:
        int8 = measure_accuracy(runner, seen, section, progress).map50_95
        with quantized.only([group.name for group in quantized.placement.groups if group.name not in groups]):
            decision = HeadDecision(
                measure_accuracy(runner, seen, section, progress).map50_95, int8, len(seen.val), dataset.measure, limit
            )
    except DatasetError as exc:
        progress.note(f"export.target=openvino: the head's last convolutions stay float. {exc}")
        return model.with_quantized(quantized.leave_float(groups, REASON), "ptq", model.provenance)
    progress.note(f"export.target=openvino: {decision}.")
    decided = quantized if decision.int8 else quantized.leave_float(groups, REASON)
    return model.with_quantized(decided, "ptq", {**model.provenance, "head_last": decision.as_dict()})
