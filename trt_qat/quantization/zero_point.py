"""A grid of 256 codes laid where a tensor's values are, instead of evenly round zero.

SiLU gives values from -0.28 to some maximum, an image has none below 0: half of a symmetric grid's codes are never
used. An asymmetric grid (Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", section 2.1) gives zero a code of its own, the zero point, and so many codes to
either side as the values there need. Zero stays exact, which the padding of a convolution needs.

A quantizer keeps its step as a range, ``127 * step``, whatever its scheme; the symmetric one is zero point 128, and
what comes out for a range that reaches as far below zero as above.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from trt_qat.quantization.fake_quant import HIGHEST, LOWEST

STEPS = HIGHEST - LOWEST


@dataclass(frozen=True)
class Grid:
    """What a per-tensor quantizer rounds to.

    Args:
        amax: 127 steps.
        zero_point: the code of zero among 0 to 255.
    """

    amax: float
    zero_point: int

    @property
    def step(self) -> float:
        """The distance of two neighbours; the scale of the exported Q/DQ."""
        return self.amax / HIGHEST

    @property
    def low(self) -> float:
        """The least value, 0 or below."""
        return -self.zero_point * self.step

    @property
    def high(self) -> float:
        """The largest value, 0 or above."""
        return (STEPS - self.zero_point) * self.step


def grid_between(low: float, high: float) -> Grid:
    """The grid with the least step that spans a range: ``(high - low) / 255`` and up to 0.4 % more, for zero's sake.

    Args:
        low: 0 or below.
        high: 0 or above, and above ``low``.
    """
    share = -low * STEPS / (high - low)  # the codes below zero, if they could be divided
    zero_point = min(math.ceil(share), math.floor(share), key=lambda code: _step(low, high, code))
    return Grid(HIGHEST * _step(low, high, zero_point), zero_point)


def _step(low: float, high: float, zero_point: int) -> float:
    """The least step with which so many codes below zero reach the lower end and the others the upper one."""
    sides = ((-low, zero_point), (high, STEPS - zero_point))
    return max(reach / codes if codes > 0 else math.inf for reach, codes in sides if reach > 0)
