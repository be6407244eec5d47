"""Which sinks a run has: from what was asked for, and from what its sources are."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePath
from types import TracebackType
from typing import BinaryIO

from trt_qat.errors import ArtifactError
from trt_qat.progress import SILENT, Progress
from trt_qat.redact import redacted
from trt_qat.runtime.files import Images
from trt_qat.runtime.frames import Result, Source
from trt_qat.runtime.sinks.crops import CropsSink
from trt_qat.runtime.sinks.csv import CsvSink
from trt_qat.runtime.sinks.images import ImagesSink
from trt_qat.runtime.sinks.jsonl import JsonlSink
from trt_qat.runtime.sinks.naming import UniqueNames, source_name
from trt_qat.runtime.sinks.show import ShowSink
from trt_qat.runtime.sinks.sink import Sink
from trt_qat.runtime.sinks.stream import StreamSink
from trt_qat.runtime.sinks.video import VIDEO_OUT_SUFFIXES, VideoSink, check_video_name
from trt_qat.runtime.sinks.yolo_txt import YoloTxtSink
from trt_qat.vision.image import IMAGE_SUFFIXES

RESULTS = Path("runs/infer")


@dataclass(frozen=True)
class Outputs:
    """What a run writes.

    Args:
        out: the annotated file of one image or video, or a folder; None is ``runs/infer``.
        save: whether annotated images and videos are written.
        address: where the annotated frames of one source are sent to, see :class:`StreamSink`; None is nowhere.
        jsonl, csv: a file of detections, or an open binary stream.
        save_txt: folder for YOLO label files.
        save_crops: folder for a picture of each detection.
        show: whether a window shows the annotated frames.
        results: whether every frame's detections are kept for ``--json``.
    """

    out: Path | None = None
    save: bool = True
    address: str | None = None
    jsonl: Path | BinaryIO | None = None
    csv: Path | BinaryIO | None = None
    save_txt: Path | None = None
    save_crops: Path | None = None
    show: bool = False
    results: bool = False

    @property
    def written(self) -> list[Path]:
        """The files and folders that were asked for by name."""
        named = (self.jsonl, self.csv, self.save_txt, self.save_crops)
        return [path for path in named if isinstance(path, Path)]


class AnnotatedSink:
    """The annotated pictures: a video or images for each source.

    Args:
        targets: see :func:`targets_of`.
    """

    wants_picture = True

    def __init__(self, sources: Sequence[Source], targets: Mapping[str, Path], progress: Progress = SILENT) -> None:
        self._sinks: dict[str, VideoSink | ImagesSink] = {}
        self._opened = ExitStack()
        for source in sources:
            sink = _sink_of(source, targets[source.text], progress)
            self._opened.enter_context(sink)
            self._sinks[source.text] = sink

    @property
    def errors(self) -> list[tuple[str, str]]:
        """Name of each image that could not be written, and why."""
        return [error for sink in self._sinks.values() if isinstance(sink, ImagesSink) for error in sink.errors]

    def write(self, result: Result) -> None:
        """See :class:`~trt_qat.runtime.sinks.sink.Sink`."""
        self._sinks[result.frame.source].write(result)

    def __enter__(self) -> AnnotatedSink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()


def other_sinks(
    outputs: Outputs, sources: Sequence[Source], names: Mapping[int, str], progress: Progress = SILENT
) -> list[Sink]:
    """What is written beside annotated files.

    Raises:
        ArtifactError: it cannot be written.
        MissingDependency: no window can be opened.
    """
    sinks: list[Sink] = []
    if outputs.address is not None:
        if len(sources) > 1 or isinstance(sources[0], Images):
            raise ArtifactError(f"--out '{redacted(outputs.address)}' takes the frames of one video, camera or stream.")
        sinks.append(StreamSink(outputs.address, sources[0].fps, progress))
    if outputs.show:
        sinks.append(ShowSink())
    if outputs.jsonl is not None:
        sinks.append(JsonlSink(outputs.jsonl, names))
    if outputs.csv is not None:
        sinks.append(CsvSink(outputs.csv, names))
    if outputs.save_txt is not None:
        sinks.append(YoloTxtSink(outputs.save_txt))
    if outputs.save_crops is not None:
        sinks.append(CropsSink(outputs.save_crops, names))
    return sinks


def targets_of(sources: Sequence[Source], out: Path | None) -> dict[str, Path]:
    """By source: the annotated video, the annotated image, or the folder of annotated images.

    Args:
        out: a file for one image or video, else a folder, which has no suffix or exists; None is ``runs/infer``.

    Raises:
        ArtifactError: it is of another kind than the source, or the source itself; or a source is given twice.
    """
    texts = [source.text for source in sources]
    for text in texts:
        if texts.count(text) > 1:
            raise ArtifactError(
                f"Source '{text}' is given twice: its results would be mixed. Give it once, or --no-save."
            )
    names = UniqueNames()
    if len(sources) > 1:
        folder = _folder(out, f"the results of {len(sources)} sources need a folder")
        folders = sum(isinstance(source, Images) and not source.single for source in sources)
        targets = {
            # the images of one folder lie beside its videos
            source.text: folder
            if folders == 1 and isinstance(source, Images) and not source.single
            else folder / names.of(source.text, _name_in_folder(source))
            for source in sources
        }
    else:
        targets = {source.text: _target(source, out) for source in sources}
    for source in sources:
        target = targets[source.text]
        if _is_same(target, source.text) or (
            isinstance(source, Images) and any(_is_same(target, p) for p in source.paths)
        ):
            raise ArtifactError(f"--out '{target}' is the source itself. Choose another --out.")
    return targets


def _target(source: Source, out: Path | None) -> Path:
    if isinstance(source, Images) and not source.single:
        return _folder(out, "the results of a folder need a folder", PurePath(source_name(source.text)))
    if out is None or out.is_dir() or not out.suffix:
        return (out or RESULTS) / _name_in_folder(source)
    if not isinstance(source, Images):
        check_video_name(out)
    elif out.suffix.lower() not in IMAGE_SUFFIXES:
        raise ArtifactError(f"--out '{out}' must be a folder or end in {', '.join(sorted(IMAGE_SUFFIXES))}.")
    return out


def _folder(out: Path | None, why: str, name: PurePath | None = None) -> Path:
    if out is not None and (out.is_file() or out.suffix.lower() in IMAGE_SUFFIXES | VIDEO_OUT_SUFFIXES):
        raise ArtifactError(f"--out '{out}' is a file; {why}.")
    return out if out is not None else RESULTS / (name or "")


def _name_in_folder(source: Source) -> PurePath:
    if isinstance(source, Images):
        return PurePath(source.paths[0].name if source.single else source_name(source.text))
    path = Path(source.text)
    is_file = not source.live and path.is_file()
    suffix = path.suffix.lower() if is_file and path.suffix.lower() in VIDEO_OUT_SUFFIXES else ".mp4"
    return PurePath((path.stem if is_file else source_name(source.text)) + suffix)


def _sink_of(source: Source, target: Path, progress: Progress) -> VideoSink | ImagesSink:
    if isinstance(source, Images):
        return ImagesSink(target, is_file=source.single)
    return VideoSink(target, source.fps, source.live, progress)


def _is_same(target: Path, source: str | Path) -> bool:
    return os.path.realpath(target) == os.path.realpath(source)  # unlike resolve(), it knows loops
