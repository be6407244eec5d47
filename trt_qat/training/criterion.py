"""The loss of training: the detection loss where the labels are followed, and the terms of the features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.loss import v8DetectionLoss

from trt_qat.model.loading import is_end_to_end
from trt_qat.model.output_error import Predictions
from trt_qat.training.features.base import Feature
from trt_qat.training.precision import exact, in_float32

DetectionLoss = Callable[[Any, Mapping[str, Any]], tuple[Tensor, dict[str, Tensor]]]


def deployed_criterion(network: DetectionModel) -> DetectionLoss:
    """Ultralytics' criterion of what is deployed: an end-to-end head's one-to-one matching (``E2ELoss.one2one``)."""
    criterion: DetectionLoss = (
        v8DetectionLoss(network, tal_topk=7, tal_topk2=1) if is_end_to_end(network) else network.init_criterion()
    )
    return criterion


class QATCriterion:
    """Stands where the detector's criterion stood.

    Args:
        detection: Ultralytics' criterion of the network in training; validation reports it alone.
        with_labels: whether it is part of the training loss.
        features: their terms are added.
        held_out: whether validation computes the terms of the features that teach, which costs their teacher's time.
    """

    def __init__(
        self, detection: DetectionLoss, with_labels: bool, features: Sequence[Feature] = (), held_out: bool = False
    ) -> None:
        self._detection = detection
        self._with_labels = with_labels
        self._features = features
        self._held_out = held_out
        self._reported: tuple[str, ...] = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> QATCriterion:
        return self  # the EMA copy of the network shares the teacher

    def update(self) -> None:
        """After each epoch: an end-to-end head's loss moves its weight from one-to-many to one-to-one matching."""
        update = getattr(self._detection, "update", None)
        if update is not None:
            update()

    def __call__(self, predictions: Any, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss scaled by the batch size, as Ultralytics expects, and its detached parts; a part not computed is NaN.

        Computed in float32, whatever the predictions come in.
        """
        predictions = in_float32(predictions)
        if not torch.is_grad_enabled():
            # Ultralytics takes the columns of results.csv from this call, so the features' terms must have a name here
            loss, parts = self._detected(predictions, batch)
            terms = [name for feature in self._features for name in feature.terms]
            parts = {**parts, **dict.fromkeys(terms, torch.full((), torch.nan, device=loss.device))}
            for feature in self._features if self._held_out else ():
                if feature.teaches:
                    parts |= feature.loss(_raw(predictions), batch["img"])
            return loss, parts
        losses: list[Tensor] = []
        if self._with_labels:
            labelled, parts = self._detected(predictions, batch)
            losses.append(labelled.reshape(-1))
        else:
            parts = self._not_computed(predictions, batch)
        for feature in self._features:
            for name, term in feature.loss(predictions, batch["img"]).items():
                losses.append((term * len(batch["img"])).reshape(1))
                parts = {**parts, name: term.detach()}
        return torch.cat(losses), parts

    def _detected(self, predictions: Any, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        with exact(batch["img"].device):
            return self._detection(predictions, batch)

    def _not_computed(self, predictions: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The parts of the detection loss as NaN. Their names are asked for once: the loss itself is not needed."""
        if not self._reported:
            with torch.no_grad():
                self._reported = tuple(self._detected(predictions, batch)[1])
        return dict.fromkeys(self._reported, torch.full((), torch.nan, device=batch["img"].device))


def _raw(predictions: Any) -> Predictions:
    """What training sees: in evaluation the network returns decoded boxes beside it."""
    raw: Predictions = predictions[1] if isinstance(predictions, tuple) else predictions
    return raw
