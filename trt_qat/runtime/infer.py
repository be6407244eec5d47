"""The work behind ``trt-qat infer``: sources to detections to sinks, every stage overlapped. Loads no torch.

Reading, the network, drawing and writing are stages (:mod:`trt_qat.runtime.overlap`); this thread writes. What ends it
early, an error or Ctrl-C, first ends the sources, then the stages, then the sinks, which finish their files.
"""

from __future__ import annotations

import importlib
import statistics
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any, TypeVar

from trt_qat.config import InferMode, InferSection
from trt_qat.errors import ArtifactError, ConfigError
from trt_qat.progress import SILENT, Progress
from trt_qat.runtime.annotator import Annotator
from trt_qat.runtime.detector import Detector
from trt_qat.runtime.frames import Frame, Result, Source
from trt_qat.runtime.overlap import overlapped
from trt_qat.runtime.runner import Mode
from trt_qat.runtime.selection import runtimes_for
from trt_qat.runtime.sinks.choice import AnnotatedSink, Outputs, other_sinks, targets_of
from trt_qat.runtime.sinks.jsonl import frame_record
from trt_qat.runtime.sinks.show import ShowSink
from trt_qat.runtime.sinks.sink import Sink
from trt_qat.runtime.sources import open_sources, together
from trt_qat.runtime.tracking import Tracker, detector_conf
from trt_qat.vision.regions import parse_regions

ENGINES = Path("engines")
_LATENCIES = 1000  # of the last frames: a camera runs for days
_SECONDS_PER_LINE = 10.0
_SECONDS_PER_LOOK = 1.0
_HELD = 16  # frames of a live source that may wait where throughput was asked for

Group = TypeVar("Group")


