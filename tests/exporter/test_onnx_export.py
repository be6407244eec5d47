"""The exported file: valid, INT8 where it should be, and numerically the fake-quantized network."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor
from ultralytics import YOLO

from trt_qat.checkpoint import Model
from trt_qat.config import ExportSection, Precision, Residual
from trt_qat.errors import ExportError
from trt_qat.evaluation.parity import cosine
from trt_qat.exporter.onnx_export import _raw_onnx, export_onnx
from trt_qat.linter.picture import layout
from trt_qat.linter.report import lint
from trt_qat.model.loading import fold_batchnorm, raw_output
from trt_qat.runtime.onnxruntime import OnnxRuntimeRunner
from trt_qat.runtime.openvino import OpenVinoRunner

if TYPE_CHECKING:
    from conftest import Calibrated
    from ultralytics.nn.tasks import DetectionModel

    from trt_qat.data.dataset import Dataset

RESIDUALS = (pytest.param("none", marks=pytest.mark.slow), "skip", "both")
WITH_MORE = ("skip", pytest.param("both", marks=pytest.mark.slow))
Exported = Callable[..., Path]
Array = NDArray[np.float32]


def quantized_model(calibrated: Calibrated, residual: Residual) -> Model:
    model = calibrated(residual=residual)
    return Model(model.network, model.names, (64, 64), Path("yolov8n.yaml"), "ptq", model)


@pytest.fixture(scope="module")
def exported(calibrated: Calibrated, detector: Model, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Files by (precision, residual, further export keys), made once each."""
    folder = tmp_path_factory.mktemp("onnx")

    def make(precision: Precision = "int8+fp32", residual: Residual = "skip", **keys: object) -> Path:
        extra = "-".join(f"{key}{value}" for key, value in keys.items())
        path = folder / f"{precision}-{residual}-{extra}.onnx"
        if not path.exists():
            model = quantized_model(calibrated, residual) if precision.startswith("int8") else detector
            section = ExportSection.model_validate({"precision": precision, **keys})
            assert export_onnx(model, path, section).precision == precision
        return path

    return make


def run(path: Path, batch: Tensor | Array, optimize: bool = False) -> Array:
    images = batch.numpy() if isinstance(batch, Tensor) else batch
    with OnnxRuntimeRunner(path, optimize=optimize) as runner:
        (output,) = runner.infer(images)
    return output


def initializers(model: onnx.ModelProto) -> dict[str, NDArray[np.generic]]:
    return {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}


def producers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {output: node for node in model.graph.node for output in node.output}


def assert_close_per_output(found: Array, expected: Array, lowest: float) -> None:
    """Boxes and scores apart: boxes are hundreds of pixels and would hide any error of the scores."""
    assert found.shape == expected.shape
    assert cosine(found[:, :4], expected[:, :4]) > lowest
    assert cosine(found[:, 4:], expected[:, 4:]) > lowest


# INT8 ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("residual", RESIDUALS)
def test_int8_file_is_valid_and_clean(exported: Exported, residual: Residual) -> None:
    path = exported(residual=residual)
    onnx.checker.check_model(str(path), full_check=True)
    report = lint(path)
    assert (report.errors, report.warnings) == (0, 0), report.as_text()
    assert report.counts.avoidable_round_trips == 0
    assert (report.counts.convs, report.counts.int8_convs) == (64, 57)


@pytest.mark.parametrize("residual", RESIDUALS)
def test_one_scale_per_group_of_the_placement(exported: Exported, calibrated: Calibrated, residual: Residual) -> None:
    model = calibrated(residual=residual)
    scales = {float(model.amax()[f"activation.{group.name}"]) / 127 for group in model.placement.groups}
    values = initializers(onnx.load(exported(residual=residual)))
    found = {float(value) for value in activation_scales(onnx.load(exported(residual=residual)), values).values()}
    assert sorted(found) == pytest.approx(sorted(scales), rel=1e-6)


def test_the_drawing_knows_layers_by_the_placements_names(exported: Exported, calibrated: Calibrated) -> None:
    """So that a page colours a box, and the lines into it, by what was measured of its layer."""
    pytest.importorskip("pygraphviz")
    drawing = layout(exported())
    layers = {box.key: box.module for box in drawing.boxes if box.kind == "int8"}
    groups = calibrated(residual="skip").placement.groups
    assert sorted(layers.values()) == sorted(conv for group in groups for conv in group.convs)
    read = {layers[edge.end]: edge.group for edge in drawing.edges if edge.end in layers}
    assert all(len({read[conv] for conv in group.convs}) == 1 for group in groups)
    assert len(set(read.values())) == len(groups)
    assert len(drawing.model_dump_json()) < 100_000


