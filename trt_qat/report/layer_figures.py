"""What quantization does to each layer of a run's networks: ranges, SQNR, histograms, sensitivity, in one value."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trt_qat.evaluation.group_sensitivity import GroupSensitivity
from trt_qat.quantization.insert import QuantizedModel
from trt_qat.report.record import ConvRecord, FloatLayer, GroupRecord, Histogram, Placement, QuantizerRecord, Step
from trt_qat.training.features.error_monitor import QuantizationNoise, measure_noise

BINS = 96
Batches = Sequence[Tensor]
Noises = Mapping[tuple[str, str], QuantizationNoise]  # by kind and layer


def placement_record(
    calibrated: QuantizedModel, deployed: QuantizedModel, batches: Batches, ranking: Sequence[GroupSensitivity]
) -> Placement:
    """The layers of the deployed network, measured on some images.

    Args:
        calibrated: before the fine-tuning; it may have more groups.
        deployed: what is exported.
        batches: each float32, shape (n, 3, h, w), in [0, 1].
        ranking: what each group of ``calibrated`` costs alone.
    """
    noise = {
        step: {(entry.kind, entry.layer): entry for entry in measure_noise(model, batches, model.amax())}
        for step, model in _steps(calibrated, deployed)
    }
    ends = {step: _ends(model) for step, model in _steps(calibrated, deployed)}
    costs = {row.group: row for row in ranking}
    quantizers, convs = deployed.activation_quantizers(), _int8_convs(deployed)
    spans = _spans(deployed.network, {**_keyed("quantizer", quantizers), **_keyed("conv", convs)}, batches)
    histograms = _histograms(deployed, spans, batches)
    reach = {name: max(map(abs, spans[f"conv {name}"])) for name in convs}
    work = _convolutions(deployed, batches[0][:1], reach)
    groups = tuple(
        GroupRecord(
            name=group.name,
            convs=tuple(work[conv](_quantizers(noise, "weight", conv)) for conv in group.convs),
            adds=tuple(dict.fromkeys(add.module for add in group.adds)),
            activation=tuple(
                entry.model_copy(update={"ends": ends[entry.step].get(group.name)})
                for entry in _quantizers(noise, "activation", group.name)
            ),
            histogram=histograms.get(group.name),
            error=costs[group.name].error if group.name in costs else None,
            map50_95_drop=costs[group.name].map50_95_drop if group.name in costs else None,
        )
        for group in deployed.placement.groups
    )
    left = tuple(FloatLayer(name=name, reason=reason) for name, reason in deployed.placement.float_convs.items())
    return Placement(weights=deployed.placement.weights, groups=groups, float_layers=left, measured_on=_images(batches))


def _images(batches: Batches) -> int:
    return sum(len(batch) for batch in batches)


def _steps(calibrated: QuantizedModel, deployed: QuantizedModel) -> tuple[tuple[Step, QuantizedModel], ...]:
    return ("ptq", calibrated), ("qat", deployed)


def _ends(model: QuantizedModel) -> dict[str, tuple[float, float]]:
    """The least and the largest value of every group's grid, where its scheme is asymmetric."""
    if model.placement.scheme == "symmetric":
        return {}
    return {name: (grid.low, grid.high) for name, grid in model.grids().items()}


def _quantizers(noise: Mapping[Step, Noises], kind: str, layer: str) -> tuple[QuantizerRecord, ...]:
    found = [(step, of_step[kind, layer]) for step, of_step in noise.items() if (kind, layer) in of_step]
    return tuple(QuantizerRecord(step=step, amax=entry.amax, sqnr_db=finite(entry.sqnr_db)) for step, entry in found)


def finite(value: float) -> float | None:
    """The value, None if it is infinite or no number."""
    return round(value, 3) if math.isfinite(value) else None


Spans = Mapping[str, tuple[float, float]]


@torch.no_grad()
def _spans(network: nn.Module, modules: Mapping[str, nn.Module], batches: Batches) -> Spans:
    """Smallest and largest value that each module reads."""
    spans: dict[str, tuple[float, float]] = {}

    def see(name: str, values: Tensor) -> None:
        low, high = (float(edge) for edge in torch.aminmax(values))
        before = spans.get(name, (low, high))
        spans[name] = min(low, before[0]), max(high, before[1])

    _watch(network, modules, see, batches)
    return spans


