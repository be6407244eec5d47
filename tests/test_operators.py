"""The table of copies against what the operators compute, in ONNX and in PyTorch, and DFL by its weights."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from trt_qat.linter.graph import QdqGraph
from trt_qat.model.graph import Operation, _operations
from trt_qat.operators import ATEN_COPIES, COPIES, ONNX_COPIES, is_dfl_weight, onnx_copy

Array = NDArray[Any]
STEP = 0.07  # of the grid; values reach beyond its ends
# Operator to its inputs behind the data, and its attributes. The data is (1, 4, 6, 6).
ONNX_EXAMPLES: dict[str, tuple[list[Array], dict[str, Any]]] = {
    "Concat": ([np.full((1, 2, 6, 6), 0.31, np.float32)], {"axis": 1}),
    "Split": ([], {"axis": 1, "num_outputs": 2}),
    "Slice": ([np.array([1]), np.array([3]), np.array([2])], {}),
    "Gather": ([np.array([3, 1, 1])], {"axis": 1}),
    "MaxPool": ([], {"kernel_shape": [3, 3]}),
    "Resize": ([np.zeros(0, np.float32), np.array([1, 1, 2, 2], np.float32)], {"mode": "nearest"}),
    "Pad": ([np.array([0, 0, 1, 1, 0, 0, 0, 2])], {}),
    "Tile": ([np.array([1, 2, 1, 1])], {}),
    "Expand": ([np.array([3, 4, 6, 6])], {}),
    "Transpose": ([], {"perm": [0, 2, 3, 1]}),
    "DepthToSpace": ([], {"blocksize": 2}),
    "SpaceToDepth": ([], {"blocksize": 2}),
    "Reshape": ([np.array([4, 36])], {}),
    "Flatten": ([], {"axis": 2}),
    "Squeeze": ([np.array([0])], {}),
    "Unsqueeze": ([np.array([0])], {}),
    "Identity": ([], {}),
    "Cast": ([], {"to": TensorProto.DOUBLE}),
}
COMPUTING: dict[str, tuple[str, list[Array], dict[str, Any]]] = {
    "linear resize": ("Resize", ONNX_EXAMPLES["Resize"][0], {"mode": "linear"}),
    "padding with a number": ("Pad", [np.array([0, 0, 1, 1, 0, 0, 0, 2]), np.float32(0.4)], {}),
    "average": ("AveragePool", [], {"kernel_shape": [3, 3]}),
    "add": ("Add", [np.full(1, 0.4, np.float32)], {}),
}
REPEATING_PADS = ["edge", "reflect"]


def run(op: str, constants: list[Array], attributes: Mapping[str, Any], data: Array) -> list[Array]:
    names = [f"c{number}" for number in range(len(constants))]
    outputs = [f"y{number}" for number in range(2 if op == "Split" else 1)]
    to = attributes.get("to", TensorProto.FLOAT)
    graph = helper.make_graph(
        [helper.make_node(op, ["x", *names], outputs, **attributes)],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, data.shape)],
        [helper.make_tensor_value_info(name, to, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in zip(names, constants, strict=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: list[Array] = session.run(outputs, {"x": data})
    return found


def rounded(values: Array) -> Array:
    """Through INT8 and back, in float64 so that a type of its own changes nothing."""
    return np.clip(np.rint(values.astype(np.float64) / STEP), -128, 127) * STEP


def data() -> Array:
    return np.random.default_rng(0).normal(0, 5, (1, 4, 6, 6)).astype(np.float32)


def commutes(op: str, constants: list[Array], attributes: Mapping[str, Any]) -> bool:
    """Whether rounding before and behind the operator is the same."""
    values = data()
    carried = [rounded(value).astype(np.float32) if op == "Concat" else value for value in constants]
    before = run(op, carried, attributes, rounded(values).astype(np.float32))
    behind = run(op, constants, attributes, values)
    return all(np.allclose(first, rounded(second), atol=1e-5) for first, second in zip(before, behind, strict=True))


@pytest.mark.parametrize("op", ONNX_EXAMPLES)
def test_a_copy_commutes_with_a_quantizer(op: str) -> None:
    constants, attributes = ONNX_EXAMPLES[op]
    assert onnx_copy(op, attributes, lambda: np.zeros(1)) is ONNX_COPIES[op]
    assert commutes(op, constants, attributes)


def test_every_row_has_an_example() -> None:
    assert ONNX_EXAMPLES.keys() == ONNX_COPIES.keys() - {"Upsample"}  # not in opset 19
    assert len(ONNX_COPIES) == len(COPIES)
    assert len(ATEN_COPIES) == sum(len(copy.aten) for copy in COPIES)


@pytest.mark.parametrize("what", COMPUTING)
def test_what_computes_is_no_copy(what: str) -> None:
    op, constants, attributes = COMPUTING[what]
    assert not commutes(op, constants, attributes)
    assert onnx_copy(op, attributes, lambda: constants[1] if len(constants) > 1 else np.zeros(1)) is None


@pytest.mark.parametrize("mode", REPEATING_PADS)
def test_a_pad_that_repeats_is_a_copy_whatever_it_is_given(mode: str) -> None:
    sizes = np.array([0, 0, 1, 1, 0, 0, 0, 2])
    assert onnx_copy("Pad", {"mode": mode}, lambda: None) is ONNX_COPIES["Pad"]
    assert commutes("Pad", [sizes], {"mode": mode})


def test_a_pad_with_an_unknown_number_is_no_copy() -> None:
    assert onnx_copy("Pad", {}, lambda: None) is None
    assert onnx_copy("Pad", {"value": 1.0}, lambda: np.zeros(1)) is None  # opset 10 and earlier


@pytest.mark.parametrize("op", ONNX_EXAMPLES)
def test_drops(op: str) -> None:
    """The first output lacks values of the input where the table says that it may."""
    constants, attributes = ONNX_EXAMPLES[op]
    values = data()
    shown = run(op, constants, attributes, values)[0].astype(np.float32)
    assert (not set(values.ravel()) <= set(shown.ravel())) == ONNX_COPIES[op].drops


def test_joins() -> None:
    joining = [copy.onnx for copy in COPIES if copy.joins]
    assert joining == ["Concat"]
    assert ONNX_COPIES["Concat"].carried(["a", "b"]) == ["a", "b"]
    assert ONNX_COPIES["Gather"].carried(["a", "indices"]) == ["a"]


# One call for each name of the table; x is (1, 4, 8, 8).
ATEN_EXAMPLES: dict[str, Callable[[Tensor], Any]] = {
    "cat": lambda x: torch.cat((x, x * 2), 1),
    "concat": lambda x: torch.concat((x, x * 2), 1),
    "stack": lambda x: torch.stack((x, x * 2), 2).flatten(1, 2),
    "chunk": lambda x: x.chunk(2, 1)[0],
    "split": lambda x: x.split(2, 1)[1],
    "split_with_sizes": lambda x: x.split((1, 3), 1)[1],
    "unbind": lambda x: x.unbind(1)[2].unsqueeze(1),
    "getitem": lambda x: x.chunk(2, 1)[1],
    "slice": lambda x: x[:, 1:3],
    "narrow": lambda x: x.narrow(1, 1, 2),
    "select": lambda x: x[:, 2].unsqueeze(1),
    "index_select": lambda x: x.index_select(1, torch.tensor([3, 1])),
    "max_pool2d": lambda x: functional.max_pool2d(x, 3, 1, 1),
    "max_pool2d_with_indices": lambda x: functional.max_pool2d(x, 3, 1, 1, return_indices=True)[0],
    "upsample_nearest2d": lambda x: functional.interpolate(x, scale_factor=2, mode="nearest"),
    "pad": lambda x: functional.pad(x, (0, 1, 0, 1)),
    "repeat": lambda x: x.repeat(1, 2, 1, 1),
    "tile": lambda x: x.tile(1, 2, 1, 1),
    "expand": lambda x: x[:, :, :1].expand(-1, -1, 5, -1),
    "expand_as": lambda x: x[:, :, :1].expand_as(x),
    "permute": lambda x: x.permute(0, 3, 2, 1),
    "transpose": lambda x: x.transpose(1, 2),
    "swapaxes": lambda x: x.swapaxes(1, 2),
    "movedim": lambda x: x.movedim(1, 2),
    "pixel_shuffle": lambda x: functional.pixel_shuffle(x, 2),
    "pixel_unshuffle": lambda x: functional.pixel_unshuffle(x, 2),
    "reshape": lambda x: x.reshape(1, 2, 8, 16),
    "view": lambda x: x.view(1, 2, 8, 16),
    "view_as": lambda x: x.view_as(torch.zeros(1, 2, 8, 16)),
    "reshape_as": lambda x: x.reshape_as(torch.zeros(1, 2, 8, 16)),
    "unflatten": lambda x: x.unflatten(1, (2, 2)).flatten(1, 2),
    "flatten": lambda x: x.flatten(2).unsqueeze(3),
    "squeeze": lambda x: x[:, :1].squeeze(1).unsqueeze(1),
    "unsqueeze": lambda x: x.unsqueeze(1).flatten(1, 2),
    "alias": torch.ops.aten.alias.default,
    "clone": lambda x: x.clone(),
    "contiguous": lambda x: x.transpose(1, 2).contiguous(),
    "detach": lambda x: x.detach(),
    "dropout": lambda x: functional.dropout(x, training=False),
    "to": lambda x: x.to(torch.float64).to(torch.float32),
    "type_as": lambda x: x.double().type_as(x),
}
NOT_TRACED = {"concat", "contiguous"}  # torch.export writes cat, and a clone or nothing


class Between(nn.Module):
    """An operator between two that compute, so that it is not the graph's end."""

    def __init__(self, operator: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.operator = operator

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.operator(torch.sigmoid(x)))


