"""BatchNorm kept during QAT: statistics freeze after some epochs, and folding rescales the weights' ranges."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from ultralytics.nn.modules import Conv
from ultralytics.nn.tasks import DetectionModel

from trt_qat.quantization.insert import QuantizedModel, insert_quantizers_


def unfolded(folded: QuantizedModel, network: DetectionModel) -> QuantizedModel:
    """The quantized model with BatchNorm still apart: same placement, activation ranges and float outputs.

    Args:
        network: the same detector, unfolded; changed in place.
    """
    insert_quantizers_(network, folded.placement, folded.toolkit)
    model = replace(folded, network=network)
    model.load_amax_({name: amax for name, amax in folded.amax().items() if name.startswith("activation.")})
    for quantizer in model.weight_quantizers().values():
        model.toolkit.set_enabled(quantizer, True)
    return model


@torch.no_grad()
def folded(model: QuantizedModel) -> QuantizedModel:
    """A copy with every BatchNorm folded into its QuantConv2d.

    A channel's weights are multiplied by ``gamma / sqrt(variance + eps)``, and so is that channel's range: the INT8
    levels stay what they were in training.
    """
    network = copy.deepcopy(model.network)
    for block in network.modules():
        if not isinstance(block, Conv) or not isinstance(getattr(block, "bn", None), nn.BatchNorm2d):
            continue
        conv, norm = cast(nn.Conv2d, block.conv), block.bn
        variance, mean = cast(Tensor, norm.running_var), cast(Tensor, norm.running_mean)
        factor = norm.weight / torch.sqrt(variance + norm.eps)
        bias = torch.zeros_like(mean) if conv.bias is None else conv.bias
        conv.weight.mul_(factor.reshape(-1, 1, 1, 1))
        conv.bias = nn.Parameter(norm.bias + (bias - mean) * factor, requires_grad=False)
        if model.toolkit.is_quant_conv(conv):
            quantizer = model.toolkit.weight_quantizer(conv)
            model.toolkit.set_amax(quantizer, model.toolkit.amax(quantizer) * factor.abs().reshape(-1, 1, 1, 1))
        del block.bn
        block.forward = block.forward_fuse
    return replace(model, network=network)


def freeze_statistics_(network: nn.Module) -> None:
    """Use the running mean and variance instead of the batch's, in place, until the next ``train()``."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
