"""What the SOURCEs of ``infer`` name, and the frames of several of them together."""

from __future__ import annotations

import functools
import glob
import os
import re
import stat
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from trt_qat.errors import DatasetError
from trt_qat.limits import LIST_MEGABYTES, LISTED_FILES, SOURCES
from trt_qat.progress import SILENT, Progress
from trt_qat.reading import file_name, read_text, regular_file
from trt_qat.redact import redacted
from trt_qat.runtime import frames
from trt_qat.runtime.access import Access, camera_access, file_access, is_url, stream_access, url_access
from trt_qat.runtime.decode import Decoder
from trt_qat.runtime.files import Images, Video, Waiting
from trt_qat.runtime.frames import Frame
from trt_qat.runtime.live import FOREVER, Live, Retry
from trt_qat.runtime.pace import Pace
from trt_qat.vision.image import IMAGE_SUFFIXES

VIDEO_SUFFIXES = frozenset(
    {
        ".264", ".265", ".3gp", ".asf", ".avi", ".flv", ".gif", ".h264", ".h265", ".hevc", ".m2ts", ".m4v", ".mjpeg",
        ".mjpg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".webm", ".wmv", ".y4m",
    }
)  # fmt: skip
LIST_SUFFIX = ".txt"
_CAMERA = re.compile(r"/dev/video(\d+)", re.ASCII)
_TRIES_UNTIL_ANEW = 4  # what a camera sends may be set anew while it is away

Kind = Literal["images", "video", "stdin", "camera", "url"]


@dataclass(frozen=True)
class Named:
    """What a text names, not opened yet.

    Attributes:
        text: as it was given; a video out of a folder, pattern or list by its own path.
        kind: what it is.
        paths: the images, or the one video; nothing for the other kinds.
        single: whether it was given by its own name, and not found in a folder, by a pattern or in a list.
    """

    text: str
    kind: Kind
    paths: tuple[Path, ...] = ()
    single: bool = True


def name_sources(texts: Sequence[str], *, recursive: bool = False) -> list[Named]:
    """What the texts name. Looks at names alone and reads list files: nothing is opened, nothing is sent.

    Args:
        texts: each an image, a video, a folder, a pattern (``*``, ``?``, ``[]``, ``**``), a list (``*.txt``), a camera
            (its number or ``/dev/video*``), an address, or "-" for an encoded stream on standard input. A text is not
            a path, because a path turns ``rtsp://host`` into ``rtsp:/host``.
        recursive: whether a folder's sub-folders count.

    Raises:
        DatasetError: there is no such thing, or nothing that can be read.
    """
    found = [one for text in texts for one in sources_of(text, recursive=recursive)]
    SOURCES.check(len(found), "SOURCE", DatasetError)
    if sum(named.kind == "stdin" for named in found) > 1:
        raise DatasetError("Source '-' is given twice; there is one standard input.")
    return found


def open_sources(
    texts: Sequence[str],
    *,
    recursive: bool = False,
    every: int = 1,
    max_fps: float | None = None,
    hold: int = 1,
    retry: Retry = FOREVER,
    progress: Progress = SILENT,
) -> list[frames.Source]:
    """Open what the texts name (see :func:`name_sources`). If one cannot be opened, none stays open.

    Args:
        every: take each Nth frame or image of a source.
        max_fps: leave out a frame that is nearer than 1/max_fps seconds to the last one taken from its source.
        hold, retry: see :class:`~trt_qat.runtime.live.Live`.
        progress: told when a stream drops and when it is back.

    Raises:
        DatasetError: a source does not exist or cannot be read.
        ConfigError: ``every`` or ``max_fps`` cannot be.
    """
    Pace(every, max_fps)
    named = name_sources(texts, recursive=recursive)
    opened = functools.partial(_opened, every=every, max_fps=max_fps, hold=hold, retry=retry, progress=progress)
    waiting: list[Future[frames.Source]] = [Future() for _ in named]
    for one, future in zip(named, waiting, strict=True):
        # Each of several cameras may take seconds to answer. Nobody waits for these threads after Ctrl-C.
        threading.Thread(target=_settle, args=(future, functools.partial(opened, one)), daemon=True).start()
    errors = [exc for future in waiting if (exc := future.exception()) is not None]
    if not errors:
        return [future.result() for future in waiting]
    for future in waiting:
        if future.exception() is None:
            future.result().close()
    raise errors[0]


def open_video(path: Path, text: str | None = None, pace: Pace | None = None) -> Video:
    """Open the video in a file.

    Args:
        text: what it is called; None is its path.
        pace: which frames are taken; None takes all.

    Raises:
        DatasetError: it cannot be read, or is no video.
    """
    regular_file(path, "Video", DatasetError)
    return Video(str(path) if text is None else text, Decoder(file_access(path)), pace or Pace())