class Inferred:
    """What :func:`infer` did.

    Attributes:
        sources: as they were given, without passwords.
        runtime: name of the runner, e.g. "openvino".
        device: what it ran on.
        reason: one line: which file ran on what, and why.
        mode: "latency" or "throughput".
        written: files and folders.
        frames: images or video frames that went through the network.
        detections: boxes over all of them.
        seconds: from the first frame to the end of the last file.
        median_ms: from a frame's decoded pixels to its detections, over the last thousand frames; None without any.
        counts: what has crossed each line, or is inside of each zone, by source.
        results: every frame as the object that ``--jsonl`` writes, where they were asked for.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        detector: Detector,
        mode: Mode,
        outputs: Outputs,
        annotated: AnnotatedSink | None = None,
    ) -> None:
        self._sources, self._annotated = sources, annotated
        self._names = detector.names
        self.sources = [source.text for source in sources]
        self.runtime, self.device, self.reason = detector.runner.name, detector.runner.device, detector.reason
        self.mode: Mode = mode
        self.written: list[str] = []
        self.frames = 0
        self.detections = 0
        self.seconds = 0.0
        self.counts: dict[str, Mapping[str, Mapping[str, int]]] = {}
        self.results: list[dict[str, Any]] | None = [] if outputs.results else None
        self._started: deque[float] = deque()  # of the groups that are on their way: their order is kept
        self._latencies_ms: deque[float] = deque(maxlen=_LATENCIES)
        self._begin: float | None = None

    @property
    def announced(self) -> int:
        """Frames that the sources promise; 0 where one does not say."""
        promised = [source.announced for source in self._sources]
        return 0 if None in promised else sum(count or 0 for count in promised)

    @property
    def broken(self) -> int:
        """Frames that could not be decoded, and were skipped."""
        return sum(source.broken for source in self._sources)

    @property
    def dropped(self) -> int:
        """Frames of live sources that came too fast."""
        return sum(source.dropped for source in self._sources)

    @property
    def reconnects(self) -> int:
        """How often streams were opened again."""
        return sum(source.reconnects for source in self._sources)

    @property
    def errors(self) -> list[tuple[str, str]]:
        """Name of each image that could not be read or written, and why."""
        unwritten = self._annotated.errors if self._annotated is not None else []
        return [*(error for source in self._sources for error in source.errors), *unwritten]

    @property
    def fps(self) -> float | None:
        """Frames per second, reading and writing included."""
        return self.frames / self.seconds if self.seconds > 0 and self.frames else None

    @property
    def median_ms(self) -> float | None:
        """See the class."""
        return statistics.median(self._latencies_ms) if self._latencies_ms else None

    def starting(self, groups: Iterable[list[Frame]]) -> Iterator[list[Frame]]:
        """The groups unchanged, with the time noted at which each goes in."""
        for group in groups:
            now = time.perf_counter()
            self._begin = self._begin or now
            self._started.append(now)
            yield group

    def found(self, groups: Iterable[Group]) -> Iterator[Group]:
        """The groups unchanged, with the time noted at which each has its detections."""
        for group in groups:
            self._latencies_ms.append((time.perf_counter() - self._started.popleft()) * 1000)
            yield group

    def add(self, result: Result) -> None:
        """One more result is written."""
        self.frames += 1
        self.detections += len(result.detections)
        if result.counts:
            self.counts[result.frame.source] = result.counts
        if self.results is not None:
            self.results.append(frame_record(result, self._names))

    def stopped(self) -> None:
        """Nothing more is written."""
        self.seconds = 0.0 if self._begin is None else time.perf_counter() - self._begin

    def lines(self) -> list[str]:
        """What a user wants to read of it."""
        median = "" if self.median_ms is None else f", median {self.median_ms:.1f} ms per frame"
        fps = "" if self.fps is None else f", {self.fps:.1f} frames/s ({self.mode})"
        lines = [self.reason, f"{self.frames} frames, {self.detections} detections{median}{fps}"]
        for source, counts in self.counts.items():
            of = f" ({source})" if len(self.sources) > 1 else ""
            for name, numbers in counts.items():
                lines.append(f"{name}: {', '.join(f'{count} {way}' for way, count in numbers.items())}{of}")
        return [*lines, f"Written: {', '.join(self.written)}"] if self.written else lines

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
    outputs: Outputs | None = None,
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
    outputs = outputs or Outputs()
    regions = parse_regions(lines, zones)
    track = track or bool(lines)
    done: Inferred | None = None
    try:
        with ExitStack() as stack:
            opened = open_sources(
                [str(source) for source in sources],
                recursive=recursive,
                every=section.every,
                max_fps=section.max_fps,
                hold=_HELD if section.mode == "throughput" else 1,
                progress=progress,
            )
            stack.callback(_close, opened)
            targets = targets_of(opened, outputs.out) if outputs.save and outputs.address is None else {}
            if targets or outputs.show or outputs.address:
                _import_what_draws()
            tracker = _tracker(section, opened) if track else None
            mode = mode_of(section.mode, opened)
            detector = stack.enter_context(
                Detector(
                    model if model is not None else default_model(),
                    section.replace(conf=detector_conf(section.conf)) if track else section,
                    runtime=runtime,
                    mode=mode,
                    device=device,
                    size_wh=next((source.size_wh for source in opened if source.size_wh), None),
                )
            )
            batch = _batch(section, detector, opened)
            sinks = [stack.enter_context(sink) for sink in other_sinks(outputs, opened, detector.names, progress)]
            annotated = stack.enter_context(AnnotatedSink(opened, targets, progress)) if targets else None
            if annotated is not None:
                sinks.append(annotated)
            done = Inferred(opened, detector, mode, outputs, annotated)
            done.written = [str(path) for path in (*targets.values(), *outputs.written)]
            annotator = Annotator(detector.names, any(sink.wants_picture for sink in sinks), tracker, regions)
            groups = done.starting(together(opened, batch, progress))
            found = done.found(detector.stream_groups(groups))
            results = stack.enter_context(closing(overlapped(annotator, found, workers=1, waiting=2, name="draw")))
            stack.callback(_close, opened)  # first of all on the way out, so that no stage waits for a frame
            _write_all(results, sinks, done, progress)
    except BaseException as exc:
        if done is not None and not isinstance(exc, Exception):  # Ctrl-C, which is how a camera is ended
            done.stopped()
            progress.note("\n".join(done.lines()))
        raise
    done.stopped()
    return done


def _write_all(results: Iterable[list[Result]], sinks: Sequence[Sink], done: Inferred, progress: Progress) -> None:
    report = _Report(done, progress)
    for group in results:
        for result in group:
            for sink in sinks:
                sink.write(result)
            done.add(result)
        report.tell()
        if any(isinstance(sink, ShowSink) and sink.ended for sink in sinks):
            return


def _import_what_draws() -> None:
    """In the background: it takes most of a second, in which the network can be compiled."""

    def load() -> None:
        with suppress(ImportError):  # said where it is used
            importlib.import_module("supervision")

    threading.Thread(target=load, name="import", daemon=False).start()


def _tracker(section: InferSection, sources: Sequence[Source]) -> Tracker:
    """One that knows how often frames of each source come."""
    rates = {}
    for source in sources:
        fps = source.fps / section.every if source.fps else None
        rates[source.text] = min(fps, section.max_fps) if fps and section.max_fps else fps
    return Tracker(section.conf, rates)


def mode_of(wanted: InferMode, sources: Sequence[Source]) -> Mode:
    """What the detector is opened for: one camera or one picture wants its answer soon, files want to be done soon."""
    if wanted != "auto":
        return wanted
    return "latency" if len(sources) == 1 and (sources[0].live or sources[0].announced == 1) else "throughput"


def default_model(folder: Path = ENGINES) -> Path:
    """The newest model in a folder that some runtime takes, one with int8 in its name before others.

    Raises:
        ArtifactError: there is none.
    """
    if (found := newest_model(folder)) is None:
        raise ArtifactError(f"No model in '{folder}/'. Export one ('trt-qat export'), or give --model PATH.")
    return found


def newest_model(folder: Path = ENGINES) -> Path | None:
    """:func:`default_model`, or None if there is none."""
    found = [path for path in folder.glob("*") if runtimes_for(path)]
    return max(found, key=lambda path: ("int8" in path.name.lower(), path.stat().st_mtime, path.name), default=None)


class _Report:
    """Tells how far it is: each frame to whoever draws a bar, and a line now and then for what never ends."""

    def __init__(self, done: Inferred, progress: Progress) -> None:
        self._done, self._progress = done, progress
        self._since, self._frames = time.perf_counter(), 0
        self._line_at = self._since + _SECONDS_PER_LINE
        self._detail = ""

    def tell(self) -> None:
        """A group is written."""
        done, now = self._done, time.perf_counter()
        if now - self._since >= _SECONDS_PER_LOOK:
            fps = (done.frames - self._frames) / (now - self._since)
            self._detail = f"{fps:.1f} frames/s" + "".join(
                f", {count} {what}" for what, count in (("dropped", done.dropped), ("broken", done.broken)) if count
            )
            self._since, self._frames = now, done.frames
        self._progress.step("frames", done.frames, done.announced, self._detail)
        if not done.announced and now >= self._line_at:
            self._progress.note(f"{done.frames} frames, {done.detections} detections, {self._detail}")
            self._line_at = now + _SECONDS_PER_LINE


def _batch(section: InferSection, detector: Detector, sources: Sequence[Source]) -> int:
    """Frames per group: live sources are batched together, unless something else is asked for."""
    most = detector.runner.largest_batch
    if most is not None and section.batch > most:
        raise ConfigError(f"infer.batch={section.batch}: the model takes {most} at a time. Export it with more.")
    wanted = section.batch if section.batch > 1 else max(1, sum(source.live for source in sources))
    return wanted if most is None else min(wanted, most)


def _close(sources: Sequence[Source]) -> None:
    for source in sources:
        source.close()
