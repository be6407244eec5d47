"""Images, folders and videos in, annotated files out: the work behind ``trt-qat infer``. Loads no torch."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from trt_qat.artifacts import atomic_path
from trt_qat.config import InferSection
from trt_qat.errors import ArtifactError, DatasetError
from trt_qat.progress import SILENT, Progress
from trt_qat.runtime.detector import Detector
from trt_qat.runtime.selection import runtimes_for
from trt_qat.runtime.sources import Source, find_source, target_of
from trt_qat.runtime.video import check_video_name, read_video, write_video
from trt_qat.vision.detections import Detections
from trt_qat.vision.draw import annotate
from trt_qat.vision.image import read_image_bgr

ENGINES = Path("engines")


@dataclass(frozen=True)
class Annotated:
    """What :func:`annotate_files` did.

    Attributes:
        source: as it was given.
        out: the annotated file or folder.
        runtime: name of the runner, e.g. "openvino".
        device: what it ran on.
        reason: one line: which file ran on what, and why.
        names: class id to name.
        frames_announced: how many images there are, or a video's header promises (0: unknown); larger than
            ``frames`` if some cannot be read.
        per_frame: name (image) or number (video frame) and its detections, in order.
        errors: name of each image that could not be read or written, and why.
        median_ms: per image, from decoded pixels to detections, drawing and files apart; None if there was none.
    """

    source: str
    out: Path
    runtime: str
    device: str
    reason: str
    names: dict[int, str]
    frames_announced: int
    per_frame: list[tuple[str | int, Detections]]
    errors: list[tuple[str, str]]
    median_ms: float | None

    @property
    def frames(self) -> int:
        """Images or video frames that were annotated."""
        return len(self.per_frame)

    @property
    def detections(self) -> int:
        """Boxes over all of them."""
        return sum(len(found) for _, found in self.per_frame)

    def as_dict(self) -> dict[str, Any]:
        """The object that ``--json`` writes; boxes in pixels of the image."""
        return {
            "source": self.source,
            "out": str(self.out),
            "runtime": self.runtime,
            "device": self.device,
            "reason": self.reason,
            "frames": self.frames,
            "detections": self.detections,
            "median_ms": None if self.median_ms is None else round(self.median_ms, 3),
            "results": [
                {"frame": frame, "detections": _detections_as_dicts(found, self.names)}
                for frame, found in self.per_frame
            ],
            "errors": [{"frame": frame, "error": error} for frame, error in self.errors],
        }


@dataclass
class _Found:
    """What a run has found so far."""

    detector: Detector
    per_frame: list[tuple[str | int, Detections]] = field(default_factory=list)
    errors: list[tuple[str, str]] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)

    def annotated(self, frame: str | int, image_bgr: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Detect, remember, draw."""
        started = time.perf_counter()
        found = self.detector(image_bgr)
        self.milliseconds.append((time.perf_counter() - started) * 1000)
        self.per_frame.append((frame, found))
        return annotate(image_bgr, found, self.detector.names)


def annotate_files(
    source: str | Path,
    out: Path | None = None,
    model: str | Path | None = None,
    section: InferSection | None = None,
    *,
    runtime: str = "auto",
    progress: Progress = SILENT,
    **settings: Any,
) -> Annotated:
    """Annotate an image, a folder of images or a video.

    In a folder, an image that cannot be read is left out and named in the result; the others are annotated.

    Args:
        source: image, folder (its images, not its sub-folders) or video.
        out: a file, or a folder if it has no suffix; None is ``runs/infer/<name>``.
        model: see :class:`~trt_qat.runtime.detector.Detector`; None takes :func:`default_model`.
        runtime: see :class:`~trt_qat.runtime.detector.Detector`.
        settings: keys of the ``infer`` section, e.g. ``conf=0.4``.

    Raises:
        DatasetError: the source is missing, a stream or a camera, holds no images, or is one unreadable file.
        ArtifactError: the model cannot be read, or the output cannot be written.
        RunnerError, MissingDependency: the model cannot run on this runtime.
    """
    files = find_source(str(source))
    target = target_of(files, out)
    if files.images is None:
        check_video_name(target)
    with Detector(model if model is not None else default_model(), section, runtime=runtime, **settings) as detector:
        found = _Found(detector)
        if files.images is None:
            announced = _annotate_video(found, files.path, target, progress)
        else:
            announced = len(files.images)
            _annotate_images(found, files, files.images, target, progress)
        return Annotated(
            source=files.text,
            out=target,
            runtime=detector.runner.name,
            device=detector.runner.device,
            reason=detector.reason,
            names=detector.names,
            frames_announced=announced,
            per_frame=found.per_frame,
            errors=found.errors,
            median_ms=statistics.median(found.milliseconds) if found.milliseconds else None,
        )


def default_model(folder: Path = ENGINES) -> Path:
    """The newest model in a folder that some runtime takes, one with int8 in its name before others.

    Raises:
        ArtifactError: there is none.
    """
    if (found := newest_model(folder)) is None:
        raise ArtifactError(f"No model in '{folder}/'. Export one ('trt-qat export'), or give --model PATH.")
    return found


def newest_model(folder: Path = ENGINES) -> Path | None:
    """:func:`default_model`, or None if there is none."""
    found = [path for path in folder.glob("*") if runtimes_for(path)]
    return max(found, key=lambda path: ("int8" in path.name.lower(), path.stat().st_mtime, path.name), default=None)


def _annotate_images(found: _Found, source: Source, images: tuple[Path, ...], target: Path, progress: Progress) -> None:
    for path in progress.over(images, "annotating"):
        out = target / path.name if source.is_folder else target
        try:
            encoded = _encoded(found.annotated(path.name, read_image_bgr(path)), out)
        except DatasetError as exc:
            if not source.is_folder:
                raise
            found.errors.append((path.name, str(exc)))
            continue
        with atomic_path(out) as temporary:
            temporary.write_bytes(encoded)


def _annotate_video(found: _Found, source: Path, target: Path, progress: Progress) -> int:
    """Returns how many frames the header promises."""
    with read_video(source) as video, write_video(target, video.fps, video.size_wh) as write:
        for number, frame in enumerate(video.frames):
            write(found.annotated(number, frame))
            progress.step(source.name, number + 1, video.frames_announced)
        return video.frames_announced


def _encoded(image_bgr: NDArray[np.uint8], out: Path) -> bytes:
    """The bytes of the image file ``out``. Fails for this image alone: a JPEG, say, ends at 65,500 pixels."""
    height, width = image_bgr.shape[:2]
    refusal = f"Image '{out}' cannot be written: OpenCV does not encode {width} x {height} pixels as *{out.suffix}."
    try:
        ok, encoded = cv2.imencode(out.suffix, image_bgr)
    except cv2.error as exc:
        raise DatasetError(refusal) from exc
    if not ok:
        raise DatasetError(refusal)
    return encoded.tobytes()


def _detections_as_dicts(found: Detections, names: dict[int, str]) -> list[dict[str, Any]]:
    return [
        {
            "class_id": int(class_id),
            "name": names.get(int(class_id), str(int(class_id))),
            "score": round(float(score), 4),
            "box_xyxy": [round(float(value), 1) for value in box],
        }
        for box, score, class_id in zip(found.boxes_xyxy, found.scores, found.class_ids, strict=True)
    ]
