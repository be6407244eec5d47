"""The loss of QAT: detection, distillation and penalty, each when it is configured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from trt_qat.training.features.dampening import DampeningLoss
from trt_qat.training.features.distillation import Distillation

DetectionLoss = Callable[[Any, Mapping[str, Any]], tuple[Tensor, dict[str, Tensor]]]


class QATCriterion:
    """Stands where the detector's criterion stood.

    Args:
        detection: Ultralytics' criterion of the network in training; validation reports it alone.
        with_labels: whether it is part of the training loss.
        distillation: None without a teacher.
        penalty: None without a penalty.
    """

    def __init__(
        self,
        detection: DetectionLoss,
        with_labels: bool,
        distillation: Distillation | None = None,
        penalty: DampeningLoss | None = None,
    ) -> None:
        self._detection = detection
        self._with_labels = with_labels
        self._distillation = distillation
        self._penalty = penalty
        self._reported: tuple[str, ...] = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> QATCriterion:
        return self  # the EMA copy of the network shares the teacher

    def __call__(self, predictions: Any, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss scaled by the batch size, as Ultralytics expects, and its detached parts; a part not computed is NaN."""
        if not torch.is_grad_enabled():
            loss, parts = self._detection(predictions, batch)
            return loss, {**parts, **dict.fromkeys(self._extra(), torch.full((), torch.nan, device=loss.device))}
        losses: list[Tensor] = []
        if self._with_labels:
            labelled, parts = self._detection(predictions, batch)
            losses.append(labelled.reshape(-1))
        else:
            parts = self._not_computed(predictions, batch)
        terms: dict[str, Tensor] = {}
        if self._distillation is not None:
            terms |= self._distillation(predictions, batch["img"])
        if self._penalty is not None:
            terms["penalty"] = self._penalty()
        losses += [(term * len(batch["img"])).reshape(1) for term in terms.values()]
        return torch.cat(losses), {**parts, **{name: term.detach() for name, term in terms.items()}}

    def _not_computed(self, predictions: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        if not self._reported:
            with torch.no_grad():
                self._reported = tuple(self._detection(predictions, batch)[1])
        return dict.fromkeys(self._reported, torch.full((), torch.nan, device=batch["img"].device))

    def _extra(self) -> tuple[str, ...]:
        return ((*Distillation.TERMS,) if self._distillation else ()) + (("penalty",) if self._penalty else ())
