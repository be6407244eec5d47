from __future__ import annotations

import base64
from pathlib import Path

import cv2
import numpy as np
from tiny_onnx import colour_image, write_tiny_detector

from trt_qat.report.disagreements import disagreements
from trt_qat.runtime.detector import Detector


def _image(path: Path, *squares: tuple[int, int]) -> Path:
    image = colour_image(64, 64)
    for left, top in squares:
        image[top : top + 8, left : left + 8] = (0, 0, 255)
    cv2.imwrite(str(path), image)
    return path


def test_only_images_with_a_box_of_one_side_are_shown(tmp_path: Path) -> None:
    """The second detector takes no box: whatever the first finds is missing there."""
    write_tiny_detector(tmp_path / "tiny.onnx")
    images = [
        _image(tmp_path / "empty.png"),
        _image(tmp_path / "one.png", (8, 8)),
        _image(tmp_path / "two.png", (8, 8), (40, 40)),
    ]
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with Detector(tmp_path / "tiny.onnx") as all_boxes, Detector(tmp_path / "tiny.onnx", max_det=1) as one_box:
        counts = [len(all_boxes(cv2.imread(str(path)))) for path in images]
        found = disagreements(("fp32", all_boxes), ("qat", one_box), [*images, tmp_path / "broken.png"])
    assert counts == [0, 1, 2]
    assert (found.images, found.agreeing) == (3, 2)
    (shown,) = found.worst
    assert (shown.image, len(shown.fp32), len(shown.int8), shown.differing) == ("two.png", 2, 1, 1)
    assert sorted(box.matched for box in shown.fp32) == [False, True]
    pixels = cv2.imdecode(np.frombuffer(base64.b64decode(shown.jpeg), np.uint8), cv2.IMREAD_COLOR)
    assert (pixels.shape[1], pixels.shape[0]) == shown.size_wh == (64, 64)
