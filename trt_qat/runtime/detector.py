"""An image in, detections in its own pixels out, whatever runs the network."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trt_qat.errors import RunnerError
from trt_qat.runtime.runner import Runner, check_raw_output, class_names, image_size
from trt_qat.vision.detections import Detections
from trt_qat.vision.letterbox import network_input
from trt_qat.vision.postprocess import detections_from_output


class Detector:
    """Letterbox, network, threshold and NMS around an open runner, which the caller closes.

    Args:
        conf: scores at or below this are dropped, [0, 1).
        iou: NMS threshold, (0, 1].
        max_det: keep at most this many per image, best first.

    Raises:
        RunnerError: the model does not take one square image at a time.
    """

    def __init__(self, runner: Runner, conf: float = 0.25, iou: float = 0.45, max_det: int = 300) -> None:
        self.runner = runner
        self.conf = conf
        self.iou = iou
        self.max_det = max_det
        self.imgsz = image_size(runner.metadata, runner.input_shape)
        self.names = class_names(runner.metadata)
        if runner.input_shape[0] not in (1, None):
            raise RunnerError(
                f"The model has a static batch of {runner.input_shape[0]}; single images need batch 1 or a dynamic "
                "batch. Export it with --set export.batch=1."
            )

    def detect(self, image_bgr: NDArray[np.uint8]) -> Detections:
        """Detections of one image.

        Args:
            image_bgr: uint8, shape (h, w, 3).

        Raises:
            RunnerError: not such an image, or the output is not raw YOLOv8's or not finite.
        """
        if image_bgr.dtype != np.uint8 or image_bgr.ndim != 3 or image_bgr.shape[2] != 3 or image_bgr.size == 0:
            raise RunnerError(f"An image must be uint8 (h, w, 3), found {image_bgr.dtype} {image_bgr.shape}.")
        batch, transform = network_input(image_bgr, self.imgsz)
        output = self.runner.infer(batch)[0]
        self._check_output(output)
        found = detections_from_output(output[0], self.conf, self.iou, self.max_det)
        return Detections(transform.boxes_to_image(found.boxes_xyxy), found.scores, found.class_ids)

    def _check_output(self, output: NDArray[np.float32]) -> None:
        check_raw_output(output, self.names)
