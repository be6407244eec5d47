"""What every sink is: it is given the results in order, one after the other, and keeps none in memory."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol

from trt_qat.runtime.frames import Result


class Sink(Protocol):
    """Open from construction to the end of its ``with`` block.

    Leaving it finishes the file: what was written so far is kept and can be read, after Ctrl-C and after another
    stage's error, too. Only where nothing was written, or the sink itself failed, is nothing left behind; of a file of
    lines (JSON, CSV) the whole ones are kept then, too.

    Attributes:
        wants_picture: whether it needs :attr:`Result.annotated_bgr`.
    """

    wants_picture: bool

    def write(self, result: Result) -> None:
        """Take one result.

        Raises:
            ArtifactError: it cannot be written.
        """
        ...

    def __enter__(self) -> Sink: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...
