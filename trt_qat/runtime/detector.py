"""An image in, detections in its own pixels out, whatever runs the network."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trt_qat.config import InferSection
from trt_qat.errors import RunnerError
from trt_qat.runtime.runner import Runner, check_raw_output, class_names, image_size
from trt_qat.runtime.selection import choose_runner, open_runner
from trt_qat.vision.detections import Detections
from trt_qat.vision.letterbox import network_input
from trt_qat.vision.postprocess import detections_from_output
from trt_qat.vision.self_check import check_preprocessing


class Detector:
    """Letterbox, network, threshold and NMS for one image at a time. Loads no torch.

    Open from construction to the end of its ``with`` block.

    Args:
        model: ``*.onnx``, ``*.plan``, ``*.engine``, an OpenVINO folder, or an open runner, which stays the caller's.
        section: thresholds.
        runtime: for a file: a name of :data:`trt_qat.registry.RUNTIMES`, or "auto" for the fastest that works here
            (TensorRT if the file, or a plan that was built from it and lies beside it, runs here; else OpenVINO).
        settings: keys of the ``infer`` section, e.g. ``conf=0.4``, ``iou=0.5``, ``max_det=100``.

    Attributes:
        names: class id to name; empty if the file has none.
        imgsz: height and width of the network input in pixels.
        reason: one line that says which file runs on what, and why.
        runner: what runs the network.
        section: the thresholds that count.

    Raises:
        ArtifactError: the file cannot be read.
        ConfigError: an unknown or bad setting.
        MissingDependency: the runtime's package is missing.
        RunnerError: no runtime here runs the file, or it does not take one colour image at a time.

    Example:
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
        **settings: Any,
    ) -> None:
        self.section = (section or InferSection()).replace(**settings)
        self._closed = False
        check_preprocessing(network_input)
        with ExitStack() as opened:  # closes the runner if the model turns out not to fit
            if isinstance(model, (str, Path)):
                self.runner, self.reason = _open(Path(model), runtime)
                opened.enter_context(self.runner)
            else:
                self.runner, self.reason = model, f"It runs on {model.name} ({model.device}): an open runner was given."
            self.imgsz = image_size(self.runner.metadata, self.runner.input_shape)
            self.names = class_names(self.runner.metadata)
            if self.runner.input_shape[0] not in (1, None):
                raise RunnerError(
                    f"The model has a static batch of {self.runner.input_shape[0]}; single images need batch 1 or a "
                    "dynamic batch. Export it with --set export.batch=1."
                )
            self._opened = opened.pop_all()

    def __call__(self, image_bgr: NDArray[np.uint8]) -> Detections:
        """Detections of one image, in its pixels.

        Args:
            image_bgr: uint8, shape (h, w, 3).

        Raises:
            RunnerError: not such an image, the output is not raw YOLOv8's or not finite, or the detector is closed.
        """
        if self._closed:
            raise self._closed_error()
        if image_bgr.dtype != np.uint8 or image_bgr.ndim != 3 or image_bgr.shape[2] != 3 or image_bgr.size == 0:
            raise RunnerError(f"An image must be uint8 (h, w, 3), found {image_bgr.dtype} {image_bgr.shape}.")
        batch, transform = network_input(image_bgr, self.imgsz)
        output = self.runner.infer(batch)[0]
        check_raw_output(output, self.names)
        found = detections_from_output(output[0], self.section.conf, self.section.iou, self.section.max_det)
        return Detections(transform.boxes_to_image(found.boxes_xyxy), found.scores, found.class_ids)

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


def _open(model: Path, runtime: str) -> tuple[Runner, str]:
    if runtime == "auto":
        return choose_runner(model)
    runner = open_runner(model, runtime)
    return runner, f"'{model}' runs on {runner.name} ({runner.device}): it was asked for."
