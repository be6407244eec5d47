"""``python -m trt_qat.infer SOURCE``: an image, a folder or a video in, annotated files out.

Runs without torch. The runtime is the fastest one that works here, and the output says which.
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
from numpy.typing import NDArray

from trt_qat.artifacts import atomic_path, writable_folder, write_json
from trt_qat.config import Config, InferSection
from trt_qat.errors import ArtifactError, DatasetError, TrtQatError
from trt_qat.progress import SILENT, Progress
from trt_qat.runtime.detector import Detector
from trt_qat.runtime.runner import Runner
from trt_qat.runtime.selection import choose_runner, open_runner
from trt_qat.runtime.video import VIDEO_SUFFIXES, annotate_video
from trt_qat.vision.detections import Detections
from trt_qat.vision.draw import annotate
from trt_qat.vision.image import IMAGE_SUFFIXES, read_image_bgr

ENGINES = Path("engines")
RESULTS = Path("runs/infer")


@dataclass(frozen=True)
class InferSummary:
    """What :func:`infer` did.

    Attributes:
        runtime: name of the runner, e.g. "openvino".
        reason: one line: which file ran on what, and why.
        out: the annotated file or folder.
        detections: boxes over all images or frames.
        median_ms: per image, from decoded pixels to detections, drawing and files apart.
        frames_announced: what a video's header promises (0: unknown); larger than ``frames`` if it is damaged.
        per_frame: name (image) or number (video frame) and its detections, in order.
    """

    source: Path
    out: Path
    runtime: str
    device: str
    reason: str
    frames: int
    frames_announced: int
    detections: int
    median_ms: float
    names: dict[int, str]
    per_frame: list[tuple[str | int, Detections]]

    def as_dict(self) -> dict[str, Any]:
        """The object that ``--json`` writes; boxes in pixels of the image."""
        return {
            "source": str(self.source),
            "out": str(self.out),
            "runtime": self.runtime,
            "device": self.device,
            "reason": self.reason,
            "frames": self.frames,
            "detections": self.detections,
            "median_ms": round(self.median_ms, 3),
            "results": [
                {"frame": frame, "detections": _detections_as_dicts(found, self.names)}
                for frame, found in self.per_frame
            ],
        }


class _RecordingDetector(Detector):
    """A detector that remembers its results and how long they took."""

    def __init__(self, runner: Runner, section: InferSection) -> None:
        super().__init__(runner, section.conf, section.iou, section.max_det)
        self.found: list[Detections] = []
        self.milliseconds: list[float] = []

    def detect(self, image_bgr: NDArray[np.uint8]) -> Detections:
        started = time.perf_counter()
        found = super().detect(image_bgr)
        self.milliseconds.append((time.perf_counter() - started) * 1000)
        self.found.append(found)
        return found


def infer(
    source: Path,
    model: Path | None,
    out: Path | None,
    section: InferSection,
    runtime: str = "auto",
    progress: Progress = SILENT,
) -> InferSummary:
    """Annotate an image, a folder of images or a video.

    Args:
        source: image, folder (its images, not its sub-folders) or video.
        model: ``*.plan`` or ``*.onnx``; None takes :func:`default_model`.
        out: a file, or a folder if it has no suffix; None is ``runs/infer/<name>``.
        runtime: "auto", "openvino", "onnxruntime" or "tensorrt".
        progress: called with (done, total) after every image or frame.

    Raises:
        DatasetError: the source is missing, unreadable or holds no images.
        ArtifactError: the model cannot be read, or the output cannot be written.
        RunnerError, MissingDependency: the model cannot run on this runtime.
    """
    images = _images(source)
    target = _target(source, out)
    model = model if model is not None else default_model()
    if runtime == "auto":
        runner, reason = choose_runner(model)
    else:
        runner = open_runner(model, runtime)
        reason = f"'{model}' runs on {runner.name} ({runner.device}): --runtime {runtime}."
    with runner:
        detector = _RecordingDetector(runner, section)
        frames: list[str | int]
        if images is None:
            video = annotate_video(detector, source, target, detector.names, progress)
            frames, announced = list(range(video.frames)), video.frames_announced
        else:
            targets = [target / image.name for image in images] if source.is_dir() else [target]
            _annotate_images(detector, images, targets, progress)
            frames, announced = [image.name for image in images], len(images)
    return InferSummary(
        source=source,
        out=target,
        runtime=runner.name,
        device=runner.device,
        reason=reason,
        frames=len(frames),
        frames_announced=announced,
        detections=sum(len(found) for found in detector.found),
        median_ms=statistics.median(detector.milliseconds),
        names=detector.names,
        per_frame=list(zip(frames, detector.found, strict=True)),
    )


def default_model(folder: Path = ENGINES) -> Path:
    """The newest ``*.plan`` or ``*.onnx`` in a folder, one with int8 in its name before others.

    Raises:
        ArtifactError: there is none.
    """
    found = [path for path in folder.glob("*") if path.suffix in (".plan", ".onnx") and path.is_file()]
    if not found:
        raise ArtifactError(f"No model in '{folder}/'. Export one ('trt-qat export'), or give --model PATH.")
    return max(found, key=lambda path: ("int8" in path.name.lower(), path.stat().st_mtime, path.name))


def _images(source: Path) -> list[Path] | None:
    """The images to annotate, or None if the source is a video."""
    if source.is_dir():
        images = sorted(path for path in source.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
        if not images:
            raise DatasetError(f"Folder '{source}' holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}).")
        return images
    if not source.exists():
        raise DatasetError(f"Source '{source}' does not exist. Give an image, a folder of images or a video.")
    if source.suffix.lower() in IMAGE_SUFFIXES:
        return [source]
    if source.suffix.lower() in VIDEO_SUFFIXES:
        return None
    known = ", ".join(sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES))
    raise DatasetError(f"Source '{source}' is neither an image nor a video by its name. Known: {known}.")


def _target(source: Path, out: Path | None) -> Path:
    """The file to write for an image or a video, the folder for a folder."""
    if source.is_dir():
        target = out if out is not None else RESULTS / source.resolve().name
        if target.is_file():
            raise ArtifactError(f"--out '{target}' is a file; the results of a folder need a folder.")
    else:
        is_image = source.suffix.lower() in IMAGE_SUFFIXES
        name = source.name if is_image else f"{source.stem}{'.avi' if source.suffix.lower() == '.avi' else '.mp4'}"
        target = out if out is not None and out.suffix and not out.is_dir() else (out or RESULTS) / name
        if is_image and target.suffix.lower() not in IMAGE_SUFFIXES:
            raise ArtifactError(f"--out '{target}' must be a folder or end in {', '.join(sorted(IMAGE_SUFFIXES))}.")
    if target.resolve() == source.resolve():
        raise ArtifactError(f"--out '{target}' is the source itself. Choose another --out.")
    return target


def _annotate_images(detector: Detector, images: list[Path], targets: list[Path], progress: Progress) -> None:
    for done, (path, target) in enumerate(zip(images, targets, strict=True), start=1):
        image = read_image_bgr(path)
        _write_image(target, annotate(image, detector.detect(image), detector.names))
        progress.step("images", done, len(images))


def _write_image(path: Path, image_bgr: NDArray[np.uint8]) -> None:
    with atomic_path(path) as temporary:
        try:
            ok, encoded = cv2.imencode(path.suffix, image_bgr)
        except cv2.error as exc:
            raise ArtifactError(f"Cannot write image '{path}': OpenCV has no encoder for it.") from exc
        if not ok:
            raise ArtifactError(f"Cannot write image '{path}': OpenCV has no encoder for it.")
        temporary.write_bytes(encoded.tobytes())


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


def check_json_path(path: Path) -> None:
    """Prove before the work that the result file can be written after it.

    Raises:
        ArtifactError: it cannot.
    """
    if path.is_dir():
        raise ArtifactError(f"--json '{path}' is a folder. Give a file.")
    writable_folder(path.parent)


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--model", type=click.Path(path_type=Path), help="*.plan or *.onnx [default: newest in engines/].")
@click.option("--out", type=click.Path(path_type=Path), help="File or folder [default: runs/infer/<name>].")
@click.option(
    "--conf", type=click.FloatRange(0, 1, max_open=True), help="Same as --set infer.conf=... [default: 0.25]."
)
@click.option("--iou", type=click.FloatRange(0, 1, min_open=True), help="Same as --set infer.iou=... [default: 0.45].")
@click.option(
    "--runtime",
    type=click.Choice(["auto", "openvino", "onnxruntime", "tensorrt"]),
    default="auto",
    show_default=True,
    help="auto is TensorRT where it works, else OpenVINO.",
)
@click.option(
    "--config",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    help="YAML file as in configs/; repeatable, the last wins.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="One setting, e.g. infer.max_det=50; repeatable, wins over --config.",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write all detections as JSON.")
def main(
    source: Path,
    model: Path | None,
    out: Path | None,
    conf: float | None,
    iou: float | None,
    runtime: str,
    files: tuple[Path, ...],
    overrides: tuple[str, ...],
    json_file: Path | None,
) -> None:
    """Detect objects in images or a video.

    SOURCE is an image, a folder of images or a video; annotated files are written.
    """
    try:
        if json_file is not None:
            check_json_path(json_file)
        given = {key: value for key, value in (("conf", conf), ("iou", iou)) if value is not None}
        section = Config.load(files, overrides).infer.replace(**given)
        summary = infer(source, model, out, section, runtime)
        if json_file is not None:
            write_json(json_file, summary.as_dict())
    except TrtQatError as exc:
        click.echo(f"Error: {exc}", err=True)
        sys.exit(1)
    click.echo(summary.reason)
    if summary.frames < summary.frames_announced:
        click.echo(f"Warning: {summary.frames} of {summary.frames_announced} frames were readable.", err=True)
    click.echo(f"{summary.frames} frames, {summary.detections} detections, median {summary.median_ms:.1f} ms per frame")
    click.echo(f"Written: {summary.out}")


if __name__ == "__main__":
    main()
