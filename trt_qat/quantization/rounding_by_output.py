"""Weight rounding in closed form: what rounding one weight adds to the output is taken away by those still to come.

Frantar and Alistarh 2022, "Optimal Brain Compression" (the order and the factorization are those of GPTQ, 2023).
"""

from __future__ import annotations

import torch
from torch import Tensor

from trt_qat.quantization.fake_quant import HIGHEST

_DAMPING = 0.01  # of the mean square of an input


def rounded_by_output(weight: Tensor, amax: Tensor, gram: Tensor) -> Tensor:
    """A weight of multiples of its scale whose output is as near to the given weight's as may be.

    Args:
        weight: (out_channels, in_channels / groups, kernel height, kernel width).
        amax: (out_channels or 1, 1, 1, 1).
        gram: sums of products of what the convolution reads, (groups, inputs, inputs), float64.
    """
    groups = len(gram)
    scale = (amax / HIGHEST).double().expand(len(weight), 1, 1, 1).reshape(groups, -1)
    rows = weight.double().reshape(groups, len(weight) // groups, -1)
    found = [_group(*of_group) for of_group in zip(rows, scale, gram, strict=True)]
    return torch.stack(found).reshape(weight.shape).float()


def _group(weight: Tensor, scale: Tensor, gram: Tensor) -> Tensor:
    order = gram.diagonal().argsort(descending=True)
    damped = gram + torch.eye(len(gram), dtype=gram.dtype) * (_DAMPING * gram.diagonal().mean() + 1e-12)
    factor = torch.linalg.cholesky(torch.linalg.inv(damped[order][:, order]), upper=True)
    left, rounded = weight[:, order].clone(), torch.empty_like(weight)
    for index in range(len(gram)):
        rounded[:, index] = (left[:, index] / scale).round().clamp(-HIGHEST, HIGHEST) * scale
        wrong = (left[:, index] - rounded[:, index]) / factor[index, index]
        left[:, index + 1 :] -= torch.outer(wrong, factor[index, index + 1 :])
    return rounded[:, order.argsort()]
