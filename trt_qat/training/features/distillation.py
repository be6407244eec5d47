"""Distillation: the quantized student is pulled towards the float network it came from. Needs no labels.

The terms follow the detector's own outputs: class probabilities (binary cross-entropy), box distributions
(Kullback-Leibler divergence; Hinton et al. 2015, "Distilling the Knowledge in a Neural Network") and the feature maps
that the head reads (mean squared error relative to their variance).
"""

from __future__ import annotations

import copy
from functools import partial
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
        blocks: weight of the outputs of all layers.
        objects: share of the weight of maps and outputs that goes to where the teacher sees objects.
    """

    name: ClassVar[str] = "distillation"
    terms: ClassVar[tuple[str, ...]] = ("score", "box_kl", "feature")

    def __init__(
        self,
        teacher: DetectionModel,
        score: float = 1.0,
        box: float = 1.0,
        feature: float = 1.0,
        blocks: float = 0.0,
        objects: float = 0.0,
    ) -> None:
        # together a third of the teacher's time on a CPU; nothing reads a tensor from before its activation
        self.teacher = teacher.eval().to(memory_format=torch.channels_last)
        for module in self.teacher.modules():
            if isinstance(module, nn.SiLU):
                module.inplace = True
        self._weights = {"score": score, "box_kl": box, "feature": feature}
        self._blocks, self._objects = blocks, objects

    @classmethod
    @override
    def configured(cls, section: QatSection, start: Start) -> Distillation | None:
        if section.loss == "detection":
            return None
        quantized = start.model.require_quantized()
        with quantized.quantizers_off():  # a copy keeps its quantizers as they are: this one stays float
            teacher = copy.deepcopy(start.teacher or quantized.network)
        return cls(
            teacher,
            section.distill_score,
            section.distill_box,
            section.distill_feature,
            section.distill_blocks,
            section.distill_objects,
        )

    @override
    def prepare_(self, model: QuantizedModel, device: torch.device) -> None:
        self.teacher.to(device)
        if self._blocks:
            self._mine, self._taught = LayerOutputs(model.network, True), LayerOutputs(self.teacher, False)

    @override
    def loss(self, predictions: Predictions, images: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            taught = in_float32(raw_predictions(self.teacher, images.contiguous(memory_format=torch.channels_last)))
        with exact(images.device):
            terms = distillation_terms(predictions, taught, self._objects)
            weighted = {name: self._weights[name] * term for name, term in terms.items()}
            if self._blocks:
                maps = _object_maps(taught)
                pairs = zip(self._mine.values, self._taught.values, strict=True)
                errors = [_map_error(mine.float(), theirs.float(), maps[0], self._objects) for mine, theirs in pairs]
                weighted["feature"] = weighted["feature"] + self._blocks * torch.stack(errors).mean()
        return weighted


class LayerOutputs:
    """What the layers of a network said in its last forward pass, the head left out.

    Args:
        training: keep only what is computed with gradients (a copy of the network that is validated has these hooks).
    """

    def __init__(self, network: DetectionModel, training: bool) -> None:
        self.values: list[Tensor] = []
        self._training = training
        for index, layer in enumerate(network.model[:-1]):
            layer.register_forward_hook(partial(self._keep, index))

    def _keep(self, index: int, _: nn.Module, __: object, output: Tensor) -> None:
        if torch.is_grad_enabled() == self._training:
            self.values = [*self.values[:index], output]

    def __deepcopy__(self, memo: dict[int, object]) -> LayerOutputs:
        return self


def _object_maps(teacher: Predictions) -> list[Tensor]:
    """How sure the teacher is of some class, (batch, 1, h, w) of each level."""
    sizes = [feature.shape[-2:] for feature in teacher["feats"]]
    confidence = teacher["scores"].sigmoid().amax(dim=1, keepdim=True).split([h * w for h, w in sizes], dim=2)
    return [level.unflatten(2, size) for level, size in zip(confidence, sizes, strict=True)]


def _map_error(mine: Tensor, theirs: Tensor, objects: Tensor, share: float) -> Tensor:
    error = (mine - theirs).square().mean(1, keepdim=True)
    total = (1 - share) * error.mean()
    if share:
        seen = F.interpolate(objects, size=error.shape[-2:], mode="area")
        total = total + share * (error * seen).sum() / seen.sum().clamp(min=1.0)
    return total / theirs.var().clamp(min=1e-6)


def distillation_terms(student: Predictions, teacher: Predictions, objects: float = 0.0) -> dict[str, Tensor]:
    """The three terms without weights, each a scalar; arguments as ``raw_predictions`` returns them."""
    # a level's features are divided by their variance: the levels differ in scale, and the largest would rule the sum
    features = [
        _map_error(mine, theirs, where, objects) if objects else F.mse_loss(mine, theirs) / theirs.var().clamp(min=1e-6)
        for mine, theirs, where in zip(student["feats"], teacher["feats"], _object_maps(teacher), strict=True)
    ]
    return {
        "score": score_error(student, teacher),
        "box_kl": box_error(student, teacher),
        "feature": torch.stack(features).mean(),
    }
