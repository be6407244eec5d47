"""``--csv``: one row per detection, the columns named as in :mod:`trt_qat.runtime.sinks.jsonl`."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from trt_qat.runtime.frames import Result
from trt_qat.runtime.sinks.jsonl import frame_record
from trt_qat.runtime.sinks.lines import LineFile

_OF_FRAME = ("source", "image", "frame", "seconds", "width", "height")
_OF_DETECTION = ("class_id", "name", "score")
COLUMNS = (*_OF_FRAME, *_OF_DETECTION, "left", "top", "right", "bottom", "track_id")


class CsvSink:
    """Writes the rows of a frame at once; a frame without detections has none.

    Args:
        out: a file, or a binary stream, e.g. of standard output, which stays the caller's.
        names: class id to name.

    Raises:
        ArtifactError: it cannot be written.
    """

    wants_picture = False

    def __init__(self, out: Path | BinaryIO, names: Mapping[int, str]) -> None:
        self._names = names
        self._lines = LineFile(out)
        self._begun = False

    def write(self, result: Result) -> None:
        """See :class:`~trt_qat.runtime.sinks.sink.Sink`."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if not self._begun:
            writer.writerow(COLUMNS)
            self._begun = True
        record = frame_record(result, self._names)
        of_frame = [record.get(key) for key in _OF_FRAME]
        for found in record["detections"]:
            writer.writerow(
                [*of_frame, *(found[key] for key in _OF_DETECTION), *found["box_xyxy"], found.get("track_id")]
            )
        if text.tell():
            self._lines.write(text.getvalue())

    def __enter__(self) -> CsvSink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.__exit__(kind, value, trace)
