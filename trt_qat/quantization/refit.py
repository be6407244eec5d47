"""Weights refitted to INT8: each convolution, given what it really reads there, says again what it said in float.

A ridge regression in closed form, layer after layer: what a convolution reads in INT8, all layers before it refitted
already, against its output in the float network on the same images. The weights move only as far as images that the
regression did not see confirm; a convolution that gains nothing stays. No labels, no gradients.

Fitting layer by layer to the float network's outputs is Hubara et al. 2021, "Accurate Post Training Quantization With
Small Calibration Sets" (there by gradient descent); the bias alone is Nagel et al. 2019, "Data-Free Quantization
Through Weight Equalization and Bias Correction" (there empirical bias correction).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trt_qat.config import Refit
from trt_qat.model.layers_in_turn import LayersInTurn, Values, some
from trt_qat.model.output_error import raw_predictions
from trt_qat.operators import is_dfl_weight
from trt_qat.progress import SILENT, Progress
from trt_qat.quantization.insert import QuantizedModel
from trt_qat.quantization.rounding_by_output import rounded_by_output
from trt_qat.quantization.weight_range import weight_range

_PART = 8  # images per forward pass
_HELD_OUT = 4  # one image in so many decides how far the weights move
# of the mean square that an input has; none at all, infinity, is tried as well
_RIDGES = (0.01, 0.1, 1.0, 10.0)
_OBJECTS = 0.5  # share of the pixels that are drawn where the float network sees objects


@dataclass(frozen=True)
class RefittedLayer:
    """One convolution.

    Args:
        before, after: squared error of its output on the images that the fit did not see, relative to the output's
            variance there.
        ridge: the strength that was chosen; None where the weights stayed.
    """

    name: str
    before: float
    after: float
    ridge: float | None

    def as_dict(self) -> dict[str, Any]:
        """JSON values for the checkpoint's provenance; a bias that moved alone has no ridge but ``bias``."""
        ridge = "bias" if self.ridge == float("inf") else self.ridge
        return {"layer": self.name, "before": round(self.before, 6), "after": round(self.after, 6), "ridge": ridge}


@torch.no_grad()
def refitted(
    model: QuantizedModel,
    images: Tensor,
    what: Refit = "weights",
    *,
    rounding: bool = False,
    rows: int = 400,
    objects: float = _OBJECTS,
    seed: int = 0,
    progress: Progress = SILENT,
) -> tuple[QuantizedModel, list[RefittedLayer]]:
    """Refit every convolution of a calibrated network, in place; activations' ranges stay.

    Args:
        images: (n, 3, h, w) in [0, 1], at least two; all are kept in memory with what the layers make of them.
        what: ``bias`` moves biases alone, ``weights`` both.
        rounding: choose the weights' rounding by the output, too, :mod:`trt_qat.quantization.rounding_by_output`.
        rows: pixels of each image that a convolution is fitted on.
        objects: share of them that is drawn where the float network sees objects.
        seed: draws the pixels.

    Returns:
        The model with what it computes with in float, and what became of each convolution.
    """
    network = model.network.eval()
    reference = copy.deepcopy(network)
    before = {name: value.clone() for name, value in network.state_dict().items() if "quantizer" not in name}
    generator = torch.Generator().manual_seed(seed)
    found = []
    with replace(model, network=reference).quantizers_off():
        pixels = _Pixels(reference, images, rows, objects, generator)
        seen, taught = LayersInTurn(network, images, _PART), LayersInTurn(reference, images, _PART)
        for index in progress.over(range(len(network.model)), "refitting"):
            outputs = _outputs(taught, f"model.{index}", pixels)
            for name, targets in outputs.items():
                fit = _Fit(_reads(model, seen, name, pixels), targets, network.get_submodule(name))
                found.append(fit.apply_(model, name, what == "weights", rounding))
            seen.advance()
            taught.advance()
    after = network.state_dict()
    moved = {name: value for name, value in before.items() if not torch.equal(value, after[name])}
    return replace(model, float_weights=moved), found


