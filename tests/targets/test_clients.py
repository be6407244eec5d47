"""Each target's file, opened as its user would, finds what the fake-quantized network finds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import yaml
from numpy.typing import NDArray
from onnx import numpy_helper
from scenes import CONFIDENCE, NMS_IOU, detections, share_matched
from ultralytics import YOLO

from trt_qat.runtime.onnxruntime import OnnxRuntimeRunner
from trt_qat.runtime.openvino import OpenVinoRunner
from trt_qat.runtime.runner import Runner, class_names, image_size
from trt_qat.targets.onnx_file import compute_onnxruntime
from trt_qat.targets.openvino import compute as compute_openvino
from trt_qat.vision.detections import Detections

if TYPE_CHECKING:
    from conftest import Exported

    from trt_qat.checkpoint import Model

Inputs = list[NDArray[np.float32]]
Pictures = list[NDArray[np.uint8]]
ALMOST_ALL = 0.95  # of some 50 detections: BF16 and rounding edges move a score over the threshold now and then


def xml_of(folder: Path) -> Path:
    return next(folder.glob("*.xml"))


def computed_by(runner: Runner, inputs: Inputs) -> Inputs:
    with runner:
        return [runner.infer(image)[0] for image in inputs]


# plain clients -----------------------------------------------------------------------------------------------------


def test_plain_openvino_finds_what_the_network_finds(
    exported: Exported, inputs: Inputs, expected: list[Detections]
) -> None:
    """No option set, no rewrite of ours: ``Core().read_model(x.onnx)``."""
    file = exported(target="openvino")
    assert share_matched(expected, detections(compute_openvino(file, inputs))) >= ALMOST_ALL


def test_plain_openvino_computes_its_convolutions_in_int8(exported: Exported) -> None:
    core = openvino.Core()
    for file in (exported(target="openvino"), xml_of(exported(target="openvino", format="openvino"))):
        compiled = core.compile_model(core.read_model(file), "CPU")
        assert convolution_precisions(compiled)["u8"] == 57
        assert sum(convolution_precisions(compiled).values()) == 64


def convolution_precisions(compiled: Any) -> Counter[str]:
    infos = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    return Counter(str(info["runtimePrecision"].astype(str)) for info in infos if is_convolution(info))


def is_convolution(info: Any) -> bool:
    return "layerType" in info and str(info["layerType"].astype(str)) == "Convolution"


@pytest.mark.parametrize("opset", [None, pytest.param(21, marks=pytest.mark.slow), 23])
def test_plain_onnxruntime_takes_every_opset(
    exported: Exported, inputs: Inputs, expected: list[Detections], opset: int | None
) -> None:
    """At its default level, where signed files of opset 21 and above do not even load."""
    file = exported(target="onnxruntime", opset=opset)
    (version,) = [entry.version for entry in onnx.load(file).opset_import if entry.domain in ("", "ai.onnx")]
    assert version == opset or (opset is None and version == 19)
    found = detections(compute_onnxruntime(file, inputs[:2]))
    assert share_matched(expected[:2], found) == 1.0


@pytest.mark.parametrize("keys", [{"target": "ultralytics"}, {"target": "openvino", "format": "openvino"}])
def test_yolo_finds_what_the_network_finds(
    exported: Exported, pictures: Pictures, inputs: Inputs, expected: list[Detections], keys: dict[str, str]
) -> None:
    """Ultralytics' own letterbox and NMS on pictures of another shape than the input."""
    assert share_matched(expected, yolo_detections(exported(**keys), pictures, inputs)) >= ALMOST_ALL


def yolo_detections(file: Path, pictures: Pictures, inputs: Inputs) -> list[Detections]:
    """Of pictures, in network pixels."""
    model: Any = YOLO(str(file), task="detect")
    found = []
    for picture, image in zip(pictures, inputs, strict=True):
        (result,) = model.predict(picture, conf=CONFIDENCE, iou=NMS_IOU, device="cpu", verbose=False)
        height, width = picture.shape[:2]
        side = image.shape[-1]
        ratio = side / max(height, width)
        pad = np.array([side - width * ratio, side - height * ratio] * 2, np.float32) / 2
        boxes = result.boxes.xyxy.numpy() * ratio + np.round(pad - 0.1)
        scores, classes = result.boxes.conf.numpy(), result.boxes.cls.numpy().astype(np.int64)
        found.append(Detections(boxes.astype(np.float32), scores.astype(np.float32), classes))
    return found


