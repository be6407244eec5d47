"""Fixtures that several folders share. Session-scoped ones are never changed: a test that changes one copies it first.

torch is imported inside the fixtures, so that the folders that need none stay fast.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from torch import Tensor
    from ultralytics.nn.tasks import DetectionModel

    from trt_qat.checkpoint import Model
    from trt_qat.data.dataset import Dataset
    from trt_qat.model.graph import TensorGraph
    from trt_qat.quantization.insert import QuantizedModel

    Traced = Callable[[str], tuple[DetectionModel, TensorGraph]]
    MakeDetector = Callable[..., Model]
    Calibrated = Callable[..., QuantizedModel]

# Before torch is loaded: its idle threads else spin, which makes tiny networks many times slower on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

IMGSZ = 64


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The optional folder with real weights and images beside the project."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "weights").is_dir():
        pytest.skip("the optional folder ../shared is not there")
    return folder


@pytest.fixture(scope="session")
def all_cores() -> None:
    """Ultralytics leaves one core idle when it is imported."""
    import torch
    import ultralytics  # noqa: F401

    torch.set_num_threads(os.cpu_count() or 1)


@pytest.fixture(scope="session")
def demo_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated dataset of 12 train and 6 val images, 128 pixels."""
    from trt_qat.demo.generate import generate_demo_set

    return generate_demo_set(tmp_path_factory.mktemp("demo") / "set", train=12, val=6, size_wh=(128, 128))


@pytest.fixture(scope="session")
def demo(demo_yaml: Path) -> Dataset:
    """The generated dataset, loaded."""
    from trt_qat.data.dataset import load_dataset

    return load_dataset(demo_yaml)


@pytest.fixture(scope="session")
def batches(demo: Dataset) -> tuple[Tensor, ...]:
    """The 12 training images as 3 network inputs, float32 (4, 3, 64, 64)."""
    import numpy as np
    import torch

    from trt_qat.vision.image import read_image_bgr
    from trt_qat.vision.letterbox import network_input

    images = np.concatenate([network_input(read_image_bgr(path), (IMGSZ, IMGSZ))[0] for path in demo.train])
    return tuple(torch.from_numpy(images).split(4))


@pytest.fixture(scope="session")
def make_unfolded(all_cores: None) -> Callable[..., DetectionModel]:
    """Random networks whose BatchNorm statistics fit coloured blobs, so that every layer passes a signal on."""

    def make(architecture: str | Mapping[str, Any], names: Mapping[int, str], seed: int = 0) -> DetectionModel:
        import torch
        from ultralytics.nn.tasks import yaml_model_load

        from trt_qat.model.loading import network_from_architecture

        content = yaml_model_load(architecture) if isinstance(architecture, str) else architecture
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = network_from_architecture(content, names)
            norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
            for norm in norms:
                norm.momentum = 1.0
                torch.nn.init.uniform_(norm.weight, 0.5, 1.0)
                torch.nn.init.normal_(norm.bias, 0.0, 0.2)
            blobs = torch.nn.functional.interpolate(torch.rand(48, 3, 6, 6), 2 * IMGSZ, mode="bilinear")
            with torch.no_grad():
                network.train()(blobs.add_(torch.randn_like(blobs), alpha=0.05).clamp_(0, 1))
                for branch in (*network.model[-1].cv2, *network.model[-1].cv3):
                    branch[-1].weight.mul_(2)  # else every box and score is nearly the bias
            for norm in norms:
                norm.momentum = 0.03
        return network.eval()

    return make


@pytest.fixture(scope="session")
def unfolded(make_unfolded: Callable[..., DetectionModel], demo: Dataset) -> DetectionModel:
    """YOLOv8n for the demo classes."""
    return make_unfolded("yolov8n.yaml", demo.names)