def activation_scales(model: onnx.ModelProto, values: dict[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
    return {node.name: values[node.input[1]] for node in model.graph.node if node.op_type == "QuantizeLinear"}


@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_same_numbers_as_the_fake_quantized_network(
    exported: Exported,
    calibrated: Calibrated,
    detector: Model,
    batches: tuple[Tensor, ...],
    residual: Residual,
    runtime: str,
) -> None:
    """Close on every image, and equal to float precision on most.

    Not on all: where float32 sums of another order end on the other side of a rounding edge, one value moves by a
    whole step, and what follows moves with it (which image that is depends on the CPU).
    """
    path = exported(residual=residual)
    ours, plain = calibrated(residual=residual).network, detector.network
    relative = []
    with OpenVinoRunner(path) if runtime == "openvino" else OnnxRuntimeRunner(path, optimize=False) as runner:
        for image in torch.cat(batches).split(1):
            expected = raw_output(ours, image).numpy()
            (found,) = runner.infer(image.numpy())
            assert_close_per_output(found, expected, 0.995 if runtime == "onnxruntime" else 0.999)
            quantization = np.abs(expected - raw_output(plain, image).numpy()).mean()
            relative.append(float(np.abs(found - expected).mean() / quantization))
    assert max(relative) < 1.5  # never more than what quantization itself changes
    if runtime == "onnxruntime":
        assert np.median(relative) < 0.01


@pytest.mark.parametrize("residual", WITH_MORE)
def test_passes_change_no_bit(
    exported: Exported, calibrated: Calibrated, batches: tuple[Tensor, ...], tmp_path: Path, residual: Residual
) -> None:
    """The exporter's own graph and the cleaned one, both computed exactly as written."""
    model = calibrated(residual=residual)
    raw = _raw_onnx(model.network, model, ExportSection(), (64, 64))
    assert count(raw)["QuantizeLinear"] > count(onnx.load(exported(residual=residual)))["QuantizeLinear"]
    onnx.save(raw, str(tmp_path / "raw.onnx"))
    for image in (batches[0][:1], batches[2][:1]):
        np.testing.assert_array_equal(run(exported(residual=residual), image), run(tmp_path / "raw.onnx", image))


def count(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def test_size_is_a_quarter(exported: Exported) -> None:
    assert exported().stat().st_size <= 0.30 * exported("fp32").stat().st_size


def test_weights_are_int8_per_channel_symmetric(exported: Exported, calibrated: Calibrated) -> None:
    model = onnx.load(exported())
    values, source = initializers(model), producers(model)
    amax = calibrated(residual="skip").amax()
    seen: set[str] = set()
    for conv in (node for node in model.graph.node if node.op_type == "Conv"):
        dequantize = source.get(conv.input[1])
        if dequantize is None:
            assert values[conv.input[1]].dtype == np.float32
            continue
        assert dequantize.op_type == "DequantizeLinear"
        weight, scale, zero_point = (values[name] for name in dequantize.input)
        name = dequantize.input[0].partition(".weight")[0]
        seen.add(name)
        assert weight.dtype == zero_point.dtype == np.int8
        assert scale.shape == (weight.shape[0],)
        assert {attribute.name: attribute.i for attribute in dequantize.attribute} == {"axis": 0}
        assert not zero_point.any()
        assert -127 <= weight.min() <= weight.max() <= 127
        np.testing.assert_allclose(scale, amax[f"weight.{name}"].flatten().numpy() / 127, rtol=1e-6)
        np.testing.assert_array_equal(np.abs(weight.astype(int)).max(axis=(1, 2, 3)), 127)  # the range is used
    assert seen == set(calibrated(residual="skip").weight_quantizers())


def test_weights_are_int8_per_tensor_where_that_was_calibrated(calibrated: Calibrated, tmp_path: Path) -> None:
    quantized = calibrated(weights="tensor")
    model = Model(quantized.network, quantized.names, (64, 64), Path("yolov8n.yaml"), "ptq", quantized)
    path = export_onnx(model, tmp_path / "tensor.onnx", ExportSection(precision="int8+fp16")).path
    file = onnx.load(path)
    values, source = initializers(file), producers(file)
    amax = quantized.amax()
    dequantizers = [node for node in source.values() if node.op_type == "DequantizeLinear" and node.input[0] in values]
    assert len(dequantizers) == 57
    for node in dequantizers:
        weight, scale, zero_point = (values[name] for name in node.input)
        name = node.input[0].partition(".weight")[0]
        assert (weight.dtype, scale.shape, zero_point.shape) == (np.int8, (), ())
        np.testing.assert_allclose(scale, float(amax[f"weight.{name}"]) / 127, rtol=1e-3)
        expected = np.rint(quantized.network.get_submodule(name).weight.detach().numpy() / scale.astype(np.float32))
        np.testing.assert_array_equal(weight, expected.clip(-128, 127))
    assert lint(path).errors == 0


def test_activations_are_per_tensor_with_zero_point_zero(exported: Exported) -> None:
    model = onnx.load(exported())
    values = initializers(model)
    quantizers = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert quantizers
    for node in quantizers:
        assert node.input[0] not in values
        assert values[node.input[1]].shape == ()
        assert values[node.input[1]] > 0
        assert (values[node.input[2]].dtype, int(values[node.input[2]])) == (np.int8, 0)


def test_quantizers_stand_before_the_concat(exported: Exported) -> None:
    """What a concat joins is INT8 already: nothing is quantized again behind it, except before the decoding."""
    model = onnx.load(exported())
    source = producers(model)
    readers: dict[str, list[str]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    readers["output0"] = []
    concats = [node for node in model.graph.node if node.op_type == "Concat"]
    inside = [node for node in concats if "Conv" in readers[node.output[0]]]
    assert len(inside) >= 13  # 8 C2f, 1 SPPF, 4 in the neck
    for node in inside:
        kinds = {source[name].op_type for name in node.input}
        assert kinds <= {"DequantizeLinear", "Concat", "Resize", "MaxPool", "Split", "Slice"}
        assert "QuantizeLinear" not in readers[node.output[0]]


def test_unsigned_activations_are_the_same_bits(
    calibrated: Calibrated, exported: Exported, batches: tuple[Tensor, ...], tmp_path: Path
) -> None:
    path, section = tmp_path / "u.onnx", ExportSection(precision="int8+fp32")
    export_onnx(quantized_model(calibrated, "skip"), path, section, unsigned=True)
    types = {entry.dtype.type for name, entry in initializers(onnx.load(path)).items() if "zero_point.uint8" in name}
    assert types == {np.uint8}
    np.testing.assert_array_equal(run(path, batches[0][:1]), run(exported(), batches[0][:1]))


def test_weights_fit_the_scale_that_fp16_can_hold(calibrated: Calibrated, tmp_path: Path) -> None:
    """A channel so weak that its scale is below FP16's smallest normal number: the file's weights stay its weights."""
    before, name = calibrated(residual="skip"), "model.2.cv1.conv"
    quantized = replace(before, network=copy.deepcopy(before.network))
    conv, amax = quantized.network.get_submodule(name), quantized.amax()
    with torch.no_grad():
        conv.weight[3] *= 1e-3 / conv.weight[3].abs().max()  # scale 7.9e-6, the smallest normal FP16 is 6.1e-5
        amax[f"weight.{name}"][3] = 1e-3
    quantized.load_amax_(amax)
    model = Model(quantized.network, quantized.names, (64, 64), Path("yolov8n.yaml"), "ptq", quantized)
    section = ExportSection(precision="int8+fp16")
    file = onnx.load(export_onnx(model, tmp_path / "w.onnx", section).path)
    values, source = initializers(file), producers(file)
    (dequantize,) = [node for node in source.values() if node.input[0].startswith(f"{name}.weight")]
    weight, scale, _ = (values[entry] for entry in dequantize.input)
    restored = weight.astype(np.float32) * scale.astype(np.float32).reshape(-1, 1, 1, 1)
    error = np.abs(restored - conv.weight.detach().numpy()).max(axis=(1, 2, 3))
    assert (error <= 0.51 * scale.astype(np.float32)).all()


@pytest.mark.parametrize(("precision", "scale"), [("int8+fp16", 2.0**-14), ("int8+fp32", 1e-3 / 127)])
def test_a_layer_that_says_almost_nothing_is_exported(
    calibrated: Calibrated, tmp_path: Path, precision: Precision, scale: float
) -> None:
    """Its scale is below FP16's smallest normal number, which it becomes there."""
    before = calibrated(residual="skip")
    quantized = replace(before, network=copy.deepcopy(before.network))
    amax = quantized.amax()
    name = next(name for name in amax if name.startswith("activation.silu"))
    quantized.load_amax_({name: torch.tensor(1e-3)})
    model = Model(quantized.network, quantized.names, (64, 64), Path("yolov8n.yaml"), "ptq", quantized)
    file = onnx.load(export_onnx(model, tmp_path / "x.onnx", ExportSection(precision=precision)).path)
    values = initializers(file)
    scales = [float(values[n.input[1]].max()) for n in file.graph.node if n.op_type == "QuantizeLinear"]
    assert min(scales) == pytest.approx(scale)


# other precisions ------------------------------------------------------------------------------------------------


def test_fp32_is_the_float_network(exported: Exported, detector: Model, batches: tuple[Tensor, ...]) -> None:
    image = batches[0][:1]
    expected = raw_output(detector.network, image).numpy()
    np.testing.assert_allclose(run(exported("fp32"), image), expected, atol=1e-3, rtol=1e-3)
    assert not {"QuantizeLinear", "DequantizeLinear", "Cast"} & set(count(onnx.load(exported("fp32"))))


def test_fp32_of_a_quantized_checkpoint_is_float(
    exported: Exported, calibrated: Calibrated, batches: tuple[Tensor, ...], tmp_path: Path
) -> None:
    model = quantized_model(calibrated, "both")
    image = batches[0][:1]
    before = raw_output(model.network, image)
    export_onnx(model, tmp_path / "f.onnx", ExportSection(precision="fp32"))
    assert "QuantizeLinear" not in count(onnx.load(tmp_path / "f.onnx"))
    np.testing.assert_allclose(run(tmp_path / "f.onnx", image), run(exported("fp32"), image), atol=1e-3, rtol=1e-3)
    assert torch.equal(raw_output(model.network, image), before)  # its quantizers are on again


def test_fp16_is_half_and_close(exported: Exported, batches: tuple[Tensor, ...]) -> None:
    path = exported("fp16")
    check_half_precision(onnx.load(path))
    assert path.stat().st_size < 0.53 * exported("fp32").stat().st_size
    assert_close_per_output(run(path, batches[0][:1]), run(exported("fp32"), batches[0][:1]), 0.999)


@pytest.mark.parametrize("residual", WITH_MORE)
def test_int8_with_fp16(exported: Exported, batches: tuple[Tensor, ...], residual: Residual) -> None:
    path = exported("int8+fp16", residual)
    model = onnx.load(path)
    check_half_precision(model)
    values = initializers(model)
    scales = {
        values[node.input[1]].dtype
        for node in model.graph.node
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}
    }
    assert scales == {np.dtype(np.float16)}
    report = lint(path)
    assert (report.errors, report.warnings, report.counts.avoidable_round_trips) == (0, 0, 0), report.as_text()
    image = batches[1][:1]
    assert_close_per_output(run(path, image), run(exported(residual=residual), image), 0.999)
    assert_close_per_output(run(path, image, optimize=True), run(exported(residual=residual), image), 0.999)


def check_half_precision(model: onnx.ModelProto) -> None:
    """FP16 up to the head's last convolutions, FP32 behind them, and the fewest casts that makes possible."""
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, strict_mode=True, check_type=True)
    source = producers(model)
    casts = [node for node in model.graph.node if node.op_type == "Cast"]
    down = [node for node in casts if node.attribute[0].i == onnx.TensorProto.FLOAT16]
    up = [node for node in casts if node.attribute[0].i == onnx.TensorProto.FLOAT]
    assert [node.input[0] for node in down] == ["images"]
    assert len(casts) == 1 + len(up)
    assert len({node.input[0] for node in up}) == len(up) == 6  # boxes and scores of three levels
    for node in up:
        assert source[node.input[0]].op_type == "Conv"
        assert source[node.input[0]].name.endswith(".2/Conv")
    assert [entry.type.tensor_type.elem_type for entry in (*model.graph.input, *model.graph.output)] == [1, 1]
    values = initializers(model)
    wide = {node.input[1] for node in model.graph.node if node.op_type == "Conv" and node.input[1] in values}
    assert [values[name].shape for name in wide if values[name].dtype == np.float32] == [(1, 16, 1, 1)]  # DFL
    types = {
        entry.name: entry.type.tensor_type.elem_type
        for entry in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    after = {node.output[0] for node in up}
    for node in model.graph.node:  # whatever follows a cast is FP32: FP16 resolves pixel 600 to half a pixel only
        if after.intersection(node.input):
            after.update(node.output)
    assert {types[name] for name in after if name in types} == {onnx.TensorProto.FLOAT}


def test_one_class_is_no_box_decoding(
    make_unfolded: Callable[..., DetectionModel], batches: tuple[Tensor, ...], tmp_path: Path
) -> None:
    """A score convolution with a single output is learned all the same, only DFL's fixed one is decoding."""
    network = fold_batchnorm(make_unfolded("yolov8n.yaml", {0: "sign"}))
    model = Model(network, {0: "sign"}, (64, 64), Path("yolov8n.yaml"))
    path = export_onnx(model, tmp_path / "one.onnx", ExportSection(precision="fp16")).path
    check_half_precision(onnx.load(path))
    assert_close_per_output(run(path, batches[0][:1]), raw_output(network, batches[0][:1]).numpy(), 0.999)


# batch -----------------------------------------------------------------------------------------------------------


def test_dynamic_batch(exported: Exported, calibrated: Calibrated, batches: tuple[Tensor, ...]) -> None:
    path = exported(dynamic_batch=True)
    expected = raw_output(calibrated(residual="skip").network, batches[0][:3]).numpy()
    together = run(path, batches[0][:3])
    assert_close_per_output(together, expected, 0.999)
    one_by_one = np.concatenate([run(path, batches[0][i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(together, one_by_one, atol=1e-3)
    with OpenVinoRunner(path) as runner:
        assert runner.input_shape == (None, 3, 64, 64)
        assert_close_per_output(runner.infer(batches[0][:3].numpy())[0], expected, 0.999)
    report = lint(path)
    assert (report.errors, report.warnings, report.counts.avoidable_round_trips) == (0, 0, 0), report.as_text()


def test_static_batch(exported: Exported, batches: tuple[Tensor, ...]) -> None:
    path = exported(batch=3)
    np.testing.assert_allclose(run(path, batches[0][:3]), run(exported(dynamic_batch=True), batches[0][:3]), atol=1e-3)


# what surrounds the graph ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["int8+fp32", "int8+fp16"])
def test_int8_of_a_float_checkpoint(detector: Model, tmp_path: Path, precision: Precision) -> None:
    with pytest.raises(ExportError, match="needs a calibrated checkpoint") as caught:
        export_onnx(detector, tmp_path / "x.onnx", ExportSection(precision=precision))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_export_leaves_the_network_as_it_was_and_can_be_repeated(
    exported: Exported, calibrated: Calibrated, tmp_path: Path
) -> None:
    model = quantized_model(calibrated, "skip")
    attributes = {name: set(vars(module)) for name, module in model.network.named_modules()}
    state = {name: value.clone() for name, value in model.network.state_dict().items()}
    path = export_onnx(model, tmp_path / "again.onnx", ExportSection(precision="int8+fp32")).path
    assert path.read_bytes() == exported().read_bytes()
    assert {name: set(vars(module)) for name, module in model.network.named_modules()} == attributes
    assert all(torch.equal(state[name], value) for name, value in model.network.state_dict().items())


def test_opset(exported: Exported) -> None:
    model = onnx.load(exported())
    assert [entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"}] == [19]
    assert [entry.name for entry in model.graph.input] == ["images"]
    assert [entry.name for entry in model.graph.output] == ["output0"]


@pytest.mark.parametrize("precision", ["int8+fp32", "fp32"])
def test_ultralytics_predicts_with_the_file(exported: Exported, demo: Dataset, precision: Precision) -> None:
    """A real call: the metadata brings names, stride and image size."""
    path = exported(precision)
    model = YOLO(str(path), task="detect")
    (result,) = model.predict(str(demo.val[0]), conf=0.0001, verbose=False, device="cpu", imgsz=64)
    assert result.names == dict(demo.names)
    assert result.orig_shape == (128, 128)
    assert len(result.boxes) > 0
    assert float(result.boxes.xyxy.max()) <= 128
