"""Residual adds that read INT8: the operands chosen by the placement go through their group's quantizer.

An add is an operator in the middle of some module's ``forward``, so there is no submodule to patch. The module's class
is replaced by a subclass that runs the very same ``forward`` while watching for additions made directly in it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from trt_qat.errors import QuantizationError

_ADDITIONS = frozenset({torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__iadd__, Tensor.__radd__})


class OperandQuantizers(nn.Module):
    """Quantizers of one module's adds, by (call, operand).

    ``observers`` are told the operand's value before it is quantized; calibration sets and removes them.
    """

    def __init__(self, quantizers: Mapping[tuple[int, int], nn.Module]) -> None:
        super().__init__()
        self.observers: dict[tuple[int, int], Callable[[Tensor], None]] = {}
        self.by_call = nn.ModuleDict({f"{call}_{operand}": q for (call, operand), q in quantizers.items()})

    def quantized(self, call: int, operand: int, value: Tensor) -> Tensor:
        """The operand's value as the add shall read it."""
        if observer := self.observers.get((call, operand)):
            observer(value)
        key = f"{call}_{operand}"
        return self.by_call[key](value) if key in self.by_call else value


class _WatchAdds(TorchFunctionMode):
    def __init__(self, owner: nn.Module) -> None:
        super().__init__()
        self._owner = owner
        self._call = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _ADDITIONS and sys._getframe(1).f_locals.get("self") is self._owner:  # not in a child's forward
            call, self._call = self._call, self._call + 1
            if all(isinstance(arg, Tensor) for arg in args[:2]) and len(args) >= 2:
                quantizers = cast(OperandQuantizers, self._owner.residual_quantizers)
                args = (quantizers.quantized(call, 0, args[0]), quantizers.quantized(call, 1, args[1]), *args[2:])
                func = torch.add  # an in-place add would write into the quantized copy
        return func(*args, **(kwargs or {}))


class _QuantizedAdds:
    """Mixin put in front of a module's own class."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with _WatchAdds(cast(nn.Module, self)):
            return cast(Any, super()).forward(*args, **kwargs)


def quantize_adds_(module: nn.Module, quantizers: Mapping[tuple[int, int], nn.Module], name: str) -> None:
    """Make a module's adds read through quantizers, in place.

    Args:
        module: the module whose ``forward`` adds.
        quantizers: (call, operand) to quantizer; calls are numbered in execution order.
        name: the module's dotted name, for the message.

    Raises:
        QuantizationError: the module's ``forward`` was replaced on the instance, so a subclass would not be asked.
    """
    if "forward" in module.__dict__:
        raise QuantizationError(f"'{name}' replaces forward on the instance; set quantization.residual=none for it.")
    module.__class__ = type(f"Quant{type(module).__name__}", (_QuantizedAdds, type(module)), {})
    module.residual_quantizers = OperandQuantizers(quantizers)
