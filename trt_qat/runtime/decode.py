"""One opened video, decoded by FFmpeg through PyAV: its frames in order, turned upright, as BGR where they are wanted.

Decoding and converting are apart, because a frame that is left out (``--every``) is decoded for the sake of the next
ones and never converted.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from typing import Any

import av
import av.error
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from trt_qat.errors import DatasetError
from trt_qat.limits import IMAGE_MEGAPIXELS
from trt_qat.runtime.access import OPEN_SECONDS, READ_SECONDS, Access

DEFAULT_FPS = 25.0
_HIGHEST_FPS = 1000.0
_MOST_ERRORS = 10_000  # of the container in a row, without a packet: each one steps over some bytes
# Formats without timestamps: FFmpeg makes some up, 25 frames per second.
_TIMELESS = frozenset(
    {"h261", "h263", "h264", "hevc", "jpeg_pipe", "m4v", "mjpeg", "mpegvideo", "mpjpeg", "obu", "vc1", "vvc"}
)
_DURATION_IN_HEAD = "matroska,webm"  # says how many seconds there are, and not how many frames
_TWO_MEGAPIXELS = 1920 * 1088
_CORRUPT_PICTURES = frozenset({"mjpeg"})  # decoders that return half a picture as if it were whole, unless told

Decoded = tuple["av.VideoFrame", float | None]
"""A frame of FFmpeg and its timestamp in seconds, if it has one."""


class Decoder:
    """Open from construction to :meth:`close`.

    Args:
        access: what to open and how.
        low_delay: give each frame as soon as it is there, instead of decoding several at once.

    Attributes:
        fps: usual frames per second; 25 if nobody says.
        announced: how many frames the head promises; None if it does not say.
        duration: seconds, if the head says.
        size_wh: of the first frame, upright.
        ended_badly: why the container could not be read to its end; None at a proper end.

    Raises:
        DatasetError: it cannot be opened, is no video, holds no readable frame, or too large ones.
    """

    def __init__(self, access: Access, low_delay: bool = False) -> None:
        self._what = access.shown
        self._network = access.network
        self._container = _opened(access)
        try:
            self._stream = self._video_stream()
            context = self._stream.codec_context
            self._check_size(context.width, context.height)
            _prepare(context, low_delay)
            self.fps = _fps(self._stream)
            self.duration = None if self._container.duration is None else self._container.duration / 1e6
            self.announced = _announced(self._stream, self._container.format.name, self.duration, self.fps)
            self.ended_badly: str | None = None
            self._packets = self._container.demux(self._stream)
            self._decoded = self._all()
            self._ahead: list[Decoded | None] = []
            self.size_wh = self._first_size()
        except BaseException:
            self.close()
            raise

    @property
    def format(self) -> str:
        """FFmpeg's name of the container, e.g. "mpegts"."""
        return str(self._container.format.name)

    @property
    def size_bytes(self) -> int:
        """Of the whole file; 0 if nobody knows."""
        return max(0, int(self._container.size))

    def frames(self) -> Iterator[Decoded | None]:
        """Each frame once, in order of presentation; None stands for one that could not be decoded."""
        ahead, self._ahead = self._ahead, []
        yield from ahead
        yield from self._decoded

    def close(self) -> None:
        """Release the file or connection, and the decoder: generators that refer to this object would keep it alive."""
        self._container.close()
        for name in ("_decoded", "_packets", "_stream", "_ahead"):
            self.__dict__.pop(name, None)

    def _video_stream(self) -> Any:
        stream = self._container.streams.best("video")
        if stream is None or stream.codec_context is None:
            raise DatasetError(f"Video '{self._what}' cannot be read: it holds no video, or one of an unknown codec.")
        return stream

    def _check_size(self, width: int, height: int) -> None:
        IMAGE_MEGAPIXELS.check(width * height / 1e6, f"A frame of video '{self._what}'", DatasetError)

    def _first_size(self) -> tuple[int, int]:
        """Decodes up to the first frame, which proves that there is one."""
        for decoded in self._decoded:
            self._ahead.append(decoded)
            if decoded is not None:
                frame = decoded[0]
                self._check_size(frame.width, frame.height)
                lying = 45 < abs(frame.rotation) < 135
                return (frame.height, frame.width) if lying else (frame.width, frame.height)
        because = f": {self.ended_badly}" if self.ended_badly else ""
        raise DatasetError(f"Video '{self._what}' holds no readable frame{because}. Replace it.")

    def _all(self) -> Iterator[Decoded | None]:
        errors = 0
        heard = time.monotonic()
        time_base = float(self._stream.time_base or 0)
        # AVI knows no presentation times, and FFmpeg's guess is wrong with B-frames; decoding times rise as they should
        clock = "dts" if self.format == "avi" else "pts"
        timeless = self.format in _TIMELESS or not time_base
        # A live stream is joined somewhere: what refers to frames before that is not broken, it was never sent.
        joining = self._network
        while True:
            try:
                packet = next(self._packets)
            except StopIteration:
                return
            except (av.error.ExitError, av.error.TimeoutError, ConnectionError, av.error.HTTPError) as exc:
                self.ended_badly = "nothing came for too long" if isinstance(exc, av.error.ExitError) else _reason(exc)
                return
            except (av.error.FFmpegError, OSError) as exc:
                errors += 1
                if errors > _MOST_ERRORS or (self._network and time.monotonic() - heard > READ_SECONDS):
                    self.ended_badly = _reason(exc)
                    return
                self._packets = self._container.demux(self._stream)  # the generator is dead, the file is not
                continue
            errors = 0
            heard = time.monotonic()
            try:
                frames = packet.decode()
            except EOFError:
                continue
            except (av.error.FFmpegError, ValueError):
                if not joining:
                    yield None
                continue
            for frame in frames:
                if frame.is_corrupt:
                    if not joining:
                        yield None
                    continue
                joining = False
                ticks = getattr(frame, clock)
                yield frame, None if ticks is None or timeless else ticks * time_base


