"""Rows of convolutions: patches as ``unfold`` makes them, outputs as the network has them, pixels by objects."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trt_qat.model.layers_in_turn import LayersInTurn
from trt_qat.model.output_error import raw_predictions
from trt_qat.quantization.layer_rows import Pixels, _patches, outputs_of, reads_of

if TYPE_CHECKING:
    from conftest import Calibrated


@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation"), [(3, 2, 1, 1), (1, 1, 0, 1), (3, 1, 2, 2)])
def test_patches_are_those_of_unfold(kernel: int, stride: int, padding: int, dilation: int) -> None:
    conv = torch.nn.Conv2d(6, 4, kernel, stride, padding, dilation)
    values = torch.randn(2, 6, 17, 13)
    output = conv(values)
    where = torch.randint(0, output[0, 0].numel(), (2, 10))
    unfolded = F.unfold(values, kernel, dilation, padding, stride)
    assert torch.equal(
        _patches(conv, values, where), unfolded.gather(2, where[:, None].expand(-1, len(unfolded[0]), -1))
    )


@torch.no_grad()
def test_reads_times_weight_is_what_the_network_says(calibrated: Calibrated, batches: tuple[Tensor, ...]) -> None:
    """Of every convolution of some layers, with two parts of images and a head that reads three layers."""
    model = calibrated()
    network, images = model.network.eval(), torch.cat(batches)[:6]
    count = 0
    with model.quantizers_off():
        pixels = Pixels(network, images, rows=5, objects=0.5, seed=0, part=4)
        walk = LayersInTurn(network, images, part=4)
        for index in range(len(network.model)):
            layer_outputs = outputs_of(walk, f"model.{index}", pixels) if index in (0, 2, 9, 22) else {}
            for name, outputs in layer_outputs.items():
                conv = network.get_submodule(name)
                reads = reads_of(model, walk, name, pixels)
                weight = conv.weight.reshape(conv.groups, conv.out_channels // conv.groups, -1)
                said = (reads @ weight.transpose(1, 2)).permute(0, 2, 1, 3).flatten(2) + conv.bias
                assert torch.allclose(said, outputs, rtol=1e-3, atol=1e-3 * float(outputs.std())), name
                count += 1
            walk.advance()
    assert count == 1 + 4 + 2 + 18


@torch.no_grad()
def test_layers_in_turn_give_the_head_what_the_network_gives_it(
    calibrated: Calibrated, batches: tuple[Tensor, ...]
) -> None:
    network, images = calibrated().network.eval(), torch.cat(batches)[:6]
    seen: list[list[Tensor]] = []
    head = network.model[-1]
    handle = head.register_forward_pre_hook(lambda _, inputs: seen.append(list(inputs[0])))
    raw_predictions(network, images)
    handle.remove()
    walk = LayersInTurn(network, images, part=4)
    for _ in network.model[:-1]:
        walk.advance()
    found = walk.inputs()
    assert walk.layer is head
    assert len(found) == len(seen[0]) == 3
    assert all(torch.allclose(mine, theirs, atol=1e-5) for mine, theirs in zip(found, seen[0], strict=True))


def test_pixels_lie_where_objects_are(calibrated: Calibrated, batches: tuple[Tensor, ...]) -> None:
    """All of them where the map is not 0, if objects are all that counts."""
    pixels = Pixels(calibrated().network, batches[0], rows=4, objects=1.0, seed=0)
    pixels._maps = torch.zeros(len(batches[0]), 1, 8, 8)
    pixels._maps[:, :, 2:4, 2:4] = 1
    chosen = pixels.of((8, 8))
    assert chosen.shape == (len(batches[0]), 4)
    assert {tuple(row) for row in chosen.sort(1).values.tolist()} == {(18, 19, 26, 27)}
    assert pixels.of((8, 8)) is chosen
