"""A grid of 256 codes laid where a tensor's values are, instead of evenly round zero.

SiLU gives values from -0.28 to some maximum, an image has none below 0: half of a symmetric grid's codes are never
used. The asymmetric grid (Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", section 2.1) has the step ``(high - low) / 255`` and gives zero the code
``round(-low / step)``, its zero point: zero stays exact, which the padding of a convolution needs.

A quantizer keeps its step as a range, ``127 * step``, whatever its scheme; the symmetric one is zero point 128.
"""

from __future__ import annotations

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
    """The grid that spans a range; zero lies on it, so its ends may be off by half a step.

    Args:
        low: 0 or below.
        high: 0 or above, and above ``low``.
    """
    step = (high - low) / STEPS
    return Grid(HIGHEST * step, round(-low / step))
