"""NVIDIA pytorch-quantization: no longer developed, still a working choice for those who have it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn

from trt_qat.config import ToolkitName, WeightScales
from trt_qat.errors import MissingDependency, QuantizationError
from trt_qat.quantization.fake_quant import SYMMETRIC
from trt_qat.quantization.weight_range import weight_range

try:
    from pytorch_quantization.nn import QuantConv2d, TensorQuantizer
    from pytorch_quantization.quant_modules import enable_onnx_export
    from pytorch_quantization.tensor_quant import QuantDescriptor
except ImportError as exc:
    raise MissingDependency(
        f"quantization.toolkit=pytorch-quantization needs NVIDIA's package ({exc}). "
        "Run: pip install nvidia-pyindex && pip install pytorch-quantization (it needs a CUDA build of torch), "
        "or keep the default quantization.toolkit=modelopt."
    ) from exc

_PER_TENSOR = QuantDescriptor(num_bits=8, axis=None)
_WEIGHT = {"channel": QuantDescriptor(num_bits=8, axis=(0,)), "tensor": _PER_TENSOR}


class PaddedQuantConv2d(QuantConv2d, nn.Conv2d):  # type: ignore[misc]  # the package has no types
    """The package's QuantConv2d as an ``nn.Conv2d``, which its own is not, and with every padding mode.

    Its own forward knows the modes zeros and circular and takes all others for zeros.
    """

    def __init__(self, conv: nn.Conv2d, weights: WeightScales) -> None:
        nn.Conv2d.__init__(
            self,
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            stride=conv.stride,  # type: ignore[arg-type]
            padding=conv.padding,  # type: ignore[arg-type]
            dilation=conv.dilation,  # type: ignore[arg-type]
            groups=conv.groups,
            bias=conv.bias is not None,
            padding_mode=conv.padding_mode,
        )
        self.init_quantizer(_PER_TENSOR, _WEIGHT[weights])  # type: ignore[operator]
        self.weight = conv.weight
        self.bias = conv.bias

    def forward(self, input: Tensor) -> Tensor:
        """The convolution of the quantized input with the quantized weight."""
        quantized, weight = self._quant(input)  # type: ignore[operator]
        output: Tensor = self._conv_forward(quantized, weight, self.bias)
        return output


class PytorchQuantizationToolkit:
    """Adapter over ``pytorch_quantization.nn``."""

    name: ToolkitName = "pytorch-quantization"

    def activation_quantizer(self) -> nn.Module:
        """See :class:`~trt_qat.quantization.toolkits.protocol.Toolkit`."""
        quantizer: nn.Module = TensorQuantizer(_PER_TENSOR)
        self.set_enabled(quantizer, False)
        return quantizer

    def quantize_conv(self, conv: nn.Conv2d, input_quantizer: nn.Module, weights: WeightScales) -> nn.Module:
        """See the protocol. The package makes a new module, which takes over weights and settings."""
        converted = PaddedQuantConv2d(conv, weights)
        converted._input_quantizer = input_quantizer
        self.set_amax(self.weight_quantizer(converted), weight_range(conv.weight, weights))
        return converted.train(conv.training)

    def weight_quantizer(self, conv: nn.Module) -> nn.Module:
        """See the protocol."""
        quantizer = conv._weight_quantizer
        return quantizer  # type: ignore[return-value]

    def input_quantizer(self, conv: nn.Module) -> nn.Module:
        """See the protocol."""
        quantizer = conv._input_quantizer
        return quantizer  # type: ignore[return-value]

    def is_quant_conv(self, module: nn.Module) -> bool:
        """See the protocol."""
        return isinstance(module, QuantConv2d)

    def set_amax(self, quantizer: nn.Module, amax: Tensor) -> None:
        """See the protocol."""
        if getattr(quantizer, "_amax", None) is not None:
            quantizer._amax.data.copy_(amax)  # type: ignore[operator]
        else:  # its own setter takes no tensor
            quantizer.register_buffer("_amax", amax.detach().clone())

    def amax(self, quantizer: nn.Module) -> Tensor:
        """See the protocol."""
        value: Tensor = quantizer.amax  # type: ignore[assignment]
        return value

    def set_zero_point(self, quantizer: nn.Module, zero_point: int) -> None:
        """See the protocol."""
        if zero_point != SYMMETRIC:
            raise QuantizationError(
                "quantization.scheme=asymmetric needs quantization.toolkit=modelopt: this one has no zero points."
            )

    def zero_point(self, quantizer: nn.Module) -> int:
        """See the protocol."""
        return SYMMETRIC

    def learn_range(self, quantizer: nn.Module) -> None:
        """See the protocol."""
        raise QuantizationError("qat.lsq needs quantization.toolkit=modelopt: this one keeps ranges fixed.")

    def set_enabled(self, quantizer: nn.Module, enabled: bool) -> None:
        """See the protocol."""
        (quantizer.enable if enabled else quantizer.disable)()  # type: ignore[operator]

    def enabled(self, quantizer: nn.Module) -> bool:
        """See the protocol. The package keeps it in a private attribute alone."""
        return not quantizer._disabled

    @contextlib.contextmanager
    def exporting(self) -> Iterator[None]:
        """See the protocol. Up to 2.1 a class switch selects PyTorch's operators; 2.2 has its own context."""
        if not hasattr(TensorQuantizer, "use_fb_fake_quant"):
            with enable_onnx_export():
                yield
            return
        before = TensorQuantizer.use_fb_fake_quant
        TensorQuantizer.use_fb_fake_quant = True
        try:
            yield
        finally:
            TensorQuantizer.use_fb_fake_quant = before
