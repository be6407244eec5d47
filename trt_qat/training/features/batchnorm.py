"""BatchNorm kept during QAT: statistics freeze after some epochs, and folding rescales the weights' ranges.

Kept, it adapts to what quantization does to a layer's output; frozen in time, so that the last epochs train the network
that will be deployed and not one whose statistics still follow each batch.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from typing_extensions import override
from ultralytics.nn.modules import Conv
from ultralytics.nn.tasks import DetectionModel

from trt_qat.checkpoint import Model
from trt_qat.config import QatSection
from trt_qat.errors import ConfigError
from trt_qat.model.graph import convolutions
from trt_qat.quantization.insert import QuantizedModel, insert_quantizers_
from trt_qat.training.features.base import Feature, Start

NEEDS_CHANNELS = (
    "qat.bn=freeze needs quantization.weights=channel: folding gives each channel a factor of its own, which one scale "
    "for the whole weight cannot take. Keep qat.bn=fold."
)


class FrozenBatchNorm(Feature):
    """Trains the network with its BatchNorm apart; what is saved is folded like any other checkpoint.

    Args:
        epochs: how many use the statistics of the batch, before the running ones are frozen.
    """

    name: ClassVar[str] = "batchnorm"

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs

    @classmethod
    @override
    def configured(cls, section: QatSection, start: Start) -> FrozenBatchNorm | None:
        return cls(section.bn_freeze_epochs) if section.bn == "freeze" else None

    @classmethod
    @override
    def check(cls, section: QatSection, model: Model) -> None:
        if section.bn != "freeze":
            return
        if model.quantized is not None and model.quantized.placement.weights == "tensor":
            raise ConfigError(NEEDS_CHANNELS)
        joined = sorted(convolutions(model.network).keys() - convolutions(model.unfolded()).keys())
        if joined:
            raise ConfigError(
                f"qat.bn=freeze: folding makes '{joined[0]}' of several branches, each with a BatchNorm of its own, "
                "which cannot stay apart below one quantizer. Leave qat.bn=fold."
            )

    @override
    def as_trained(self, model: QuantizedModel, source: Model) -> QuantizedModel:
        return unfolded(model, source.unfolded())

    @override
    def train_mode_(self, model: QuantizedModel, epoch: int) -> None:
        if epoch >= self._epochs:
            freeze_statistics_(model.network)

    @override
    def as_saved(self, model: QuantizedModel) -> QuantizedModel:
        return folded(model)


def unfolded(folded: QuantizedModel, network: DetectionModel) -> QuantizedModel:
    """The quantized model with BatchNorm still apart: same placement, activation ranges and float outputs.

    Args:
        network: the same detector, unfolded; changed in place.
    """
    insert_quantizers_(network, folded.placement, folded.toolkit)
    model = replace(folded, network=network)
    model.load_amax_(folded.activation_ranges())
    for quantizer in model.weight_quantizers().values():  # their ranges are those of the unfolded weights
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
        del block.bn  # as Ultralytics' own fuse() leaves it, so that the checkpoint loads like one that it folded
        block.forward = block.forward_fuse
    return replace(model, network=network)


def freeze_statistics_(network: nn.Module) -> None:
    """Use the running mean and variance instead of the batch's, in place, until the next ``train()``."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
