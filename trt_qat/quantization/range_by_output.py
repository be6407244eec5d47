"""Activation ranges chosen by what the convolutions that read them say, where the float network sees objects.

A histogram counts every pixel and every channel alike. Here a range is judged by the error that rounding to it brings
into the outputs of all convolutions of its scale group, group by group, all else in float.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from trt_qat.model.layers_in_turn import LayersInTurn
from trt_qat.progress import SILENT, Progress
from trt_qat.quantization.fake_quant import fake_quantize
from trt_qat.quantization.insert import QuantizedModel
from trt_qat.quantization.layer_rows import Pixels, outputs_of, reads_of

_FACTORS = tuple(np.geomspace(0.3, 3.0, 17).tolist())  # of the range that calibration found; the middle one is it


@torch.no_grad()
def choose_ranges_(
    model: QuantizedModel,
    images: Tensor,
    *,
    rows: int = 200,
    objects: float = 0.5,
    seed: int = 0,
    progress: Progress = SILENT,
) -> dict[str, float]:
    """Set every activation range, in place.

    Args:
        images: (n, 3, h, w) in [0, 1].

    Returns:
        By how much each group's range was multiplied.
    """
    network = model.network.eval()
    groups = {conv: group.name for group in model.placement.groups for conv in group.convs}
    quantizers = model.activation_quantizers()
    before = {name: model.toolkit.amax(quantizer).clone() for name, quantizer in quantizers.items()}
    errors = {name: torch.zeros(len(_FACTORS), dtype=torch.float64) for name in before}
    with model.quantizers_off():
        pixels = Pixels(network, images, rows, objects, seed)
        walk = LayersInTurn(network, images)
        for index in progress.over(range(len(network.model)), "choosing ranges"):
            for name, targets in outputs_of(walk, f"model.{index}", pixels).items():
                if name in groups:
                    conv = network.get_submodule(name)
                    zero_point = model.toolkit.zero_point(quantizers[groups[name]])
                    reads = reads_of(model, walk, name, pixels, rounded=False).transpose(0, 1).flatten(1, 2)
                    weight = conv.weight.reshape(conv.groups, conv.out_channels // conv.groups, -1).transpose(1, 2)
                    spread = targets.flatten(0, 1).var(0).sum().clamp(min=1e-12) * reads.shape[1]
                    for place, factor in enumerate(_FACTORS):
                        wrong = fake_quantize(reads, before[groups[name]] * factor, zero_point) - reads
                        errors[groups[name]][place] += float(((wrong @ weight) ** 2).sum() / spread)
            walk.advance()
    factors = {name: _FACTORS[int(error.argmin())] for name, error in errors.items()}
    model.load_amax_({f"activation.{name}": before[name] * factor for name, factor in factors.items()})
    return factors
