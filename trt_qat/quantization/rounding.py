"""Weight rounding chosen by layer output: up or down, whichever brings the INT8 layer's output nearer to the float one.

Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization", on whole layers of the detector as
in Li et al. 2021, "BRECQ". Layer after layer of the network, on what the layers before it, already in INT8, give it,
learns for each weight whether it is rounded up or down; the target is what the float network's layer says. No labels
are used.

What was chosen is written into the float weight: it becomes a multiple of its scale, so that the plain rounding of
every client gives it. Ranges stay as they were.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from trt_qat.model.layers_in_turn import LayersInTurn, Values, some
from trt_qat.model.output_error import box_error, score_error
from trt_qat.progress import SILENT, Progress
from trt_qat.quantization.fake_quant import HIGHEST
from trt_qat.quantization.insert import QuantizedModel

_LOW, _HIGH = -0.1, 1.1  # the sigmoid is stretched to these, so that it reaches 0 and 1
_RATE = 0.03
_PULL = 0.05  # weight of the term that takes every weight to one side
_FREE = 0.2  # share of the steps before that term begins
_BETA = (20.0, 2.0)


@dataclass(frozen=True)
class RoundedLayer:
    """One layer: its output error with plain rounding and with the chosen one, relative to the output's variance.

    Args:
        moved: share of its weights that were rounded to the farther side.
    """

    name: str
    before: float
    after: float
    moved: float


def choose_rounding_(
    model: QuantizedModel,
    images: Tensor,
    *,
    steps: int = 150,
    batch: int = 8,
    seed: int = 0,
    progress: Progress = SILENT,
) -> list[RoundedLayer]:
    """Choose every quantized weight's rounding, in place. A layer that this does not bring nearer stays as it was.

    Args:
        model: calibrated.
        images: (n, 3, h, w) in [0, 1]; all are kept in memory with what the layers make of them.
        steps: of each layer.
        batch: images per step.
        seed: which images each step sees.
    """
    network = model.network.eval()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    taught, seen = LayersInTurn(network, images), LayersInTurn(network, images)
    found = []
    for index, layer in progress.over(list(enumerate(network.model)), "choosing the rounding"):
        weights = _Weights(model, f"model.{index}", layer)
        if weights.names:
            with model.quantizers_off(), torch.no_grad():
                inputs = taught.inputs()
                targets = [_run(layer, some(inputs, slice(i, i + batch))) for i in range(0, len(images), batch)]
            found.append(_fit_(weights, seen.inputs(), _joined(targets), steps, batch, generator))
        with model.quantizers_off():
            taught_layer_weights = weights.restore_()
            taught.advance()
            weights.write_(taught_layer_weights)
        seen.advance()
    return found


class _Weights:
    """The quantized weights of one layer as levels of their grids."""

    def __init__(self, model: QuantizedModel, prefix: str, layer: nn.Module) -> None:
        quantizers = {name: q for name, q in model.weight_quantizers().items() if name.startswith(f"{prefix}.")}
        self.layer, self.prefix = layer, prefix
        self.names = [name.removeprefix(f"{prefix}.") + ".weight" for name in quantizers]
        self.convs = [model.network.get_submodule(name) for name in quantizers]
        self.quantizers = list(quantizers.values())
        self.scales = [model.toolkit.amax(q) / HIGHEST for q in self.quantizers]
        self.before = [conv.weight.detach().clone() for conv in self.convs]
        levels = [weight / scale for weight, scale in zip(self.before, self.scales, strict=True)]
        self.floors = [(level + 1e-4).floor() for level in levels]  # what is on the grid stays there
        self.rests = [(level - floor).clamp(0, 1) for level, floor in zip(levels, self.floors, strict=True)]
        self.toolkit = model.toolkit

    def at(self, shares: list[Tensor]) -> dict[str, Tensor]:
        """Weights that lie at these shares, from 0 to 1, of the way to the next level."""
        parts = zip(self.names, self.floors, shares, self.scales, strict=True)
        return {name: (floor + share).clamp(-HIGHEST, HIGHEST) * scale for name, floor, share, scale in parts}

    def quantizing(self, on: bool) -> None:
        """Switch the weights' quantizers."""
        for quantizer in self.quantizers:
            self.toolkit.set_enabled(quantizer, on)

    def write_(self, values: dict[str, Tensor]) -> None:
        """Set the layer's weights."""
        for name, conv in zip(self.names, self.convs, strict=True):
            conv.weight.data.copy_(values[name])

    def restore_(self) -> dict[str, Tensor]:
        """Set the float weights; returns what was there."""
        now = {name: conv.weight.detach().clone() for name, conv in zip(self.names, self.convs, strict=True)}
        self.write_(dict(zip(self.names, self.before, strict=True)))
        return now


