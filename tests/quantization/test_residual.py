"""Residual adds: the operands that the placement names are read through quantizers, nothing else changes."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from trt_qat.config import Residual
from trt_qat.errors import QuantizationError
from trt_qat.quantization.residual import quantize_adds_
from trt_qat.quantization.toolkits.modelopt import ModelOptToolkit

if TYPE_CHECKING:
    from conftest import Calibrated

TOOLKIT = ModelOptToolkit()


def quantizer(amax: float) -> nn.Module:
    made = TOOLKIT.activation_quantizer()
    TOOLKIT.set_amax(made, torch.tensor(amax))
    TOOLKIT.set_enabled(made, True)
    return made


def rounded(x: Tensor, amax: float) -> Tensor:
    """Symmetric INT8 by hand, with the limits of ONNX's QuantizeLinear."""
    step = amax / 127
    return torch.clamp(torch.round(x / step), -128, 127) * step


class Plus(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class AddCall(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.add(x, y)


class Method(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x.add(y)


class PlusEqual(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x += y
        return x


class InPlaceMethod(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x.add_(y)


ADDS = [Plus, AddCall, Method, PlusEqual, InPlaceMethod]


@pytest.fixture
def operands() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, 4, 5, 5, generator=generator), torch.randn(2, 4, 5, 5, generator=generator)


@pytest.mark.parametrize("kind", ADDS)
def test_both_operands(kind: type[nn.Module], operands: tuple[Tensor, Tensor]) -> None:
    x, y = operands
    before = x.clone(), y.clone()
    module = kind()
    quantize_adds_(module, {(0, 0): quantizer(2.0), (0, 1): quantizer(1.5)}, "block")
    output = module(x, y)
    assert torch.allclose(output, rounded(before[0], 2.0) + rounded(before[1], 1.5), atol=1e-6)
    assert torch.equal(x, before[0])  # an in-place add must not write into what others read
    assert torch.equal(y, before[1])


@pytest.mark.parametrize("operand", [0, 1])
def test_one_operand(operand: int, operands: tuple[Tensor, Tensor]) -> None:
    x, y = operands
    module = Plus()
    quantize_adds_(module, {(0, operand): quantizer(2.0)}, "block")
    expected = rounded(x, 2.0) + y if operand == 0 else x + rounded(y, 2.0)
    assert torch.allclose(module(x, y), expected, atol=1e-6)
    assert not torch.allclose(module(x, y), x + y, atol=1e-6)


def test_calls_are_numbered_and_start_anew(operands: tuple[Tensor, Tensor]) -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            shifted = x + 1.0  # a constant: counted, never quantized
            return 0.25 + (shifted + y)

    x, y = operands
    module = Twice()
    quantize_adds_(module, {(0, 0): quantizer(0.1), (1, 1): quantizer(1.5)}, "block")
    for _ in range(2):
        assert torch.allclose(module(x, y), x + 1.25 + rounded(y, 1.5), atol=1e-6)


def test_adds_of_a_child_are_not_the_parents(operands: tuple[Tensor, Tensor]) -> None:
    class Parent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.child = Plus()

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            inner: Tensor = self.child(x, y)
            return inner * 2 + y

    x, y = operands
    module = Parent()
    quantize_adds_(module, {(0, 1): quantizer(1.5)}, "block")
    assert torch.allclose(module(x, y), 2 * (x + y) + rounded(y, 1.5), atol=1e-6)


def test_scaled_addition_keeps_its_factor(operands: tuple[Tensor, Tensor]) -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.add(x, y, alpha=3)

    x, y = operands
    module = Scaled()
    quantize_adds_(module, {(0, 0): quantizer(2.0)}, "block")
    assert torch.allclose(module(x, y), rounded(x, 2.0) + 3 * y, atol=1e-5)


def test_gradient_passes(operands: tuple[Tensor, Tensor]) -> None:
    x, y = (tensor.requires_grad_() for tensor in operands)
    module = Plus()
    quantize_adds_(module, {(0, 0): quantizer(100.0)}, "block")
    module(x, y).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


def test_forward_on_the_instance_is_refused() -> None:
    module = Plus()
    module.forward = module.forward  # type: ignore[method-assign]
    with pytest.raises(QuantizationError, match=r"'model\.7' replaces forward"):
        quantize_adds_(module, {(0, 0): quantizer(1.0)}, "model.7")


def test_class_still_says_what_it_is() -> None:
    module = Plus()
    quantize_adds_(module, {(0, 0): quantizer(1.0)}, "block")
    assert isinstance(module, Plus)
    assert type(module).__name__ == "QuantPlus"
    assert type(Plus()) is Plus


@pytest.mark.parametrize("residual", ["skip", "both"])
def test_bottleneck_of_the_network(calibrated: Calibrated, residual: Residual) -> None:
    """The whole block by hand: quantized operands, quantized input of the second convolution."""
    model = calibrated(residual=residual)
    block = model.network.get_submodule("model.4.m.0")
    x = torch.rand(1, block.cv1.conv.in_channels, 8, 8, generator=torch.Generator().manual_seed(5)) * 3
    amax = float(TOOLKIT.amax(block.cv1.conv.input_quantizer))
    inner = block.cv2(block.cv1(x))
    expected = rounded(x, amax) + (rounded(inner, amax) if residual == "both" else inner)
    with torch.no_grad():
        assert torch.allclose(block(x), expected, atol=1e-5)
        assert not torch.allclose(block(x), x + inner, atol=1e-4)


def test_deepcopy_shares_inside_and_separates_outside(calibrated: Calibrated) -> None:
    model = calibrated(residual="both")
    copied = copy.deepcopy(model)
    ours, theirs = model.activation_quantizers(), copied.activation_quantizers()
    for group in copied.placement.groups:
        shared = {id(copied.network.get_submodule(conv).input_quantizer) for conv in group.convs}
        for add in group.adds:
            by_call = copied.network.get_submodule(add.module).residual_quantizers.by_call
            shared.add(id(by_call[f"{add.call}_{add.operand}"]))
        assert shared == {id(theirs[group.name])}
        assert theirs[group.name] is not ours[group.name]
    name = f"activation.{copied.placement.groups[3].name}"
    before = model.amax()[name].clone()
    copied.load_amax_({name: before * 2})
    assert torch.equal(model.amax()[name], before)
    assert torch.equal(copied.amax()[name], before * 2)


def test_deepcopy_gives_equal_outputs(calibrated: Calibrated, batches: tuple[Tensor, ...]) -> None:
    model = calibrated(residual="both")
    copied = copy.deepcopy(model.network)
    with torch.no_grad():
        assert torch.equal(copied(batches[0])[0], model.network(batches[0])[0])