# a dynamic batch ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys",
    [
        {"target": "ultralytics"},
        pytest.param({"target": "tensorrt", "precision": "int8+fp32"}, marks=pytest.mark.slow),
        pytest.param({"target": "openvino", "format": "openvino"}, marks=pytest.mark.slow),
    ],
)
def test_yolo_letterboxes_for_a_dynamic_batch(
    exported: Exported, pictures: Pictures, inputs: Inputs, expected: list[Detections], keys: dict[str, str]
) -> None:
    """On pictures that are not square, one at a time and together; to Ultralytics dynamic is any height and width."""
    wide = [picture[:, : picture.shape[1] * 2 // 3] for picture in pictures[:3]]
    assert len({picture.shape for picture in wide}) == 1
    assert wide[0].shape[0] != wide[0].shape[1]
    file = exported(dynamic_batch=True, **keys)
    assert share_matched(expected, yolo_detections(file, pictures, inputs)) >= ALMOST_ALL
    model: Any = YOLO(str(file), task="detect")
    together = model.predict(wide, conf=CONFIDENCE, device="cpu", verbose=False, batch=3)
    alone = [model.predict(picture, conf=CONFIDENCE, device="cpu", verbose=False)[0] for picture in wide]
    assert sum(len(result.boxes) for result in alone) > 0
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.boxes.xyxy.numpy(), other.boxes.xyxy.numpy(), atol=2.0)


@pytest.mark.parametrize(
    "keys",
    [
        {"target": "ultralytics"},
        pytest.param({"target": "tensorrt", "precision": "int8+fp32"}, marks=pytest.mark.slow),
    ],
)
def test_dimensions_of_a_dynamic_batch_are_numbers(exported: Exported, demo_int8: Model, keys: dict[str, str]) -> None:
    file = exported(dynamic_batch=True, **keys)
    model = onnx.load(file)
    shape = [entry.dim_value or entry.dim_param for entry in model.graph.output[0].type.tensor_type.shape.dim]
    anchors = sum((demo_int8.imgsz[0] // stride) ** 2 for stride in (8, 16, 32))
    assert shape[1:] == [4 + len(demo_int8.names), anchors]
    assert shape[0] == ""  # any; a name would be any height and width to Ultralytics
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    assert (session.get_inputs()[0].shape[0], session.get_outputs()[0].shape) == (None, [None, *shape[1:]])


# our runner --------------------------------------------------------------------------------------------------------


def one_dequantizer_per_reader(source: Path, out: Path) -> Path:
    """As other exporters write it: the quantizer once, its dequantizer again for each reader."""
    model = onnx.load(source)
    dequantizers = {
        node.output[0]: node
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and not node.input[0].endswith(".int8")
    }
    copies: dict[str, int] = Counter()
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name not in dequantizers:
                continue
            copies[name] += 1
            again = onnx.NodeProto()
            again.CopyFrom(dequantizers[name])
            again.name, again.output[0] = f"{again.name}.{copies[name]}", f"{name}.{copies[name]}"
            nodes.append(again)
            node.input[index] = again.output[0]
        nodes.append(node)
    assert max(copies.values()) > 1
    del model.graph.node[:]
    model.graph.node.extend(node for node in nodes if node.output[0] not in copies)
    del model.graph.value_info[:]
    onnx.checker.check_model(model)
    onnx.save(model, out)
    return out


@pytest.mark.parametrize(
    "kind",
    ["signed", pytest.param("signed fp16", marks=pytest.mark.slow), "signed, split", "unsigned", "ir folder", "ir xml"],
)
def test_our_openvino_runner_computes_each_kind(
    exported: Exported, inputs: Inputs, expected: list[Detections], tmp_path: Path, kind: str
) -> None:
    """As ONNX Runtime computes the graph that is written, optimizations off; real detections, not the output alone."""
    signed = exported(target="tensorrt", precision="int8+fp32")
    files = {
        "signed": lambda: signed,
        "signed fp16": lambda: exported(target="tensorrt"),
        "signed, split": lambda: one_dequantizer_per_reader(signed, tmp_path / "split.onnx"),
        "unsigned": lambda: exported(target="openvino"),
        "ir folder": lambda: exported(target="openvino", format="openvino"),
        "ir xml": lambda: xml_of(exported(target="openvino", format="openvino")),
    }
    file = files[kind]()
    like = exported(target="tensorrt") if kind == "signed fp16" else signed
    found = computed_by(OpenVinoRunner(file), inputs)
    reference = computed_by(OnnxRuntimeRunner(like, optimize=False), inputs)
    assert share_matched(detections(reference), detections(found)) >= ALMOST_ALL
    assert share_matched(expected, detections(found)) >= ALMOST_ALL


def test_our_openvino_runner_reads_the_metadata_of_a_folder(exported: Exported, demo_int8: Model) -> None:
    with OpenVinoRunner(exported(target="openvino", format="openvino")) as runner:
        assert class_names(runner.metadata) == dict(demo_int8.names)
        assert image_size({**runner.metadata}, (1, 3, None, None)) == demo_int8.imgsz
        assert (runner.metadata["target"], runner.metadata["precision"]) == ("openvino", "int8+fp32")


def test_our_onnxruntime_runner_takes_signed_files_of_new_opsets(
    exported: Exported, inputs: Inputs, expected: list[Detections]
) -> None:
    """TensorRT's form, which ONNX Runtime 1.32 does not load at its default level."""
    file = exported(target="tensorrt", precision="int8+fp32", opset=21)
    with OnnxRuntimeRunner(file) as runner:
        found = [runner.infer(image)[0] for image in inputs[:2]]
    assert share_matched(expected[:2], detections(found)) == 1.0


# what the file says ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "precision", "zero_points"),
    [
        ("tensorrt", "int8+fp16", {(np.int8, 0)}),
        ("tensorrt-rtx", "int8+fp16", {(np.int8, 0)}),
        ("openvino", "int8+fp32", {(np.uint8, 128)}),
        ("onnxruntime", "int8+fp32", {(np.uint8, 128)}),
        ("ultralytics", "int8+fp32", {(np.uint8, 128)}),
    ],
)
def test_form_and_metadata(exported: Exported, target: str, precision: str, zero_points: set[Any]) -> None:
    model = onnx.load(exported(target=target))
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert (metadata["target"], metadata["precision"]) == (target, precision)
    assert [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")] == [19]
    values = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
    quantizers = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    found = {(values[node.input[2]].dtype.type, int(values[node.input[2]])) for node in quantizers}
    assert found == zero_points
    weights = [n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in values]
    assert {values[node.input[0]].dtype.type for node in weights} == {np.int8}
    # one scale per weight for TensorRT-RTX, whose factors per channel stand behind the convolution
    assert {values[node.input[1]].ndim for node in weights} == {0 if target == "tensorrt-rtx" else 1}
    half = np.float16 if precision.endswith("fp16") else np.float32
    assert {values[node.input[1]].dtype.type for node in quantizers} == {half}


def test_openvino_folder_is_as_ultralytics_writes_it(exported: Exported, demo_int8: Model) -> None:
    folder = exported(target="openvino", format="openvino")
    assert {file.name for file in folder.iterdir()} == {"x.xml", "x.bin", "metadata.yaml"}
    metadata = yaml.safe_load((folder / "metadata.yaml").read_text(encoding="utf-8"))
    assert metadata["names"] == dict(demo_int8.names)
    assert (metadata["imgsz"], metadata["stride"], metadata["task"]) == (list(demo_int8.imgsz), 32, "detect")
    assert metadata["args"]["nms"] is False


def test_onnxruntime_session_has_numbers_for_dimensions(exported: Exported, demo_int8: Model) -> None:
    session = onnxruntime.InferenceSession(exported(target="onnxruntime"), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [1, 3, *demo_int8.imgsz]
    assert all(isinstance(axis, int) for axis in session.get_outputs()[0].shape)
