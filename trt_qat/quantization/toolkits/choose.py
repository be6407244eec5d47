"""From the configured name to the adapter; a package is imported only when it is chosen."""

from __future__ import annotations

from trt_qat.config import ToolkitName
from trt_qat.quantization.toolkits.protocol import Toolkit


def toolkit_from_name(name: ToolkitName) -> Toolkit:
    """The adapter for ``quantization.toolkit``.

    Raises:
        MissingDependency: the package is not installed; the message says how to get it.
    """
    if name == "pytorch-quantization":
        from trt_qat.quantization.toolkits.pytorch_quantization import PytorchQuantizationToolkit

        return PytorchQuantizationToolkit()
    from trt_qat.quantization.toolkits.modelopt import ModelOptToolkit

    return ModelOptToolkit()
