"""``--jsonl``: one JSON object per frame and line. :class:`FrameRecord` is its schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, BinaryIO

from pydantic import Field

from trt_qat.reading import FileModel
from trt_qat.redact import redacted
from trt_qat.runtime.frames import Result
from trt_qat.runtime.sinks.lines import LineFile
from trt_qat.vision.detections import Detections

_Count = Annotated[int, Field(ge=0)]
_Fraction = Annotated[float, Field(ge=0, le=1)]


class DetectionRecord(FileModel):
    """One box. ``box_xyxy`` is left, top, right, bottom in pixels of the frame."""

    class_id: _Count
    name: str
    score: _Fraction
    box_xyxy: tuple[float, float, float, float]
    track_id: int | None = Field(default=None, ge=1)


class FrameRecord(FileModel):
    """One line. ``seconds`` is null for images; ``image`` is there for them alone, ``counts`` where things are counted.

    Read a file by ``FrameRecord.model_validate_json(line)``.
    """

    source: str
    frame: _Count
    seconds: float | None
    image: str | None = None
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    detections: tuple[DetectionRecord, ...]
    counts: dict[str, dict[str, _Count]] | None = None


class JsonlSink:
    """Writes a line per frame, at once.

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

    def write(self, result: Result) -> None:
        """See :class:`~trt_qat.runtime.sinks.sink.Sink`."""
        self._lines.write(json.dumps(frame_record(result, self._names), ensure_ascii=False, allow_nan=False) + "\n")

    def __enter__(self) -> JsonlSink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.__exit__(kind, value, trace)


def frame_record(result: Result, names: Mapping[int, str]) -> dict[str, Any]:
    """The JSON object of a frame, see :class:`FrameRecord`."""
    frame = result.frame
    record: dict[str, Any] = {
        "source": redacted(frame.source),
        "frame": frame.number,
        "seconds": None if frame.seconds is None else round(frame.seconds, 6),
        "width": frame.image_bgr.shape[1],
        "height": frame.image_bgr.shape[0],
        "detections": detection_records(result.detections, names),
    }
    if frame.path is not None:
        record["image"] = str(frame.path)
    if result.counts:
        record["counts"] = {name: dict(counts) for name, counts in result.counts.items()}
    return record


def detection_records(found: Detections, names: Mapping[int, str]) -> list[dict[str, Any]]:
    """The JSON objects of a frame's boxes, see :class:`DetectionRecord`; an open track has no id."""
    records: list[dict[str, Any]] = [
        {
            "class_id": class_id,
            "name": names.get(class_id, str(class_id)),
            "score": round(score, 4),
            "box_xyxy": [round(value, 1) for value in box],
        }
        for box, score, class_id in zip(
            found.boxes_xyxy.tolist(), found.scores.tolist(), found.class_ids.tolist(), strict=True
        )
    ]
    if found.track_ids is not None:
        for record, track_id in zip(records, found.track_ids.tolist(), strict=True):
            if track_id >= 0:
                record["track_id"] = track_id
    return records
