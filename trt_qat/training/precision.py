"""Mixed precision of training (``train.amp``, ``qat.amp``): the forward pass in 16 bit, what must be exact in float32.

Exact are the weights, the ranges, the rounding to the INT8 grid (see ``quantization/fake_quant.py``), the loss and its
terms, the gradients' norm, the average of the weights and every validation. Ultralytics' own switch is not used: it
would validate in FP16 and try itself on a network that it downloads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trt_qat.config import Amp
from trt_qat.errors import ConfigError

# PyTorch's own, 65536 and 2000, are for long runs: a scale that is too large costs a step at each halving
_FIRST_SCALE, _GROWS_AFTER = 1024.0, 200
_LOWEST_SCALE = 1.0  # below it not the scale is too large for FP16, but the gradient itself


class Precision:
    """How a run computes its forward passes.

    Args:
        amp: ``none`` is float32 throughout, and changes nothing.
        device: where.
        key: of the setting, for the message.

    Raises:
        ConfigError: the device does not compute in that type.
    """

    def __init__(self, amp: Amp, device: torch.device, key: str = "qat.amp") -> None:
        self._dtype: torch.dtype | None = None if amp == "none" else getattr(torch, amp)
        self._device = device
        if amp == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
            name = torch.cuda.get_device_name(device)
            raise ConfigError(f"{key}=bfloat16: {name} does not compute in it. Set {key}=float16 or none.")

    def forward_in_16_bit_(self, network: nn.Module) -> None:
        """Let the network compute its training loss under autocast, in place; a copy made before stays float32."""
        if self._dtype is not None:
            network.loss = self._autocasted(network.loss)  # type: ignore[assignment]

    def scaler(self) -> torch.amp.GradScaler:
        """Scales the loss so that small gradients are not 0 in FP16; lets everything through in any other type."""
        enabled = self._dtype == torch.float16
        return torch.amp.GradScaler(self._device.type, _FIRST_SCALE, growth_interval=_GROWS_AFTER, enabled=enabled)

    def _autocasted(self, function: Any) -> Callable[..., Any]:
        def autocasted(*args: Any, **keys: Any) -> Any:
            with torch.autocast(self._device.type, self._dtype):
                return function(*args, **keys)

        return autocasted


def is_scale_too_large(scaler: torch.amp.GradScaler) -> bool:
    """Whether a gradient that is not finite may come from the scale alone, which ``scaler.update()`` then lowers."""
    return scaler.is_enabled() and scaler.get_scale() > _LOWEST_SCALE


def exact(device: torch.device) -> torch.autocast:
    """Within: no autocast, whatever stands around it."""
    return torch.autocast(device.type, enabled=False)


def in_float32(predictions: Any) -> Any:
    """Tensors of 16 bit as float32, in mappings, lists and tuples of them; everything else as it is."""
    if isinstance(predictions, Tensor):
        return predictions.float() if predictions.dtype in (torch.bfloat16, torch.float16) else predictions
    if isinstance(predictions, Mapping):
        return {key: in_float32(value) for key, value in predictions.items()}
    if isinstance(predictions, list | tuple):
        return type(predictions)(in_float32(value) for value in predictions)
    return predictions
