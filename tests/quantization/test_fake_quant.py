"""Fake quantization: the toolkit's own values, and gradients that follow the published formulas."""

from __future__ import annotations

import pytest
import torch
from modelopt.torch.quantization.tensor_quant import fake_tensor_quant
from torch import Tensor

from trt_qat.quantization.fake_quant import fake_quantize


def written_out(values: Tensor, amax: Tensor) -> Tensor:
    """LSQ (Esser et al. 2020, listing 1) in plain autograd, for symmetric INT8 with a range instead of a step."""
    factor = 1 / (values.numel() / amax.numel() * 127) ** 0.5
    step = (amax * factor + (amax - amax * factor).detach()) / 127
    scaled = (values / step).clamp(-128, 127)
    return ((scaled.round() - scaled).detach() + scaled) * step


@pytest.fixture
def values() -> Tensor:
    """The same two images three times: an activation's range learns from the first quarter of a batch, rounded up."""
    return (torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0)) * 2).repeat(3, 1, 1, 1)


@pytest.mark.parametrize("amax", [torch.tensor(1.5), torch.linspace(0.5, 3, 6).reshape(6, 1, 1, 1)])
def test_values_and_gradients(values: Tensor, amax: Tensor) -> None:
    results = []
    for function in (fake_quantize, written_out):
        inputs, ranges = values.clone().requires_grad_(), amax.clone().requires_grad_()
        output = function(inputs, ranges)
        weights = torch.linspace(-1, 1, output[:2].numel()).reshape(output[:2].shape)
        (output * weights.repeat(3, 1, 1, 1)).sum().backward()
        assert inputs.grad is not None
        assert ranges.grad is not None
        results.append((output.detach(), inputs.grad, ranges.grad))
    for found, expected in zip(*results, strict=True):
        assert found.shape == expected.shape
        assert torch.allclose(found, expected, atol=1e-5, rtol=1e-4)
    assert (results[0][1] == 0).any()  # clipped
    own = fake_tensor_quant(values, amax, None, 8, False, False, None, False, None, None)
    assert torch.allclose(results[0][0], own, atol=1e-6)


def test_a_fixed_range_gets_no_gradient(values: Tensor) -> None:
    inputs, amax = values.clone().requires_grad_(), torch.tensor(1.5)
    fake_quantize(inputs, amax).sum().backward()
    assert amax.grad is None
    assert inputs.grad is not None
    assert torch.equal(inputs.grad != 0, (values >= -1.5 * 128 / 127) & (values <= 1.5))


def test_zero_and_ends_are_on_the_grid() -> None:
    amax = torch.tensor(2.54)
    found = fake_quantize(torch.tensor([0.0, 2.54, 100.0, -100.0]), amax)
    assert torch.allclose(found, torch.tensor([0.0, 2.54, 2.54, -2.56]))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("amax", [torch.tensor(1.5), torch.linspace(0.5, 3, 6).reshape(6, 1, 1, 1)])
def test_16_bit_is_rounded_as_float32_is(values: Tensor, amax: Tensor, kind: torch.dtype) -> None:
    given = values.to(kind)
    results = []
    for inputs in (given.clone().requires_grad_(), given.float().requires_grad_()):
        ranges = amax.clone().requires_grad_()
        output = fake_quantize(inputs, ranges)
        output.sum().backward()
        assert output.dtype == inputs.dtype
        assert inputs.grad is not None
        assert ranges.grad is not None
        assert ranges.grad.dtype == torch.float32
        results.append((output.detach(), inputs.grad, ranges.grad))
    (output, passed, moved), (expected, expected_passed, expected_moved) = results
    assert torch.equal(output, expected.to(kind))
    assert torch.equal(passed, expected_passed.to(kind))
    # the result is kept in 16 bit, and the range learns from it
    assert torch.allclose(moved, expected_moved, rtol=0.02, atol=0.02 * float(expected_moved.abs().max()))


def test_autocast_around_it_changes_nothing(values: Tensor) -> None:
    amax = torch.tensor(1.5)
    with torch.autocast("cpu", torch.bfloat16):
        found = fake_quantize(values, amax)
    assert torch.equal(found, fake_quantize(values, amax))
