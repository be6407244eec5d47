"""The network as a graph of tensors, from ``torch.export``.

torch.export was chosen over torch.fx (Ultralytics iterates over ``chunk`` results, which symbolic tracing refuses) and
over the ONNX graph (exporting comes after quantization, and ONNX names have to be mapped back to modules): it runs the
real forward code and every node says which module it came from.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from ultralytics.nn.tasks import DetectionModel

from trt_qat.errors import QuantizationError
from trt_qat.memory import check_memory
from trt_qat.model.architecture import running_module
from trt_qat.model.loading import export_mode
from trt_qat.operators import ATEN_COPIES, Copy, pads_with_copies


@dataclass(frozen=True)
class Operation:
    """One node of the graph and the tensor it produces.

    Args:
        name: unique name of the node and its tensor.
        operator: name without overload, e.g. ``conv2d``, ``add``; ``input`` for the image.
        inputs: names of the tensors it reads; parameters are left out.
        module: dotted name of the innermost module whose code ran it.
        parameter_module: for a convolution, the module that owns its weight.
        repeated: whether that module already ran earlier in the same forward pass.
        keeps_values: False for a copy-like operator used so that it is none, e.g. padding with other values than 0.
    """

    name: str
    operator: str
    inputs: tuple[str, ...]
    module: str
    parameter_module: str = ""
    repeated: bool = False
    keeps_values: bool = True

    @property
    def copy(self) -> Copy | None:
        """What it copies and how, if it only moves values (picking one output of a split included)."""
        return ATEN_COPIES.get(self.operator) if self.keeps_values else None


@dataclass(frozen=True)
class TensorGraph:
    """Operations in execution order."""

    operations: tuple[Operation, ...]

    def __iter__(self) -> Iterator[Operation]:
        return iter(self.operations)

    def consumers(self) -> dict[str, list[Operation]]:
        """Tensor name to the operations that read it."""
        found: dict[str, list[Operation]] = {operation.name: [] for operation in self.operations}
        for operation in self.operations:
            for name in dict.fromkeys(operation.inputs):
                found[name].append(operation)
        return found


def trace(network: DetectionModel, imgsz: int = 64) -> TensorGraph:
    """Trace the deployed forward pass of a folded detector, on the CPU wherever it lies.

    Args:
        network: left untouched (a copy is traced: tracing leaves fake tensors in the head's anchor cache).
        imgsz: side of the traced image; placement does not depend on it.

    Raises:
        QuantizationError: the network cannot be traced; the message names the innermost module that was running.
    """
    copied = copy.deepcopy(network).cpu()
    for parameter in copied.parameters():
        parameter.requires_grad_(False)
    try:
        with export_mode(copied), torch.no_grad():
            images = torch.zeros(1, 3, imgsz, imgsz)
            copied(images)  # fills the head's anchor cache, which must not happen while tracing
            program = torch.export.export(copied, (images,), strict=False)
    except Exception as exc:
        check_memory(exc)
        reason = " ".join(str(exc).split())[:300]
        raise QuantizationError(
            f"torch.export cannot trace {running_module(exc, copied)}, so trt_qat cannot place quantizers in this "
            f"network. {type(exc).__name__}: {reason}"
        ) from exc
    return TensorGraph(tuple(_operations(program)))


def _operations(program: torch.export.ExportedProgram) -> Iterator[Operation]:
    signature = program.graph_signature
    parameter_names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    user_inputs = set(signature.user_inputs)
    tensors: set[str] = set()
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in user_inputs:
            tensors.add(node.name)
            yield Operation(node.name, "input", (), "")
        elif node.op == "call_function":
            inputs = tuple(n.name for n in node.all_input_nodes if n.name in tensors)
            tensors.add(node.name)
            name = _operator_name(node)
            owner = _weight_owner(node, parameter_names) if name.startswith("conv") else ""
            path, run = _module_path(node)
            yield Operation(node.name, name, inputs, path, owner, bool(run), _keeps_values(name, node))


def _operator_name(node: fx.Node) -> str:
    if node.target is operator.getitem:
        return "getitem"
    name = str(getattr(node.target, "_opname", getattr(node.target, "__name__", node.target)))
    return name.rstrip("_")  # in-place variants compute the same


def _keeps_values(name: str, node: fx.Node) -> bool:
    if name == "pad":
        given: dict[str, Any] = dict(zip(("input", "sizes", "mode", "value"), node.args, strict=False)) | node.kwargs
        return pads_with_copies(given.get("mode", "constant"), given.get("value"))
    if name in ("to", "type_as"):
        return bool(node.meta["val"].dtype.is_floating_point)
    return True


def _module_path(node: fx.Node) -> tuple[str, str]:
    """The innermost module and, if it runs for the second time or later, the suffix that counts its runs."""
    stack = list(node.meta.get("nn_module_stack", {}).items())
    if not stack:
        return "", ""
    key, (path, _) = stack[-1]
    return str(path).partition("@")[0], str(key).partition("@")[2]


def _weight_owner(node: fx.Node, parameter_names: dict[str, str]) -> str:
    weight = node.args[1]
    while isinstance(weight, fx.Node) and weight.name not in parameter_names and weight.all_input_nodes:
        weight = weight.all_input_nodes[0]
    name = parameter_names.get(weight.name, "") if isinstance(weight, fx.Node) else ""
    return name.rpartition(".")[0]


def convolutions(network: nn.Module) -> dict[str, nn.Conv2d]:
    """Every ``nn.Conv2d`` of the network by dotted name."""
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
