"""The annotated frames of one source as a video: H.264 in MP4, with the times at which they were shown.

The colours are converted by OpenCV and handed to FFmpeg as they lie there: FFmpeg's own conversion and copy cost more
than the fastest encoding. The preset is the fastest: the others cost 3 to 5 times the processor time for a quarter less
space, and on the machine that runs the network the processor is what is short.
"""

from __future__ import annotations

from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from trt_qat.artifacts import atomic_path
from trt_qat.errors import ArtifactError
from trt_qat.progress import SILENT, Progress
from trt_qat.runtime.frames import Result

VIDEO_OUT_SUFFIXES = (".mp4", ".mkv", ".mov", ".m4v", ".avi")
_TICKS = 90_000  # per second, as MPEG counts
_ENCODERS = ("libx264", "libopenh264", "mpeg4")  # an encoder in hardware can be there and not work
_OPTIONS = {"libx264": {"preset": "ultrafast", "crf": "23"}}
_ADVICE = "Free some space or choose another --out."


def check_video_name(out: Path) -> None:
    """Prove that a video of this name can be written.

    Raises:
        ArtifactError: its suffix stands for no format that is written.
    """
    if out.suffix.lower() not in VIDEO_OUT_SUFFIXES:
        raise ArtifactError(f"Cannot write video '{out}': its name must end in {', '.join(VIDEO_OUT_SUFFIXES)}.")


class VideoSink:
    """A :class:`~trt_qat.runtime.sinks.sink.Sink`. The file appears whole when it is closed.

    Args:
        out: the file.
        fps: usual frames per second, for players that ask; each frame keeps its own time.
        progress: told once if H.264 cannot be encoded here.

    Raises:
        ArtifactError: the name is no video's.
    """

    wants_picture = True

    def __init__(self, out: Path, fps: float | None, progress: Progress = SILENT) -> None:
        check_video_name(out)
        self.out = out
        self._rate = Fraction(fps or 25.0).limit_denominator(1001)
        self._progress = progress
        self._place = ExitStack()
        self._container: Any = None
        self._stream: Any = None
        self._size_wh = (0, 0)  # of the video: even numbers
        self._ticks = -1
        self._failed = False

    def write(self, result: Result) -> None:
        """See :meth:`Sink.write <trt_qat.runtime.sinks.sink.Sink.write>`."""
        import av

        picture = result.annotated_bgr
        if picture is None:
            raise ArtifactError(f"Cannot write '{self.out}': the frame was not drawn.")
        try:
            if self._container is None:
                self._open(av, picture)
            frame = av.VideoFrame.from_numpy_buffer(
                cv2.cvtColor(self._fitted(picture), cv2.COLOR_BGR2YUV_I420), format="yuv420p"
            )
            frame.pts, frame.time_base = self._time(result.frame.seconds), Fraction(1, _TICKS)
            self._container.mux(self._stream.encode(frame))
        except OSError as exc:  # FFmpeg's errors are such, too
            self._failed = True
            raise self._error(exc) from exc

    def __enter__(self) -> VideoSink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._container is None:
            return
        try:
            self._container.mux(self._stream.encode(None))
            self._container.close()
        except OSError as exc:
            if not self._failed:
                self._failed = True
                raise self._error(exc) from exc
        finally:
            container, self._container = self._container, None
            if self._failed:
                error = self._error(OSError("it was not finished"))
                self._place.__exit__(type(error), error, None)  # takes away what was written
                del container
            else:
                self._place.close()  # moves it to its name

    def _open(self, av: Any, picture: NDArray[np.uint8]) -> None:
        height, width = picture.shape[:2]
        self._size_wh = width + width % 2, height + height % 2
        temporary = self._place.enter_context(atomic_path(self.out))
        options = {"movflags": "+faststart"} if self.out.suffix.lower() in (".mp4", ".mov", ".m4v") else {}
        self._container = av.open(str(temporary), "w", format=_FORMATS.get(self.out.suffix.lower()), options=options)
        name = next(name for name in _ENCODERS if _can_encode(av, name))
        if name == _ENCODERS[-1]:
            self._progress.note(f"This PyAV encodes no H.264: '{self.out}' is written as MPEG-4.")
        self._stream = self._container.add_stream(name, rate=self._rate, options=dict(_OPTIONS.get(name, {})))
        self._stream.width, self._stream.height = self._size_wh
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, _TICKS)
        self._stream.codec_context.thread_count = 1  # frames of several threads come late, and the cores are busy

    def _fitted(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """In the size of the video: a row or column more, or another size into the first one's."""
        width, height = self._size_wh
        if picture.shape[1::-1] == self._size_wh:
            return picture
        ratio = min(width / picture.shape[1], height / picture.shape[0])
        if not (width - picture.shape[1] in (0, 1) and height - picture.shape[0] in (0, 1)):
            size_wh = max(1, round(picture.shape[1] * ratio)), max(1, round(picture.shape[0] * ratio))
            picture = np.asarray(cv2.resize(picture, size_wh, interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
            right, below = width - size_wh[0], height - size_wh[1]
            return np.asarray(cv2.copyMakeBorder(picture, 0, below, 0, right, cv2.BORDER_CONSTANT), dtype=np.uint8)
        right, below = width - picture.shape[1], height - picture.shape[0]
        return np.asarray(cv2.copyMakeBorder(picture, 0, below, 0, right, cv2.BORDER_REPLICATE), dtype=np.uint8)

    def _time(self, seconds: float | None) -> int:
        """In ticks, after the frame before: a stream that was opened again may jump back."""
        usual = self._ticks + round(_TICKS / self._rate) if self._ticks >= 0 else 0
        wanted = usual if seconds is None else round(seconds * _TICKS)
        self._ticks = wanted if wanted > self._ticks else self._ticks + 1
        return self._ticks

    def _error(self, exc: OSError) -> ArtifactError:
        return ArtifactError(f"Cannot write '{self.out}': {exc.strerror or exc}. {_ADVICE}")


_FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".avi": "avi"}  # a temporary has no name


def _can_encode(av: Any, name: str) -> bool:
    try:
        codec = av.codec.Codec(name, "w")
    except ValueError:  # PyAV's for a name it does not know
        return False
    return bool(codec.is_encoder)
