from __future__ import annotations

from pathlib import Path

import cv2
import pytest
from tiny_onnx import colour_image, write_tiny_detector

from trt_qat.config import InferSection
from trt_qat.errors import DatasetError
from trt_qat.evaluation.picture import comparison_picture
from trt_qat.runtime.selection import open_runner


def test_the_fullest_readable_image_is_shown_once_per_model(tmp_path: Path) -> None:
    model = write_tiny_detector(tmp_path / "tiny.onnx")
    plain, full = colour_image(64, 64), colour_image(64, 64)
    full[16:48, 16:48] = (0, 0, 255)
    paths = [tmp_path / f"{name}.png" for name in ("broken", "plain", "full")]
    paths[0].write_text("no image")
    for path, image in zip(paths[1:], (plain, full), strict=True):
        path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
    with open_runner(model, "onnxruntime") as first, open_runner(model, "onnxruntime") as second:
        runners = [("a", first), ("b", second)]
        out = comparison_picture(runners, paths, InferSection(), tmp_path / "out" / "shown.jpg")
        shown = cv2.imread(str(out))
        assert shown.shape == (480 + 36, 2 * 480, 3)
        assert shown[200, 240, 2] > 150
        assert (shown[200, 240, :2] < 100).all()
        with pytest.raises(DatasetError, match="Not one of 1 images can be read"):
            comparison_picture(runners, paths[:1], InferSection(), tmp_path / "none.jpg")
    assert not (tmp_path / "none.jpg").exists()
