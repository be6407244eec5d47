"""Latency of several models side by side: interleaved, because a machine's speed drifts while it is measured."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from trt_qat.artifacts import Latency
from trt_qat.config import EvaluationSection
from trt_qat.progress import SILENT, Progress
from trt_qat.runtime.runner import Runner, image_size


def measure_latency(
    runners: Sequence[Runner], section: EvaluationSection, progress: Progress = SILENT
) -> list[Latency]:
    """Time one forward pass of each runner in turn, round after round, in milliseconds.

    The input is fixed noise of batch 1 (or the model's static batch); the warm-up rounds are not counted.
    """
    inputs = [_noise(runner) for runner in runners]
    times = np.zeros((section.latency_iterations, len(runners)))
    rounds = range(-section.latency_warmup, section.latency_iterations)
    for index in progress.over(rounds, "measuring latency"):
        for column, (runner, batch) in enumerate(zip(runners, inputs, strict=True)):
            start = time.perf_counter()
            runner.infer(batch)
            if index >= 0:
                times[index, column] = (time.perf_counter() - start) * 1e3
    return [
        Latency(*(round(float(value), 3) for value in np.percentile(times[:, column], [50, 90, 99])))
        for column in range(len(runners))
    ]


def _noise(runner: Runner) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    side = image_size(runner.metadata, runner.input_shape)
    generator = np.random.default_rng(0)
    return generator.random((runner.input_shape[0] or 1, 3, side, side), dtype=np.float32)
