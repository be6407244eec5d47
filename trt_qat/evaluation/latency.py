"""Latency of several models side by side: interleaved, because a machine's speed drifts while it is measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from trt_qat.config import EvaluationSection
from trt_qat.engine.gpu import nvidia_smi
from trt_qat.progress import SILENT, Progress
from trt_qat.results import GpuLatency, Latency
from trt_qat.runtime.runner import Runner, image_size

Pixels = NDArray[np.float32]

CLOCKS = ("clocks.sm", "clocks.mem", "clocks.max.sm")
"""What is noted of the GPU beside its times, as nvidia-smi calls it: they depend on it."""


def measure_latency(
    runners: Sequence[Runner], section: EvaluationSection, progress: Progress = SILENT
) -> list[Latency]:
    """Time one forward pass of each runner in turn, round after round, in milliseconds.

    The input is fixed noise of batch 1 (or the model's static batch); the warm-up rounds are not counted.
    """
    return _interleaved([partial(_seen_ms, runner, _noise(runner)) for runner in runners], section, progress)


@runtime_checkable
class GpuRunner(Runner, Protocol):
    """A runner that knows what the GPU alone takes; :class:`~trt_qat.runtime.tensorrt.TensorRtRunner` does."""

    def gpu_milliseconds(self, batch: Pixels, copies: bool = False) -> float:
        """Milliseconds of one pass, with the copies to the GPU and back or without."""
        ...


def measure_gpu_latency(
    runners: Sequence[GpuRunner], section: EvaluationSection, progress: Progress = SILENT
) -> list[GpuLatency]:
    """The same by the GPU's own clock, with the copies and without, in turn; no work of the CPU is in it."""
    batches = [_noise(runner) for runner in runners]
    timers = [
        partial(runner.gpu_milliseconds, batch, copies)
        for runner, batch in zip(runners, batches, strict=True)
        for copies in (False, True)
    ]
    found = _interleaved(timers, section, progress)
    clocks = tuple(nvidia_smi(CLOCKS))
    return [GpuLatency(*pair, clocks) for pair in zip(found[::2], found[1::2], strict=True)]


def gpu_latencies(
    runners: Sequence[Runner], section: EvaluationSection, progress: Progress = SILENT
) -> list[GpuLatency | None]:
    """:func:`measure_gpu_latency` of the runners that know it, None for the others."""
    timed = [runner for runner in runners if isinstance(runner, GpuRunner)]
    found = iter(measure_gpu_latency(timed, section, progress) if timed else ())
    return [next(found) if isinstance(runner, GpuRunner) else None for runner in runners]


def _interleaved(
    timers: Sequence[Callable[[], float]], section: EvaluationSection, progress: Progress
) -> list[Latency]:
    times = np.zeros((section.latency_iterations, len(timers)))
    rounds = range(-section.latency_warmup, section.latency_iterations)
    for index in progress.over(rounds, "measuring latency"):
        for column, timer in enumerate(timers):
            taken = timer()
            if index >= 0:
                times[index, column] = taken
    return [
        Latency(*(round(float(value), 3) for value in np.percentile(times[:, column], [50, 90, 99])))
        for column in range(len(timers))
    ]


def _seen_ms(runner: Runner, batch: Pixels) -> float:
    start = time.perf_counter()
    runner.infer(batch)
    return (time.perf_counter() - start) * 1e3


def _noise(runner: Runner) -> Pixels:
    imgsz = image_size(runner.metadata, runner.input_shape)
    generator = np.random.default_rng(0)
    return generator.random((runner.input_shape[0] or 1, 3, *imgsz), dtype=np.float32)
