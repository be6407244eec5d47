"""The annotated video to a network address: an RTSP or RTMP server that others watch, or one receiver by UDP."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import TracebackType

from trt_qat.errors import ArtifactError
from trt_qat.progress import SILENT, Progress
from trt_qat.redact import redacted
from trt_qat.runtime.frames import Result
from trt_qat.runtime.sinks.encoding import ENCODERS, USUAL_FPS, Clock, Encoded, Form

_NOW = {"tune": "zerolatency"}
_FORMS = {
    "rtsp": Form("rtsp", {"rtsp_transport": "tcp"}, _NOW, key_seconds=1),
    "rtmp": Form("flv", x264=_NOW, key_seconds=1),
    "udp": Form("mpegts", x264=_NOW, key_seconds=1),
}


def is_stream(out: str) -> bool:
    """Whether an ``--out`` is an address that :class:`StreamSink` can send to."""
    return out.partition("://")[0].lower() in _FORMS and "://" in out


class StreamSink:
    """Sends each frame at once. The server must be there (for RTSP and RTMP e.g. MediaMTX): this is a client.

    Args:
        address: rtsp://, rtmp:// or udp://.
        fps: of the source, if it has one; the frames' own times count.
        progress: told if another encoder than x264 is used.

    Raises:
        ArtifactError: no such address.
    """

    wants_picture = True

    def __init__(self, address: str, fps: float | None = None, progress: Progress = SILENT) -> None:
        if not is_stream(address):
            known = ", ".join(f"{name}://" for name in _FORMS)
            raise ArtifactError(f"Cannot send to '{redacted(address)}': an address begins with {known}.")
        self._address, self._fps, self._progress = address, fps or USUAL_FPS, progress
        self._form = _FORMS[address.partition("://")[0].lower()]
        self._clock = Clock(1 / self._fps)
        self._encoded: Encoded | None = None

    def write(self, result: Result) -> None:
        """See :class:`~trt_qat.runtime.sinks.sink.Sink`."""
        picture = result.annotated_bgr
        if picture is None:
            raise ValueError("a stream needs Result.annotated_bgr")
        with self._explained():
            if self._encoded is None:
                size_wh = picture.shape[1], picture.shape[0]
                self._encoded = Encoded(self._address, size_wh, self._fps, self._form)
                if self._encoded.encoder != ENCODERS[0]:
                    self._progress.note(f"No {ENCODERS[0]} here: the stream is encoded by {self._encoded.encoder}.")
            self._encoded.write(picture, self._clock.ticks(result.frame.seconds))

    def __enter__(self) -> StreamSink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._encoded is not None:
            with self._explained():
                self._encoded.finish()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        import av

        try:
            yield
        except (av.FFmpegError, OSError) as exc:
            if self._encoded is not None:
                self._encoded.abandon()
                self._encoded = None
            reason = getattr(exc, "strerror", None) or str(exc)
            raise ArtifactError(
                f"Cannot send to '{redacted(self._address)}': {reason}. Is the server or receiver there?"
            ) from exc
