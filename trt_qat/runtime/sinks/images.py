"""Annotated images: a file beside nothing else, or a folder that has the structure of the source."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
from numpy.typing import NDArray

from trt_qat.artifacts import atomic_path
from trt_qat.errors import ArtifactError
from trt_qat.runtime.frames import Result
from trt_qat.runtime.sinks.naming import FrameNames


class ImagesSink:
    """Writes an annotated image for each.

    Args:
        out: the folder, or the file of a single image.
        is_file: whether it is a file.

    Attributes:
        errors: name of each image of a folder that cannot be written in its format, and why; the others are written.
    """

    wants_picture = True

    def __init__(self, out: Path, is_file: bool = False) -> None:
        self._out = out
        self._is_file = is_file
        self._names = FrameNames()
        self.errors: list[tuple[str, str]] = []

    def write(self, result: Result) -> None:
        """See :class:`~trt_qat.runtime.sinks.sink.Sink`. A JPEG, say, ends at 65,500 pixels."""
        if result.annotated_bgr is None:
            raise ValueError("an image sink needs Result.annotated_bgr")
        path = result.frame.path
        out = self._out if self._is_file else self._out / self._names.of(result.frame)
        if path is not None and os.path.realpath(out) == os.path.realpath(path):  # unlike resolve(), it knows loops
            raise ArtifactError(f"--out '{self._out}' would replace the source '{path}' itself. Choose another --out.")
        encoded = _encoded(result.annotated_bgr, out.suffix)
        if encoded is None:
            height, width = result.annotated_bgr.shape[:2]
            message = (
                f"Image '{out}' cannot be written: OpenCV does not encode {width} x {height} pixels as *{out.suffix}."
            )
            if self._is_file:
                raise ArtifactError(message)
            self.errors.append((path.name if path is not None else out.name, message))
            return
        with atomic_path(out) as temporary:
            temporary.write_bytes(encoded)

    def __enter__(self) -> ImagesSink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Each file is whole already."""


def _encoded(image_bgr: NDArray[np.uint8], suffix: str) -> bytes | None:
    try:
        ok, encoded = cv2.imencode(suffix, image_bgr)
    except cv2.error:
        return None
    return encoded.tobytes() if ok else None