def together(sources: Sequence[frames.Source], batch: int, progress: Progress = SILENT) -> Iterator[list[Frame]]:
    """The frames of several sources in groups for one inference each. Every source is closed at the end.

    Sources take turns, one frame each, until a group is full. A file gives its next frame; a live one gives a frame if
    one is there now, and is waited for only where nothing else came. A source that fails is noted and left out, unless
    it is the only one.

    Args:
        batch: most frames per group.

    Raises:
        DatasetError: the only source cannot be read.
    """
    news = threading.Event()
    turns: list[Callable[[], Frame | None]] = []
    ended: set[int] = set()

    def next_of(index: int, iterator: Iterator[Frame]) -> Frame | None:
        found = next(iterator, None)
        if found is None:
            ended.add(index)
        return found

    def now_of(index: int, source: Live) -> Frame | None:
        found = source.take()
        if found is None and source.ended:
            ended.add(index)
        return found

    for index, source in enumerate(sources):
        if isinstance(source, Live):
            source.tell(news)
            turns.append(functools.partial(now_of, index, source))
        else:
            turns.append(functools.partial(next_of, index, source.frames()))
    try:
        at = 0
        while len(ended) < len(sources):
            news.clear()
            group: list[Frame] = []
            without = 0  # sources in a row that had nothing
            while len(group) < batch and without < len(sources):
                index, at = at, (at + 1) % len(sources)
                found = None
                if index not in ended:
                    try:
                        found = turns[index]()
                    except DatasetError as exc:
                        if len(sources) == 1:
                            raise
                        ended.add(index)
                        sources[index].errors.append((sources[index].text, str(exc)))
                        progress.note(f"Source '{sources[index].text}' is left out from here on: {exc}")
                if found is None:
                    without += 1
                else:
                    without = 0
                    group.append(found)
            if group:
                yield group
            elif len(ended) < len(sources):
                news.wait()
    finally:
        for source in sources:
            source.close()


def _settle(future: Future[frames.Source], opened: Callable[[], frames.Source]) -> None:
    try:
        future.set_result(opened())
    except Exception as exc:  # noqa: BLE001 -- raised again by whoever waits
        future.set_exception(exc)


def _opened(
    named: Named, *, every: int, max_fps: float | None, hold: int, retry: Retry, progress: Progress
) -> frames.Source:
    if named.kind == "images":
        return Images(named.text, named.paths, single=named.single, every=every)
    pace = Pace(every, max_fps)
    if named.kind == "video":
        return open_video(named.paths[0], named.text, pace)
    if named.kind == "stdin":
        return _standard_input(pace)
    access = url_access(named.text) if named.kind == "url" else camera_access(named.text)
    decoder = Decoder(access, low_delay=True)
    if named.kind == "url" and _is_file(access, decoder):
        return Video(named.text, decoder, pace)

    def connect(tries: int) -> Decoder:
        """Take it for what it was, lest garbage at its beginning makes it look like something else; at times anew."""
        known = access if tries % _TRIES_UNTIL_ANEW == 0 else replace(access, format=decoder.format)
        return Decoder(known, low_delay=True)

    return Live(named.text, connect, decoder, pace, hold=hold, retry=retry, progress=progress)


def _is_file(access: Access, decoder: Decoder) -> bool:
    """Whether an address stands for a file: a web server knows where it ends, and waits for whoever reads it."""
    if not str(access.target).lower().startswith(("http:", "https:")) or decoder.format == "mpjpeg":
        return False
    return bool(decoder.duration) or decoder.size_bytes > 0


def _standard_input(pace: Pace) -> Video:
    descriptor = sys.__stdin__.fileno() if sys.__stdin__ is not None and not sys.__stdin__.closed else None
    if descriptor is None or os.isatty(descriptor):
        raise DatasetError(
            "Source '-' is standard input, and nothing is sent there. Send an encoded stream, "
            "e.g. ffmpeg -i INPUT -f matroska - | trt-qat infer -"
        )
    stream = Waiting(descriptor)
    try:
        decoder = Decoder(stream_access("-", stream))
    except DatasetError as exc:
        raise DatasetError(
            f"What came on standard input cannot be read: {exc} Send a stream that says what it is (Matroska, MPEG-TS, "
            "MJPEG, YUV4MPEG), not raw pixels."
        ) from exc
    return Video("-", decoder, pace, stream)


def sources_of(text: str, *, recursive: bool = False) -> list[Named]:
    """What one text names, see :func:`name_sources`; however many videos a folder holds.

    Raises:
        DatasetError: there is no such thing, or nothing that can be read.
    """
    if text == "-":
        return [Named(text, "stdin")]
    if is_url(text):
        url_access(text)
        return [Named(text, "url")]
    path = Path(text)
    mode = _mode(path) if text else None
    if mode is None:
        return _named_without_file(text)
    if stat.S_ISDIR(mode):
        return _in_folder(text, path, recursive)
    if stat.S_ISCHR(mode) and _CAMERA.fullmatch(os.path.realpath(path)):
        return [Named(text, "camera")]
    if path.suffix.lower() == LIST_SUFFIX:
        return _in_list(text, path)
    return [_one_file(text, path)]


