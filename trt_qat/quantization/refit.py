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
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from trt_qat.config import Refit
from trt_qat.model.layers_in_turn import LayersInTurn
from trt_qat.progress import SILENT, Progress
from trt_qat.quantization.insert import QuantizedModel
from trt_qat.quantization.layer_rows import Pixels, outputs_of, reads_of
from trt_qat.quantization.weight_range import weight_range

_HELD_OUT = 4  # one image in so many decides how far the weights move
_RIDGES = (0.01, 0.1, 1.0, 10.0, float("inf"))  # of the mean square that an input has; the last moves biases alone


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
    rows: int = 400,
    objects: float = 0.5,
    seed: int = 0,
    progress: Progress = SILENT,
) -> tuple[QuantizedModel, list[RefittedLayer]]:
    """Refit every convolution of a calibrated network, in place; activations' ranges stay.

    Args:
        images: (n, 3, h, w) in [0, 1], at least two; all are kept in memory with what the layers make of them.
        what: ``bias`` moves biases alone, ``weights`` both.
        rows: pixels of each image that a convolution is fitted on.
        objects: share of them that is drawn where the float network sees objects.
        seed: draws the pixels.

    Returns:
        The model with what it computes with in float, and what became of each convolution.
    """
    network = model.network.eval()
    reference = copy.deepcopy(network)
    before = {name: value.clone() for name, value in network.state_dict().items() if "quantizer" not in name}
    found = []
    with replace(model, network=reference).quantizers_off():
        pixels = Pixels(reference, images, rows, objects, seed)
        seen, taught = LayersInTurn(network, images), LayersInTurn(reference, images)
        for index in progress.over(range(len(network.model)), "refitting"):
            outputs = outputs_of(taught, f"model.{index}", pixels)
            for name, targets in outputs.items():
                fit = _Fit(reads_of(model, seen, name, pixels), targets, network.get_submodule(name))
                found.append(fit.apply_(model, name, what == "weights"))
            seen.advance()
            taught.advance()
    after = network.state_dict()
    moved = {name: value for name, value in before.items() if not torch.equal(value, after[name])}
    return replace(model, float_weights=moved), found


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
        self._rows = int((~judges).sum()) * targets.shape[1]
        self._fitting, self._judging = (_Sums.of(inputs[:, part], missing[:, part]) for part in (~judges, judges))
        spread = targets[judges].flatten(0, 1)
        self._variance = float(((spread - spread.mean(0)) ** 2).sum().clamp(min=1e-12))

    def apply_(self, model: QuantizedModel, name: str, weights: bool) -> RefittedLayer:
        """Move weight and bias, in place; the weight's range follows."""
        before, chosen = self._judging.square, None
        least = before
        # of fewer rows than inputs the weights learn nothing that holds
        for ridge in _RIDGES if weights and self._rows >= self._weight.shape[2] else _RIDGES[-1:]:
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
