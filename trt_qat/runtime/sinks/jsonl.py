"""One JSON object per frame and line; docs/infer.md has the schema."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from trt_qat.errors import ArtifactError
from trt_qat.runtime.frames import Result


class JsonLinesSink:
    """A :class:`~trt_qat.runtime.sinks.sink.Sink`. Every line can be read as soon as it is written.

    Args:
        out: the file; "-" is standard output.
        names: class id to name.

    Raises:
        ArtifactError: it cannot be written.
    """

    wants_picture = False

    def __init__(self, out: Path, names: Mapping[int, str]) -> None:
        self._out, self._names = out, names
        self._opened = ExitStack()
        self._lines = _opened(out, self._opened)

    def write(self, result: Result) -> None:
        """See :meth:`Sink.write <trt_qat.runtime.sinks.sink.Sink.write>`."""
        try:
            self._lines.write(json.dumps(record_of(result, self._names), ensure_ascii=False) + "\n")
            self._lines.flush()
        except OSError as exc:
            raise ArtifactError(f"Cannot write '{self._out}': {exc.strerror or exc}.") from exc

    def __enter__(self) -> JsonLinesSink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()


def record_of(result: Result, names: Mapping[int, str]) -> dict[str, Any]:
    """The object of one frame; boxes in its pixels."""
    frame, found = result.frame, result.detections
    height, width = frame.image_bgr.shape[:2]
    counts = {"counts": {name: dict(numbers) for name, numbers in result.counts.items()}} if result.counts else {}
    tracks = found.track_ids
    return {
        "source": frame.source,
        "frame": frame.number if frame.path is None else frame.path.name,
        "seconds": None if frame.seconds is None else round(frame.seconds, 4),
        "width": width,
        "height": height,
        "detections": [
            {
                "class_id": int(class_id),
                "name": names.get(int(class_id), str(int(class_id))),
                "score": round(float(found.scores[row]), 4),
                "box_xyxy": [round(float(side), 1) for side in found.boxes_xyxy[row]],
                **({} if tracks is None or tracks[row] < 0 else {"track_id": int(tracks[row])}),
            }
            for row, class_id in enumerate(found.class_ids)
        ],
        **counts,
    }


def _opened(out: Path, stack: ExitStack) -> TextIO:
    if out == Path("-"):
        return sys.stdout
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        return stack.enter_context(out.open("w", encoding="utf-8", errors="backslashreplace"))
    except OSError as exc:
        raise ArtifactError(f"Cannot write '{out}': {exc.strerror or exc}. Choose another place.") from exc
