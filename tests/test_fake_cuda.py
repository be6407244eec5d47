"""What GPU users do beside training, on a CUDA device that is not there: no CPU tensor may meet a CUDA one.

Calibration, the search for a calibrator, sensitivity, PyTorch as a runtime, and what export does around
``torch.onnx.export``. That call itself wants values and is not passed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_cuda import CUDA, devices, fake_cuda
from tiny_network import NAMES, tiny_network
from torch._subclasses.fake_tensor import FakeTensorDeviceMismatchError

from trt_qat.checkpoint import Model
from trt_qat.config import ExportSection, QuantizationSection
from trt_qat.evaluation.torch_runner import TorchRunner
from trt_qat.exporter import onnx_export
from trt_qat.mixed_precision.mixes import macs_shares
from trt_qat.model.device import computing_on
from trt_qat.model.loading import fold_batchnorm
from trt_qat.quantization.auto import choose_calibrator
from trt_qat.quantization.calibrate import calibrate_
from trt_qat.quantization.divergence import OutputDivergence
from trt_qat.quantization.histogram import ActivationHistogram
from trt_qat.quantization.insert import QuantizedModel, quantize_model

IMAGES = [np.full((64, 64, 3), 90 * index, np.uint8) for index in range(3)]
SECTION = QuantizationSection(calibrator="max", batch=2, histogram_bins=128)


@pytest.fixture
def quantized() -> QuantizedModel:
    """Three layers and a head, to be calibrated."""
    return quantize_model(fold_batchnorm(tiny_network()), NAMES, SECTION)


@pytest.fixture
def on_cuda() -> Iterator[None]:
    with fake_cuda():
        yield


def test_calibration_leaves_its_ranges_where_the_network_lies(quantized: QuantizedModel, on_cuda: None) -> None:
    with computing_on(quantized.network, CUDA):
        assert devices(quantized.network) == {CUDA}
        calibrate_(quantized, IMAGES, (64, 64), SECTION)
        assert devices(quantized.network) == {CUDA}
        assert {amax.device for amax in quantized.amax().values()} == {CUDA}
    assert devices(quantized.network) == {torch.device("cpu")}


def test_a_range_that_is_left_on_the_cpu_is_found(quantized: QuantizedModel, on_cuda: None) -> None:
    quantized.network.to(CUDA)
    calibrate_(quantized, IMAGES, (64, 64), SECTION)
    quantizer = next(iter(quantized.weight_quantizers().values()))
    quantizer._buffers["_amax"] = quantizer._amax.cpu()
    with pytest.raises(FakeTensorDeviceMismatchError, match="found at least two devices, cuda:0 and cpu"):
        quantized.network(torch.zeros(1, 3, 64, 64, device=CUDA))


def test_numpy_refuses_what_lies_on_a_gpu(on_cuda: None) -> None:
    with pytest.raises(TypeError, match="can't convert cuda:0 tensor to numpy"):
        torch.zeros(3, device=CUDA).numpy()


def test_choosing_a_calibrator_and_measuring_groups(quantized: QuantizedModel, on_cuda: None) -> None:
    counts = np.ones(128)
    histograms = {group.name: ActivationHistogram(counts, 4.0, 3.0) for group in quantized.placement.groups}
    images = torch.zeros(2, 3, 64, 64)
    with computing_on(quantized.network, CUDA):
        calibration = choose_calibrator(quantized, histograms, [lambda: images])
        assert len(calibration.candidates) == 7
        with quantized.only([next(iter(histograms))]):
            assert OutputDivergence(quantized, [images])() >= 0
        assert set(macs_shares(quantized, (64, 64))) == set(histograms)
        assert devices(quantized.network) == {CUDA}


def test_pytorch_as_a_runtime(quantized: QuantizedModel, on_cuda: None) -> None:
    quantized.load_amax_({f"activation.{group.name}": torch.tensor(1.0) for group in quantized.placement.groups})
    model = Model(quantized.network, NAMES, (64, 64), Path("tiny.yaml"), "ptq", quantized)
    with TorchRunner(model, device=CUDA) as runner:
        assert runner.device == "cuda:0"
        (output,) = runner.infer(np.zeros((2, 3, 64, 64), np.float32))
        assert output.shape == (2, 4 + len(NAMES), 256)
        assert devices(model.network) == {CUDA}
    assert devices(model.network) == {torch.device("cpu")}


def test_what_export_does_around_the_exporter(
    quantized: QuantizedModel, on_cuda: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantized.load_amax_({f"activation.{group.name}": torch.tensor(1.0) for group in quantized.placement.groups})
    model = Model(quantized.network, NAMES, (64, 64), Path("tiny.yaml"), "ptq", quantized)
    seen: list[torch.device] = []

    class Exported(Exception):
        """In place of the exporter's graph."""

    def run(network: torch.nn.Module, images: Any, *args: Any, **keys: Any) -> None:
        seen.append(network(*images).device)  # exporting, it decodes into one tensor
        raise Exported

    monkeypatch.setattr(torch.onnx, "export", run)
    with computing_on(model.network, CUDA):
        with pytest.raises(Exported):
            onnx_export._raw_onnx(model.network, quantized, ExportSection(), (64, 64))
        assert seen == [CUDA]
        mixed = quantized.leave_float([quantized.placement.groups[0].name], "a test")
        assert devices(mixed.network) == {CUDA}
        assert onnx_export.raw_output(mixed.network, torch.zeros(1, 3, 64, 64, device=CUDA)).device == CUDA
