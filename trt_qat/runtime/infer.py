"""The work behind ``trt-qat infer``: sources to detections to sinks, every stage overlapped. Loads no torch.

Reading, the network, drawing and writing are stages (:mod:`trt_qat.runtime.overlap`); this thread writes. What ends it
early, an error or Ctrl-C, first ends the sources, then the stages, then the sinks, which finish their files.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from trt_qat.config import InferSection
from trt_qat.errors import ArtifactError
from trt_qat.progress import SILENT, Progress
from trt_qat.runtime.detector import Detector
from trt_qat.runtime.frames import Frame, Result, Source
from trt_qat.runtime.overlap import overlapped
from trt_qat.runtime.runner import Mode
from trt_qat.runtime.selection import runtimes_for
from trt_qat.runtime.sinks.sink import Sink
from trt_qat.vision.detections import Detections

ENGINES = Path("engines")
_LATENCIES = 1000  # of the last frames: a camera runs for days
_SECONDS_PER_LINE = 10.0


@dataclass(frozen=True)
class Outputs:
    """What to write.

    Args:
        out: annotated file of one source, or a folder if it has no suffix; None is ``runs/infer``.
        save: whether annotated images and videos are written.
        jsonl, csv: a file of detections, "-" for standard output.
        save_txt: folder for YOLO label files.
        save_crops: folder for a picture of each detection.
        show: whether a window shows the annotated frames.
        results: whether :attr:`Inferred.results` keeps every frame's detections.
    """

    out: Path | None = None
    save: bool = True
    jsonl: str | Path | None = None
    csv: str | Path | None = None
    save_txt: Path | None = None
    save_crops: Path | None = None
    show: bool = False
    results: bool = False


@dataclass
class Inferred:
    """What :func:`infer` did, so far.

    Attributes:
        sources: as they were given, without passwords.
        runtime: name of the runner, e.g. "openvino".
        device: what it ran on.
        reason: one line: which file ran on what, and why.
        mode: "latency" or "throughput".
        names: class id to name.
        announced: how many images there are, or the videos' heads promise; None where one does not say.
        frames: images or video frames that went through the network.
        detections: boxes over all of them.
        seconds: from the first frame to the end of the last file.
        broken, dropped, reconnects: as :class:`~trt_qat.runtime.frames.Source` counts them, over all sources.
        errors: name of each image that could not be read or written, and why.
        written: files and folders.
        results: every frame as the object that ``--jsonl`` writes, where they were asked for.
        counts: what has crossed each line, or is inside of each zone, by source.
    """

    sources: list[str]
    runtime: str
    device: str
    reason: str
    mode: Mode
    names: dict[int, str]
    announced: int | None = 0
    frames: int = 0
    detections: int = 0
    seconds: float = 0.0
    broken: int = 0
    dropped: int = 0
    reconnects: int = 0
    errors: list[tuple[str, str]] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    results: list[dict[str, Any]] | None = None
    counts: dict[str, Any] = field(default_factory=dict)
    latencies_ms: deque[float] = field(default_factory=lambda: deque(maxlen=_LATENCIES))

    @property
    def median_ms(self) -> float | None:
        """From a frame's decoded pixels to its detections, of the last thousand frames."""
        return statistics.median(self.latencies_ms) if self.latencies_ms else None

    @property
    def fps(self) -> float | None:
        """Frames per second, reading and writing included."""
        return self.frames / self.seconds if self.seconds > 0 and self.frames else None

    def as_dict(self) -> dict[str, Any]:
        """The object that ``--json`` writes; boxes in pixels of the image."""
        results = {} if self.results is None else {"results": self.results}
        return {
            "sources": self.sources,
            "written": self.written,
            "runtime": self.runtime,
            "device": self.device,
            "reason": self.reason,
            "mode": self.mode,
            "frames": self.frames,
            "detections": self.detections,
            "seconds": round(self.seconds, 3),
            "fps": None if self.fps is None else round(self.fps, 2),
            "median_ms": None if self.median_ms is None else round(self.median_ms, 3),
            "broken": self.broken,
            "dropped": self.dropped,
            "reconnects": self.reconnects,
            "counts": self.counts,
            **results,
            "errors": [{"frame": frame, "error": error} for frame, error in self.errors],
        }


def infer(
    sources: Sequence[str | Path],
    model: str | Path | None = None,
    section: InferSection | None = None,
    *,
    outputs: Outputs = Outputs(),
    runtime: str = "auto",
    device: str = "auto",
    recursive: bool = False,
    track: bool = False,
    lines: Sequence[str] = (),
    zones: Sequence[str] = (),
    progress: Progress = SILENT,
    **settings: Any,
) -> Inferred:
    """Detect in images, videos and streams, and write what was asked for.

    An image of several that cannot be read is left out and named in the result. A stream that ends is opened again; it
    is ended by Ctrl-C, which finishes every file.

    Args:
        sources: see :func:`~trt_qat.runtime.sources.open_sources`.
        model: see :class:`~trt_qat.runtime.detector.Detector`; None takes :func:`default_model`.
        runtime, device: see :class:`~trt_qat.runtime.detector.Detector`.
        recursive: whether a folder's sub-folders count.
        track: whether objects keep an id from frame to frame.
        lines, zones: what is counted, see :mod:`trt_qat.runtime.counting`; lines need and imply ``track``.
        settings: keys of the ``infer`` section, e.g. ``conf=0.4``, ``mode="latency"``.

    Raises:
        DatasetError: a source is missing or cannot be read.
        ArtifactError: the model cannot be read, or an output cannot be written.
        ConfigError: an unknown or bad setting.
        RunnerError, MissingDependency: the model cannot run on this runtime, or a package for it is missing.
    """
    section = (section or InferSection()).replace(**settings)
    with ExitStack() as stack:
        opened = open_sources(
            [str(source) for source in sources],
            recursive=recursive,
            every=section.every,
            max_fps=section.max_fps,
            progress=progress,
        )
        close = stack.callback(_close, opened)
        mode = mode_of(section.mode, opened)
        detector = stack.enter_context(
            Detector(model or default_model(), section, runtime=runtime, mode=mode, device=device)
        )
        done = Inferred([source.text for source in opened], detector, mode, outputs.results)
        sinks = [stack.enter_context(sink) for sink in open_sinks(outputs, opened, detector.names, progress)]
        finish = Finish(detector.names, opened, sinks, track, lines, zones)
        groups = together(opened, _batch(section, detector, opened), progress)
        found = detector.stream_groups(done.timed(groups))
        results = stack.enter_context(closing(overlapped(finish, found, 1, 2, "draw")))
        stack.callback(close)  # first of all on the way out, so that no stage waits for a frame
        for group in results:
            for result in group:
                for sink in sinks:
                    sink.write(result)
                done.add(result)
            _report(done, opened, progress)
    ...
