"""Another activation in SiLU's place, which a CPU computes faster: hard-swish or ReLU (``qat.activation``).

The network is built anew from its architecture with ``activation`` set, so that every file written later says it. What
comes out is another function: it has to be trained, see :mod:`trt_qat.training.activation`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from torch import nn
from ultralytics.nn.tasks import DetectionModel

from trt_qat.config import Activation
from trt_qat.errors import ConfigError
from trt_qat.model.loading import rebuild

REPLACEMENTS: Mapping[Activation, type[nn.Module]] = MappingProxyType({"hardswish": nn.Hardswish, "relu": nn.ReLU})


def has_silu(network: nn.Module) -> bool:
    """Whether a SiLU is left in a network."""
    return any(isinstance(module, nn.SiLU) for module in network.modules())


def with_activation(network: DetectionModel, activation: Activation, source: Path = Path("network")) -> DetectionModel:
    """The same detector with its weights, each SiLU replaced and nothing else. The network is left as it is.

    Args:
        network: float; its BatchNorm apart or folded, and so is the result's.
        activation: not ``keep``.
        source: the file it came from, for messages.

    Raises:
        ConfigError: it has no SiLU, or one that its architecture does not name.
    """
    before = _classes(network)
    kind = REPLACEMENTS[activation]
    if not has_silu(network):
        raise ConfigError(f"qat.activation={activation}: '{source}' has no SiLU to replace. Set qat.activation=keep.")
    changed = rebuild(network, source, activation=f"torch.nn.{kind.__name__}()")
    for name, found in _classes(changed).items():
        if found is not (kind if before[name] is nn.SiLU else before[name]):
            raise ConfigError(
                f"qat.activation={activation}: layer '{name}' of '{source}' has an activation of its own "
                f"({before[name].__name__}), which its architecture does not name. Set qat.activation=keep."
            )
    return changed


def _classes(network: nn.Module) -> dict[str, type[nn.Module]]:
    """The class of every module by its name; blocks that share an activation each have a name for it."""
    return {name: type(module) for name, module in network.named_modules(remove_duplicate=False)}
