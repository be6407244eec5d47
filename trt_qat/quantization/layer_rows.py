"""What convolutions read and say at some pixels of some images, drawn mostly where the network sees objects.

What is fitted to all pixels alike is fitted to background, which is most of an image and of no detection.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from ultralytics.nn.tasks import DetectionModel

from trt_qat.model.layers_in_turn import LayersInTurn, Values, some
from trt_qat.model.output_error import raw_predictions
from trt_qat.operators import is_dfl_weight
from trt_qat.quantization.insert import QuantizedModel


class Pixels:
    """Which output pixels of each image are looked at; in outputs of one size they are the same.

    Args:
        network: computes in float.
        images: (n, 3, h, w) in [0, 1].
        rows: pixels of each image, at most.
        objects: share of them that is drawn in proportion to how sure the network is of some class there.
        part: images per forward pass.
    """

    def __init__(
        self, network: DetectionModel, images: Tensor, rows: int, objects: float, seed: int, part: int = 8
    ) -> None:
        self._rows, self._objects, self._generator = rows, objects, torch.Generator().manual_seed(seed)
        self._maps = torch.cat([_object_map(network, few) for few in torch.split(images, part)])
        self._chosen: dict[tuple[int, int], Tensor] = {}

    def of(self, size: tuple[int, int]) -> Tensor:
        """Flat positions in an output of this height and width, (images, rows)."""
        if size not in self._chosen:
            seen = F.interpolate(self._maps, size=size, mode="area").flatten(1)
            share = seen / seen.sum(1, keepdim=True).clamp(min=1e-6)
            chance = (1 - self._objects) / seen.shape[1] + self._objects * share
            self._chosen[size] = torch.multinomial(chance, min(self._rows, seen.shape[1]), generator=self._generator)
        return self._chosen[size]


def _object_map(network: DetectionModel, images: Tensor) -> Tensor:
    """How sure the float network is of some class, (images, 1, h, w) of the finest level."""
    raw = raw_predictions(network, images)
    sizes = [feature.shape[-2:] for feature in raw["feats"]]
    levels = raw["scores"].sigmoid().amax(dim=1, keepdim=True).split([h * w for h, w in sizes], dim=2)
    maps = [F.interpolate(level.unflatten(2, size), size=sizes[0]) for level, size in zip(levels, sizes, strict=True)]
    return torch.stack(maps).amax(dim=0)


class _Stop(Exception):
    """The convolution's input is known: the rest of the layer need not run."""


def outputs_of(walk: LayersInTurn, prefix: str, pixels: Pixels) -> dict[str, Tensor]:
    """What each learned convolution of the next layer says, (images, rows, channels), in the order in which they run.

    Those that run more than once are left out, and those that pad with other values than zeros.

    Args:
        prefix: the layer's name in the network.
    """
    parts: dict[str, list[Tensor]] = {}

    def watch(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            done = sum(len(part) for part in parts.get(name, []))
            where = pixels.of(output.shape[-2:])[done : done + len(output)]  # type: ignore[arg-type]
            at = where[:, None].expand(-1, output.shape[1], -1)
            parts.setdefault(name, []).append(output.flatten(2).gather(2, at).transpose(1, 2))

        return hook

    layer: Any = walk.layer
    handles = [
        module.register_forward_hook(watch(f"{prefix}.{name}" if name else prefix))
        for name, module in layer.named_modules()
        if isinstance(module, nn.Conv2d)
        and module.padding_mode == "zeros"
        and not is_dfl_weight(module.weight.detach().numpy())
    ]
    try:
        _run_parts(walk, layer)
    finally:
        for handle in handles:
            handle.remove()
    runs = -(-walk.count // walk.part)
    return {name: torch.cat(outputs) for name, outputs in parts.items() if len(outputs) == runs}


def reads_of(model: QuantizedModel, walk: LayersInTurn, name: str, pixels: Pixels, rounded: bool = True) -> Tensor:
    """The patches that a convolution of the next layer reads at its pixels: (images, groups, rows, inputs).

    Args:
        rounded: as its INT8 form reads them.
    """
    conv: Any = model.network.get_submodule(name)
    quantize = model.toolkit.input_quantizer(conv) if rounded and model.toolkit.is_quant_conv(conv) else nn.Identity()
    parts: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor]) -> None:
        done = sum(len(part) for part in parts)
        values = quantize(inputs[0])
        where = pixels.of(_output_size(conv, values))[done : done + len(values)]
        patches = _patches(conv, values, where)
        parts.append(patches.reshape(len(patches), conv.groups, -1, patches.shape[2]).transpose(2, 3))
        raise _Stop

    handle = conv.register_forward_pre_hook(keep)
    try:
        _run_parts(walk, walk.layer)
    finally:
        handle.remove()
    return torch.cat(parts)


def _patches(conv: Any, values: Tensor, where: Tensor) -> Tensor:
    """What ``F.unfold`` gives, (images, channels * height * width of the kernel, rows), of the wanted pixels alone."""
    width = _output_size(conv, values)[1]
    padded = F.pad(values, (conv.padding[1], conv.padding[1], conv.padding[0], conv.padding[0]))
    corner = where // width * conv.stride[0] * padded.shape[3] + where % width * conv.stride[1]
    flat = padded.flatten(2)
    offsets = [
        row * conv.dilation[0] * padded.shape[3] + column * conv.dilation[1]
        for row in range(conv.kernel_size[0])
        for column in range(conv.kernel_size[1])
    ]
    at = [(corner + offset)[:, None].expand(-1, flat.shape[1], -1) for offset in offsets]
    return torch.stack([flat.gather(2, each) for each in at], dim=2).flatten(1, 2)


def _output_size(conv: Any, values: Tensor) -> tuple[int, int]:
    sides = zip(values.shape[-2:], conv.kernel_size, conv.stride, conv.padding, conv.dilation, strict=True)
    height, width = ((n + 2 * pad - apart * (k - 1) - 1) // step + 1 for n, k, step, pad, apart in sides)
    return height, width


def _run_parts(walk: LayersInTurn, layer: Any) -> None:
    inputs = walk.inputs()
    with _raw(layer):
        for first in range(0, walk.count, walk.part):
            part: Values = some(inputs, slice(first, first + walk.part))
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
