"""Read and write a video with one frame in memory at a time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from trt_qat.artifacts import atomic_path, existing_file
from trt_qat.errors import ArtifactError, DatasetError

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"})
# codecs that OpenCV's wheels can write everywhere
_FOURCC = {".mp4": "mp4v", ".mov": "mp4v", ".m4v": "mp4v", ".mkv": "mp4v", ".avi": "MJPG"}
_DEFAULT_FPS = 25.0


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
        DatasetError: it is missing or holds no readable frame.
    """
    try:
        existing_file(source, "Video")
    except ArtifactError as exc:
        raise DatasetError(str(exc)) from exc
    # FFmpeg's own complaints would stand beside our one-line error; OpenCV reads this when it first opens a video
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    capture = cv2.VideoCapture(str(source))
    try:
        if not capture.isOpened():
            raise DatasetError(f"Video '{source}' cannot be read: not a video, truncated, or an unknown codec.")
        fps = float(capture.get(cv2.CAP_PROP_FPS))
        announced = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        first = _next_frame(capture)
        if first is None:
            raise DatasetError(f"Video '{source}' holds no readable frame. Replace it.")
        size_wh = first.shape[1], first.shape[0]
        frames = _frames(first, capture)
        yield VideoReader(frames, announced, fps if np.isfinite(fps) and fps > 0 else _DEFAULT_FPS, size_wh)
    finally:
        capture.release()


@contextlib.contextmanager
def write_video(out: Path, fps: float, size_wh: tuple[int, int]) -> Iterator[Callable[[NDArray[np.uint8]], object]]:
    """Yield the function that appends a frame, uint8 BGR (h, w, 3). The file appears whole or not at all.

    Raises:
        ArtifactError: ``out`` cannot be written.
    """
    check_video_name(out)
    with atomic_path(out) as temporary:
        fourcc = cv2.VideoWriter.fourcc(*_FOURCC[out.suffix.lower()])
        writer = cv2.VideoWriter(str(temporary), fourcc, fps, size_wh)
        try:
            if not writer.isOpened():
                raise ArtifactError(f"Cannot write video '{out}': OpenCV has no encoder for it. Use another suffix.")
            yield writer.write
        finally:
            writer.release()


def check_video_name(out: Path) -> None:
    """Prove that a video of this name can be written.

    Raises:
        ArtifactError: its suffix stands for no format that OpenCV writes everywhere.
    """
    if out.suffix.lower() not in _FOURCC:
        raise ArtifactError(f"Cannot write video '{out}': its name must end in {', '.join(sorted(_FOURCC))}.")


def _frames(first: NDArray[np.uint8], capture: cv2.VideoCapture) -> Iterator[NDArray[np.uint8]]:
    frame: NDArray[np.uint8] | None = first
    while frame is not None:
        yield frame
        frame = _next_frame(capture)


def _next_frame(capture: cv2.VideoCapture) -> NDArray[np.uint8] | None:
    ok, frame = capture.read()
    return np.asarray(frame, dtype=np.uint8) if ok else None