def _named_without_file(text: str) -> list[Named]:
    if text.isascii() and text.isdigit():
        return [Named(f"/dev/video{int(text[:9])}", "camera")]
    if _CAMERA.fullmatch(text):
        return [Named(text, "camera")]
    if glob.has_magic(text):
        return _by_pattern(text)
    if " ! " in text:
        raise DatasetError(
            f"Source '{redacted(text)}' is a GStreamer pipeline, which is not run here. Give the camera or address "
            "that it reads, or send its output to standard input and give '-'."
        )
    raise DatasetError(
        f"Source '{redacted(text)}' does not exist. Give an image, a folder, a video, a list (*{LIST_SUFFIX}), a "
        "camera's number, an address, or - for standard input."
    )


def _one_file(text: str, path: Path) -> Named:
    kind = _kind_of_file(path)
    if kind is None:
        known = ", ".join(sorted({*IMAGE_SUFFIXES, *VIDEO_SUFFIXES, LIST_SUFFIX}))
        raise DatasetError(f"Source '{redacted(text)}' is neither an image nor a video by its name. Known: {known}.")
    return Named(text, kind, (path,))


def _kind_of_file(path: Path) -> Literal["images", "video"] | None:
    suffix = path.suffix.lower()
    return "images" if suffix in IMAGE_SUFFIXES else "video" if suffix in VIDEO_SUFFIXES else None


def _in_folder(text: str, folder: Path, recursive: bool) -> list[Named]:
    what = f"Folder '{folder}'"
    found: list[Path] = []
    try:
        for place, folders, files in os.walk(folder, onerror=_raise):
            folders[:] = sorted(folders) if recursive else []
            found += [Path(place, name) for name in files if _kind_of_file(Path(name)) is not None]
            LISTED_FILES.check(len(found), what, DatasetError)
    except OSError as exc:
        raise DatasetError(f"{what} cannot be read: {exc.strerror or exc}.") from exc
    if not found:
        known = ", ".join(sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES))
        deeper = "" if recursive else "; sub-folders count with --recursive"
        raise DatasetError(f"{what} holds no images and no videos ({known}{deeper}).")
    return _several(text, sorted(found))


def _by_pattern(pattern: str) -> list[Named]:
    found = []
    try:
        for name in glob.iglob(pattern, recursive=True):  # noqa: PTH207 -- from the root, too
            path = Path(name)
            if _kind_of_file(path) is not None and not path.is_dir():
                found.append(path)
                LISTED_FILES.check(len(found), f"Pattern '{redacted(pattern)}'", DatasetError)
    except (OSError, ValueError):  # no name can be like that: a NUL, half of a character
        found = []
    if not found:
        raise DatasetError(f"Pattern '{redacted(pattern)}' fits no image and no video.")
    return _several(pattern, sorted(found))


def _in_list(text: str, path: Path) -> list[Named]:
    """A file of images, videos and addresses, one per line, relative to the file; ``#`` begins a comment."""
    lines = [line.strip() for line in read_text(path, "List", LIST_MEGABYTES, DatasetError).splitlines()]
    entries = [line for line in lines if line and not line.startswith("#")]
    LISTED_FILES.check(len(entries), f"List '{path}'", DatasetError)
    if not entries:
        raise DatasetError(f"List '{path}' names nothing. Write one image, video or address per line.")
    files: list[Path] = []
    rest: list[Named] = []
    for entry in entries:
        if is_url(entry):
            rest += sources_of(entry)
            continue
        file = path.parent / file_name(entry)
        if _kind_of_file(file) is None or (mode := _mode(file)) is None or stat.S_ISDIR(mode):
            raise DatasetError(
                f"List '{path}' names '{redacted(entry)}', which is no image, video or address that is there."
            )
        files.append(file)
    return [*(_several(text, files) if files else []), *rest]


def _several(text: str, files: Sequence[Path]) -> list[Named]:
    """The images as one source, each video as one of its own."""
    images = tuple(path for path in files if _kind_of_file(path) == "images")
    videos = [Named(str(path), "video", (path,), single=False) for path in files if _kind_of_file(path) == "video"]
    return [*([Named(text, "images", images, single=False)] if images else []), *videos]


def _raise(exc: OSError) -> None:
    raise exc


def _mode(path: Path) -> int | None:
    """What kind of file it is, as in :mod:`stat`; None if it is not there or cannot be asked."""
    try:
        return path.stat().st_mode
    except (OSError, ValueError):  # also a name that is too long
        return None
