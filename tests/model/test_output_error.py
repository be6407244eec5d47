"""The error of raw predictions is a measure: never below 0."""

from __future__ import annotations

import torch

from trt_qat.model.output_error import box_error, output_error, score_error


def test_rounding_takes_no_error_below_zero() -> None:
    """Ultralytics' bias makes scores small, and the difference of two nearly equal sums is then rounding."""
    unbounded = []
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        reference = {
            "scores": torch.randn(1, 7, 84, generator=generator) - 4,
            "boxes": torch.randn(1, 64, 84, generator=generator),
        }
        near = {
            name: value * (1 + 1e-7 * torch.randn(value.shape, generator=generator))
            for name, value in reference.items()
        }
        unbounded.append(float(score_error(near, reference) + box_error(near, reference)))
        assert float(output_error(near, reference)) == max(unbounded[-1], 0.0)
    assert min(unbounded) < 0
