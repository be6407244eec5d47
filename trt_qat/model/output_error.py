"""How far a network's raw predictions are from a reference network's: the measure of distillation and of calibration.

Each anchor counts by the reference's confidence there, so that background does not drown the detections.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from ultralytics.nn.tasks import DetectionModel

Predictions = Mapping[str, Any]

MEASURE = "score+dist, or distance"  # names what output_error computes; a cached comparison of another is not used


def raw_predictions(network: DetectionModel, images: Tensor) -> Predictions:
    """What the head says before decoding: ``scores`` (batch, classes, anchors) as logits, ``boxes`` (batch, 4 * bins,
    anchors) as logits (distances where there is one bin), ``feats`` a list of (batch, channels, h, w).
    """
    head = network.model[-1]
    was_training = head.training
    head.training = True  # the flag alone: the head holds no layer that behaves differently
    try:
        output: Predictions = network(images)
    finally:
        head.training = was_training
    return output


def output_error(predictions: Predictions, reference: Predictions) -> Tensor:
    """The error of scores and boxes together, a scalar, 0 where both are equal; rounding does not take it below."""
    return (score_error(predictions, reference) + box_error(predictions, reference)).clamp(min=0)


def score_error(predictions: Predictions, reference: Predictions) -> Tensor:
    """Binary cross-entropy of the class probabilities above its least value, per confident anchor; a scalar."""
    probabilities = reference["scores"].sigmoid()
    cross = F.binary_cross_entropy_with_logits(predictions["scores"], probabilities, reduction="none")
    floor = F.binary_cross_entropy_with_logits(reference["scores"], probabilities, reduction="none")
    return (cross - floor).sum() / _confidence(reference).sum().clamp(min=1.0)


def box_error(predictions: Predictions, reference: Predictions) -> Tensor:
    """Kullback-Leibler divergence of the box distributions, weighted by confidence; a scalar.

    A head of one bin (YOLO26) says distances instead; of these it is the smooth L1 error, in cells of the grid.
    """
    batch, channels, anchors = reference["boxes"].shape
    confidence = _confidence(reference)
    if channels == 4:
        off = F.smooth_l1_loss(predictions["boxes"], reference["boxes"], reduction="none")
        return (off.sum(dim=1) * confidence).sum() / confidence.sum().clamp(min=1.0)

    def log_distribution(boxes: Tensor) -> Tensor:
        return boxes.view(batch, 4, channels // 4, anchors).log_softmax(dim=2)

    divergence = F.kl_div(
        log_distribution(predictions["boxes"]), log_distribution(reference["boxes"]), reduction="none", log_target=True
    )
    return (divergence.sum(dim=(1, 2)) * confidence).sum() / confidence.sum().clamp(min=1.0)


def _confidence(reference: Predictions) -> Tensor:
    """How much each anchor matters, shape (batch, anchors)."""
    confidence: Tensor = reference["scores"].sigmoid().amax(dim=1)
    return confidence
