"""Precision from the graph, on files that real quantizers wrote: ONNX Runtime's, and ours without our metadata."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from tiny_onnx import colour_image, write_colour_set, write_tiny_detector

import trt_qat
from trt_qat.checkpoint import Model
from trt_qat.config import ExportSection
from trt_qat.engine.onnx_file import graph_precision, onnx_metadata
from trt_qat.exporter.onnx_export import export_onnx
from trt_qat.vision.letterbox import network_input


class _Images(CalibrationDataReader):
    def __init__(self) -> None:
        self._inputs = self._make()

    def _make(self) -> Iterator[dict[str, np.ndarray]]:
        for bgr in ((0, 0, 255), (0, 255, 0), (255, 0, 0)):
            image = colour_image(64, 64)
            image[:32] = bgr
            yield {"images": network_input(image, (64, 64))[0]}

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._inputs, None)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_detector(tmp_path / "tiny.onnx", names=False)


def _static(source: Path, format: QuantFormat, dtype: QuantType = QuantType.QInt8) -> Path:
    out = source.with_name("quantized.onnx")
    quantize_static(
        source,
        out,
        _Images(),
        quant_format=format,
        activation_type=dtype,
        weight_type=dtype,
        op_types_to_quantize=["Conv"],
    )
    return out


@pytest.mark.parametrize("format", [QuantFormat.QDQ, QuantFormat.QOperator])
@pytest.mark.parametrize("dtype", [QuantType.QInt8, QuantType.QUInt8])
def test_files_of_another_toolkit(tiny: Path, format: QuantFormat, dtype: QuantType) -> None:
    quantized = _static(tiny, format, dtype)
    assert "precision" not in {entry.key for entry in onnx.load(quantized).metadata_props}
    assert onnx_metadata(tiny)["precision"] == "fp32"
    assert onnx_metadata(quantized)["precision"] == "int8+fp32"


def test_dynamic_quantization(tiny: Path) -> None:
    quantize_dynamic(tiny, tiny.with_name("dynamic.onnx"), op_types_to_quantize=["Conv"])
    assert onnx_metadata(tiny.with_name("dynamic.onnx"))["precision"] == "int8+fp32"


@pytest.mark.parametrize("precision", ["int8+fp32", "int8+fp16", "fp32", "fp16"])
def test_our_files_read_as_what_they_say(demo_int8: Model, tmp_path: Path, precision: str) -> None:
    out = tmp_path / "x.onnx"
    export_onnx(demo_int8, out, ExportSection(precision=precision))
    assert onnx_metadata(out)["precision"] == precision
    assert graph_precision(onnx.load(out)) == precision


def _model(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("x", "y")]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    return helper.make_model(helper.make_graph(nodes, "g", infos[:1], infos[1:], tensors))


def test_int8_weights_alone_are_computed_in_float() -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale"], ["weight"]),
        helper.make_node("MatMul", ["x", "weight"], ["y"]),
    ]
    constants = {"w": np.ones((4, 4), np.int8), "scale": np.ones((), np.float16)}
    assert graph_precision(_model(nodes, constants)) == "fp16"
    fake = helper.make_node("QuantizeLinear", ["float", "scale"], ["w"])  # the weight's own pair, before folding
    assert graph_precision(_model([fake, *nodes], {"float": np.ones((4, 4), np.float32)} | constants)) == "fp32"


@pytest.mark.parametrize(
    ("zero_point", "attributes", "expected"),
    [
        (TensorProto.INT8, {}, "int8+fp32"),
        (TensorProto.FLOAT8E4M3FN, {}, "fp8+fp32"),
        (None, {"output_dtype": TensorProto.INT4}, "int4+fp32"),
        (None, {}, "int8+fp32"),
    ],
)
def test_other_types(zero_point: int | None, attributes: dict[str, int], expected: str) -> None:
    inputs = ["x", "scale"] if zero_point is None else ["x", "scale", "zero"]
    nodes = [
        helper.make_node("QuantizeLinear", inputs, ["q"], **attributes),
        helper.make_node("DequantizeLinear", ["q", *inputs[1:]], ["y"]),
    ]
    model = _model(nodes, {"scale": np.ones((), np.float32)})
    if zero_point is not None:
        model.graph.initializer.append(helper.make_tensor("zero", zero_point, (), [0]))
    assert graph_precision(model) == expected


def test_evaluate_labels_a_stripped_file(tiny: Path, tmp_path: Path) -> None:
    data = write_colour_set(tmp_path / "set")
    settings = {"latency_iterations": 3, "latency_warmup": 0}
    files = [tiny, _static(tiny, QuantFormat.QDQ)]
    for runtime in ("openvino", "onnxruntime"):
        rows = trt_qat.evaluate(files, data, runtime=runtime, **settings)
        assert [row.precision for row in rows] == ["fp32", "int8+fp32"]
        assert [row.map50_95 for row in rows] == pytest.approx([0.995, 0.995], abs=1e-3)
