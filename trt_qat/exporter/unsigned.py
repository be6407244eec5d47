"""Signed activations as uint8, zero points 128 higher: the same numbers, in the form that CPU runtimes compute right.

OpenVINO's importer computes convolutions behind a Concat of signed Q/DQ wrongly (2025.4 to 2026.4), and ONNX Runtime
1.32 refuses signed files of opset 21 and above at its default level (the quantizer that it inserts behind a MaxPool is
uint8). Both take this form. TensorRT takes only the signed one.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

OFFSET = 128


def to_unsigned_(graph: gs.Graph) -> None:
    """Convert every Q/DQ pair of an activation in place; weights stay int8.

    The level q becomes q + 128, so that the range [-128, 127] is [0, 255] and every value stays what it was.
    """
    codes: dict[int, gs.Constant] = {}
    for node in graph.nodes:
        if node.op not in {"QuantizeLinear", "DequantizeLinear"} or isinstance(node.inputs[0], gs.Constant):
            continue
        code = int(node.inputs[2].values) + OFFSET
        name = "zero_point.uint8" if code == OFFSET else f"zero_point.uint8.{code}"
        node.inputs[2] = codes.setdefault(code, gs.Constant(name, np.array(code, dtype=np.uint8)))
        if node.op == "QuantizeLinear":
            node.outputs[0].dtype = np.dtype(np.uint8)
    graph.cleanup()
