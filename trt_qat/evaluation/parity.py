"""Does the exported file compute what the fake-quantized network computes? Cosine similarity per output."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from trt_qat.runtime.runner import Runner


def cosine(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Cosine similarity of two arrays of equal shape; 1 if both are zero."""
    a, b = first.astype(np.float64).ravel(), second.astype(np.float64).ravel()
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norm if norm else float(np.array_equal(a, b))


def lowest_cosine(expected: Runner, found: Runner, batches: Iterable[NDArray[np.float32]]) -> list[float]:
    """Per output, the lowest cosine similarity over the batches."""
    lowest: list[float] = []
    for batch in batches:
        similarities = [cosine(a, b) for a, b in zip(expected.infer(batch), found.infer(batch), strict=True)]
        lowest = [min(pair) for pair in zip(lowest, similarities, strict=True)] if lowest else similarities
    return lowest