def traced(operator: Callable[[Tensor], Any]) -> list[Operation]:
    program = torch.export.export(Between(operator).eval(), (torch.rand(1, 4, 8, 8),), strict=False)
    return list(_operations(program))


def test_every_aten_name_has_an_example() -> None:
    assert ATEN_EXAMPLES.keys() == ATEN_COPIES.keys()


@pytest.mark.parametrize("name", ATEN_EXAMPLES)
def test_placement_the_exporter_and_the_lint_agree(name: str) -> None:
    """What is a copy in the traced network is written by the exporter as copies, and nothing else."""
    operations = traced(ATEN_EXAMPLES[name])
    if name not in NOT_TRACED:
        assert name in {operation.operator for operation in operations}
    ignored = {"input", "sigmoid", "mul", "_assert_tensor_metadata", "lift_fresh_copy", "zeros"}
    assert all(operation.copy is not None for operation in operations if operation.operator not in ignored)
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(Between(ATEN_EXAMPLES[name]).eval(), (torch.rand(1, 4, 8, 8),), stream, dynamo=False)
    graph = QdqGraph(onnx.load_from_string(stream.getvalue()))
    written = [node for node in graph.nodes if graph.is_data(node) and node.op not in ("Sigmoid", "Mul")]
    assert [node.op for node in written if not graph.is_copy(node)] == []


