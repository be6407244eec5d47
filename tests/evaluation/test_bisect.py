"""The first layer that differs: planted faults are named, right files name none, on every runtime that runs here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from trt_qat import api
from trt_qat.checkpoint import Model
from trt_qat.data.dataset import load_dataset
from trt_qat.errors import RunnerError
from trt_qat.evaluation.bisect import bisect_layers
from trt_qat.evaluation.layers import OUTPUT, _Node, common_layers, layers_of
from trt_qat.evaluation.parity import Side
from trt_qat.evaluation.parity_report import Bisection
from trt_qat.evaluation.torch_runner import TorchRunner
from trt_qat.model.graph import convolutions
from trt_qat.runtime.runner import Runner
from trt_qat.runtime.selection import open_runner

Change = Callable[[NDArray[np.float32]], NDArray[np.float32]]
LIMIT = 35.0


@pytest.fixture(scope="module")
def small(demo_int8: Model) -> Model:
    return replace(demo_int8, imgsz=(160, 160))


@pytest.fixture(scope="module")
def int8(small: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bisect") / "int8.onnx"
    return api.export(small, out, target="openvino", check=False).path


@pytest.fixture(scope="module")
def images(demo_set: Path) -> list[Path]:
    return list(load_dataset(demo_set).val[:2])


def _side(model: Path | Model, runtime: str = "onnxruntime") -> Side:
    runner: Runner = TorchRunner(model) if isinstance(model, Model) else open_runner(model, runtime)
    return Side(str(model.source if isinstance(model, Model) else model), runner)


def _lowest(found: Bisection) -> float:
    return min(row.sqnr for row in found.layers if row.sqnr is not None)


def plant(source: Path, out: Path, module: str, where: str, change: Change) -> Path:
    """One constant of one convolution changed: its ``weight scale``, its ``bias`` or the ``input scale``."""
    model = onnx.load(source)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    ends = f"/{module.rpartition('model.')[2].replace('.', '/')}"
    (conv,) = [node for node in model.graph.node if node.op_type == "Conv" and _path(node.name).endswith(ends)]
    name = {
        "bias": lambda: conv.input[2],
        "weight scale": lambda: makers[conv.input[1]].input[1],
        "input scale": lambda: makers[conv.input[0]].input[1],
    }[where]()
    tensor = stored[name] if name in stored else makers[name].attribute[0].t
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(change(values).astype(values.dtype), tensor.name))
    onnx.save(model, out)
    return out


def _path(name: str) -> str:
    return f"/{_Node(name, '', 'Conv').modules[-1].replace('.', '/')}"


@pytest.mark.parametrize(
    ("node", "module"),
    [
        ("/model.0/conv/Conv", "model.0.conv"),
        ("/model.2/m.0/cv1/act/Mul", "model.2.m.0.cv1.act"),
        ("/model.22/cv2.0/cv2.0.1/conv/Conv", "model.22.cv2.0.1.conv"),  # a list inside of a list
        ("/model.22/cv3.1/cv3.1.2/Conv", "model.22.cv3.1.2"),
    ],
)
def test_a_node_is_in_the_module_that_pytorch_calls_so(node: str, module: str, small: Model) -> None:
    assert _Node(node, "", "Conv").modules[-1] == module
    assert module in dict(small.network.named_modules()) or module.endswith(".act")


def test_every_convolution_is_a_layer_in_pytorch_onnx_and_openvino(small: Model, int8: Path) -> None:
    assert len(convolutions(small.network)) == 64
    sides = [_side(small), _side(int8), _side(int8, "openvino")]
    shapes = [layers_of(Path(side.label), side.runner).shapes for side in sides]
    names = [[*entry] for entry in shapes]
    for found in names:
        assert convolutions(small.network).keys() <= set(found)
        assert found[-1] == OUTPUT
        assert found.index("model.0.conv") < found.index("model.0.act") < found.index("model.1.conv")
    both = common_layers(*(layers_of(Path(side.label), side.runner) for side in sides[1:]))
    head = "model.22"  # it ends twice, in boxes and in scores, and OpenVINO lists them the other way round
    assert set(both) | {head} == set(names[1]) == set(names[2])
    assert [shapes[1][name] for name in both] == [shapes[2][name] for name in both]
    assert {name: shapes[0][name] for name in names[0] if name.endswith(".conv")}.items() <= shapes[1].items()


@pytest.mark.parametrize("pair", ["torch onnxruntime", "onnxruntime openvino", "openvino torch"])
def test_right_files_name_no_layer(pair: str, small: Model, int8: Path, images: list[Path]) -> None:
    first, second = (_side(small) if name == "torch" else _side(int8, name) for name in pair.split())
    found = bisect_layers(first, second, images[:1], LIMIT)
    assert found.first is None
    assert len(found.layers) > 100
    assert _lowest(found) > 50  # an INT8 file differs from itself by a few values that are rounded to the other side


def test_a_planted_fault_is_named(int8: Path, images: list[Path], tmp_path: Path) -> None:
    module = "model.6.m.0.cv2.conv"
    wrong = plant(int8, tmp_path / "wrong.onnx", module, "weight scale", lambda scale: 1.1 * scale)
    found = bisect_layers(_side(int8), _side(wrong), images, LIMIT)
    assert found.first == module
    assert [row.layer for row in found.differing()] == [module]  # what follows gets the right values
    assert found.differing()[0].sqnr == pytest.approx(20, abs=1.5)  # a tenth of all that the layer makes, but its bias
    assert found.images == tuple(image.name for image in images)
    assert f"The first layer that differs is {module} (" in found.lines()[1]


def test_a_fault_in_the_decoding_is_the_output(int8: Path, images: list[Path], tmp_path: Path) -> None:
    model = onnx.load(int8)
    (strides,) = [node for node in model.graph.node if node.name == "/model.22/Mul_2"]
    makers = {name: node for node in model.graph.node for name in node.output}
    tensor = next((entry for entry in model.graph.initializer if entry.name == strides.input[1]), None)
    tensor = tensor if tensor is not None else makers[strides.input[1]].attribute[0].t
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.1), tensor.name))
    onnx.save(model, tmp_path / "wrong.onnx")
    found = bisect_layers(_side(int8), _side(tmp_path / "wrong.onnx"), images[:1], LIMIT)
    assert found.first == "model.22"


def test_an_engine_shows_no_layers(int8: Path, images: list[Path]) -> None:
    side = _side(int8)
    side.runner.name = "tensorrt"
    with pytest.raises(RunnerError, match=r"does not show its layers.*ONNX file that it was built from"):
        bisect_layers(side, _side(int8), images, LIMIT)


def test_nothing_in_common(int8: Path, images: list[Path], tmp_path: Path) -> None:
    model = onnx.load(int8)
    for node in model.graph.node:
        node.name = f"/other{node.name}"
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(RunnerError, match="no layer of one name and shape in common"):
        bisect_layers(_side(int8), _side(tmp_path / "other.onnx"), images, LIMIT)


@pytest.mark.slow
@pytest.mark.parametrize("pair", ["torch onnxruntime", "torch openvino", "onnxruntime openvino"])
@pytest.mark.parametrize(
    ("module", "where", "factor"),
    [
        ("model.0.conv", "weight scale", 1.1),
        ("model.2.cv1.conv", "bias", 0.0),
        ("model.4.m.1.cv1.conv", "weight scale", 0.9),
        ("model.9.cv1.conv", "bias", 2.0),
        ("model.12.cv1.conv", "weight scale", 1.2),
        ("model.18.m.0.cv2.conv", "weight scale", 1.1),
        ("model.21.cv2.conv", "bias", 0.0),
        ("model.22.cv2.0.1.conv", "weight scale", 0.5),
        ("model.22.cv3.2.0.conv", "weight scale", 1.1),
    ],
)
def test_planted_faults_are_named(
    pair: str,
    module: str,
    where: str,
    factor: float,
    small: Model,
    int8: Path,
    images: list[Path],
    tmp_path: Path,
) -> None:
    wrong = plant(int8, tmp_path / "wrong.onnx", module, where, lambda values: factor * values)
    first, second = pair.split()
    right = _side(small) if first == "torch" else _side(int8, first)
    found = bisect_layers(right, _side(wrong, second), images, LIMIT)
    assert [row.layer for row in found.differing()] == [module]
