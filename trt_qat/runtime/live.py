"""A source that does not wait: a camera or network stream, read by its own thread and opened again when it drops.

The thread keeps the newest frames. Where nobody takes them in time the oldest one goes, so that what is taken is never
older than what may wait.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import av

from trt_qat.errors import DatasetError
from trt_qat.progress import SILENT, Progress
from trt_qat.redact import redacted
from trt_qat.runtime.decode import Converter, Decoder
from trt_qat.runtime.frames import Frame
from trt_qat.runtime.pace import Clock, Pace

_JOIN_SECONDS = 0.5  # that close() waits for the reader, which may be waiting for the network


@dataclass(frozen=True)
class Retry:
    """How a stream that dropped is opened again.

    Attributes:
        first_seconds: before the first try; each later one waits twice as long.
        longest_seconds: no wait is longer.
        most: tries in a row until the source is given up; None never gives up.
    """

    first_seconds: float = 0.5
    longest_seconds: float = 30.0
    most: int | None = None


FOREVER = Retry()
"""Tried until it is back or closed."""


@dataclass(frozen=True)
class _Kept:
    frame: av.VideoFrame
    number: int
    seconds: float


class Live:
    """A live source.

    Args:
        text: as it was given.
        connect: opens it again; it is given the number of the try, from 1.
        decoder: the first connection.
        pace: which frames are taken.
        hold: how many frames may wait at most. 1 gives the newest one only: the shortest delay. More give whoever
            takes them time to catch up after a pause, without loss.
        retry: how it is opened again.
        progress: told when it drops and when it is back.
    """

    live = True
    announced: int | None = None

    def __init__(
        self,
        text: str,
        connect: Callable[[int], Decoder],
        decoder: Decoder,
        pace: Pace,
        *,
        hold: int = 1,
        retry: Retry = FOREVER,
        progress: Progress = SILENT,
    ) -> None:
        self.text = redacted(text)
        self.fps: float | None = decoder.fps
        self.size_wh: tuple[int, int] | None = decoder.size_wh
        self.broken = 0
        self.dropped = 0
        self.reconnects = 0
        self.errors: list[tuple[str, str]] = []
        self._connect = connect
        self._pace = pace
        self._retry = retry
        self._progress = progress
        self._clock = Clock(decoder.fps, live=True)
        self._converter = Converter()
        self._number = 0
        self._started: float | None = None  # when the first frame came
        self._kept: deque[_Kept] = deque(maxlen=max(1, hold))
        self._changed = threading.Condition()
        self._wanted = False  # nobody is late before the first frame was asked for
        self._closed = threading.Event()
        self._ended = False
        self._failure: Exception | None = None
        self._listener: threading.Event | None = None
        self._reader = threading.Thread(target=self._run, args=(decoder,), name=f"reads {self.text}", daemon=True)
        self._reader.start()

    def frames(self) -> Iterator[Frame]:
        """See :class:`~trt_qat.runtime.frames.Source`. It ends when the source is closed or given up."""
        while True:
            with self._changed:
                self._wanted = True
                while not self._kept and not self._ended:
                    self._changed.wait()
            found = self.take()
            if found is not None:
                yield found
            elif self._ended:
                return

    def take(self) -> Frame | None:
        """The oldest of the frames that wait; None if there is none now.

        Raises:
            Exception: whatever stopped the reader, unless it is the stream's fault.
        """
        with self._changed:
            self._wanted = True
            if self._failure is not None:
                raise self._failure
            kept = self._kept.popleft() if self._kept and not self._closed.is_set() else None
        if kept is None:
            return None
        image_bgr = self._converter.bgr(kept.frame)
        if image_bgr is None:
            self.broken += 1
            return self.take()
        return Frame(image_bgr, self.text, kept.number, kept.seconds)

    @property
    def ended(self) -> bool:
        """Whether nothing waits and nothing will come."""
        with self._changed:
            return self._ended and (not self._kept or self._closed.is_set())

    def tell(self, listener: threading.Event) -> None:
        """Have an event set whenever a frame came, and at the end."""
        self._listener = listener
        listener.set()

    def close(self) -> None:
        """See :class:`~trt_qat.runtime.frames.Source`. A reader that waits for the network ends at its time limit."""
        self._closed.set()
        self._end()
        if threading.current_thread() is not self._reader:
            self._reader.join(_JOIN_SECONDS)

    def _end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        if self._listener is not None:
            self._listener.set()

    def _run(self, decoder: Decoder | None) -> None:
        try:
            while decoder is not None:
                try:
                    self._read(decoder)
                    reason = decoder.ended_badly or "it ended"
                finally:
                    decoder.close()
                decoder = self._opened_again(reason)
        except Exception as exc:  # noqa: BLE001 -- raised again in the thread that takes frames
            self._failure = exc
        finally:
            self._end()

    def _read(self, decoder: Decoder) -> None:
        for one in decoder.frames():
            if self._closed.is_set():
                return
            now = time.monotonic()
            if self._started is None:
                self._started = now
            number = self._number
            self._number += 1
            if one is None:
                self.broken += 1
                continue
            seconds = self._clock.seconds(number, one[1], now - self._started)
            if self._pace.takes(number, seconds):
                self._keep(_Kept(one[0], number, seconds))

    def _keep(self, kept: _Kept) -> None:
        with self._changed:
            if len(self._kept) == self._kept.maxlen and self._wanted:
                self.dropped += 1
            self._kept.append(kept)
            self._changed.notify_all()
        if self._listener is not None:
            self._listener.set()

    def _opened_again(self, reason: str) -> Decoder | None:
        """A new connection; None if it is closed or given up."""
        if self._closed.is_set():
            return None
        lost = time.monotonic()
        wait = self._retry.first_seconds
        tries = 0
        self._progress.note(f"Stream '{self.text}' broke off: {reason}. It is opened again.")
        while not self._closed.wait(wait):
            wait = min(2 * wait, self._retry.longest_seconds)
            tries += 1
            try:
                decoder = self._connect(tries)
            except DatasetError as exc:
                if tries == self._retry.most:
                    self._give_up(f"given up after {_tries(tries)}, {_ago(lost)}: {exc}")
                    return None
                if tries & (tries - 1) == 0:  # 1, 2, 4, 8, ...: a stream may be away for days
                    self._progress.note(
                        f"Stream '{self.text}' is still away after {_tries(tries)}, {_ago(lost)}: {exc}"
                    )
                continue
            self.reconnects += 1
            self._clock.restart()
            self._progress.note(f"Stream '{self.text}' is back after {_tries(tries)}, {_ago(lost)}.")
            return decoder
        return None

    def _give_up(self, reason: str) -> None:
        self.errors.append((self.text, reason))
        self._progress.note(f"Stream '{self.text}' is {reason}")


def _tries(tries: int) -> str:
    return f"{tries} {'try' if tries == 1 else 'tries'}"


def _ago(then: float) -> str:
    return f"{time.monotonic() - then:.1f} s"
