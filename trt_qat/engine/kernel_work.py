"""A kernel put together with what the ONNX file knows: operators, module, multiply-accumulates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import isqrt, prod

from trt_qat.engine.compiled import CompiledTensor, Kernel
from trt_qat.engine.onnx_nodes import WORK, OnnxNode, node_by_name
from trt_qat.errors import EngineError
from trt_qat.linter.view import DEQUANTIZE, QUANTIZE, UNKNOWN_MODULE


def make_kernel(
    name: str,
    kind: str,
    onnx_nodes: tuple[str, ...],
    inputs: tuple[CompiledTensor, ...],
    outputs: tuple[CompiledTensor, ...],
    constants: tuple[CompiledTensor, ...],
    nodes: Mapping[str, OnnxNode] | None,
) -> Kernel:
    """A kernel as the compiler lists it, its work counted.

    Args:
        nodes: the ONNX file's nodes by name; None where the file is not at hand.

    Raises:
        EngineError: it convolves or multiplies matrices, and neither its operands nor the file say how much.
    """
    known = {node: _node(node, nodes) for node in onnx_nodes}
    ops = tuple(known[node].op for node in onnx_nodes)
    kernel = Kernel(name, kind, onnx_nodes, inputs, outputs, constants, 0, ops)
    if kernel.is_convolution:
        kernel = replace(kernel, macs=_convolution_macs(kernel, known))
    elif kernel.is_product or "gemm_mha" in name:
        kernel = replace(kernel, macs=_product_macs(kernel, known))
    return replace(kernel, module=_module(known, works=kernel.macs > 0))


def _node(name: str, nodes: Mapping[str, OnnxNode] | None) -> OnnxNode:
    return nodes[name] if nodes and name in nodes else node_by_name(name)


def _module(known: Mapping[str, OnnxNode], works: bool) -> str:
    """The module of the convolution or product, if the kernel does that; else of what it does behind one."""
    ranked = sorted(known.values(), key=lambda node: (node.op in (QUANTIZE, DEQUANTIZE), _is_work(node) != works))
    return next((node.module for node in ranked if node.module not in ("", UNKNOWN_MODULE)), UNKNOWN_MODULE)


def _is_work(node: OnnxNode) -> bool:
    return node.op in WORK


def _convolution_macs(kernel: Kernel, known: Mapping[str, OnnxNode]) -> int:
    """As the ONNX file has it, without channels that the compiler pads; by the operands where the file is not known."""
    said = [node.macs for node in known.values() if node.macs]
    if len(said) == 1:
        return said[0]
    weight = kernel.weight
    if weight is None:
        raise EngineError(f"The weight of convolution '{kernel.name[:80]}' is not listed: its work cannot be counted.")
    met = (kernel.inputs if kernel.is_transposed else kernel.outputs)[0].shape
    return prod(weight.shape) * met[0] * prod(met[2:])


def _product_macs(kernel: Kernel, known: Mapping[str, OnnxNode]) -> int:
    """As the ONNX file has it; by the operands where it does not say its shapes (a free batch axis hides many)."""
    counted = [node.macs for node in known.values() if node.macs != 0]
    said = [macs for macs in counted if macs is not None]
    if said and len(said) == len(counted):
        return sum(said)
    computed = _gemm_macs(kernel) if kernel.kind == "gemm" else None
    if computed is None:
        raise EngineError(
            f"The work of the matrix product '{kernel.name[:80]}' cannot be counted: its shapes are not known."
        )
    return computed


def _gemm_macs(kernel: Kernel) -> int | None:
    """Of ``B x M x K`` times ``B x K x N``, in any order of the last two: the numbers of elements give K squared.

    One operand may be without B, a weight that all share. None unless everything fits exactly.
    """
    operands = [tensor.shape for tensor in (*kernel.inputs, *kernel.constants) if prod(tensor.shape) > 1]
    if len(operands) != 2 or min(map(len, operands)) < 2:
        return None
    left, right = operands
    result = prod(kernel.outputs[0].shape)
    shared = prod(left[:-2]) if len(left) == len(right) > 2 and left[:-2] == right[:-2] else 1
    square, rest = divmod(prod(left) * prod(right), result * shared) if result * shared else (0, 1)
    inner = isqrt(square)
    fits = rest == 0 and inner * inner == square and inner in left[-2:] and inner in right[-2:]
    return result * inner if fits else None