class Converter:
    """Makes arrays of FFmpeg's frames, for one thread at a time."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()
        self._options = _one_thread(self._reformatter)
        self._turns: dict[int, tuple[bool, bool, bool]] = {}

    def bgr(self, frame: av.VideoFrame) -> NDArray[np.uint8] | None:
        """A frame's pixels: uint8, shape (h, w, 3), upright, contiguous, writable; None if they cannot be converted."""
        try:
            picture: Any = self._reformatter.reformat(frame, format="bgr24", **self._options).to_ndarray()
        except (av.error.FFmpegError, ValueError):
            return None
        # Asking for side data ties the frame into a cycle, and its memory waits for the garbage collector: asked once.
        turn = self._turns.get(frame.rotation)
        if turn is None:
            turn = self._turns[frame.rotation] = _turn(frame)
        return np.ascontiguousarray(_upright(picture, turn))


def _opened(access: Access) -> Any:
    try:
        return av.open(
            access.target,
            format=access.format,
            container_options=access.av_options,  # "options" crash PyAV 14 where a stream is found late
            metadata_errors="replace",
            timeout=(OPEN_SECONDS, READ_SECONDS) if access.network else None,
        )
    except (av.error.FFmpegError, OSError, ValueError) as exc:
        if access.network:
            late = isinstance(exc, av.error.ExitError)
            reason = f"no answer within {OPEN_SECONDS:g} s" if late else _reason(exc)
            raise DatasetError(f"Source '{access.shown}' cannot be opened: {reason}.") from exc
        raise DatasetError(
            f"Video '{access.shown}' cannot be read: not a video, truncated, or an unknown codec ({_reason(exc)})."
        ) from exc


def _prepare(context: Any, low_delay: bool) -> None:
    """Choose how many threads decode, and what the decoder refuses.

    Frames in several threads come late by as many frames; slices in several threads come at once, but then H.264 does
    not say which frames are damaged.
    """
    if low_delay and context.width * context.height <= _TWO_MEGAPIXELS:
        context.thread_count = 1
    else:
        context.thread_type = "AUTO"
    options = {"max_pixels": str(IMAGE_MEGAPIXELS.value * 1_000_000)}
    if context.name in _CORRUPT_PICTURES:
        options["err_detect"] = "explode"
    context.options = options


def _fps(stream: Any) -> float:
    for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate):
        if rate and 0 < float(rate) <= _HIGHEST_FPS:
            return float(rate)
    return DEFAULT_FPS


def _announced(stream: Any, container: str, duration: float | None, fps: float) -> int | None:
    if stream.frames:
        return int(stream.frames)
    if container == _DURATION_IN_HEAD and duration:
        return round(duration * fps)
    return None


def _one_thread(reformatter: VideoReformatter) -> dict[str, int]:
    """The option by which newer PyAV converts without threads of its own: for a frame they cost more than they save."""
    try:
        reformatter.reformat(av.VideoFrame(16, 16, "yuv420p"), format="bgr24", threads=1)
    except TypeError:
        return {}
    return {"threads": 1}


def _turn(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """What makes a frame upright: exchange rows and columns, then reverse the columns, then the rows.

    The display matrix holds, row by row and in 1/65536, (a, b, u), (c, d, v), (x, y, w); a stored pixel at (p, q) is
    shown at (a p + c q + x, b p + d q + y). Only quarter turns and mirrors are applied.
    """
    side_data: Any = frame.side_data.get("DISPLAYMATRIX")
    if side_data is None:
        return False, False, False
    content = bytes(side_data)
    if len(content) < 20:
        return False, False, False
    a, b, _, c, d = struct.unpack("=5i", content[:20])
    if abs(b) > abs(a):
        return True, c < 0, b < 0
    return False, a < 0, d < 0


def _upright(picture: Any, turn: tuple[bool, bool, bool]) -> NDArray[np.uint8]:
    exchanged, mirrored, upside_down = turn
    if exchanged:
        picture = cv2.transpose(picture)
    if mirrored or upside_down:
        picture = cv2.flip(picture, -1 if mirrored and upside_down else int(mirrored))
    return np.asarray(picture, dtype=np.uint8)


def _reason(exc: Exception) -> str:
    text = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
    return " ".join(str(text).split())[:200].rstrip(".")
