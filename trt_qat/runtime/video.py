"""Annotate a video with one frame in memory at a time."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from trt_qat.artifacts import atomic_path, existing_file
from trt_qat.errors import ArtifactError, DatasetError
from trt_qat.progress import SILENT, Progress
from trt_qat.runtime.detector import Detector
from trt_qat.vision.draw import annotate

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"})
# codecs that OpenCV's wheels can write everywhere
_FOURCC = {".mp4": "mp4v", ".mov": "mp4v", ".m4v": "mp4v", ".mkv": "mp4v", ".avi": "MJPG"}
_DEFAULT_FPS = 25.0


@dataclass(frozen=True)
class VideoSummary:
    """What :func:`annotate_video` did.

    Attributes:
        frames: frames read and written.
        frames_announced: how many the file's header promises, 0 if it does not say.
        detections: boxes over all frames.
        fps_source: frames per second of the file, and of the written one.
        fps_processed: frames per second from reading to writing on this machine.
    """

    frames: int
    frames_announced: int
    detections: int
    fps_source: float
    fps_processed: float


def annotate_video(
    detector: Detector, source: Path, out: Path, names: Mapping[int, str], progress: Progress = SILENT
) -> VideoSummary:
    """Read ``source``, draw detections, write ``out`` (*.mp4, *.mkv, *.mov or *.avi) whole or not at all.

    Raises:
        DatasetError: the video is missing or holds no readable frame.
        ArtifactError: ``out`` cannot be written.
    """
    if out.suffix.lower() not in _FOURCC:
        raise ArtifactError(f"Cannot write video '{out}': its name must end in {', '.join(sorted(_FOURCC))}.")
    if out.resolve() == source.resolve():
        raise ArtifactError(f"Cannot write over the source video '{source}'. Choose another --out.")
    started = time.perf_counter()
    frames = detections = 0
    with _capture(source) as capture, atomic_path(out) as temporary:
        fps = _fps(capture)
        announced = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        first = _next_frame(capture)
        if first is None:
            raise DatasetError(f"Video '{source}' holds no readable frame. Replace it.")
        with _writer(temporary, out, fps, (first.shape[1], first.shape[0])) as writer:
            frame: NDArray[np.uint8] | None = first
            while frame is not None:
                found = detector.detect(frame)
                writer.write(annotate(frame, found, names))
                frames += 1
                detections += len(found)
                progress.step(source.name, frames, announced)
                frame = _next_frame(capture)
    seconds = time.perf_counter() - started
    return VideoSummary(frames, announced, detections, fps, frames / seconds)


@contextlib.contextmanager
def _capture(source: Path) -> Iterator[cv2.VideoCapture]:
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
        yield capture
    finally:
        capture.release()


@contextlib.contextmanager
def _writer(temporary: Path, out: Path, fps: float, size_wh: tuple[int, int]) -> Iterator[Any]:
    fourcc = cv2.VideoWriter.fourcc(*_FOURCC[out.suffix.lower()])
    writer = cv2.VideoWriter(str(temporary), fourcc, fps, size_wh)
    try:
        if not writer.isOpened():
            raise ArtifactError(f"Cannot write video '{out}': OpenCV has no encoder for it. Use another suffix.")
        yield writer
    finally:
        writer.release()


def _next_frame(capture: cv2.VideoCapture) -> NDArray[np.uint8] | None:
    ok, frame = capture.read()
    return np.asarray(frame, dtype=np.uint8) if ok else None


def _fps(capture: cv2.VideoCapture) -> float:
    fps = float(capture.get(cv2.CAP_PROP_FPS))
    return fps if np.isfinite(fps) and fps > 0 else _DEFAULT_FPS
