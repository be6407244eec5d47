"""Critical layers named by what they do in the graph, never by a hard-coded index or class.

``first_conv``  reads the image
``head_last``   a learned convolution after which no other learned convolution comes: the head's last 1x1 layers
``dfl``         a fixed convolution: its weights are constants of the box decoding, see ``operators.is_dfl_weight``
"""

from __future__ import annotations

from torch import nn

from trt_qat.config import Role
from trt_qat.model.graph import Operation, TensorGraph, convolutions
from trt_qat.operators import is_dfl_weight


def roles(network: nn.Module, graph: TensorGraph) -> dict[str, Role]:
    """Dotted name of each critical convolution to its role; ordinary convolutions are left out."""
    modules = convolutions(network)
    found: dict[str, Role] = {}
    conv_ops = [op for op in graph if op.parameter_module in modules]
    for operation in conv_ops:
        if is_dfl_weight(modules[operation.parameter_module].weight.detach().cpu().numpy()):
            found[operation.parameter_module] = "dfl"
    learned_ahead = _reaches_learned_convolution(
        graph, {op.name for op in conv_ops if op.parameter_module not in found}
    )
    inputs = {op.name for op in graph if op.operator == "input"}
    for operation in conv_ops:
        name = operation.parameter_module
        if name in found:
            continue
        if not learned_ahead[operation.name]:
            found[name] = "head_last"
        elif inputs.intersection(operation.inputs):
            found[name] = "first_conv"
    return found


def _reaches_learned_convolution(graph: TensorGraph, learned: set[str]) -> dict[str, bool]:
    consumers: dict[str, list[Operation]] = graph.consumers()
    ahead: dict[str, bool] = {}
    for operation in reversed(graph.operations):
        ahead[operation.name] = any(c.name in learned or ahead[c.name] for c in consumers[operation.name])
    return ahead