@pytest.mark.parametrize(
    "operator",
    [
        lambda x: functional.interpolate(x, scale_factor=2, mode="bilinear"),
        lambda x: functional.pad(x, (1, 1), value=0.5),
        lambda x: functional.avg_pool2d(x, 2),
        lambda x: x.to(torch.int64).float(),
    ],
    ids=["bilinear", "padding with a number", "average", "truncation"],
)
def test_what_computes_separates_tensors(operator: Callable[[Tensor], Any]) -> None:
    operations = [operation for operation in traced(operator) if operation.operator not in ("input", "sigmoid")]
    assert any(operation.copy is None and "assert" not in operation.operator for operation in operations)


def test_padding_with_zeros_by_its_arguments() -> None:
    zeros = [(0, 1, 0, 1), (1, 1)]
    for sizes in zeros:
        (pad,) = (
            op for op in traced(lambda x, sizes=sizes: functional.pad(x, sizes, value=0.0)) if op.operator == "pad"
        )
        assert pad.copy is ATEN_COPIES["pad"]
    (pad,) = (op for op in traced(lambda x: functional.pad(x, (1, 1, 1, 1), mode="reflect")) if op.operator == "pad")
    assert pad.copy is ATEN_COPIES["pad"]


RAMP = np.arange(16, dtype=np.float32).reshape(1, 16, 1, 1)


@pytest.mark.parametrize(
    ("weight", "is_dfl"),
    [
        (RAMP, True),
        (RAMP.astype(np.float16), True),
        (RAMP * 8, True),  # the stride folded in
        (np.rint(RAMP * 127 / 15).astype(np.int8), True),  # as an INT8 file stores it
        (np.arange(32, dtype=np.float32).reshape(1, 32, 1, 1), True),
        (RAMP + np.eye(16, dtype=np.float32)[3].reshape(1, 16, 1, 1) * 0.5, False),
        (RAMP[:, ::-1], False),
        (RAMP * 0, False),
        (-RAMP, False),
        (np.array([0.0, 0.7], np.float32).reshape(1, 2, 1, 1), False),  # two weights are always a ramp
        (np.repeat(RAMP, 2, axis=0), False),
        (RAMP.reshape(1, 1, 4, 4), False),
        (RAMP.reshape(16), False),
    ],
)
def test_is_dfl_weight(weight: Array, is_dfl: bool) -> None:
    assert is_dfl_weight(weight) == is_dfl
