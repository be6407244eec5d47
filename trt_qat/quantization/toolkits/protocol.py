"""What trt_qat needs of a quantization toolkit, and nothing more: TensorQuantizer and QuantConv2d."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor, nn

from trt_qat.config import ToolkitName, WeightScales


class Toolkit(Protocol):
    """One adapter per package. Quantizers are INT8 fake-quantizers with a fixed range ``amax``, which is 127 steps."""

    name: ToolkitName

    def activation_quantizer(self) -> nn.Module:
        """A per-tensor TensorQuantizer, disabled until it gets a range."""

    def quantize_conv(self, conv: nn.Conv2d, input_quantizer: nn.Module, weights: WeightScales) -> nn.Module:
        """The convolution as a QuantConv2d that reads through ``input_quantizer``.

        Args:
            weights: whether its weight has a scale per output channel or one in all.
        """

    def weight_quantizer(self, conv: nn.Module) -> nn.Module:
        """The weight TensorQuantizer of a QuantConv2d."""

    def input_quantizer(self, conv: nn.Module) -> nn.Module:
        """The activation TensorQuantizer of a QuantConv2d."""

    def is_quant_conv(self, module: nn.Module) -> bool:
        """Whether :meth:`quantize_conv` made this module."""

    def set_amax(self, quantizer: nn.Module, amax: Tensor) -> None:
        """Set the range: a scalar for activations, shape (out_channels or 1, 1, 1, 1) for weights."""

    def amax(self, quantizer: nn.Module) -> Tensor:
        """The range that :meth:`set_amax` set."""

    def set_zero_point(self, quantizer: nn.Module, zero_point: int) -> None:
        """Set the code of zero, 0 to 255, of an activation quantizer; 128, the symmetric grid, until then.

        Raises:
            QuantizationError: the package has no zero points.
        """

    def zero_point(self, quantizer: nn.Module) -> int:
        """The zero point that :meth:`set_zero_point` set."""

    def learn_range(self, quantizer: nn.Module) -> None:
        """Make the range an ``nn.Parameter`` with a gradient.

        Raises:
            QuantizationError: the package has no gradient for it.
        """

    def set_enabled(self, quantizer: nn.Module, enabled: bool) -> None:
        """Quantize, or let values through unchanged."""

    def enabled(self, quantizer: nn.Module) -> bool:
        """Whether the quantizer quantizes, see :meth:`set_enabled`."""

    def exporting(self) -> AbstractContextManager[None]:
        """Within: ``torch.onnx.export`` writes QuantizeLinear and DequantizeLinear."""
