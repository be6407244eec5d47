from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trt_qat.engine import inspect
from trt_qat.engine.inspect import engine_from_json, inspect_engine
from trt_qat.errors import EngineError


def _tensor(name: str, text: str) -> dict[str, Any]:
    return {"Name": name, "Dimensions": [1, 16, 320, 320], "Format/Datatype": text}


LAYERS = [
    {
        "Name": "model.0.conv + SiLU",
        "LayerType": "CaskConvolution",
        "Inputs": [_tensor("images", "Row major linear FP32")],
        "Outputs": [_tensor("a", "Int8 NC/32HW32")],
        "Weights": {"Type": "Float", "Count": 16 * 3 * 9},
        "Bias": {"Type": "Float", "Count": 16},
        "Activation": "NONE",
        "Metadata": "\x1f".join(f"[ONNX Layer: /model.0/{name}]" for name in ("conv/Conv", "act/Sigmoid", "act/Mul")),
    },
    {
        "Name": "model.1.conv + SiLU",
        "LayerType": "CaskConvolution",
        "Inputs": [_tensor("a", "Int8 NC/32HW32")],
        "Outputs": [{"Name": "b", "Dimensions": [1, 32, 160, 160], "Format": "CHW32", "DataType": "INT8"}],
        "Weights": {"Type": "Int8", "Count": 32 * 16 * 9},
        "Activation": "RELU",
    },
]
BINDINGS_10 = {"Layers": LAYERS, "Bindings": ["images", "output0"]}
IO_TENSORS_11 = {"Layers": LAYERS, "I/O Tensors": [{"Name": "images", "IOMode": "Input"}, {"Name": "output0"}]}


@pytest.mark.parametrize("content", [BINDINGS_10, IO_TENSORS_11])
def test_layers_of_both_versions(content: dict[str, Any]) -> None:
    engine = engine_from_json(json.dumps(content))
    first, second = engine.kernels
    assert (first.name, first.kind) == ("model.0.conv + SiLU", "CaskConvolution")
    assert engine.touches_io(first)
    assert not first.is_int8
    assert second.is_int8
    assert not engine.touches_io(second)
    assert second.inputs[0].shape == (1, 16, 320, 320)
    assert second.outputs[0].is_int8


@pytest.mark.parametrize("content", [BINDINGS_10, IO_TENSORS_11])
def test_the_report_is_the_one_of_a_build(content: dict[str, Any]) -> None:
    """The same object, with the same meaning of every number, as a log gives."""
    engine = engine_from_json(json.dumps(content), source="x.plan", version="10.13.0", plan_bytes=5)
    first, second = engine.kernels
    assert (first.input_type, first.output_type, first.module) == ("Float", "Int8", "model.0.conv")
    assert first.fused == ("bias", "activation", "requantization")
    assert second.fused == ("activation", "requantization")
    assert first.macs == 16 * 3 * 9 * 320 * 320
    assert second.macs == 32 * 16 * 9 * 160 * 160
    assert engine.activation_bytes == 16 * 320 * 320 * (4 + 1 + 1) + 32 * 160 * 160
    assert engine.weight_bytes == (16 * 3 * 9 + 16) * 4 + 32 * 16 * 9
    assert [tensor.name for tensor in engine.inputs] == ["images"]
    assert engine.as_dict()["convolutions"] == [
        {
            "input": "Float",
            "output": "Int8",
            "count": 1,
            "fused": {"bias": 1, "activation": 1, "add": 0, "requantization": 1},
        },
        {
            "input": "Int8",
            "output": "Int8",
            "count": 1,
            "fused": {"bias": 0, "activation": 1, "add": 0, "requantization": 1},
        },
    ]


@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        ("Thirty-two wide channel vectorized row major Int8 format.", "Int8"),
        ("Channel major FP16 format where channel % 8 == 0", "Half"),
        ("Row major linear FP32", "Float"),
        ("Half", "Half"),
        ("Row major linear BF16 format", "BFloat16"),
    ],
)
def test_types_out_of_descriptions(text: str, dtype: str) -> None:
    layer = {"Name": "copy", "LayerType": "Reformat", "Inputs": [_tensor("a", text)], "Outputs": [_tensor("b", text)]}
    (kernel,) = engine_from_json(json.dumps({"Layers": [layer], "Bindings": []})).kernels
    assert (kernel.input_type, kernel.role) == (dtype, "reformat")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Inputs": [_tensor("a", "Row major NF4")]}, "names no data type that is known: 'Row major NF4'"),
        ({"Inputs": [_tensor("a", "FP32 or FP16")]}, "names no data type that is known"),
        ({"Inputs": [{**_tensor("a", "Int8"), "Dimensions": [-1, 3]}]}, r"free shape \(-1, 3\): its bytes cannot be"),
        (
            {"Inputs": [{**_tensor("a", "Int8"), "Dimensions": [1, 2.5]}]},
            r"not understood \(ValueError: 2.5 is no whole",
        ),
        ({"Weights": {"Type": "Int8", "Count": True}}, "True is no whole number"),
        ({"Weights": {}}, "weight of convolution 'model.1.conv . SiLU' is not listed"),
        ({"LayerType": "gemm"}, "matrix product 'model.1.conv . SiLU' cannot be counted"),
    ],
)
def test_what_cannot_be_counted_is_no_number(change: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        engine_from_json(json.dumps({"Layers": [{**LAYERS[1], **change}], "Bindings": []}))


def test_names_only_engine() -> None:
    engine = engine_from_json('{"Layers": ["model.0.conv"], "Bindings": []}')
    (layer,) = engine.kernels
    assert (layer.name, layer.kind, layer.inputs) == ("model.0.conv", "", ())
    assert not engine.detailed
    said = engine.as_dict()
    assert [said[key] for key in ("kernels", "activation_bytes", "weight_bytes", "macs")] == [1, None, None, None]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"Layers": [{}]}', '{"Layers": [1]}'])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(EngineError, match="not understood"):
        engine_from_json(text)


def test_inspecting_needs_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspect, "gpu_names", tuple)
    (tmp_path / "x.plan").write_bytes(b"plan")
    with pytest.raises(EngineError, match="No NVIDIA GPU"):
        inspect_engine(tmp_path / "x.plan", "tensorrt-rtx")
