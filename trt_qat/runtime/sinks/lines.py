"""A file that grows by whole lines and can be read while it grows (``tail -f``), or an open stream."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from trt_qat.artifacts import check_replaceable, writable_folder
from trt_qat.errors import ArtifactError
from trt_qat.reading import printable


class LineFile:
    """Open from construction to the end of its ``with`` block; the file itself is begun with the first line.

    Other files appear whole or not at all. This one is whole after each line, so that it stays as it is whatever
    happens, and where the disk is full the line that had no room is taken away.

    Args:
        out: a file, or a binary stream, e.g. of standard output, which stays the caller's.

    Raises:
        ArtifactError: it cannot be written.
    """

    def __init__(self, out: Path | BinaryIO) -> None:
        self._path: Path | None
        self._stream: BinaryIO | None
        self._path, self._stream = (out, None) if isinstance(out, Path) else (None, out)
        self._size = 0  # bytes of whole lines
        if self._path is None:
            return
        if self._path.is_dir():
            raise ArtifactError(f"Cannot write '{out}': it is a folder. Give a file.")
        check_replaceable(self._path)
        writable_folder(self._path.parent)

    def write(self, line: str) -> None:
        """Append a line, which ends in a line feed, and let others see it.

        Raises:
            ArtifactError: it cannot be written.
        """
        content = printable(line).encode()
        try:
            if self._path is not None and self._stream is None:
                self._stream = self._path.open("wb")
            if self._stream is not None:
                self._stream.write(content)
                self._stream.flush()
        except BrokenPipeError as exc:
            if self._stream is not None:
                _discard_rest(self._stream)
            raise ArtifactError("Nobody reads the output any more: the program that read it has ended.") from exc
        except OSError as exc:
            self._keep_whole_lines()
            raise ArtifactError(
                f"Cannot write '{self._path or 'the output'}': {exc.strerror or exc}. Whole lines up to here are kept. "
                "Free some space or choose another place."
            ) from exc
        self._size += len(content)

    def __enter__(self) -> LineFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None and self._path is not None:
            with contextlib.suppress(OSError):  # said when it was written
                self._stream.close()

    def _keep_whole_lines(self) -> None:
        if self._stream is None or self._path is None:
            return
        with contextlib.suppress(OSError):
            self._stream.close()
        with contextlib.suppress(OSError):
            os.truncate(self._path, self._size)


def _discard_rest(stream: BinaryIO) -> None:
    """What is left in Python's buffer would be written, and fail, once more at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
