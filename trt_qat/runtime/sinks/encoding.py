"""Frames into an H.264 stream of a file or a network address, by PyAV, each at its own time.

Measured on 640x360 frames of a street: OpenCV's conversion to YUV takes 0.1 core milliseconds where swscale takes 0.7,
x264 "ultrafast" 1.7 to 2.2, "superfast" 4.7, "veryfast" 8.9, with files of the same order: the processor is wanted by
the network. One thread: more take no less of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from trt_qat.errors import ArtifactError

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.stream import VideoStream

# per second: 25, 30, 60 and 30000/1001 frames a second are whole numbers of them; MPEG-4's most is 65,535
TICKS = 60_000
USUAL_FPS = 25.0
# what other builds of FFmpeg bring: Apple's, a Raspberry Pi's, Cisco's; MPEG-4 is in every one
ENCODERS = ("libx264", "h264_videotoolbox", "h264_v4l2m2m", "libopenh264", "mpeg4")
_X264 = {"preset": "ultrafast", "crf": "21"}
_BITS_PER_PIXEL = 0.15  # of a frame, for encoders that want a rate
_LIMITED_RANGE, _BT601 = 1, 6  # AVCOL_RANGE_MPEG, AVCOL_SPC_SMPTE170M: what OpenCV converts to


@dataclass(frozen=True)
class Form:
    """How a stream is written.

    Args:
        container: FFmpeg's name; None goes by the name of the file.
        options: of the container.
        x264: of that encoder, beside the usual ones.
        base: seconds per unit of time; None is one per frame.
        key_seconds: between two frames from which one can begin to watch.
    """

    container: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    x264: Mapping[str, str] = field(default_factory=dict)
    base: Fraction | None = Fraction(1, TICKS)
    key_seconds: float = 5.0


class Clock:
    """Times of frames in ticks, strictly rising.

    Where a source begins anew its frames follow those that were there, an interval later.
    """

    def __init__(self, interval: float) -> None:
        self._interval = max(1, round(interval * TICKS))
        self._last: int | None = None
        self._offset = 0

    def ticks(self, seconds: float | None) -> int:
        """The time of the next frame, whose source says ``seconds``; 0 for the first."""
        if self._last is None:
            now = 0
            self._offset = 0 if seconds is None else -round(seconds * TICKS)
        elif seconds is None:
            now = self._last + self._interval
        else:
            now = round(seconds * TICKS) + self._offset
            if now <= self._last - self._interval:
                self._offset += self._last + self._interval - now
                now = self._last + self._interval
            now = max(now, self._last + 1)
        self._last = now
        return now


class Encoded:
    """A container with one encoded stream.

    Args:
        target: "file:<path>" or an address.
        size_wh: of the first frame. An odd side becomes one pixel longer (its last row or column twice); a frame of
            another size is scaled to fit, with black at two sides.
        fps: usual frames per second.

    Attributes:
        encoder: FFmpeg's name of it.
        bytes: what was written so far, the container's own apart.

    Raises:
        av.FFmpegError, OSError: it cannot be opened, or later written.
        ArtifactError: there is no encoder.
    """

    def __init__(self, target: str, size_wh: tuple[int, int], fps: float, form: Form) -> None:
        import av

        self._size_wh = size_wh[0] + size_wh[0] % 2, size_wh[1] + size_wh[1] % 2
        self.bytes = 0
        rate = Fraction(fps).limit_denominator(1001)
        self._base = form.base or 1 / rate
        self._last = -1
        self._container: OutputContainer = av.open(target, "w", format=form.container, options=dict(form.options))
        try:
            self.encoder = _usable_encoder(self._size_wh, rate, form)
            self._stream = _stream(self._container, self.encoder, self._size_wh, rate, form)
        except BaseException:
            self.abandon()
            raise

    def write(self, picture_bgr: NDArray[np.uint8], ticks: int) -> None:
        """Append a frame, uint8 (h, w, 3), at a time in ticks."""
        import av

        picture = _fitted(picture_bgr, self._size_wh)
        frame = av.VideoFrame.from_ndarray(cv2.cvtColor(picture, cv2.COLOR_BGR2YUV_I420), format="yuv420p")
        self._last = max(self._last + 1, round(Fraction(ticks, TICKS) / self._base))
        frame.pts, frame.time_base = self._last, self._base
        self._mux(frame)

    def finish(self) -> None:
        """Write what the encoder and the container still hold."""
        self._mux(None)
        self._container.close()

    def abandon(self) -> None:
        """Close it without a word."""
        with contextlib.suppress(Exception):  # it is taken away; what made it fail is said
            self._container.close()

    def _mux(self, frame: Any) -> None:
        for packet in self._stream.encode(frame):
            self.bytes += packet.size
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


def _usable_encoder(size_wh: tuple[int, int], rate: Fraction, form: Form) -> str:
    """The first that opens: a build of FFmpeg may list encoders whose hardware is not there."""
    import av

    for name in ENCODERS:
        with contextlib.suppress(av.FFmpegError, ValueError):  # ValueError: not in this build
            context = av.CodecContext.create(name, "w")
            _set_up(context, name, size_wh, rate, form)
            context.open()
            return name
    raise ArtifactError(f"PyAV has no encoder of these: {', '.join(ENCODERS)}. Reinstall it: pip install av.")


def _stream(
    container: OutputContainer, encoder: str, size_wh: tuple[int, int], rate: Fraction, form: Form
) -> VideoStream:
    stream: Any = container.add_stream(encoder, rate=rate)
    _set_up(stream.codec_context, encoder, size_wh, rate, form)
    return stream  # type: ignore[no-any-return]


def _set_up(context: Any, encoder: str, size_wh: tuple[int, int], rate: Fraction, form: Form) -> None:
    context.width, context.height, context.pix_fmt = *size_wh, "yuv420p"
    context.framerate, context.time_base = rate, form.base or 1 / rate
    context.thread_count = 1
    context.gop_size = max(1, round(form.key_seconds * rate))
    context.color_range, context.colorspace = _LIMITED_RANGE, _BT601
    if encoder == "libx264":
        context.options = {**_X264, **form.x264}
    else:
        context.bit_rate = round(size_wh[0] * size_wh[1] * float(rate) * _BITS_PER_PIXEL)
