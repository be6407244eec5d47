"""An annotated video file."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType

from trt_qat.artifacts import atomic_path, check_replaceable, writable_folder
from trt_qat.errors import ArtifactError
from trt_qat.progress import SILENT, Progress
from trt_qat.runtime.frames import Result
from trt_qat.runtime.sinks.encoding import ENCODERS, USUAL_FPS, Clock, Encoded, Form

_MOVIE, _LIVE_MOVIE = Form(options={"movflags": "+faststart"}), Form(options={"movflags": "hybrid_fragmented"})
_FORMS = {
    ".avi": Form(base=None),  # it stores no times: a frame is at its number
    ".m4v": _MOVIE,
    ".mkv": Form(base=Fraction(1, 1000)),  # it knows milliseconds
    ".mov": _MOVIE,
    ".mp4": _MOVIE,
}
VIDEO_OUT_SUFFIXES = frozenset(_FORMS)
_ADVICE = "Free some space or choose another --out."


class VideoSink:
    """Writes a video; it appears under its name when it is finished, after Ctrl-C and another stage's error, too.

    Sizes: see :class:`~trt_qat.runtime.sinks.encoding.Encoded`.

    A recording of a live source cannot be made again, so an MP4 of one is written in fragments: what a crash leaves in
    the hidden folder beside ``out`` can be played up to its last five seconds. One of a file has its index in front
    instead, so that it plays while it loads.

    Args:
        out: *.mp4, *.m4v, *.mov, *.mkv or *.avi.
        fps: of the source, if it has one; the frames' own times count, but AVI knows no others.
        live: whether the source is live.
        progress: told if another encoder than x264 is used.

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
        form = _FORMS[out.suffix.lower()]
        self._form = _LIVE_MOVIE if live and form is _MOVIE else form
        self._out, self._fps, self._progress = out, fps or USUAL_FPS, progress
        self._clock = Clock(1 / self._fps)
        self._opened = contextlib.ExitStack()
        self._encoded: Encoded | None = None
        self._temporary = out

    def write(self, result: Result) -> None:
        """See :class:`~trt_qat.runtime.sinks.sink.Sink`."""
        picture = result.annotated_bgr
        if picture is None:
            raise ValueError("a video needs Result.annotated_bgr")
        with self._all_or_nothing():
            if self._encoded is None:
                self._temporary = self._opened.enter_context(atomic_path(self._out))
                # "file:", or a colon in the name makes a protocol of it
                size_wh = picture.shape[1], picture.shape[0]
                self._encoded = Encoded(f"file:{self._temporary}", size_wh, self._fps, self._form)
                if self._encoded.encoder != ENCODERS[0]:
                    self._progress.note(f"No {ENCODERS[0]} here: '{self._out}' is encoded by {self._encoded.encoder}.")
            self._encoded.write(picture, self._clock.ticks(result.frame.seconds))

    def __enter__(self) -> VideoSink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._encoded is None:
            return
        with self._all_or_nothing():
            self._encoded.finish()
            found = self._temporary.stat().st_size
            if found < self._encoded.bytes:  # not each lack of room is told
                raise OSError(f"only {found:,} of {self._encoded.bytes:,} bytes arrived in the file")
        self._opened.close()

    @contextlib.contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Where the video itself fails nothing of it is left."""
        import av

        try:
            yield
        except BaseException as exc:
            if not isinstance(exc, Exception) and self._encoded is not None:
                raise  # a signal, no fault of the video: it is finished when the block is left
            if self._encoded is not None:
                self._encoded.abandon()
                self._encoded = None
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
