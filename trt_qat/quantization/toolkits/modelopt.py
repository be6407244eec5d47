"""NVIDIA Model Optimizer (nvidia-modelopt), the maintained successor of pytorch-quantization."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from trt_qat.config import ToolkitName, WeightScales
from trt_qat.errors import MissingDependency
from trt_qat.extras import install_hint
from trt_qat.quantization.fake_quant import fake_quantize
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


def _quantize(values: Tensor, quantizer: nn.Module) -> Tensor:
    """ModelOpt's own function takes about four times as long on a CPU, but only it exports Q/DQ."""
    if not torch.onnx.is_in_onnx_export():
        return fake_quantize(values, quantizer._amax)  # type: ignore[arg-type]
    quantizer.backend = None  # type: ignore[assignment]
    try:
        return quantizer._fake_quantize(values)  # type: ignore[operator,no-any-return]
    finally:
        quantizer.backend = _BACKEND  # type: ignore[assignment]


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
