"""``--save-txt``: YOLO labels, a text file per frame or image, to train on or to compare with."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import numpy as np

from trt_qat.artifacts import writable_folder, write_text
from trt_qat.runtime.frames import Result
from trt_qat.runtime.sinks.naming import FrameNames


class YoloTxtSink:
    """Writes ``class x y width height``, the last four as fractions of the frame; empty where nothing was found.

    Args:
        folder: created if it is not there.
        scores: whether each line ends in the score.

    Raises:
        ArtifactError: it cannot be written.
    """

    wants_picture = False

    def __init__(self, folder: Path, scores: bool = False) -> None:
        self._folder = writable_folder(folder)
        self._scores = scores
        self._names = FrameNames(".txt")

    def write(self, result: Result) -> None:
        """See :class:`~trt_qat.runtime.sinks.sink.Sink`."""
        height, width = result.frame.image_bgr.shape[:2]
        found = result.detections
        boxes = found.boxes_xyxy.astype(np.float64).clip(0, (width, height, width, height))
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2 / (width, height)
        sizes = (boxes[:, 2:] - boxes[:, :2]) / (width, height)
        lines = []
        for place, values in enumerate(np.hstack([centres, sizes]).tolist()):
            score = f" {found.scores[place]:.4f}" if self._scores else ""
            lines.append(f"{found.class_ids[place]} " + " ".join(f"{value:.6f}" for value in values) + score + "\n")
        write_text(self._folder / self._names.of(result.frame), "".join(lines))

    def __enter__(self) -> YoloTxtSink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Each file is whole already."""
