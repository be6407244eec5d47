"""A Q/DQ pair moves from behind a copy to where the tensor is made, and not a bit of the result changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from trt_qat.exporter.qdq_passes import quantize_at_source_
from trt_qat.linter.graph import QdqGraph
from trt_qat.operators import ONNX_COPIES

# Operator to its inputs behind the data and its attributes. The data is (1, 8, 6, 6).
COPIES: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "Concat": ([np.full((1, 2, 6, 6), 0.3, np.float32)], {"axis": 1}),
    "Split": ([], {"axis": 1, "num_outputs": 1}),
    "Slice": ([np.array([1]), np.array([3]), np.array([2])], {}),
    "Gather": ([np.array([3, 1])], {"axis": 1}),
    "MaxPool": ([], {"kernel_shape": [3, 3]}),
    "Resize": ([np.zeros(0, np.float32), np.array([1, 1, 2, 2], np.float32)], {"mode": "nearest"}),
    "Pad": ([np.array([0, 0, 1, 1, 0, 0, 1, 1])], {}),
    "Tile": ([np.array([1, 2, 1, 1])], {}),
    "Expand": ([np.array([1, 8, 6, 6])], {}),
    "Transpose": ([], {"perm": [0, 1, 3, 2]}),
    "DepthToSpace": ([], {"blocksize": 2}),
    "SpaceToDepth": ([], {"blocksize": 2}),
    "Reshape": ([np.array([1, 8, 4, 9])], {}),
    "Flatten": ([], {"axis": 1}),
    "Squeeze": ([np.array([], np.int64)], {}),
    "Unsqueeze": ([np.array([4])], {}),
    "Identity": ([], {}),
}
STAY = {
    "Cast": ([], {"to": TensorProto.DOUBLE}),  # above it the scale would need another type
    "AveragePool": ([], {"kernel_shape": [3, 3]}),
    "Resize": (COPIES["Resize"][0], {"mode": "linear"}),
    "Pad": ([np.array([0, 0, 1, 1, 0, 0, 1, 1]), np.float32(1)], {}),
}


def graph(op: str, constants: list[Any], attributes: dict[str, Any]) -> onnx.ModelProto:
    """Relu -> ``op`` -> Q -> DQ."""
    scale = np.array(0.05, np.float64 if op == "Cast" else np.float32)
    stored = {f"c{number}": np.asarray(value) for number, value in enumerate(constants)}
    stored |= {"scale": scale.astype(np.float32), "zero": np.zeros((), np.int8)}
    nodes = [
        helper.make_node("Relu", ["x"], ["made"], name="maker"),
        helper.make_node(op, ["made", *[f"c{number}" for number in range(len(constants))]], ["copied"], **attributes),
    ]
    source = "copied"
    if op == "Cast":
        nodes.append(helper.make_node("Cast", ["copied"], ["back"], to=TensorProto.FLOAT))
        source = "back"
    nodes += [
        helper.make_node("QuantizeLinear", [source, "scale", "zero"], ["q"], name="Q"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"], name="DQ"),
        helper.make_node("Sigmoid", ["dq"], ["y"], name="reader"),
    ]
    made = helper.make_graph(
        nodes,
        "copies",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def moved(model: onnx.ModelProto) -> onnx.ModelProto:
    imported = gs.import_onnx(onnx.shape_inference.infer_shapes(model))
    quantize_at_source_(imported)
    return gs.export_onnx(imported)


def result(model: onnx.ModelProto) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = np.random.default_rng(0).normal(0, 3, (1, 8, 6, 6)).astype(np.float32)
    output: NDArray[np.float32] = session.run(["y"], {"x": values})[0]
    return output


def quantized_makers(model: onnx.ModelProto) -> list[str]:
    """The operators whose results are quantized."""
    view = QdqGraph(model)
    return [maker.op for node in view.quantizers if (maker := view.producer(node.inputs[0])) is not None]


@pytest.mark.parametrize("op", COPIES)
def test_the_pair_moves_to_the_source(op: str) -> None:
    model = graph(op, *COPIES[op])
    if op == "Concat":  # a constant part has no source to move to; it must be quantized already
        model.graph.initializer.remove(next(entry for entry in model.graph.initializer if entry.name == "c0"))
        model.graph.node.insert(1, helper.make_node("Neg", ["made"], ["c0"], name="other"))
    done = moved(model)
    assert sorted(quantized_makers(done)) == (["Neg", "Relu"] if op == "Concat" else ["Relu"])
    assert np.array_equal(result(done), result(model))


@pytest.mark.parametrize("op", STAY)
def test_the_pair_stays_behind_what_computes(op: str) -> None:
    model = graph(op, *STAY[op])
    done = moved(model)
    assert quantized_makers(done) == [op]
    assert np.array_equal(result(done), result(model))


def test_every_copy_moves() -> None:
    assert COPIES.keys() == ONNX_COPIES.keys() - {"Cast", "Upsample"}
