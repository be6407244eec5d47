"""Distillation: the quantized student is pulled towards the float network it came from. Needs no labels.

The terms follow the detector's own outputs: class probabilities (binary cross-entropy), box distributions
(Kullback-Leibler divergence; Hinton et al. 2015, "Distilling the Knowledge in a Neural Network") and the feature maps
that the head reads (mean squared error relative to their variance).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from ultralytics.nn.tasks import DetectionModel

from trt_qat.model.output_error import Predictions, box_error, raw_predictions, score_error

Criterion = Callable[[Any, Mapping[str, Any]], tuple[Tensor, dict[str, Tensor]]]


class DistillationCriterion:
    """Stands where the detector's criterion stood; the original still reports (and may join) the loss.

    Args:
        detection: Ultralytics' criterion of the student.
        teacher: float detector; gets the same images.
        with_labels: add the detection loss to the distillation loss.
        weight: weight of the distillation loss.
    """

    def __init__(self, detection: Criterion, teacher: DetectionModel, with_labels: bool, weight: float) -> None:
        self.detection = detection
        self.teacher = teacher.eval()
        self.with_labels = with_labels
        self.weight = weight

    def __deepcopy__(self, memo: dict[int, Any]) -> DistillationCriterion:
        return self  # the EMA copy of the student shares the teacher

    def __call__(self, predictions: Any, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss scaled by the batch size, as Ultralytics expects, and its detached parts."""
        if not torch.is_grad_enabled():  # validation: report the detection loss alone
            loss, parts = self.detection(predictions, batch)
            return loss, {**parts, **dict.fromkeys(("score", "dist", "feat"), torch.zeros((), device=loss.device))}
        with torch.no_grad():
            taught = raw_predictions(self.teacher, batch["img"])
        terms = distillation_terms(predictions, taught)
        loss = self.weight * torch.stack(list(terms.values())) * len(batch["img"])
        if self.with_labels:
            labelled, parts = self.detection(predictions, batch)
            loss = torch.cat([labelled, loss])
        else:
            with torch.no_grad():
                parts = self.detection(predictions, batch)[1]
        return loss, {**parts, **{name: term.detach() for name, term in terms.items()}}


def distillation_terms(student: Predictions, teacher: Predictions) -> dict[str, Tensor]:
    """The three terms, each a scalar.

    Args:
        student: raw predictions: ``scores`` (batch, classes, anchors), ``boxes`` (batch, 4 * bins, anchors), ``feats``
            a list of (batch, channels, h, w).
        teacher: the same for the teacher.
    """
    features = [
        F.mse_loss(mine, theirs) / theirs.var().clamp(min=1e-6)
        for mine, theirs in zip(student["feats"], teacher["feats"], strict=True)
    ]
    return {
        "score": score_error(student, teacher),
        "dist": box_error(student, teacher),
        "feat": torch.stack(features).mean(),
    }
