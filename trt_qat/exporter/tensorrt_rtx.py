"""A graph in the form of which TensorRT-RTX's compiler makes the least data to move; the numbers stay the same.

All passes answer what its engines show, see docs/compiler.md (TensorRT-RTX 1.7, every compute capability).

*Factors behind the convolution*: an INT8 convolution with a weight scale per channel runs as INT8 in, FP32 out: four
bytes per value go to memory and come back. With one scale for the whole weight it writes FP16. Now
``conv(x, levels * scale[c])`` is ``factor[c] * conv(x, levels * base)`` with ``factor[c] = scale[c] / base``: the
integers stay what they are, and the product is computed by the kernel that applies the activation anyway. It is the
exact form of equalizing channels' ranges: the usual one between two convolutions (Nagel et al. 2019, "Data-Free
Quantization Through Weight Equalization and Bias Correction", section 4.1) changes the result across SiLU, which is
not homogeneous.

*Q/DQ repeated behind an enlargement*: a convolution behind a nearest Resize of INT8 data runs in FP16, with its weight
dequantized by a kernel of its own, unless the pair that stands before the Resize stands behind it too. Values on the
grid stay where they are.

*A convolution per part*: where the result of a float convolution is split (C2f), the compiler copies the parts, once
out of the whole and once into the concat behind. Convolved apart they are written where they are read. It reads the
input once more and does the same arithmetic.
"""

from __future__ import annotations

import itertools

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from trt_qat.exporter.fp16 import SMALLEST_SCALE
from trt_qat.exporter.qdq_passes import copy_of, redirect, weight_dequantizer

_LARGEST = float(np.finfo(np.float16).max)
_ELEMENTWISE = frozenset({"Sigmoid", "Mul", "Relu", "LeakyRelu", "HardSwish", "HardSigmoid", "Tanh"})


def to_tensorrt_rtx_(graph: gs.Graph) -> None:
    """All passes, in place; quantized tensors have one Q/DQ each, at their source."""
    requantize_enlarged_(graph)
    channel_factors_(graph)
    convolve_parts_(graph)


def requantize_enlarged_(graph: gs.Graph) -> None:
    """Repeat the Q/DQ in front of a Resize that only copies behind it, in place."""
    for node in [node for node in graph.nodes if node.op == "Resize" and copy_of(node)]:
        above = node.inputs[0].inputs
        if not above or above[0].op != "DequantizeLinear":
            continue
        scale, zero_point = above[0].inputs[1:3]
        output = node.outputs[0]
        integers = gs.Variable(f"{output.name}.q", dtype=zero_point.dtype, shape=output.shape)
        restored = gs.Variable(f"{output.name}.dq", dtype=output.dtype, shape=output.shape)
        redirect(output, restored)
        pair = (("QuantizeLinear", output, integers), ("DequantizeLinear", integers, restored))
        for op, read, written in pair:
            graph.nodes.append(gs.Node(op, f"{node.name}/{op}", {}, [read, scale, zero_point], [written]))
    graph.cleanup().toposort()


def channel_factors_(graph: gs.Graph) -> None:
    """Give every weight one scale and move the rest of each channel's scale, and the bias, behind its convolution.

    In place. Convolutions whose weight has one scale already, or none, stay as they are.
    """
    for conv in [node for node in graph.nodes if node.op == "Conv"]:
        dequantize = weight_dequantizer(conv)
        if dequantize is not None and dequantize.inputs[1].values.size > 1:
            _move_behind_(graph, conv, dequantize)
    graph.cleanup().toposort()


def convolve_parts_(graph: gs.Graph) -> None:
    """Give each part of a split float convolution a convolution and an activation of its own, in place."""
    graph.toposort()
    for split in [node for node in graph.nodes if node.op == "Split" and node.attrs.get("axis", 0) == 1]:
        found = _elementwise_above(split)
        between = [node for node in graph.nodes if node in found]
        conv = between[0] if between else None
        outputs = list(split.outputs)
        sizes = [output.shape[1] for output in outputs if output.shape and isinstance(output.shape[1], int)]
        if conv is None or len(sizes) < len(outputs) or conv.attrs.get("group", 1) != 1:
            continue
        for part, (end, size) in enumerate(zip(itertools.accumulate(sizes), sizes, strict=True)):
            _copy_part_(graph, between, outputs[part], slice(end - size, end), part)
    graph.cleanup().toposort()


