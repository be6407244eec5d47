"""NVIDIA Model Optimizer (nvidia-modelopt), the maintained successor of pytorch-quantization."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from trt_qat.config import ToolkitName, WeightScales
from trt_qat.errors import MissingDependency
from trt_qat.extras import install_hint
from trt_qat.quantization.fake_quant import HIGHEST, LOWEST, SYMMETRIC, fake_quantize
from trt_qat.quantization.weight_range import weight_range

# its import warns, and torch logs, about a CUDA runtime and extensions that are not needed
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
        from modelopt.torch.quantization.nn import QuantModuleRegistry, TensorQuantizer, register_quant_backend
    except ImportError as exc:
        raise MissingDependency(
            f"quantization.toolkit=modelopt needs nvidia-modelopt ({exc}): {install_hint('modelopt')}."
        ) from exc

_BACKEND = "trt_qat"  # ModelOpt's name for a function that quantizes in place of its own
_ZERO_POINT = "trt_qat_zero_point"  # no buffer: it never changes, and on a GPU reading it would stall the queue


def _quantize(values: Tensor, quantizer: nn.Module) -> Tensor:
    """ModelOpt's own function takes about four times as long on a CPU, but only it exports symmetric Q/DQ."""
    zero_point = _zero_point(quantizer)
    if not torch.onnx.is_in_onnx_export():
        return fake_quantize(values, quantizer._amax, zero_point)  # type: ignore[arg-type]
    if zero_point != SYMMETRIC:
        pair: Tensor = _Pair.apply(values, quantizer._amax / HIGHEST, zero_point)  # type: ignore[operator]
        return pair
    quantizer.backend = None  # type: ignore[assignment]
    try:
        return quantizer._fake_quantize(values)  # type: ignore[operator,no-any-return]
    finally:
        quantizer.backend = _BACKEND  # type: ignore[assignment]


class _Pair(torch.autograd.Function):
    """Q/DQ with a zero point, which ModelOpt does not write."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, zero_point: int) -> Tensor:
        """The values themselves: only the graph is wanted."""
        return values.clone()

    @staticmethod
    def symbolic(graph: Any, values: Any, scale: Any, zero_point: int) -> Any:
        """The nodes. int8, as all others are written; a target that takes unsigned ones changes all alike."""
        code = graph.op("Constant", value_t=torch.tensor(zero_point + LOWEST, dtype=torch.int8))
        quantized = graph.op("QuantizeLinear", values, scale, code)
        return graph.op("DequantizeLinear", quantized, scale, code).setType(values.type())


def _zero_point(quantizer: nn.Module) -> int:
    return int(getattr(quantizer, _ZERO_POINT, SYMMETRIC))


register_quant_backend(_BACKEND, _quantize)


class ModelOptToolkit:
    """Adapter over ``modelopt.torch.quantization.nn``."""

    name: ToolkitName = "modelopt"

    def activation_quantizer(self) -> nn.Module:
        """See :class:`~trt_qat.quantization.toolkits.protocol.Toolkit`."""
        quantizer: nn.Module = TensorQuantizer()
        quantizer.backend = _BACKEND  # type: ignore[assignment]
        self.set_enabled(quantizer, False)
        return quantizer

    def quantize_conv(self, conv: nn.Conv2d, input_quantizer: nn.Module, weights: WeightScales) -> nn.Module:
        """See the protocol. ModelOpt changes the class of the very same object."""
        converted: nn.Module = QuantModuleRegistry.convert(conv)
        converted.input_quantizer = input_quantizer
        quantizer = self.weight_quantizer(converted)
        quantizer.backend = _BACKEND  # type: ignore[assignment]
        quantizer.axis = 0 if weights == "channel" else None  # type: ignore[assignment]
        self.set_amax(quantizer, weight_range(conv.weight, weights))
        return converted

    def weight_quantizer(self, conv: nn.Module) -> nn.Module:
        """See the protocol."""
        quantizer = conv.weight_quantizer
        return quantizer  # type: ignore[return-value]

    def input_quantizer(self, conv: nn.Module) -> nn.Module:
        """See the protocol."""
        quantizer = conv.input_quantizer
        return quantizer  # type: ignore[return-value]

    def is_quant_conv(self, module: nn.Module) -> bool:
        """See the protocol."""
        return isinstance(module, nn.Conv2d) and hasattr(module, "weight_quantizer")

    def set_amax(self, quantizer: nn.Module, amax: Tensor) -> None:
        """See the protocol."""
        quantizer.amax = amax

    def amax(self, quantizer: nn.Module) -> Tensor:
        """See the protocol."""
        value: Tensor = quantizer.amax  # type: ignore[assignment]
        return value

    def set_zero_point(self, quantizer: nn.Module, zero_point: int) -> None:
        """See the protocol."""
        setattr(quantizer, _ZERO_POINT, zero_point)

    def zero_point(self, quantizer: nn.Module) -> int:
        """See the protocol."""
        return _zero_point(quantizer)

    def learn_range(self, quantizer: nn.Module) -> None:
        """See the protocol."""
        amax = self.amax(quantizer).detach().clone()
        del quantizer._amax
        quantizer.register_parameter("_amax", nn.Parameter(amax))

    def set_enabled(self, quantizer: nn.Module, enabled: bool) -> None:
        """See the protocol."""
        (quantizer.enable if enabled else quantizer.disable)()  # type: ignore[operator]

    def enabled(self, quantizer: nn.Module) -> bool:
        """See the protocol."""
        return bool(quantizer.is_enabled)

    @contextlib.contextmanager
    def exporting(self) -> Iterator[None]:
        """See the protocol. ModelOpt's symbolic functions are always registered."""
        yield
