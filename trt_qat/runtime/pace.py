"""Which frames of a source are taken, and when they were: every Nth, at most so many per second; time only rises."""

from __future__ import annotations

from trt_qat.errors import ConfigError

_NUDGE = 1e-3  # seconds between two frames that give the same time, or one a little before the last
_STEP_BACK = 1.0  # seconds; more is another time line, not two frames out of order
_LEAP = 10.0  # seconds that a live stream's time may run ahead of the clock on the wall


class Pace:
    """Decides which frames are taken.

    Args:
        every: take frames 0, N, 2 N, ...
        max_fps: leave out a frame that is nearer than 1/max_fps to the last one taken; None takes all.

    Raises:
        ConfigError: ``every`` below 1, or ``max_fps`` not above 0.
    """

    def __init__(self, every: int = 1, max_fps: float | None = None) -> None:
        if every < 1:
            raise ConfigError(f"every = {every} must be 1 or more: take each frame, each second one, ...")
        if max_fps is not None and not max_fps > 0:
            raise ConfigError(f"max_fps = {max_fps:g} must be above 0.")
        self.every = every
        self.max_fps = max_fps
        self._last: float | None = None

    def takes(self, number: int, seconds: float | None) -> bool:
        """Whether this frame is one; if so, the next one is measured from it."""
        if number % self.every:
            return False
        if self.max_fps is not None and seconds is not None:
            # timestamps are rounded, to a thousandth in Matroska: 25 frames/s with max_fps 25 are all taken
            if self._last is not None and seconds - self._last < 1 / self.max_fps - 2 * _NUDGE:
                return False
            self._last = seconds
        return True

    def announced(self, frames: int | None, fps: float | None) -> int | None:
        """How many of so many frames will be taken; None if that depends on their times."""
        if frames is None or (self.max_fps is not None and fps is not None and self.max_fps < fps / self.every):
            return None
        return -(-frames // self.every)


class Clock:
    """Seconds since the first frame out of a stream's timestamps, rising whatever they do.

    Args:
        fps: usual frames per second.
        live: whether time that runs away from the clock on the wall is corrected by it.
    """

    def __init__(self, fps: float, live: bool = False) -> None:
        self.fps = fps
        self._live = live
        self._offset: float | None = None  # what is added to a timestamp
        self._last: tuple[int, float] | None = None  # number and seconds

    def restart(self) -> None:
        """What comes next has another time line: the stream was opened again."""
        self._offset = None

    def seconds(self, number: int, timestamp: float | None, elapsed: float = 0.0) -> float:
        """The time of a frame.

        Args:
            timestamp: presentation time in seconds as the stream has it, if it has one.
            elapsed: real seconds since the first frame came; for a live source.
        """
        if self._last is None:
            self._offset = None if timestamp is None else -timestamp
            seconds = 0.0
        else:
            last_number, last = self._last
            usual = max(elapsed, last + _NUDGE) if self._live else last + (number - last_number) / self.fps
            seconds = self._placed(timestamp, usual, last)
        self._last = number, seconds
        return seconds

    def _placed(self, timestamp: float | None, usual: float, last: float) -> float:
        if timestamp is None:
            return usual
        if self._offset is not None:
            seconds = timestamp + self._offset
            if last - _STEP_BACK <= seconds and not (self._live and seconds > usual + _LEAP):
                return max(seconds, last + _NUDGE)
        self._offset = usual - timestamp
        return usual
