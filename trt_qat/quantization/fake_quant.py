"""INT8 fake quantization in few passes over memory, with the gradients that QAT needs.

Values: straight-through inside the range, zero outside (Jacob et al. 2018). Range, only where it is a parameter:
"Learned Step Size Quantization" (Esser et al. 2020), equation 3 with its gradient scale; a scalar range (an activation)
learns from the first quarter of the batch, which costs a quarter and is as good an estimate as a smaller batch. A zero
point stays what it is: a learned range then moves both ends in proportion, and zero stays on the grid.

Values of 16 bit (``qat.amp``) are rounded in float32: computed in bfloat16, one normal value in ten came out on a
neighbouring level, in float16 one in seventy. Only the result is given in 16 bit again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LOWEST, HIGHEST = -128, 127
SYMMETRIC = -LOWEST  # the zero point of a grid that lies evenly round zero
_PART = 4  # a scalar range learns from one image in so many


def fake_quantize(values: Tensor, amax: Tensor, zero_point: int = SYMMETRIC) -> Tensor:
    """Round to the INT8 grid of step ``amax / 127`` and back to float.

    Args:
        values: any shape.
        amax: a scalar, or (channels or 1, 1, 1, 1) for weights (channels, ...). Gets a gradient if it requires one.
        zero_point: how many of the 256 codes lie below that of zero, 0 to 255.

    Returns:
        The shape and type of ``values``.
    """
    result: Tensor = _FakeQuantize.apply(values, amax, zero_point)
    return result


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, amax: Tensor, zero_point: int) -> Tensor:
        wide = _wide(values)
        scale = (amax / HIGHEST).to(wide.dtype)
        output = wide.div(scale).round_().clamp_(*_steps(zero_point)).mul_(scale).to(values.dtype)
        ctx.save_for_backward(values, amax, output if ctx.needs_input_grad[1] else None)
        ctx.zero_point = zero_point
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        values, amax, output = ctx.saved_tensors
        given, gradient, values = gradient.dtype, _wide(gradient), _wide(values)
        passed = _straight_through(gradient, values, amax, ctx.zero_point)
        if output is None:
            return passed.to(given), None, None
        output = _wide(output)
        # inside the range (output - value) / amax, outside output / amax
        if amax.dim() == 0:
            some = -(-len(values) // _PART)
            moved = _dot(gradient[:some], output[:some]) - _dot(passed[:some], values[:some])
            moved *= len(values) / some
        else:
            moved = (gradient * output - passed * values).sum_to_size(amax.shape)
        return passed.to(given), moved / amax / (values.numel() / amax.numel() * HIGHEST) ** 0.5, None


def _wide(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def _dot(first: Tensor, second: Tensor) -> Tensor:
    return first.flatten().dot(second.flatten())


def _steps(zero_point: int) -> tuple[int, int]:
    """The least and the largest step of the grid: the code 0, and the code 255."""
    return -zero_point, HIGHEST - LOWEST - zero_point


def _straight_through(gradient: Tensor, values: Tensor, amax: Tensor, zero_point: int) -> Tensor:
    lowest, highest = _steps(zero_point)
    if amax.numel() == 1 and not amax.is_cuda:  # one pass; on a GPU reading the number would stall the queue
        step = float(amax.detach()) / HIGHEST
        masked: Tensor = torch.ops.aten.hardtanh_backward(gradient, values, step * lowest, step * highest)
        return masked
    scale = amax / HIGHEST
    return gradient * ((values >= scale * lowest) & (values <= scale * highest))
