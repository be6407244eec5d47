"""A Q/DQ graph in the form that TensorRT-RTX's compiler makes the least float data of; the numbers stay the same.

Both passes answer what its engines show, see docs/compiler.md (TensorRT-RTX 1.7, every compute capability).

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
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from trt_qat.exporter.qdq_passes import copy_of, redirect

_LARGEST = float(np.finfo(np.float16).max)
_SMALLEST = float(np.finfo(np.float16).tiny)


def to_tensorrt_rtx_(graph: gs.Graph) -> None:
    """Both passes, in place, on a graph with one Q/DQ per tensor at its source."""
    requantize_enlarged_(graph)
    channel_factors_(graph)


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
        dequantize = conv.inputs[1].inputs[0] if conv.inputs[1].inputs else None
        if dequantize is not None and dequantize.op == "DequantizeLinear" and dequantize.inputs[1].values.size > 1:
            _move_behind_(graph, conv, dequantize)
    graph.cleanup().toposort()


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
    return max(base, _SMALLEST)


def _largest_sum(conv: gs.Node, dequantize: gs.Node) -> float:
    """The largest magnitude that the convolution's sum can have with a weight scale of 1: no input exceeds -128."""
    levels = np.abs(dequantize.inputs[0].values.astype(np.float64))
    source = conv.inputs[0].inputs
    while source and source[0].op != "DequantizeLinear":
        source = source[0].inputs[0].inputs if copy_of(source[0]) else []
    step = float(source[0].inputs[1].values) if source else 1.0
    return float(levels.sum(axis=tuple(range(1, levels.ndim))).max()) * 128 * step
