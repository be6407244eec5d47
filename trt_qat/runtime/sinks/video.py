"""An annotated video: H.264 by PyAV, each frame at its own time.

Measured on 640x360 frames of a street: OpenCV's conversion to YUV takes 0.1 core milliseconds where swscale takes 0.7,
x264 "ultrafast" 1.7 to 2.2, "superfast" 4.7, "veryfast" 8.9, with files of the same order: the processor is wanted by
the network. One thread: more take no less of it.
"""

from __future__ import annotations

import contextlib
import sys
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from trt_qat.artifacts import atomic_path, check_replaceable, writable_folder
from trt_qat.errors import ArtifactError
from trt_qat.progress import SILENT, Progress
from trt_qat.runtime.frames import Result

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.stream import VideoStream

VIDEO_OUT_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4"})
_MOVIES = frozenset({".m4v", ".mov", ".mp4"})
_TICKS = (
    60_000  # per second: 25, 30, 60 and 30000/1001 frames a second are whole numbers of them; MPEG-4's most is 65,535
)
_USUAL_FPS = 25.0
_KEY_SECONDS = 5
_X264 = {"preset": "ultrafast", "crf": "21"}
# what other builds of FFmpeg bring: Apple's, a Raspberry Pi's, Cisco's; MPEG-4 is in every one
_ENCODERS = ("libx264", "h264_videotoolbox", "h264_v4l2m2m", "libopenh264", "mpeg4")
_BITS_PER_PIXEL = 0.15  # of a frame, for encoders that want a rate
_LIMITED_RANGE, _BT601 = 1, 6  # AVCOL_RANGE_MPEG, AVCOL_SPC_SMPTE170M: what OpenCV converts to
_ADVICE = "Free some space or choose another --out."


class VideoSink:
    """Writes a video; it appears under its name when it is finished, after Ctrl-C and another stage's error, too.

    The size is that of the first frame, an odd side one pixel longer (its last row or column twice). A frame of another
    size is scaled to fit, with black at two sides.

    A recording of a live source cannot be made again, so an MP4 of one is written in fragments: what a crash leaves in
    the hidden folder beside ``out`` can be played up to its last five seconds. One of a file has its index in front
    instead, so that it plays while it loads.

    Args:
        out: *.mp4, *.m4v, *.mov, *.mkv or *.avi.
        fps: of the source, if it has one; the frames' own times count, but AVI knows no others.
        live: whether the source is live.
        progress: told if there is no H.264 encoder.

    Raises:
        ArtifactError: it cannot be written.
    """

    wants_picture = True

    def __init__(self, out: Path, fps: float | None = None, live: bool = False, progress: Progress = SILENT) -> None:
        check_video_name(out)
        if out.is_dir():
            raise ArtifactError(f"Cannot write video '{out}': it is a folder. Give a file.")
        check_replaceable(out)
        writable_folder(out.parent)
        self._out, self._fps, self._live, self._progress = out, fps or _USUAL_FPS, live, progress
        self._clock = _Clock(1 / self._fps)
        self._opened = contextlib.ExitStack()
        self._file: _File | None = None

    def write(self, result: Result) -> None:
        """See :class:`~trt_qat.runtime.sinks.sink.Sink`."""
        picture = result.annotated_bgr
        if picture is None:
            raise ValueError("a video needs Result.annotated_bgr")
        with self._all_or_nothing():
            if self._file is None:
                temporary = self._opened.enter_context(atomic_path(self._out))
                self._file = _File(temporary, (picture.shape[1], picture.shape[0]), self._fps, self._live)
                if self._file.encoder != _ENCODERS[0]:
                    self._progress.note(f"No libx264 here: '{self._out}' is encoded by {self._file.encoder}.")
            self._file.write(picture, self._clock.ticks(result.frame.seconds))

    def __enter__(self) -> VideoSink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is None:
            return
        with self._all_or_nothing():
            self._file.finish()
        self._opened.close()

    @contextlib.contextmanager
    def _all_or_nothing(self) -> Any:
        """Where the video itself fails nothing of it is left."""
        import av

        try:
            yield
        except BaseException as exc:
            if not isinstance(exc, Exception) and self._file is not None:
                raise  # a signal, no fault of the video: it is finished when the block is left
            if self._file is not None:
                self._file.abandon()
                self._file = None
            with contextlib.suppress(ArtifactError):
                self._opened.__exit__(*sys.exc_info())
            if isinstance(exc, (av.FFmpegError, OSError)):
                reason = getattr(exc, "strerror", None) or str(exc)
                raise ArtifactError(f"Cannot write '{self._out}': {reason}. {_ADVICE}") from exc
            raise


def check_video_name(out: Path) -> None:
    """Prove that a video of this name can be written.

    Raises:
        ArtifactError: its suffix stands for no format that is written here.
    """
    if out.suffix.lower() not in VIDEO_OUT_SUFFIXES:
        raise ArtifactError(
            f"Cannot write video '{out}': its name must end in {', '.join(sorted(VIDEO_OUT_SUFFIXES))}."
        )


