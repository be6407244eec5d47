"""A network's layers run one after the other over many inputs, whose values in between are kept.

What is fitted layer by layer (rounding, bias) asks for the inputs of each layer once; running the whole network for
each of them would cost as many forward passes as there are layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.nn.tasks import DetectionModel

Values = Tensor | list[Tensor]
"""What a layer reads: one tensor, or several (a concat, the head)."""


class LayersInTurn:
    """The way of some inputs through a detector, layer by layer.

    Args:
        network: in evaluation mode; its layers may be changed as long as they have not run.
        images: (n, 3, h, w) in [0, 1]; all n go the way together, ``part`` at a time.
        part: images per forward pass.
    """

    def __init__(self, network: DetectionModel, images: Tensor, part: int = 8) -> None:
        self._layers: Sequence[nn.Module] = list(network.model)
        self._kept = frozenset(network.save)
        self._outputs: list[Any] = []
        self._value: Any = images
        self.part = part
        self.count = len(images)
        self._readers = {index: _last_reader(self._layers, index) for index in range(len(self._layers))}

    @property
    def layer(self) -> nn.Module | None:
        """The layer that runs next; None at the end."""
        return self._layers[len(self._outputs)] if len(self._outputs) < len(self._layers) else None

    def inputs(self) -> Values:
        """What the next layer reads, of all images."""
        source: Any = self.layer.f  # type: ignore[union-attr]
        if source == -1:
            return self._value  # type: ignore[no-any-return]
        if isinstance(source, int):
            return self._outputs[source]  # type: ignore[no-any-return]
        return [self._value if index == -1 else self._outputs[index] for index in source]

    @torch.no_grad()
    def advance(self) -> None:
        """Run the next layer; the last one, the head, has no output that another reads and is left out."""
        layer, inputs, index = self.layer, self.inputs(), len(self._outputs)
        if index == len(self._layers) - 1:
            self._outputs.append(None)
            return
        parts = [layer(some(inputs, slice(first, first + self.part))) for first in range(0, self.count, self.part)]  # type: ignore[misc]
        self._value = torch.cat(parts)
        self._outputs.append(self._value if index in self._kept else None)
        for earlier in range(index + 1):
            if self._readers[earlier] <= index:
                self._outputs[earlier] = None


def some(values: Values, chosen: slice | Tensor) -> Values:
    """The values of some of the images."""
    return [value[chosen] for value in values] if isinstance(values, list) else values[chosen]


def _last_reader(layers: Sequence[nn.Module], index: int) -> int:
    """The last layer that reads an earlier one by its number; -1 where none does."""
    readers = [-1]
    for number, layer in enumerate(layers):
        source: Any = layer.f
        if index in (source if isinstance(source, list) else [source]):
            readers.append(number)
    return max(readers)
