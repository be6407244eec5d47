"""Read and write a video with one frame in memory at a time."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from trt_qat.artifacts import atomic_path
from trt_qat.errors import ArtifactError, DatasetError
from trt_qat.limits import IMAGE_MEGAPIXELS
from trt_qat.reading import regular_file
from trt_qat.vision.quiet import NO_STDERR

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"})
# codecs that OpenCV's wheels can write everywhere
_FOURCC = {".mp4": "mp4v", ".mov": "mp4v", ".m4v": "mp4v", ".mkv": "mp4v", ".avi": "MJPG"}
_DEFAULT_FPS = 25.0
_HIGHEST_FPS = 1000.0
_HEAD = (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT)
_FRAMES_PER_LOOK = 50
_ADVICE = "Free some space or choose another --out."


@dataclass(frozen=True)
class VideoReader:
    """An open video.

    Attributes:
        frames: uint8 BGR, shape (h, w, 3) each, at least one; read as they are asked for.
        frames_announced: how many the header promises, 0 if it does not say; more than there are if it is damaged.
        fps: frames per second; 25 if the file does not say.
        size_wh: of every frame, in pixels.
    """

    frames: Iterator[NDArray[np.uint8]]
    frames_announced: int
    fps: float
    size_wh: tuple[int, int]


@contextlib.contextmanager
def read_video(source: Path) -> Iterator[VideoReader]:
    """Open a video file.

    Raises:
        DatasetError: it is missing, not a regular file, holds no readable frame, or too large ones.
    """
    regular_file(source, "Video", DatasetError)
    with _capture(source) as capture:
        if not capture.isOpened():
            raise DatasetError(f"Video '{source}' cannot be read: not a video, truncated, or an unknown codec.")
        width, height, fps, announced = (_number(capture, key) for key in _HEAD)
        IMAGE_MEGAPIXELS.check(width * height / 1e6, f"A frame of video '{source}'", DatasetError)
        with NO_STDERR:
            first = _next_frame(capture)
        if first is None:
            raise DatasetError(f"Video '{source}' holds no readable frame. Replace it.")
        size_wh = first.shape[1], first.shape[0]
        yield VideoReader(
            _frames(first, capture), int(announced), fps if 0 < fps <= _HIGHEST_FPS else _DEFAULT_FPS, size_wh
        )


@contextlib.contextmanager
def write_video(out: Path, fps: float, size_wh: tuple[int, int]) -> Iterator[Callable[[NDArray[np.uint8]], object]]:
    """Yield the function that appends a frame, uint8 BGR (h, w, 3). The file appears whole or not at all.

    OpenCV's writer tells no error, so that the finished file is read again and its frames are counted.

    Raises:
        ArtifactError: ``out`` cannot be written, or a frame is missing in it.
    """
    check_video_name(out)
    written = 0

    def write(frame_bgr: NDArray[np.uint8]) -> None:
        nonlocal written
        if frame_bgr.shape[1::-1] != size_wh:
            raise ArtifactError(f"Cannot write '{out}': frame {written} is {frame_bgr.shape[1::-1]}, not {size_wh}.")
        with NO_STDERR:  # a line for each frame that has no room
            writer.write(frame_bgr)
        written += 1
        if written % _FRAMES_PER_LOOK == 0 and shutil.disk_usage(temporary.parent).free < frame_bgr.nbytes:
            raise ArtifactError(f"Cannot write '{out}': the disk is full. {_ADVICE}")

    with atomic_path(out) as temporary:
        with _plain_name(temporary) as name:
            fourcc = cv2.VideoWriter.fourcc(*_FOURCC[out.suffix.lower()])
            with NO_STDERR:
                writer = cv2.VideoWriter(name, fourcc, fps, size_wh)
            try:
                if not writer.isOpened():
                    raise ArtifactError(f"Cannot write video '{out}': OpenCV cannot open it for writing. {_ADVICE}")
                yield write
            finally:
                with NO_STDERR:
                    writer.release()
        found = _count(temporary)
        if found != written:
            raise ArtifactError(
                f"Cannot write '{out}': only {found} of {written} frames arrived in the file. The disk is full, or the "
                f"size of a file is limited. {_ADVICE}"
            )


def check_video_name(out: Path) -> None:
    """Prove that a video of this name can be written.

    Raises:
        ArtifactError: its suffix stands for no format that OpenCV writes everywhere.
    """
    if out.suffix.lower() not in _FOURCC:
        raise ArtifactError(f"Cannot write video '{out}': its name must end in {', '.join(sorted(_FOURCC))}.")


@contextlib.contextmanager
def _plain_name(path: Path) -> Iterator[str]:
    """A name of a file, there or to be, for OpenCV: bytes that are not UTF-8 make it crash, and % is a pattern."""
    if str(path).isascii() and "%" not in str(path):
        yield str(path)
        return
    plain = f"video{path.suffix.lower()}"
    with tempfile.TemporaryDirectory(prefix="trt_qat_") as folder:
        link = Path(folder, plain)
        if path.exists():
            link.symlink_to(path.absolute())
            yield str(link)
            return
        link.symlink_to(path.parent.absolute() / plain)  # a link to nothing: what is written through it stands there
        yield str(link)
        with contextlib.suppress(FileNotFoundError):  # not even begun
            (path.parent / plain).replace(path)


@contextlib.contextmanager
def _capture(source: Path) -> Iterator[cv2.VideoCapture]:
    # FFmpeg's own complaints would stand beside our one-line error; OpenCV reads this when it first opens a video
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    with _plain_name(source) as name:
        with NO_STDERR:
            capture = cv2.VideoCapture(name)
        try:
            yield capture
        finally:
            capture.release()


def _number(capture: cv2.VideoCapture, key: int) -> float:
    """What the head of a video says, 0 if it says nothing."""
    value = float(capture.get(key))
    return value if math.isfinite(value) and value > 0 else 0.0


def _count(path: Path) -> int:
    """The frames that can be read from a file; its head alone is written even where the rest has no room."""
    if not path.is_file():
        return 0
    with _capture(path) as capture, NO_STDERR:
        return sum(1 for _ in iter(capture.grab, False))


def _frames(first: NDArray[np.uint8], capture: cv2.VideoCapture) -> Iterator[NDArray[np.uint8]]:
    frame: NDArray[np.uint8] | None = first
    while frame is not None:
        yield frame
        frame = _next_frame(capture)


def _next_frame(capture: cv2.VideoCapture) -> NDArray[np.uint8] | None:
    ok, frame = capture.read()
    return np.asarray(frame, dtype=np.uint8) if ok else None
