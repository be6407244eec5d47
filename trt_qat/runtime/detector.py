"""An image in, detections in its own pixels out, whatever runs the network; many images as one stream."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from trt_qat.config import InferSection
from trt_qat.errors import ConfigError, RunnerError
from trt_qat.metadata import output_layout
from trt_qat.registry import suggestion
from trt_qat.runtime.overlap import overlapped
from trt_qat.runtime.runner import Mode, Runner, check_output, class_names, image_size
from trt_qat.runtime.selection import choose_runner, open_runner
from trt_qat.vision.detections import Detections
from trt_qat.vision.letterbox import LetterboxTransform, network_input
from trt_qat.vision.postprocess import detections_from_output
from trt_qat.vision.self_check import check_preprocessing
from trt_qat.vision.size import rectangle_for

Image = NDArray[np.uint8]


class HasImage(Protocol):
    """Whatever carries a picture through :meth:`Detector.stream`, e.g. :class:`~trt_qat.runtime.frames.Frame`."""

    @property
    def image_bgr(self) -> Image:
        """uint8, shape (h, w, 3)."""
        ...


Streamed = TypeVar("Streamed", bound="Image | HasImage")


class Detector:
    """Letterbox, network, threshold and NMS, without NMS where the file is an end-to-end head's. Loads no torch.

    Open from construction to the end of its ``with`` block; may be called from several threads.

    Args:
        model: ``*.onnx``, ``*.plan``, ``*.engine``, an OpenVINO folder, or an open runner, which stays the caller's.
        section: thresholds and classes.
        runtime: for a file: a name of :data:`trt_qat.registry.RUNTIMES`, or "auto" for the fastest that works here
            (TensorRT if the file, or a plan that was built from it and lies beside it, runs here; else OpenVINO).
        mode: for a file: "latency" computes one image as soon as possible, "throughput" as many per second as possible,
            which takes :meth:`stream`.
        device: for a file: "auto", "cpu", "cuda" or "cuda:N".
        size_wh: usual width and height of the images: a model whose height and width are free gets the rectangle that
            fits them, with its longer side. Without it, and for other models, the file says the size.
        settings: keys of the ``infer`` section, e.g. ``conf=0.4``, ``iou=0.5``, ``max_det=100``, ``classes=["stop"]``.

    Attributes:
        names: class id to name; empty if the file has none.
        imgsz: height and width of the network input in pixels.
        reason: one line that says which file runs on what, and why.
        runner: what runs the network.
        section: the thresholds that count.

    Raises:
        ArtifactError: the file cannot be read.
        ConfigError: an unknown or bad setting, or a class that the model does not know.
        MissingDependency: the runtime's package is missing.
        RunnerError: no runtime here runs the file, or it does not take colour images.

    Examples:
        >>> frame_bgr = cv2.imread("street.jpg")
        >>> with trt_qat.Detector("best_int8.onnx", conf=0.4) as detect:
        ...     detections = detect(frame_bgr)
        >>> [detect.names[int(class_id)] for class_id in detections.class_ids]
        ['red']
        >>> detections.boxes_xyxy.round().tolist()  # left, top, right, bottom in pixels of the frame
        [[32.0, 16.0, 48.0, 32.0]]
    """

    def __init__(
        self,
        model: str | Path | Runner,
        section: InferSection | None = None,
        *,
        runtime: str = "auto",
        mode: Mode = "latency",
        device: str = "auto",
        size_wh: tuple[int, int] | None = None,
        **settings: Any,
    ) -> None:
        self.section = (section or InferSection()).replace(**settings)
        self._closed = False
        check_preprocessing(network_input)
        with ExitStack() as opened:  # closes the runner if the model turns out not to fit
            if isinstance(model, (str, Path)):
                self.runner, self.reason = _open(Path(model), runtime, mode, device)
                opened.enter_context(self.runner)
            else:
                self.runner, self.reason = model, f"It runs on {model.name} ({model.device}): an open runner was given."
            self.imgsz = image_size(self.runner.metadata, self.runner.input_shape)
            if size_wh is not None and self.runner.input_shape[2:] == (None, None):
                self.imgsz = rectangle_for(size_wh, max(self.imgsz))
            self.names = class_names(self.runner.metadata)
            self._layout = output_layout(self.runner.metadata)
            self._classes = _class_ids(self.section.classes, self.names)
            self._opened = opened.pop_all()
        self._inputs = threading.local()  # each thread fills an array of its own again and again

    def __call__(self, image_bgr: Image) -> Detections:
        """Detections of one image, in its pixels.

        Args:
            image_bgr: uint8, shape (h, w, 3).

        Raises:
            RunnerError: not such an image, the output is not raw YOLOv8's or not finite, or the detector is closed.
        """
        return self.batch([image_bgr])[0]

    def batch(self, images_bgr: Sequence[Image]) -> list[Detections]:
        """Detections of several images of any sizes, in as few forward passes as the model's batch allows.

        Args:
            images_bgr: uint8, shape (h, w, 3) each.

        Raises:
            RunnerError: as for one image.
        """
        if self._closed:
            raise self._closed_error()
        for image in images_bgr:
            _check_image(image)
        most = self.runner.largest_batch or max(1, len(images_bgr))
        return [
            found
            for first in range(0, len(images_bgr), most)
            for found in self._forward(images_bgr[first : first + most])
        ]

    def stream(self, frames: Iterable[Streamed], batch: int = 1) -> Iterator[tuple[Streamed, Detections]]:
        """Detections of many frames, with reading, network and what you do with the results overlapped.

        Order is kept, few frames are in memory at a time, and the detections are those of :meth:`__call__`. The
        frames are taken in another thread. A detector that was opened with ``mode="throughput"`` computes several at
        once; with "latency" a frame is taken when the one before it is done, so that a camera's is the newest.

        Args:
            frames: arrays (uint8 BGR, (h, w, 3)), or objects with such an ``image_bgr``.
            batch: frames per forward pass; a group is complete before it is computed.

        Yields:
            Each frame as it was given, with its detections in its pixels.

        Raises:
            RunnerError: as for one image.
            BaseException: what taking a frame raises, after the results of those before it.

        Examples:
            >>> with trt_qat.Detector("best_int8.onnx", mode="throughput") as detect:
            ...     counts = [len(detections) for frame, detections in detect.stream([frame_bgr] * 3)]
            >>> counts
            [1, 1, 1]
        """
        for group in self.stream_groups(_grouped(frames, batch)):
            yield from group

    def stream_groups(
        self, groups: Iterable[Sequence[Streamed]]
    ) -> Generator[Sequence[tuple[Streamed, Detections]], None, None]:
        """:meth:`stream` for frames that somebody has grouped already, e.g. one of each camera."""
        if self._closed:
            raise self._closed_error()
        parallel = self.runner.parallel
        # one call at a time: the next frame is taken when it is done; several: one more each lies ready
        return overlapped(self._detect, groups, parallel, parallel if parallel == 1 else 2 * parallel, "detect")

    def _detect(self, group: Sequence[Streamed]) -> Sequence[tuple[Streamed, Detections]]:
        return list(zip(group, self.batch([_image_of(frame) for frame in group]), strict=True))

    def _forward(self, images_bgr: Sequence[Image]) -> Iterator[Detections]:
        inputs = self._input_array(self.runner.input_shape[0] or len(images_bgr))
        transforms: list[LetterboxTransform] = []
        for row, image in zip(inputs, images_bgr, strict=False):  # a fixed batch may have rows to spare
            transforms.append(network_input(image, self.imgsz, out=row)[1])
        output = self.runner.infer(inputs)[0]
        check_output(output, self.names, batch=len(inputs), layout=self._layout)
        for raw, transform in zip(output, transforms, strict=False):
            found = detections_from_output(
                raw,
                self.section.conf,
                self.section.iou,
                self.section.max_det,
                classes=self._classes,
                layout=self._layout,
            )
            yield Detections(transform.boxes_to_image(found.boxes_xyxy), found.scores, found.class_ids)

    def _input_array(self, count: int) -> NDArray[np.float32]:
        """This thread's array, (count, 3, height, width): new memory for each frame costs as much as filling it."""
        array: NDArray[np.float32] | None = getattr(self._inputs, "array", None)
        if array is None or len(array) != count:
            array = self._inputs.array = np.zeros((count, 3, *self.imgsz), dtype=np.float32)
        return array

    def __enter__(self) -> Detector:
        if self._closed:
            raise self._closed_error()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        self._opened.close()

    def _closed_error(self) -> RunnerError:
        return RunnerError("The detector is closed. Use it inside its 'with' block, or open it again.")