def _fit_(
    weights: _Weights, inputs: Values, targets: Values, steps: int, batch: int, generator: torch.Generator
) -> RoundedLayer:
    # the inverse of the stretched sigmoid at the weight's own place
    positions = [(-torch.log((_HIGH - _LOW) / (rest - _LOW) - 1)).requires_grad_(True) for rest in weights.rests]
    optimizer = torch.optim.Adam(positions, lr=_RATE)
    count = len(targets[0]) if isinstance(targets, list) else len(targets)
    plain = [rest.round() for rest in weights.rests]
    weights.quantizing(False)
    before = _error(weights, plain, inputs, targets, batch)
    for step in range(steps):
        chosen = torch.randperm(count, generator=generator)[:batch]
        shares = [_share(position) for position in positions]
        output = _run(weights.layer, some(inputs, chosen), weights.at(shares))
        loss = _distance(output, some(targets, chosen))
        progress = (step / steps - _FREE) / (1 - _FREE)
        if progress >= 0:
            beta = _BETA[1] + (_BETA[0] - _BETA[1]) * (1 - progress)
            undecided = [1 - (2 * share - 1).abs().pow(beta) for share in shares]
            loss = loss + _PULL * before * sum(u.sum() for u in undecided) / sum(u.numel() for u in undecided)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    chosen_shares = [(_share(position.detach()) >= 0.5).float() for position in positions]
    after = _error(weights, chosen_shares, inputs, targets, batch)
    weights.quantizing(True)
    kept = chosen_shares if after < before else plain
    weights.write_(weights.at(kept))
    moved = sum(float((a != b).sum()) for a, b in zip(kept, plain, strict=True)) / sum(p.numel() for p in plain)
    return RoundedLayer(weights.prefix, before, min(after, before), moved)


def _share(position: Tensor) -> Tensor:
    return (position.sigmoid() * (_HIGH - _LOW) + _LOW).clamp(0, 1)


@torch.no_grad()
def _error(weights: _Weights, shares: list[Tensor], inputs: Values, targets: Values, batch: int) -> float:
    count = len(targets[0]) if isinstance(targets, list) else len(targets)
    total = 0.0
    for first in range(0, count, batch):
        part = slice(first, first + batch)
        output = _run(weights.layer, some(inputs, part), weights.at(shares))
        total += float(_distance(output, some(targets, part))) * (min(first + batch, count) - first)
    return total / count


def _run(layer: nn.Module, inputs: Values, weights: dict[str, Tensor] | None = None) -> Values:
    """The layer's output; that of the head is its raw scores and boxes."""
    given = list(inputs) if isinstance(inputs, list) else inputs  # the head writes into the list
    if not hasattr(layer, "dfl"):
        return functional_call(layer, weights or {}, (given,))  # type: ignore[no-any-return]
    layer.training = True  # the flag alone, as in raw_predictions
    try:
        raw = functional_call(layer, weights or {}, (given,))
    finally:
        layer.training = False
    return [raw["scores"], raw["boxes"]]


def _distance(output: Values, target: Values) -> Tensor:
    if isinstance(output, list):
        mine, theirs = (dict(zip(("scores", "boxes"), values, strict=True)) for values in (output, target))
        return score_error(mine, theirs) + box_error(mine, theirs)
    return F.mse_loss(output, target) / target.var().clamp(min=1e-6)  # type: ignore[union-attr,arg-type]


def _joined(parts: list[Values]) -> Values:
    if isinstance(parts[0], list):
        return [torch.cat(list(column)) for column in zip(*parts, strict=True)]
    return torch.cat(parts)  # type: ignore[arg-type]
