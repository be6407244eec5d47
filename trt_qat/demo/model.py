"""The shipped detector of generated signs as an INT8 file: what ``infer`` shows itself with where no model is yet."""

from __future__ import annotations

import tempfile
from pathlib import Path

from trt_qat import api
from trt_qat.artifacts import OnnxArtifact
from trt_qat.checkpoint import load
from trt_qat.demo.generate import generate_demo_set
from trt_qat.demo.shipped import DETECTOR
from trt_qat.progress import SILENT, Progress

_IMAGES = 32


def export_demo_model(out: Path, progress: Progress = SILENT) -> OnnxArtifact:
    """Calibrate the shipped detector on generated images and write it for OpenVINO.

    Raises:
        ArtifactError: ``out`` cannot be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        data = generate_demo_set(Path(folder) / "data", train=_IMAGES, val=1, progress=progress)
        int8 = api.quantize(load(DETECTOR), data, calibrator="mse", progress=progress)
    return api.export(int8, out, target="openvino", progress=progress)
