"""The shipped detector, calibrated and exported: real detections on generated street scenes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray
from scenes import detections

from trt_qat.config import ExportSection
from trt_qat.vision.detections import Detections

if TYPE_CHECKING:
    from trt_qat.checkpoint import Model

    Exported = Callable[..., Path]

NAMES = {"onnx": "x.onnx", "openvino": "x_openvino_model", "engine": "x.engine"}


@pytest.fixture(scope="session")
def exported(demo_int8: Model, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Files of the calibrated demo detector by keys of the export section, made once each.

    Those that leave all but target and format open go through the gate.
    """
    from trt_qat.targets.export import export

    made: dict[str, Path] = {}

    def make(**keys: object) -> Path:
        section = ExportSection.model_validate({"check": keys.keys() <= {"target", "format"}, **keys})
        if str(section) not in made:
            out = tmp_path_factory.mktemp("exported") / NAMES[section.format]
            made[str(section)] = export(demo_int8, out, section).path
        return made[str(section)]

    return make


@pytest.fixture(scope="session")
def pictures(demo_set: Path) -> list[NDArray[np.uint8]]:
    """Eight street scenes, uint8 BGR."""
    from trt_qat.data.dataset import load_dataset
    from trt_qat.vision.image import read_image_bgr

    return [read_image_bgr(path) for path in load_dataset(demo_set).val[:8]]


@pytest.fixture(scope="session")
def inputs(pictures: list[NDArray[np.uint8]], demo_int8: Model) -> list[NDArray[np.float32]]:
    """The same scenes as network inputs, (1, 3, 320, 320)."""
    from trt_qat.vision.letterbox import network_input

    return [network_input(picture, demo_int8.imgsz)[0] for picture in pictures]


@pytest.fixture(scope="session")
def expected(inputs: list[NDArray[np.float32]], demo_int8: Model) -> list[Detections]:
    """What the fake-quantized network detects, in network pixels."""
    import torch

    from trt_qat.model.loading import raw_output

    found = detections([raw_output(demo_int8.network, torch.from_numpy(image)).numpy() for image in inputs])
    assert sum(map(len, found)) >= 16
    return found
