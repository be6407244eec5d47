"""``--show``: a window with the annotated frames."""

from __future__ import annotations

import subprocess
import sys
from types import TracebackType

import cv2

from trt_qat.errors import MissingDependency
from trt_qat.runtime.frames import Result

_TITLE = "trt_qat (q or Esc ends)"
_ENDS = frozenset({27, ord("q"), ord("Q")})
_TRY_SECONDS = 20


class ShowSink:
    """Shows each frame as soon as it comes. Make it and call it in one thread, on macOS the first of the process.

    Attributes:
        ended: whether the user closed it by q, Esc or its button: whoever writes to it should stop.

    Raises:
        MissingDependency: this OpenCV has no windows, or there is no display.
    """

    wants_picture = True

    def __init__(self) -> None:
        _check_display()
        self.ended = False
        cv2.namedWindow(_TITLE, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)

    def write(self, result: Result) -> None:
        """See :class:`~trt_qat.runtime.sinks.sink.Sink`."""
        if result.annotated_bgr is None:
            raise ValueError("a window needs Result.annotated_bgr")
        if self.ended:
            return
        cv2.imshow(_TITLE, result.annotated_bgr)
        closed = cv2.waitKey(1) & 0xFF in _ENDS
        self.ended = closed or cv2.getWindowProperty(_TITLE, cv2.WND_PROP_VISIBLE) < 1

    def __enter__(self) -> ShowSink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        cv2.destroyAllWindows()


def _check_display() -> None:
    """Open a window in another process: without a display the library behind it may end the process it is in."""
    opens = [sys.executable, "-c", "import cv2; cv2.namedWindow('trt_qat'); cv2.destroyAllWindows()"]
    try:
        done = subprocess.run(opens, capture_output=True, check=False, timeout=_TRY_SECONDS)
        failed = done.returncode != 0
    except subprocess.TimeoutExpired:
        failed = True
    if failed:
        raise MissingDependency(
            "--show cannot open a window: there is no display here, or OpenCV is the headless one (then: pip install "
            "--force-reinstall --no-deps opencv-python). Leave --show out and watch the file of --out."
        )