def _keyed(kind: str, modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """A group may be called as a convolution is."""
    return {f"{kind} {name}": module for name, module in modules.items()}


def _int8_convs(model: QuantizedModel) -> dict[str, nn.Module]:
    return {name: model.network.get_submodule(name) for group in model.placement.groups for name in group.convs}


@torch.no_grad()
def _histograms(model: QuantizedModel, spans: Spans, batches: Batches) -> dict[str, Histogram]:
    """Of what each activation quantizer reads, in equal bins of its span.

    A tensor with several readers counts once for each.
    """
    quantizers, grids, ends = model.activation_quantizers(), model.grids(), _ends(model)
    counted = {
        name: _Counts(spans[f"quantizer {name}"], ends.get(name, (-grid.amax, grid.amax)), grid.step)
        for name, grid in grids.items()
    }
    _watch(model.network, quantizers, lambda name, values: counted[name].add(values), batches)
    images = _images(batches)
    return {name: counts.result(images) for name, counts in counted.items()}


class _Counts:
    """A histogram over a known span, and how many values a range clips or rounds to zero."""

    def __init__(self, span: tuple[float, float], ends: tuple[float, float], step: float) -> None:
        self._low, self._high = span
        self._ends, self._half_step = ends, step / 2
        self._counts = np.zeros(BINS, dtype=np.int64)
        self._clipped = self._vanished = self._zeros = 0

    def add(self, values: Tensor) -> None:
        values = values.detach().float()
        magnitudes = values.abs()
        # a span of one value has no width
        high = self._high if self._high > self._low else self._low + 1e-6
        self._counts += torch.histc(values, BINS, self._low, high).cpu().numpy().astype(np.int64)
        self._clipped += int(((values < self._ends[0]) | (values > self._ends[1])).sum())
        self._zeros += int((magnitudes == 0).sum())
        self._vanished += int(((magnitudes > 0) & (magnitudes < self._half_step)).sum())

    def result(self, images: int) -> Histogram:
        total = int(self._counts.sum())
        return Histogram(
            low=self._low,
            high=self._high,
            counts=tuple(self._counts.tolist()),
            clipped=self._clipped / max(total, 1),
            below_one_step=self._vanished / max(total - self._zeros, 1),
            images=images,
        )


def _watch(
    network: nn.Module, modules: Mapping[str, nn.Module], see: Callable[[str, Tensor], None], batches: Batches
) -> None:
    """Run the batches and show each module's input."""
    with _hooked({name: (module, lambda name, values, _: see(name, values)) for name, module in modules.items()}):
        network.eval()
        for batch in batches:
            network(batch)


Hook = Callable[[str, Tensor, Tensor], None]


@contextmanager
def _hooked(hooks: Mapping[str, tuple[nn.Module, Hook]]) -> Iterator[None]:
    """Within: each hook gets its name, the module's first input and its output."""

    def told(name: str, hook: Hook) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        return lambda _, inputs, output: hook(name, inputs[0], output)

    handles = [module.register_forward_hook(told(name, hook)) for name, (module, hook) in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _convolutions(
    model: QuantizedModel, image: Tensor, reach: Mapping[str, float]
) -> dict[str, Callable[[tuple[QuantizerRecord, ...]], ConvRecord]]:
    """Makers of the record of each INT8 convolution; they lack what its weight's quantizer does.

    Args:
        image: shape (1, 3, h, w).
        reach: the largest magnitude that each reads.
    """
    convs = _int8_convs(model)
    found: dict[str, Callable[[tuple[QuantizerRecord, ...]], ConvRecord]] = {}

    def see(name: str, _: Tensor, output: Tensor) -> None:
        conv: Any = convs[name]
        outputs, inputs, *kernel = conv.weight.shape

        def record(weights: tuple[QuantizerRecord, ...]) -> ConvRecord:
            return ConvRecord(
                name=name,
                weights=weights,
                macs=output[0].numel() * inputs * math.prod(kernel),
                input_max=reach[name],
                input_channels=inputs,
                output_channels=outputs,
                kernel=(kernel[0], kernel[1]),
                depthwise=conv.groups > 1 and inputs == 1,
            )

        found[name] = record

    with _hooked({name: (module, see) for name, module in convs.items()}):
        model.network.eval()(image)
    return found
