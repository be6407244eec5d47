"""The output error that a network's present quantizers cause, on given images."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from trt_qat.model.output_error import output_error, raw_predictions
from trt_qat.quantization.insert import QuantizedModel


class OutputDivergence:
    """Error of the raw head outputs against the float network, per image.

    Args:
        model: its quantizers and ranges may change between calls, its weights may not; set to evaluation.
        batches: float32 tensors of shape (n, 3, h, w) in [0, 1]; kept in memory with their float outputs.
    """

    @torch.no_grad()
    def __init__(self, model: QuantizedModel, batches: Iterable[Tensor]) -> None:
        self._network = model.network.eval()
        device = next(self._network.parameters()).device
        with model.quantizers_off():
            images = [batch.to(device) for batch in batches]
            self._taught = [(batch, raw_predictions(self._network, batch)) for batch in images]
        self.counts = [len(batch) for batch in images]

    @torch.no_grad()
    def sums(self) -> list[float]:
        """The error with the quantizers that are on now, times the images, of each batch."""
        return [
            float(output_error(raw_predictions(self._network, batch), taught)) * len(batch)
            for batch, taught in self._taught
        ]

    def __call__(self) -> float:
        """The error with the quantizers that are on now."""
        return sum(self.sums()) / sum(self.counts)
