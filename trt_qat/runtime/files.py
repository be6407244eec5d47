"""Sources that wait: image files, and videos in a file, on standard input or on a web server. No frame is dropped."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from trt_qat.errors import DatasetError
from trt_qat.redact import redacted
from trt_qat.runtime.decode import Converter, Decoded, Decoder
from trt_qat.runtime.frames import Frame
from trt_qat.runtime.pace import Clock, Pace
from trt_qat.vision.image import read_image_bgr

_LOOK_SECONDS = 0.2  # how soon a reader that waits for bytes finds out that it is closed


class Images:
    """Image files, read as they are asked for.

    Args:
        text: as it was given.
        paths: the files, in order.
        single: whether the one image was given by its own name: if it cannot be read, that is an error of the source.
        every: see :class:`~trt_qat.runtime.pace.Pace`.
    """

    live = False
    fps: float | None = None
    size_wh: tuple[int, int] | None = None
    broken = 0
    dropped = 0
    reconnects = 0

    def __init__(self, text: str, paths: Sequence[Path], single: bool = False, every: int = 1) -> None:
        self.text = redacted(text)
        self.paths = tuple(paths)
        self.errors: list[tuple[str, str]] = []
        self.single = single
        self._pace = Pace(every)
        self.announced = self._pace.announced(len(self.paths), None)
        self._closed = False

    def frames(self) -> Iterator[Frame]:
        """See :class:`~trt_qat.runtime.frames.Source`.

        Raises:
            DatasetError: the one image that was given cannot be read.
        """
        for number, path in enumerate(self.paths):
            if self._closed:
                return
            if not self._pace.takes(number, None):
                continue
            try:
                image_bgr = read_image_bgr(path)
            except DatasetError as exc:
                if self.single:
                    raise
                self.errors.append((path.name, str(exc)))
                continue
            yield Frame(image_bgr, self.text, number, path=path)

    def close(self) -> None:
        """See :class:`~trt_qat.runtime.frames.Source`."""
        self._closed = True


class Video:
    """A video that waits for whoever reads it.

    Args:
        text: as it was given.
        decoder: opened; it is closed with the source.
        pace: which frames are taken.
        stream: what the decoder reads, where that may wait without end.
    """

    live = False
    dropped = 0
    reconnects = 0

    def __init__(self, text: str, decoder: Decoder, pace: Pace, stream: Waiting | None = None) -> None:
        self.text = redacted(text)
        self.fps: float | None = decoder.fps
        self.size_wh: tuple[int, int] | None = decoder.size_wh
        self.announced = pace.announced(decoder.announced, decoder.fps)
        self.broken = 0
        self.errors: list[tuple[str, str]] = []
        self._decoder = decoder
        self._pace = pace
        self._stream = stream
        self._clock = Clock(decoder.fps)
        self._converter = Converter()
        self._closed = threading.Event()
        self._reading = threading.Lock()

    def frames(self) -> Iterator[Frame]:
        """See :class:`~trt_qat.runtime.frames.Source`."""
        decoded = enumerate(self._decoder.frames())
        while (found := self._next(decoded)) is not None:
            yield found
        self.close()
        if self._stream is not None and self._stream.interruption is not None:
            raise self._stream.interruption

    def close(self) -> None:
        """See :class:`~trt_qat.runtime.frames.Source`."""
        self._closed.set()
        if self._stream is not None:
            self._stream.closed = True
        if self._reading.acquire(blocking=False):  # else whoever reads now closes it, as soon as the frame is there
            try:
                self._decoder.close()
            finally:
                self._reading.release()

    def _next(self, decoded: Iterator[tuple[int, Decoded | None]]) -> Frame | None:
        with self._reading:
            found = None if self._closed.is_set() else self._taken(decoded)
            if self._closed.is_set():
                self._decoder.close()
                return None
        return found

    def _taken(self, decoded: Iterator[tuple[int, Decoded | None]]) -> Frame | None:
        """The next frame that is taken and whole."""
        for number, one in decoded:
            if self._closed.is_set():
                return None
            if one is not None:
                seconds = self._clock.seconds(number, one[1])
                if not self._pace.takes(number, seconds):
                    continue
                if (image_bgr := self._converter.bgr(one[0])) is not None:
                    return Frame(image_bgr, self.text, number, seconds)
            self.broken += 1
        return None


class Waiting:
    """The bytes of a file descriptor, whose reader can be told to stop while it waits for more.

    Args:
        descriptor: of a pipe or a file; it stays open.

    Attributes:
        closed: set it to end reading.
        interruption: Ctrl-C while it waited. FFmpeg asks for the bytes, and no exception goes through it.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.closed = False
        self.interruption: BaseException | None = None

    def read(self, most: int, /) -> bytes:
        """At most so many bytes, as soon as there are some; none at the end or once it is closed."""
        try:
            while not self.closed:
                if select.select([self._descriptor], [], [], _LOOK_SECONDS)[0]:
                    return os.read(self._descriptor, most)
        except OSError:  # the descriptor was closed
            self.closed = True
        except BaseException as exc:  # noqa: BLE001 -- raised again by whoever reads the frames
            self.closed, self.interruption = True, exc
        return b""
