"""One pass of the float network over un-augmented images collects the histogram of every scale group."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from trt_qat import distributed
from trt_qat.errors import QuantizationError
from trt_qat.model.output_error import raw_predictions
from trt_qat.quantization.histogram import HistogramCollector, Histograms, reduce_over_processes_
from trt_qat.quantization.insert import QuantizedModel
from trt_qat.quantization.partial_pass import NothingKept, PassMemory
from trt_qat.quantization.placement import AddOperand
from trt_qat.quantization.residual import OperandQuantizers


@torch.no_grad()
def collect_histograms(
    model: QuantizedModel, batches: Iterable[Tensor], bins: int, kept: PassMemory | None = None
) -> Histograms:
    """Run the float network over the batches and collect one histogram per scale group.

    Several processes (see :mod:`trt_qat.distributed`) each give their own batches and all get the histograms of all.

    Args:
        batches: float32 tensors of shape (n, 3, h, w) in [0, 1]; those that ``kept`` has counted are not among them.
        kept: told after each batch.

    Raises:
        QuantizationError: no batch was given.
    """
    kept = kept or NothingKept()
    two_sided = model.placement.scheme == "asymmetric"
    collectors = {
        group.name: HistogramCollector(bins, kept.histograms.get(group.name), two_sided)
        for group in model.placement.groups
    }
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
    count = kept.done
    device = next(model.network.parameters()).device
    try:
        with model.quantizers_off():
            for batch in batches:
                raw_predictions(model.network, batch.to(device))  # decoded boxes are not needed
                count += 1
                kept.after_batch(lambda: {name: collector.result() for name, collector in collectors.items()})
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