class _Pixels:
    """Which output pixels of each image a convolution is fitted on; those of one size are the same for all."""

    def __init__(self, network: Any, images: Tensor, rows: int, objects: float, generator: torch.Generator) -> None:
        self._rows, self._objects, self._generator = rows, objects, generator
        self._maps = torch.cat([_object_map(network, part) for part in torch.split(images, _PART)])
        self._chosen: dict[tuple[int, int], Tensor] = {}

    def of(self, size: tuple[int, int]) -> Tensor:
        """Flat positions in an output of this height and width, (images, rows)."""
        if size not in self._chosen:
            seen = F.interpolate(self._maps, size=size, mode="area").flatten(1)
            share = seen / seen.sum(1, keepdim=True).clamp(min=1e-6)
            chance = (1 - self._objects) / seen.shape[1] + self._objects * share
            self._chosen[size] = torch.multinomial(chance, min(self._rows, seen.shape[1]), generator=self._generator)
        return self._chosen[size]


def _object_map(network: Any, images: Tensor) -> Tensor:
    """How sure the float network is of some class, (images, 1, h, w) of the finest level."""
    raw = raw_predictions(network, images)
    sizes = [feature.shape[-2:] for feature in raw["feats"]]
    levels = raw["scores"].sigmoid().amax(dim=1, keepdim=True).split([h * w for h, w in sizes], dim=2)
    maps = [F.interpolate(level.unflatten(2, size), size=sizes[0]) for level, size in zip(levels, sizes, strict=True)]
    return torch.stack(maps).amax(dim=0)


class _Stop(Exception):
    """The convolution's input is known: the rest of the layer need not run."""


def _outputs(walk: LayersInTurn, prefix: str, pixels: _Pixels) -> dict[str, Tensor]:
    """What each learned convolution of the next layer says, (images, rows, channels), in the order in which they run.

    Those that run more than once are left out.
    """
    parts: dict[str, list[Tensor]] = {}

    def watch(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            done = sum(len(part) for part in parts.get(name, []))
            where = pixels.of(output.shape[-2:])[done : done + len(output)]  # type: ignore[arg-type]
            flat = output.flatten(2).transpose(1, 2)
            parts.setdefault(name, []).append(flat[torch.arange(len(where))[:, None], where])

        return hook

    layer = walk.layer
    handles = [
        module.register_forward_hook(watch(f"{prefix}.{name}" if name else prefix))
        for name, module in layer.named_modules()  # type: ignore[union-attr]
        if isinstance(module, nn.Conv2d) and not is_dfl_weight(module.weight.detach().numpy())
    ]
    try:
        _run_parts(walk, layer)
    finally:
        for handle in handles:
            handle.remove()
    runs = -(-walk.count // _PART)
    return {name: torch.cat(outputs) for name, outputs in parts.items() if len(outputs) == runs}


def _reads(model: QuantizedModel, walk: LayersInTurn, name: str, pixels: _Pixels, rounded: bool = True) -> Tensor:
    """The patches that a convolution reads at its pixels, (images, groups, rows, inputs of one output)."""
    conv: Any = model.network.get_submodule(name)
    rounded &= model.toolkit.is_quant_conv(conv)
    quantize = model.toolkit.input_quantizer(conv) if rounded else nn.Identity()
    parts: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor]) -> None:
        for image in torch.split(quantize(inputs[0]), 1):  # patches of one image at a time: all of it are many
            patches = F.unfold(image, conv.kernel_size, conv.dilation, conv.padding, conv.stride)[0]
            size = _output_size(conv, image)
            where = pixels.of(size)[len(parts)]
            parts.append(patches[:, where].reshape(conv.groups, -1, len(where)).transpose(1, 2))
        raise _Stop

    handle = conv.register_forward_pre_hook(keep)
    try:
        _run_parts(walk, walk.layer)
    finally:
        handle.remove()
    return torch.stack(parts)