def _elementwise_above(split: gs.Node) -> list[gs.Node]:
    """A float convolution and what stands between it and a split; nothing if anything else reads or makes any of it."""
    found: list[gs.Node] = []
    waiting = [split.inputs[0]]
    while waiting:
        above = waiting.pop().inputs
        if not above or above[0].op not in _ELEMENTWISE | {"Conv"}:
            return []
        if above[0] not in found:
            found.append(above[0])
            waiting += [] if above[0].op == "Conv" else above[0].inputs
    convs = [node for node in found if node.op == "Conv"]
    if len(convs) != 1 or not all(isinstance(tensor, gs.Constant) for tensor in convs[0].inputs[1:]):
        return []
    if any(reader not in [*found, split] for node in found for reader in node.outputs[0].outputs):
        return []
    return found


def _copy_part_(graph: gs.Graph, nodes: list[gs.Node], output: gs.Tensor, channels: slice, part: int) -> None:
    """Copies of these nodes that compute some output channels only, into ``output``, which loses its old maker."""
    made: dict[int, gs.Tensor] = {}
    for node in nodes:
        last = node is nodes[-1]
        old = node.outputs[0]
        shape = [old.shape[0], channels.stop - channels.start, *old.shape[2:]] if old.shape else None
        written = output if last else gs.Variable(f"{old.name}/part{part}", dtype=old.dtype, shape=shape)
        if last:
            output.inputs.clear()
        read = [made.get(id(tensor), tensor) for tensor in node.inputs]
        if node is nodes[0]:
            constants = [gs.Constant(f"{one.name}.part{part}", one.values[channels].copy()) for one in node.inputs[1:]]
            read = [node.inputs[0], *constants]
        graph.nodes.append(gs.Node(node.op, f"{node.name}_part{part}", dict(node.attrs), read, [written]))
        made[id(old)] = written


def _move_behind_(graph: gs.Graph, conv: gs.Node, dequantize: gs.Node) -> None:
    scales: NDArray[np.float32] = dequantize.inputs[1].values
    base = _base(scales, _largest_sum(conv, dequantize))
    shape = (1, -1, *[1] * (dequantize.inputs[0].values.ndim - 2))
    factors = gs.Constant(f"{conv.name}/factors", (scales / base).astype(scales.dtype).reshape(shape))
    dequantize.inputs[1] = gs.Constant(f"{dequantize.name}/scale", np.array(base, dtype=scales.dtype))
    dequantize.inputs[2] = gs.Constant(f"{dequantize.name}/zero_point", np.zeros((), dtype=np.int8))
    dequantize.attrs.pop("axis", None)

    output = conv.outputs[0]
    plain = gs.Variable(f"{conv.name}/plain", dtype=output.dtype, shape=output.shape)
    conv.outputs = [plain]
    bias = conv.inputs.pop(2) if len(conv.inputs) > 2 else None
    scaled = output if bias is None else gs.Variable(f"{conv.name}/scaled", dtype=output.dtype, shape=output.shape)
    graph.nodes.append(gs.Node("Mul", _beside(conv, "Mul"), {}, [plain, factors], [scaled]))
    if bias is not None:
        behind = gs.Constant(f"{bias.name}/behind", bias.values.reshape(shape))
        graph.nodes.append(gs.Node("Add", _beside(conv, "Add"), {}, [scaled, behind], [output]))


def _beside(conv: gs.Node, op: str) -> str:
    """A name in the convolution's own module, by which a compiler's kernel is known to be of it."""
    module, _, leaf = str(conv.name).rpartition("/")
    return f"{module}/{leaf.replace('Conv', op)}"


def _base(scales: NDArray[np.float32], largest_sum: float) -> float:
    """A power of two, so that neither it nor a factor is rounded in FP16: near the middle of the scales.

    Args:
        largest_sum: what the convolution's integers can sum up to, in units of the input's scale.
    """
    middle = float(np.exp2(np.log2(scales.astype(np.float64)).mean()))
    base = float(np.exp2(np.floor(np.log2(min(middle, _LARGEST / largest_sum)))))
    return max(base, SMALLEST_SCALE)


def _largest_sum(conv: gs.Node, dequantize: gs.Node) -> float:
    """The largest magnitude that the convolution's sum can have with a weight scale of 1: no input exceeds -128."""
    levels = np.abs(dequantize.inputs[0].values.astype(np.float64))
    source = conv.inputs[0].inputs
    while source and source[0].op != "DequantizeLinear":
        source = source[0].inputs[0].inputs if copy_of(source[0]) else []
    step = float(source[0].inputs[1].values) if source else 1.0
    return float(levels.sum(axis=tuple(range(1, levels.ndim))).max()) * 128 * step
