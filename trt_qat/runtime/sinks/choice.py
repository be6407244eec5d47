"""Which sinks a run has: from what was asked for and from what the sources are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from trt_qat.progress import Progress
from trt_qat.runtime.frames import Source
from trt_qat.runtime.sinks.jsonl import JsonLinesSink
from trt_qat.runtime.sinks.sink import Sink
from trt_qat.runtime.sinks.video import VideoSink


def open_sinks(outputs: object, sources: Sequence[Source], names: Mapping[int, str], progress: Progress) -> list[Sink]:
    sinks: list[Sink] = []
    if outputs.save:
        sinks.append(VideoSink(outputs.out or Path("runs/infer/out.mp4"), sources[0].fps, progress))
    if outputs.jsonl is not None:
        sinks.append(JsonLinesSink(outputs.jsonl, names))
    return sinks
