"""``--save-crops``: each detection as a picture of its own, by class: ``<folder>/<class>/<source>_<frame>_<n>.jpg``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePath
from types import TracebackType

import cv2
import numpy as np

from trt_qat.artifacts import atomic_path, writable_folder
from trt_qat.runtime.frames import Result
from trt_qat.runtime.sinks.naming import FrameNames, UniqueNames, safe_name

_JPEG_QUALITY = 95


class CropsSink:
    """Writes what lies inside of each box, without anything drawn on it.

    Args:
        folder: created if it is not there.
        names: class id to name.

    Raises:
        ArtifactError: it cannot be written.
    """

    wants_picture = False

    def __init__(self, folder: Path, names: Mapping[int, str]) -> None:
        self._folder = writable_folder(folder)
        self._names = names
        self._frames = FrameNames("")
        self._classes = UniqueNames()
        self._flat = UniqueNames()

    def write(self, result: Result) -> None:
        """See :class:`~trt_qat.runtime.sinks.sink.Sink`. A box that holds no pixel is left out."""
        image_bgr, found = result.frame.image_bgr, result.detections
        if not len(found):
            return
        name = self._frames.of(result.frame)
        if len(name.parts) > 1:  # of a folder in a folder
            name = self._flat.of(name, PurePath("_".join(name.parts)))
        height, width = image_bgr.shape[:2]
        boxes = np.nan_to_num(found.boxes_xyxy).round().clip(0, (width, height, width, height)).astype(int).tolist()
        for number, (left, top, right, bottom) in enumerate(boxes):
            if left < right and top < bottom:
                crop = image_bgr[top:bottom, left:right]
                encoded = cv2.imencode(".jpg", crop, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1]
                folder = self._folder / self._class_folder(int(found.class_ids[number]))
                with atomic_path(folder / f"{name}_{number}.jpg") as temporary:
                    temporary.write_bytes(encoded.tobytes())

    def _class_folder(self, class_id: int) -> PurePath:
        fallback = f"class_{class_id}"
        return self._classes.of(class_id, PurePath(safe_name(self._names.get(class_id, fallback), fallback)))

    def __enter__(self) -> CropsSink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Each file is whole already."""
