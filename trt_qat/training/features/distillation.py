"""Distillation: the quantized student is pulled towards the float network it came from. Needs no labels.

The terms follow the detector's own outputs: class probabilities (binary cross-entropy), box distributions
(Kullback-Leibler divergence; Hinton et al. 2015, "Distilling the Knowledge in a Neural Network") and the feature maps
that the head reads (mean squared error relative to their variance).
"""

from __future__ import annotations

import copy
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override
from ultralytics.nn.tasks import DetectionModel

from trt_qat.config import QatSection
from trt_qat.model.output_error import Predictions, box_error, raw_predictions, score_error
from trt_qat.quantization.insert import QuantizedModel
from trt_qat.training.features.base import Feature, Start
from trt_qat.training.precision import exact, in_float32


class Distillation(Feature):
    """Adds the weighted terms of every batch to the loss.

    Args:
        teacher: float detector; gets the same images as the student. Its memory layout is changed in place.
        score: weight of the class probabilities.
        box: weight of the box distributions.
        feature: weight of the feature maps.
    """

    name: ClassVar[str] = "distillation"
    terms: ClassVar[tuple[str, ...]] = ("score", "box_kl", "feature")
    teaches: ClassVar[bool] = True

    def __init__(self, teacher: DetectionModel, score: float = 1.0, box: float = 1.0, feature: float = 1.0) -> None:
        # together a third of the teacher's time on a CPU; nothing reads a tensor from before its activation
        self.teacher = teacher.eval().to(memory_format=torch.channels_last)
        for module in self.teacher.modules():
            if isinstance(module, nn.SiLU):
                module.inplace = True
        self._weights = {"score": score, "box_kl": box, "feature": feature}

    @classmethod
    @override
    def configured(cls, section: QatSection, start: Start) -> Distillation | None:
        if section.loss == "detection":
            return None
        quantized = start.model.require_quantized()
        with quantized.quantizers_off():  # a copy keeps its quantizers as they are: this one stays float
            teacher = copy.deepcopy(start.teacher or quantized.network)
        return cls(teacher, section.distill_score, section.distill_box, section.distill_feature)

    @override
    def prepare_(self, model: QuantizedModel, device: torch.device) -> None:
        self.teacher.to(device)

    @override
    def loss(self, predictions: Predictions, images: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            taught = in_float32(raw_predictions(self.teacher, images.contiguous(memory_format=torch.channels_last)))
        with exact(images.device):
            terms = distillation_terms(predictions, taught)
        return {name: self._weights[name] * term for name, term in terms.items()}


def distillation_terms(student: Predictions, teacher: Predictions) -> dict[str, Tensor]:
    """The three terms without weights, each a scalar; arguments as ``raw_predictions`` returns them."""
    # a level's features are divided by their variance: the levels differ in scale, and the largest would rule the sum
    features = [
        F.mse_loss(mine, theirs) / theirs.var().clamp(min=1e-6)
        for mine, theirs in zip(student["feats"], teacher["feats"], strict=True)
    ]
    return {
        "score": score_error(student, teacher),
        "box_kl": box_error(student, teacher),
        "feature": torch.stack(features).mean(),
    }