def _open(model: Path, runtime: str, mode: Mode, device: str) -> tuple[Runner, str]:
    if runtime == "auto":
        return choose_runner(model, mode=mode, device=device)
    runner = open_runner(model, runtime, mode=mode, device=device)
    return runner, f"'{model}' runs on {runner.name} ({runner.device}): it was asked for."


def _class_ids(classes: Sequence[int | str], names: dict[int, str]) -> NDArray[np.int64] | None:
    """The ids of classes that are given by id or name; None for all."""
    if not classes:
        return None
    ids = {name: class_id for class_id, name in names.items()}
    found = []
    for given in classes:
        class_id = ids.get(given) if isinstance(given, str) else given
        if class_id is None or (names and class_id not in names) or class_id < 0:
            known = suggestion(str(given), list(ids)) if ids else "The model names no classes: give ids."
            raise ConfigError(f"infer.classes: the model has no class '{given}'. {known}")
        found.append(class_id)
    return np.array(found, dtype=np.int64)


def _check_image(image_bgr: Image) -> None:
    if image_bgr.dtype != np.uint8 or image_bgr.ndim != 3 or image_bgr.shape[2] != 3 or image_bgr.size == 0:
        raise RunnerError(f"An image must be uint8 (h, w, 3), found {image_bgr.dtype} {image_bgr.shape}.")


def _image_of(frame: Image | HasImage) -> Image:
    return frame if isinstance(frame, np.ndarray) else frame.image_bgr


def _grouped(frames: Iterable[Streamed], count: int) -> Iterator[list[Streamed]]:
    iterator = iter(frames)
    while group := list(islice(iterator, count)):
        yield group