@pytest.fixture(scope="session")
def detector(unfolded: DetectionModel) -> Model:
    """YOLOv8n for the demo classes, random weights, BatchNorm folded."""
    from trt_qat.checkpoint import Model
    from trt_qat.model.loading import class_names, fold_batchnorm, rebuild

    return Model(fold_batchnorm(rebuild(unfolded)), class_names(unfolded), (IMGSZ, IMGSZ), Path("yolov8n.yaml"))


@pytest.fixture(scope="session")
def calibrated(detector: Model, batches: tuple[Tensor, ...]) -> Calibrated:
    """Calibrated copies of ``detector`` by keys of the quantization section, made once each."""
    from trt_qat.config import QuantizationSection
    from trt_qat.quantization.calibrators.base import calibrator_from_section
    from trt_qat.quantization.insert import quantize_model
    from trt_qat.quantization.observe import collect_histograms

    @cache
    def make(**keys: Any) -> QuantizedModel:
        section = QuantizationSection(**{"calibrator": "mse", **keys})
        model = quantize_model(copy.deepcopy(detector.network), detector.names, section)
        histograms = collect_histograms(model, batches, section.histogram_bins)
        model.load_amax_(calibrator_from_section(section).ranges(histograms))
        return model

    return make


@pytest.fixture(scope="session")
def tiny_asymmetric(make_unfolded: Callable[..., DetectionModel], demo: Dataset, batches: tuple[Tensor, ...]) -> Model:
    """Three layers and a head for the demo classes, calibrated with zero points, with BatchNorm apart."""
    from tiny_network import tiny_architecture

    from trt_qat.checkpoint import Model
    from trt_qat.config import QuantizationSection
    from trt_qat.model.loading import fold_batchnorm
    from trt_qat.quantization.calibrators.max import Max
    from trt_qat.quantization.insert import quantize_model
    from trt_qat.quantization.observe import collect_histograms

    names = dict(demo.names)
    unfolded = make_unfolded({**tiny_architecture(), "nc": len(names)}, names)
    folded = fold_batchnorm(copy.deepcopy(unfolded))
    quantized = quantize_model(folded, names, QuantizationSection(scheme="asymmetric"))
    quantized.load_amax_(Max().ranges(collect_histograms(quantized, batches, 4096)))
    size = IMGSZ, IMGSZ
    return Model(folded, names, size, Path("tiny.yaml"), "ptq", quantized, with_batchnorm=unfolded)


@pytest.fixture(scope="session")
def traced(all_cores: None) -> Traced:
    """Folded random network and its graph by architecture name, made once each; masks, keypoints, rotated boxes too."""
    from ultralytics.nn.tasks import DetectionModel, OBBModel, PoseModel, SegmentationModel

    from trt_qat.model.graph import trace
    from trt_qat.model.loading import fold_batchnorm

    classes = {"seg": SegmentationModel, "pose": PoseModel, "obb": OBBModel}

    @cache
    def make(architecture: str) -> tuple[DetectionModel, TensorGraph]:
        task = architecture.removesuffix(".yaml").rpartition("-")[2]
        network = fold_batchnorm(classes.get(task, DetectionModel)(architecture, verbose=False).float().eval())
        return network, trace(network)

    return make


@pytest.fixture(scope="session")
def demo_detector() -> Model:
    """The shipped detector of generated traffic signs: trained, so that its mAP and its detections mean something."""
    from trt_qat.checkpoint import load

    return load(Path(__file__).resolve().parents[1] / "trt_qat" / "demo" / "detector.safetensors")


@pytest.fixture(scope="session")
def demo_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``data.yaml`` of 24 train and 16 val images at the demo's own size, for the shipped detector."""
    from trt_qat.demo.generate import generate_demo_set

    return generate_demo_set(tmp_path_factory.mktemp("demo_set") / "set", train=24, val=16)


@pytest.fixture(scope="session")
def demo_int8(demo_detector: Model, demo_set: Path) -> Model:
    """The shipped detector, calibrated."""
    from trt_qat.api import quantize

    return quantize(demo_detector, demo_set, calibrator="mse")
