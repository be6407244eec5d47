"""Take convolutions of a finished Q/DQ graph back to float: the search over mixes compiles many and exports one."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_graphsurgeon as gs

from trt_qat.exporter.qdq_passes import copy_of, redirect, weight_dequantizer


def leave_float_(graph: gs.Graph, convs: Collection[str]) -> None:
    """Remove the Q/DQ of these convolutions' weights and inputs, in place; what else reads those inputs reads floats.

    So ``convs`` should be whole scale groups. The graph is one of TensorRT's form, before
    :func:`~trt_qat.exporter.tensorrt_rtx.to_tensorrt_rtx_`.

    Args:
        convs: PyTorch names, e.g. "model.2.cv1.conv".
    """
    for conv in [node for node in graph.nodes if node.op == "Conv"]:
        dequantize = weight_dequantizer(conv)
        if dequantize is None or _weight_of(dequantize) not in convs:
            continue
        levels, scale = (tensor.values for tensor in dequantize.inputs[:2])
        scales = scale.astype(np.float32).reshape([-1] + [1] * (levels.ndim - 1)) if scale.ndim else scale
        conv.inputs[1] = gs.Constant(f"{conv.name}/float_weight", (levels * scales).astype(scale.dtype))
        _float_above(conv.inputs[0])
    graph.cleanup().toposort()


def _weight_of(dequantize: gs.Node) -> str:
    return str(dequantize.inputs[0].name).partition(".weight")[0]


def _float_above(tensor: gs.Tensor) -> None:
    """Drop every pair between this tensor and the operators that compute what it copies."""
    above = tensor.inputs[0] if tensor.inputs else None
    if above is None:
        return
    if above.op == "DequantizeLinear" and above.inputs[0].inputs:
        before = above.inputs[0].inputs[0].inputs[0]
        redirect(tensor, before)
        _float_above(before)
        return
    copy = copy_of(above)
    for read in copy.carried(above.inputs) if copy else ():
        _float_above(read)
