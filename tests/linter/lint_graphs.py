"""A tiny YOLOv8-like detector with the right Q/DQ, and the tools to break it: one defect per test."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

IMAGE = "images"
# What a scale belongs to is part of the placement: split, bottleneck, concat and pool share one.
SCALES = {"image": 1 / 127, "stem": 0.03, "c2f": 0.05, "hidden": 0.02, "neck": 0.04, "head": 0.06}


class Net:
    """Collects nodes and initializers; every tensor is called after the node that makes it."""

    def __init__(self, quantized: bool = True, zero_point: np.generic = np.int8(0)) -> None:  # noqa: B008  a constant
        self.quantized = quantized
        self.zero_point = zero_point
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.random = np.random.default_rng(0)

    def op(self, kind: str, name: str, inputs: list[str], outputs: int = 1, **attributes: object) -> str:
        names = [f"{name}_output_{number}" for number in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, name=name, **attributes))
        return names[0]

    def constant(self, name: str, value: object) -> str:
        self.constants[name] = np.asarray(value)
        return name

    def qdq(self, tensor: str, scale: float) -> str:
        """The tensor after Q and DQ, nodes ``<tensor>/Q`` and ``<tensor>/DQ``; itself in a float net."""
        if not self.quantized:
            return tensor
        pair = [self.constant(f"{tensor}.scale", np.float32(scale)), self.constant(f"{tensor}.zero", self.zero_point)]
        q = self.op("QuantizeLinear", f"{tensor}/Q", [tensor, *pair])
        return self.op("DequantizeLinear", f"{tensor}/DQ", [q, *pair])

    def conv(self, module: str, tensor: str, ins: int, outs: int, kernel: int = 1, int8: bool = True) -> str:
        path = "/" + module.replace(".m.", "/m.").replace(".c", "/c")
        spread = (3 / (ins * kernel**2)) ** 0.5  # keeps the signal alive through SiLU, else every value rounds to 0
        values = self.random.normal(0, spread, (outs, ins, kernel, kernel)).astype(np.float32)
        bias = self.constant(f"{module}.bias", np.zeros(outs, np.float32))
        if int8 and self.quantized:
            scale = np.abs(values).max((1, 2, 3)) / 127
            self.constant(f"{module}.weight", np.round(values / scale[:, None, None, None]).astype(np.int8))
            self.constant(f"{module}.weight.scale", scale.astype(np.float32))
            self.constant(f"{module}.weight.zero", np.zeros(outs, np.int8))
            names = [f"{module}.weight", f"{module}.weight.scale", f"{module}.weight.zero"]
            weight = self.op("DequantizeLinear", f"{module}.weight/DQ", names, axis=0)
        else:
            weight = self.constant(f"{module}.weight", values)
        return self.op("Conv", f"{path}/Conv", [tensor, weight, bias], pads=[kernel // 2] * 4)

    def silu(self, tensor: str) -> str:
        path = tensor.removesuffix("/Conv_output_0")
        gate = self.op("Sigmoid", f"{path}/act/Sigmoid", [tensor])
        return self.op("Mul", f"{path}/act/Mul", [tensor, gate])

    def block(self, module: str, tensor: str, ins: int, outs: int, kernel: int = 1) -> str:
        return self.silu(self.conv(module, tensor, ins, outs, kernel))

    def model(self, output: str, sizes: list[int]) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "tiny",
            [helper.make_tensor_value_info(IMAGE, TensorProto.FLOAT, [1, 3, 16, 16])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, sizes)],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def detector(quantized: bool = True, hidden: int = 16) -> onnx.ModelProto:
    """Stem, C2f with a residual, pool + concat, box and score heads, DFL: all placement rules meet in it."""
    net = Net(quantized)
    x = net.qdq(net.block("model.0", net.qdq(IMAGE, SCALES["image"]), 3, 16, 3), SCALES["stem"])
    x = net.qdq(net.block("model.1.cv1", x, 16, 32), SCALES["c2f"])
    left = net.op("Split", "/model.1/Split", [x], outputs=2, axis=1, num_outputs=2)
    right = "/model.1/Split_output_1"
    y = net.qdq(net.block("model.1.m.0.cv1", right, 16, hidden, 3), SCALES["hidden"])
    y = net.block("model.1.m.0.cv2", y, hidden, 16, 3)
    y = net.qdq(net.op("Add", "/model.1/m.0/Add", [right, y]), SCALES["c2f"])
    joined = net.qdq(net.op("Concat", "/model.1/Concat", [left, right, y], axis=1), SCALES["c2f"])
    x = net.qdq(net.block("model.1.cv2", joined, 48, 32), SCALES["neck"])
    pooled = net.op("MaxPool", "/model.2/MaxPool", [x], kernel_shape=[5, 5], pads=[2] * 4)
    joined = net.op("Concat", "/model.2/Concat", [x, pooled], axis=1)
    x = net.qdq(net.block("model.2.cv2", joined, 64, 32), SCALES["head"])
    return _head(net, x)


def _head(net: Net, x: str) -> onnx.ModelProto:
    box = net.conv("model.3.cv2.1", net.block("model.3.cv2.0", x, 32, 32, 3), 32, 64, int8=False)
    score = net.conv("model.3.cv3.1", net.block("model.3.cv3.0", x, 32, 32, 3), 32, 20, int8=False)
    box = net.op("Reshape", "/model.3/dfl/Reshape", [box, net.constant("dfl_shape", [1, 4, 16, 256])])
    box = net.op("Transpose", "/model.3/dfl/Transpose", [box], perm=[0, 2, 1, 3])
    box = net.op("Softmax", "/model.3/dfl/Softmax", [box], axis=1)
    ramp = net.constant("model.3.dfl.conv.weight", np.arange(16, dtype=np.float32).reshape(1, 16, 1, 1))
    box = net.op("Conv", "/model.3/dfl/conv/Conv", [box, ramp])
    box = net.op("Reshape", "/model.3/dfl/Reshape_1", [box, net.constant("box_shape", [1, 4, 256])])
    box = net.op("Mul", "/model.3/Mul", [box, net.constant("stride", np.float32(8))])
    score = net.op("Reshape", "/model.3/Reshape", [score, net.constant("score_shape", [1, 20, 256])])
    score = net.op("Sigmoid", "/model.3/Sigmoid", [score])
    return net.model(net.op("Concat", "/model.3/Concat", [box, score], axis=1), [1, 24, 256])


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(entry for entry in model.graph.node if entry.name == name)


def set_constant(model: onnx.ModelProto, name: str, value: object) -> str:
    """Replace or add an initializer."""
    for entry in list(model.graph.initializer):
        if entry.name == name:
            model.graph.initializer.remove(entry)
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return name


def insert_qdq(model: onnx.ModelProto, tensor: str, scale: float, readers: list[str], name: str = "planted") -> str:
    """Put a new Q/DQ pair between ``tensor`` and the named ``readers``."""
    pair = [set_constant(model, f"{name}.scale", np.float32(scale)), set_constant(model, f"{name}.zero", np.int8(0))]
    q = helper.make_node("QuantizeLinear", [tensor, *pair], [f"{name}_q"], name=f"{name}/Q")
    dq = helper.make_node("DequantizeLinear", [f"{name}_q", *pair], [f"{name}_dq"], name=f"{name}/DQ")
    for reader in readers:
        rewire(model, reader, tensor, f"{name}_dq")
    position = next((i + 1 for i, entry in enumerate(model.graph.node) if tensor in entry.output), 0)
    model.graph.node.insert(position, dq)
    model.graph.node.insert(position, q)
    return f"{name}_dq"


def rewire(model: onnx.ModelProto, reader: str, old: str, new: str) -> None:
    entry = node(model, reader)
    entry.input[:] = [new if name == old else name for name in entry.input]


def remove_qdq(model: onnx.ModelProto, tensor: str) -> None:
    """Take a pair made by :meth:`Net.qdq` away; its readers read the float tensor."""
    for entry in model.graph.node:
        entry.input[:] = [tensor if name == f"{tensor}/DQ_output_0" else name for name in entry.input]
    for kind in ("Q", "DQ"):
        model.graph.node.remove(node(model, f"{tensor}/{kind}"))


def float_weight(model: onnx.ModelProto, module: str, conv: str) -> None:
    """Take the weight quantization of a convolution away."""
    stored = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
    scale = stored[f"{module}.weight.scale"][:, None, None, None]
    set_constant(model, f"{module}.weight", stored[f"{module}.weight"].astype(np.float32) * scale)
    rewire(model, conv, f"{module}.weight/DQ_output_0", f"{module}.weight")
    model.graph.node.remove(node(model, f"{module}.weight/DQ"))
