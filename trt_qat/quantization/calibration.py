"""Calibration: one pass over un-augmented images collects every histogram; a cache makes the second time instant."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn

from trt_qat import distributed
from trt_qat.artifacts import atomic_path
from trt_qat.config import Calibrator, QuantizationSection
from trt_qat.errors import QuantizationError
from trt_qat.model.output_error import raw_predictions
from trt_qat.quantization.calibrators import amax_from_histogram
from trt_qat.quantization.histogram import (
    SAMPLES_PER_IMAGE,
    ActivationHistogram,
    HistogramCollector,
    reduce_over_processes_,
)
from trt_qat.quantization.insert import QuantizedModel
from trt_qat.quantization.placement import AddOperand
from trt_qat.quantization.residual import OperandQuantizers

Histograms = dict[str, ActivationHistogram]


@torch.no_grad()
def collect_histograms(model: QuantizedModel, batches: Iterable[Tensor], bins: int) -> Histograms:
    """Run the float network over the batches and collect one histogram per scale group.

    Several processes (see :mod:`trt_qat.distributed`) each give their own batches and all get the histograms of all.

    Args:
        batches: float32 tensors of shape (n, 3, h, w) in [0, 1].

    Raises:
        QuantizationError: no batch was given.
    """
    collectors = {group.name: HistogramCollector(bins) for group in model.placement.groups}
    handles = [
        model.network.get_submodule(conv).register_forward_pre_hook(_observer(collectors[group.name]))
        for group in model.placement.groups
        for conv in group.observed
    ]
    operands = [(group.name, add) for group in model.placement.groups for add in group.observed_adds]
    for name, add in operands:
        _operand_quantizers(model, add).observers[add.call, add.operand] = collectors[name].add
    was_training = model.network.training
    model.network.eval()
    count = 0
    device = next(model.network.parameters()).device
    try:
        with model.quantizers_off():
            for batch in batches:
                raw_predictions(model.network, batch.to(device))  # decoded boxes are not needed
                count += 1
    finally:
        for handle in handles:
            handle.remove()
        for _, add in operands:
            _operand_quantizers(model, add).observers.clear()
        model.network.train(was_training)
    if int(distributed.all_sum(torch.tensor(count))) == 0:
        raise QuantizationError("Calibration got no image. Give a dataset with at least one training image.")
    reduce_over_processes_(list(collectors.values()))
    return {name: collector.result() for name, collector in collectors.items()}


def _operand_quantizers(model: QuantizedModel, add: AddOperand) -> OperandQuantizers:
    return cast(OperandQuantizers, model.network.get_submodule(f"{add.module}.residual_quantizers"))


def _observer(collector: HistogramCollector) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def observe(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        collector.add(inputs[0])

    return observe


def calibrate_(model: QuantizedModel, histograms: Histograms, section: QuantizationSection) -> None:
    """Set every activation range from its histogram with the configured calibrator, in place.

    Raises:
        QuantizationError: the calibrator is ``auto``, which needs images to compare the candidates on.
    """
    if section.calibrator == "auto":
        raise QuantizationError("calibrator=auto has to be resolved on images first. Give the calibrator it chose.")
    model.load_amax_(activation_ranges(histograms, section.calibrator, section.percentile))


def activation_ranges(histograms: Histograms, calibrator: Calibrator, percentile: float) -> dict[str, Tensor]:
    """The range of every group, named as :meth:`QuantizedModel.load_amax_` takes it."""
    return {
        f"activation.{name}": torch.tensor(amax_from_histogram(histogram, calibrator, percentile))
        for name, histogram in histograms.items()
    }


def cache_key(model: QuantizedModel, data_sha256: str, imgsz: int, bins: int) -> str:
    """Everything that decides the histograms, as one hash: weights, images, preprocessing, placement, bins.

    The calibrator is left out on purpose: changing it needs no new pass over the images.
    """
    digest = hashlib.sha256()
    for name, tensor in model.network.state_dict().items():
        if "quantizer" not in name:
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes())
    scheme = f"power-of-two-limit-{SAMPLES_PER_IMAGE}-samples"
    recipe = [data_sha256, "letterbox-114-rgb-255", scheme, imgsz, bins, model.placement.as_dict()["groups"]]
    digest.update(json.dumps(recipe, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def save_histograms(path: Path, histograms: Histograms) -> None:
    """Write a calibration cache, whole or not at all."""
    tensors = {f"{name}.counts": histogram.counts for name, histogram in histograms.items()}
    limits = {name: [histogram.limit, histogram.maximum] for name, histogram in histograms.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"limits": json.dumps(limits)})


def load_histograms(path: Path) -> Histograms | None:
    """Read a calibration cache; None if there is none or it is damaged (it is then made anew)."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="np") as stream:
            limits = json.loads(stream.metadata()["limits"])
            return {
                name: ActivationHistogram(stream.get_tensor(f"{name}.counts"), float(limit), float(maximum))
                for name, (limit, maximum) in limits.items()
            }
    except (SafetensorError, KeyError, ValueError, TypeError, OSError):
        return None
