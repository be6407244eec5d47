"""What stands around every command: streams that can be written, signals that clean up, one line and an exit code.

Loaded before anything else, so that a signal during the seconds in which packages are imported is answered as well.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

_SAID = {
    signal.SIGINT: "Interrupted.",
    signal.SIGTERM: "Terminated.",
    signal.SIGHUP: "Terminated: the terminal is gone.",
}
# Ultralytics' settings; the folder that torch makes for what it compiles
_LIBRARY_FOLDERS = ("YOLO_CONFIG_DIR", "TORCHINDUCTOR_CACHE_DIR")


class Stopped(BaseException):
    """A signal asked the command to end. Not a KeyboardInterrupt, which libraries answer in ways of their own."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run(command: Callable[[], object]) -> NoReturn:
    """Call a command that exits by itself, and exit for it where it is stopped or its output cannot be written.

    Args:
        command: imports and runs; errors that it expects it says itself.
    """
    _open_closed_streams()
    code: object = 0
    with _signals():
        try:
            with _folder_of_libraries():
                command()
        except SystemExit as exc:
            code = exc.code
        except Stopped as exc:
            _say(_SAID[signal.Signals(exc.number)])
            code = 128 + exc.number
        except OSError as exc:  # the file system's failure, wherever it shows
            _say(f"Error: {_cannot(exc)}.")
            code = 1
        if not _flushed():
            code = code or 1
    sys.exit(code)  # type: ignore[arg-type]  # whatever SystemExit had


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Within: each raises :class:`Stopped` once in this process; while it cleans up, further ones are ignored."""
    owner = os.getpid()
    heard = [each for each in _SAID if signal.getsignal(each) != signal.SIG_IGN]  # nohup wants them ignored

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        if os.getpid() != owner:  # a worker that was forked: it has nothing to clean up
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        for each in heard:
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(number)

    before = {each: signal.signal(each, stop) for each in heard}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextlib.contextmanager
def _folder_of_libraries() -> Iterator[None]:
    """Within: what libraries write as soon as they are imported is not in the home folder, and goes at the end."""
    # Matplotlib's list of fonts takes seconds to make, so it is kept wherever it can be
    names = _LIBRARY_FOLDERS if _home_is_writable() else (*_LIBRARY_FOLDERS, "MPLCONFIGDIR")
    owner, unset = os.getpid(), [name for name in names if name not in os.environ]
    folder = ""
    try:
        if unset:
            with contextlib.suppress(OSError):  # where nothing can be written, the libraries find that out as well
                folder = tempfile.mkdtemp(prefix="trt-qat-")
                os.environ.update(dict.fromkeys(unset, folder))
        yield
    finally:
        if folder and os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)
            for name in unset:
                os.environ.pop(name, None)


def _home_is_writable() -> bool:
    try:
        with tempfile.TemporaryFile(dir=os.path.expanduser("~")):  # noqa: PTH111  # pathlib raises without a home
            return True
    except OSError:
        return False


def _open_closed_streams() -> None:
    """A closed stream's number would go to the next file that is opened, and messages would be written into it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123  # for the whole process
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # names that are not text in this locale


def _flushed() -> bool:
    """Whether everything said is written; what cannot be is dropped, so that the interpreter does not try again."""
    written = True
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError) as exc:
            if stream is sys.stdout:
                written = False
                reason = exc.strerror if isinstance(exc, OSError) else str(exc)
                _say(f"Error: Standard output cannot be written: {reason}. The files are.")
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return written


def _say(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def _cannot(exc: OSError) -> str:
    reason = " ".join((exc.strerror or str(exc)).split())
    return f"'{exc.filename}': {reason}" if exc.filename else f"Output cannot be written: {reason}"
