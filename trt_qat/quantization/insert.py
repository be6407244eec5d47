"""Put the quantizers of a placement into a network, in place, and find them again."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from ultralytics.nn.tasks import DetectionModel

from trt_qat.config import QuantizationSection
from trt_qat.errors import QuantizationError
from trt_qat.model.graph import trace
from trt_qat.quantization.placement import Placement, place
from trt_qat.quantization.residual import quantize_adds_
from trt_qat.quantization.toolkits.choose import toolkit_from_name
from trt_qat.quantization.toolkits.protocol import Toolkit
from trt_qat.quantization.zero_point import Grid


@dataclass(frozen=True)
class QuantizedModel:
    """A folded detector whose convolutions are QuantConv2d, with the placement that put the quantizers there.

    ``network`` may be swapped for a copy (an EMA): quantizers are looked up by name each time.
    """

    network: DetectionModel
    names: Mapping[int, str]
    placement: Placement
    toolkit: Toolkit

    def activation_quantizers(self) -> dict[str, nn.Module]:
        """Group name to the one quantizer of that group."""
        return {
            group.name: self.toolkit.input_quantizer(self.network.get_submodule(group.convs[0]))
            for group in self.placement.groups
        }

    def weight_quantizers(self) -> dict[str, nn.Module]:
        """QuantConv2d name to its weight quantizer."""
        return {
            conv: self.toolkit.weight_quantizer(self.network.get_submodule(conv))
            for group in self.placement.groups
            for conv in group.convs
        }

    def amax(self) -> dict[str, Tensor]:
        """Every range: ``activation.<group>`` (scalar), ``weight.<conv>`` (out_channels or 1, 1, 1, 1).

        With scheme ``asymmetric`` also ``zero_point.<group>``, an int64 scalar.
        """
        quantizers = self.activation_quantizers()
        ranges = {f"activation.{k}": self.toolkit.amax(q) for k, q in quantizers.items()}
        ranges |= {f"weight.{k}": self.toolkit.amax(q) for k, q in self.weight_quantizers().items()}
        if self.placement.scheme == "asymmetric":
            ranges |= {f"zero_point.{k}": torch.tensor(self.toolkit.zero_point(q)) for k, q in quantizers.items()}
        return ranges

    def grids(self) -> dict[str, Grid]:
        """Group name to what its quantizer rounds to."""
        return {
            name: Grid(float(self.toolkit.amax(quantizer).detach()), self.toolkit.zero_point(quantizer))
            for name, quantizer in self.activation_quantizers().items()
        }

    def activation_ranges(self) -> dict[str, Tensor]:
        """What :meth:`amax` says without the weights."""
        return {name: value for name, value in self.amax().items() if not name.startswith("weight.")}

    def load_amax_(self, amax: Mapping[str, Tensor]) -> None:
        """Set every range that is given, in place, and switch those quantizers on. It goes to where the network lies.

        Raises:
            QuantizationError: one is not finite or negative, or has another shape than :meth:`amax` gives; or the
                toolkit has no zero points.
        """
        device = next(self.network.parameters()).device
        for kind, quantizers in (("activation", self.activation_quantizers()), ("weight", self.weight_quantizers())):
            for name, quantizer in quantizers.items():
                value = amax.get(f"{kind}.{name}")
                if value is not None:
                    single = kind == "activation" or self.placement.weights == "tensor"
                    count = 1 if single else self.network.get_submodule(name).weight.shape[0]
                    _check_range(value, count, f"{kind}.{name}")
                    self.toolkit.set_amax(quantizer, value.float().to(device))
                    self.toolkit.set_enabled(quantizer, True)
        for name, quantizer in self.activation_quantizers().items():
            if (code := amax.get(f"zero_point.{name}")) is not None:
                self.toolkit.set_zero_point(quantizer, int(code))

    @contextmanager
    def only(self, groups: Collection[str]) -> Iterator[None]:
        """Within: these groups quantize (activation and weights), all others are float. Afterwards all is as before.

        Raises:
            QuantizationError: the placement has no such group.
        """
        _check_groups(groups, self.placement)
        weights = self.weight_quantizers()
        wanted = {quantizer: name in groups for name, quantizer in self.activation_quantizers().items()}
        wanted |= {weights[conv]: group.name in groups for group in self.placement.groups for conv in group.convs}
        before = {quantizer: self.toolkit.enabled(quantizer) for quantizer in wanted}
        try:
            for quantizer, enabled in wanted.items():
                self.toolkit.set_enabled(quantizer, enabled)
            yield
        finally:
            for quantizer, enabled in before.items():
                self.toolkit.set_enabled(quantizer, enabled)

    def quantizers_off(self) -> AbstractContextManager[None]:
        """Within: the network computes in float."""
        return self.only(())

    def leave_float(self, groups: Collection[str], reason: str) -> QuantizedModel:
        """A copy in which these groups have no quantizers; their convolutions join the placement's float ones.

        Args:
            reason: what ``Placement.float_convs`` says about each of them.

        Raises:
            QuantizationError: the placement has no such group.
        """
        _check_groups(groups, self.placement)
        copied = replace(self, network=copy.deepcopy(self.network))
        weights, activations = copied.weight_quantizers(), copied.activation_quantizers()
        for group in self.placement.groups:
            if group.name in groups:
                for quantizer in (activations[group.name], *(weights[conv] for conv in group.convs)):
                    self.toolkit.set_enabled(quantizer, False)
        return replace(copied, placement=self.placement.without(groups, reason))


def _check_range(value: Tensor, count: int, name: str) -> None:
    if value.numel() != count:
        raise QuantizationError(f"The range '{name}' has shape {tuple(value.shape)}, {count} values are needed.")
    if not bool(torch.isfinite(value).all()) or bool((value < 0).any()) or not bool((value > 0).any()):
        low = float(value.min())
        raise QuantizationError(f"The range '{name}' is not finite and positive: {low}. Calibrate again.")


def _check_groups(groups: Collection[str], placement: Placement) -> None:
    unknown = sorted(set(groups) - {group.name for group in placement.groups})
    if unknown:
        raise QuantizationError(f"The placement has no group '{unknown[0]}'.")


def quantize_model(
    network: DetectionModel,
    names: Mapping[int, str],
    section: QuantizationSection,
    placement: Placement | None = None,
) -> QuantizedModel:
    """Trace, place and insert. ``network`` is changed in place; its activation ranges are still to be calibrated.

    Args:
        placement: where the quantizers go; None decides it from the traced graph.

    Raises:
        QuantizationError: the network cannot be traced or nothing is left to quantize.
    """
    placement = placement or place(network, trace(network), section)
    toolkit = toolkit_from_name(section.toolkit)
    insert_quantizers_(network, placement, toolkit)
    return QuantizedModel(network, names, placement, toolkit)


def insert_quantizers_(network: nn.Module, placement: Placement, toolkit: Toolkit) -> None:
    """Monkey-patch each placed convolution to a QuantConv2d and each placed add, in place."""
    adds: dict[str, dict[tuple[int, int], nn.Module]] = {}
    for group in placement.groups:
        quantizer = toolkit.activation_quantizer()
        for name in group.convs:
            conv = _layer(network, name)
            if not isinstance(conv, nn.Conv2d):
                raise QuantizationError(f"'{name}' is a {type(conv).__name__}, the placement expects a convolution.")
            parent, _, leaf = name.rpartition(".")
            setattr(network.get_submodule(parent), leaf, toolkit.quantize_conv(conv, quantizer, placement.weights))
        for add in group.adds:
            adds.setdefault(add.module, {})[add.call, add.operand] = quantizer
    for name, quantizers in adds.items():
        quantize_adds_(_layer(network, name), quantizers, name)


def _layer(network: nn.Module, name: str) -> nn.Module:
    try:
        return network.get_submodule(name)
    except AttributeError as exc:
        raise QuantizationError(f"The placement names '{name}', which the network does not have.") from exc