def _output_size(conv: Any, image: Tensor) -> tuple[int, int]:
    sides = zip(image.shape[-2:], conv.kernel_size, conv.stride, conv.padding, conv.dilation, strict=True)
    height, width = ((n + 2 * pad - apart * (k - 1) - 1) // step + 1 for n, k, step, pad, apart in sides)
    return height, width


def _run_parts(walk: LayersInTurn, layer: Any) -> None:
    inputs = walk.inputs()
    with _raw(layer):
        for first in range(0, walk.count, _PART):
            part: Values = some(inputs, slice(first, first + _PART))
            try:
                layer(part)  # a list is a new one: the head writes into it
            except _Stop:
                continue


@contextmanager
def _raw(layer: nn.Module) -> Iterator[None]:
    """Within: the head does not decode, as in ``raw_predictions``; to all other layers it is the same."""
    was_training, layer.training = layer.training, True
    try:
        yield
    finally:
        layer.training = was_training


class _Fit:
    """The regression of one convolution, from sums over its rows: a part of the images fits, the others judge.

    Args:
        reads: (images, groups, rows, inputs).
        targets: (images, rows, channels).
    """

    def __init__(self, reads: Tensor, targets: Tensor, conv: nn.Conv2d) -> None:
        self._conv, groups = conv, conv.groups
        self._weight = conv.weight.detach().reshape(groups, conv.out_channels // groups, -1)
        ones = torch.ones(*reads.shape[:3], 1)
        inputs = torch.cat([reads, ones], dim=3).transpose(0, 1)  # (groups, images, rows, inputs + 1)
        bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
        wanted = (targets - bias).reshape(*targets.shape[:2], groups, -1).permute(2, 0, 1, 3)
        missing = wanted - inputs[..., :-1] @ self._weight.transpose(1, 2)[:, None]
        judges = torch.arange(len(targets)) % _HELD_OUT == 0
        self._fitting, self._judging = (_Sums.of(inputs[:, part], missing[:, part]) for part in (~judges, judges))
        spread = targets[judges].flatten(0, 1)
        self._variance = float(((spread - spread.mean(0)) ** 2).sum().clamp(min=1e-12))

    def apply_(self, model: QuantizedModel, name: str, weights: bool, rounding: bool) -> RefittedLayer:
        """Move weight and bias, in place; the weight's range and rounding follow."""
        before, chosen = self._judging.square, None
        least = before
        for ridge in _RIDGES if weights else (float("inf"),):
            error = self._judging.error(self._fitting.solved(ridge))
            if error < least:
                least, chosen = error, ridge
        everything = self._fitting + self._judging
        moved = torch.zeros_like(everything.cross) if chosen is None else everything.solved(chosen)
        conv = self._conv
        weight = self._weight + moved[:, :-1].transpose(1, 2).float()
        if conv.bias is not None:
            conv.bias.copy_(conv.bias + moved[:, -1].flatten().float())
        conv.weight.copy_(weight.reshape(conv.weight.shape))
        if model.toolkit.is_quant_conv(conv):
            quantizer = model.toolkit.weight_quantizer(conv)
            if weights:
                model.toolkit.set_amax(quantizer, weight_range(conv.weight, model.placement.weights))
            if rounding:
                conv.weight.copy_(
                    rounded_by_output(conv.weight, model.toolkit.amax(quantizer), everything.gram[:, :-1, :-1])
                )
        return RefittedLayer(name, before / self._variance, least / self._variance, chosen)


@dataclass(frozen=True)
class _Sums:
    """What a regression needs of its rows: float64 (groups, inputs, inputs), (groups, inputs, outputs), a number."""

    gram: Tensor
    cross: Tensor
    square: float

    @classmethod
    def of(cls, inputs: Tensor, missing: Tensor) -> _Sums:
        inputs, missing = inputs.flatten(1, 2), missing.flatten(1, 2)
        turned = inputs.transpose(1, 2)
        return cls((turned @ inputs).double(), (turned @ missing).double(), float((missing**2).sum()))

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(self.gram + other.gram, self.cross + other.cross, self.square + other.square)

    def solved(self, ridge: float) -> Tensor:
        """How weight and bias should move, (groups, inputs, outputs); an infinite ridge moves the bias alone."""
        if ridge == float("inf"):
            moved = torch.zeros_like(self.cross)
            moved[:, -1] = self.cross[:, -1] / self.gram[:, -1, -1:]
            return moved
        diagonal = self.gram.diagonal(dim1=1, dim2=2)
        strength = ridge * diagonal[:, :-1].mean(1, keepdim=True).clamp(min=1e-12).expand(-1, diagonal.shape[1] - 1)
        bias = 1e-3 * diagonal[:, -1:]  # free, but for what keeps the solution from being undefined
        damped = self.gram + torch.diag_embed(torch.cat([strength, bias], 1))
        solution: Tensor = torch.cholesky_solve(self.cross, torch.linalg.cholesky(damped))
        return solution

    def error(self, moved: Tensor) -> float:
        """The squared error that is left after a move."""
        return self.square + float((moved * (self.gram @ moved - 2 * self.cross)).sum())