class _Clock:
    """Times of frames in ticks, strictly rising.

    Where a source begins anew its frames follow those that were there, an interval later.
    """

    def __init__(self, interval: float) -> None:
        self._interval = max(1, round(interval * _TICKS))
        self._last: int | None = None
        self._offset = 0

    def ticks(self, seconds: float | None) -> int:
        if self._last is None:
            now = 0
            self._offset = 0 if seconds is None else -round(seconds * _TICKS)
        elif seconds is None:
            now = self._last + self._interval
        else:
            now = round(seconds * _TICKS) + self._offset
            if now <= self._last - self._interval:
                self._offset += self._last + self._interval - now
                now = self._last + self._interval
            now = max(now, self._last + 1)
        self._last = now
        return now


class _File:
    """A container with one encoded stream."""

    def __init__(self, path: Path, size_wh: tuple[int, int], fps: float, live: bool) -> None:
        import av

        self._path = path
        self._size_wh = size_wh[0] + size_wh[0] % 2, size_wh[1] + size_wh[1] % 2
        self._bytes = 0
        suffix = path.suffix.lower()
        rate = Fraction(fps).limit_denominator(1001)
        # AVI stores no times, a frame is at its number; Matroska knows milliseconds
        self._base = {".avi": 1 / rate, ".mkv": Fraction(1, 1000)}.get(suffix, Fraction(1, _TICKS))
        self._last = -1
        options = {"movflags": "hybrid_fragmented" if live else "+faststart"} if suffix in _MOVIES else {}
        # "file:", or a colon in the name makes the rest a protocol
        self._container: OutputContainer = av.open(f"file:{path}", "w", options=options)
        try:
            self.encoder = _usable_encoder(self._size_wh, rate)
            self._stream = _stream(self._container, self.encoder, self._size_wh, rate, self._base)
        except BaseException:
            self.abandon()
            raise

    def write(self, picture_bgr: NDArray[np.uint8], ticks: int) -> None:
        import av

        picture = _fitted(picture_bgr, self._size_wh)
        frame = av.VideoFrame.from_ndarray(cv2.cvtColor(picture, cv2.COLOR_BGR2YUV_I420), format="yuv420p")
        self._last = max(self._last + 1, round(Fraction(ticks, _TICKS) / self._base))
        frame.pts, frame.time_base = self._last, self._base
        self._mux(frame)

    def finish(self) -> None:
        """Raises OSError where less stands in the file than was put in: not each lack of room is told."""
        self._mux(None)
        self._container.close()
        if self._path.stat().st_size < self._bytes:
            raise OSError(f"only {self._path.stat().st_size:,} of {self._bytes:,} bytes arrived in the file")

    def abandon(self) -> None:
        with contextlib.suppress(Exception):  # it is taken away; what made it fail is said
            self._container.close()

    def _mux(self, frame: Any) -> None:
        for packet in self._stream.encode(frame):
            self._bytes += packet.size
            self._container.mux(packet)


def _fitted(picture_bgr: NDArray[np.uint8], size_wh: tuple[int, int]) -> NDArray[np.uint8]:
    """The picture in a frame of this size, undistorted."""
    height, width = picture_bgr.shape[:2]
    if (width, height) == size_wh:
        return picture_bgr
    if 0 <= size_wh[0] - width <= 1 and 0 <= size_wh[1] - height <= 1:
        return np.pad(picture_bgr, ((0, size_wh[1] - height), (0, size_wh[0] - width), (0, 0)), mode="edge")
    scale = min(size_wh[0] / width, size_wh[1] / height)
    inner = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (size_wh[0] - inner[0]) // 2, (size_wh[1] - inner[1]) // 2
    canvas = np.zeros((size_wh[1], size_wh[0], 3), np.uint8)
    scaled = cv2.resize(picture_bgr, inner, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    canvas[top : top + inner[1], left : left + inner[0]] = scaled
    return canvas


def _options(encoder: str) -> dict[str, str]:
    return _X264 if encoder == "libx264" else {}


def _usable_encoder(size_wh: tuple[int, int], rate: Fraction) -> str:
    """The first that opens: a build of FFmpeg may list encoders whose hardware is not there."""
    import av

    for name in _ENCODERS:
        with contextlib.suppress(av.FFmpegError, ValueError):  # ValueError: not in this build
            context: Any = av.CodecContext.create(name, "w")
            context.width, context.height, context.pix_fmt = *size_wh, "yuv420p"
            context.framerate, context.time_base = rate, 1 / rate
            context.options = _options(name)
            context.open()
            return name
    raise ArtifactError(f"PyAV has no encoder of these: {', '.join(_ENCODERS)}. Reinstall it: pip install av.")


def _stream(
    container: OutputContainer, encoder: str, size_wh: tuple[int, int], rate: Fraction, base: Fraction
) -> VideoStream:
    stream: Any = container.add_stream(encoder, rate=rate, options=_options(encoder))
    stream.width, stream.height, stream.pix_fmt = *size_wh, "yuv420p"
    context = stream.codec_context
    context.time_base = base
    context.thread_count = 1
    context.gop_size = max(1, round(_KEY_SECONDS * rate))
    context.color_range, context.colorspace = _LIMITED_RANGE, _BT601
    if encoder != "libx264":
        context.bit_rate = round(size_wh[0] * size_wh[1] * float(rate) * _BITS_PER_PIXEL)
    return stream  # type: ignore[no-any-return]
