from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trt_qat.engine import inspect
from trt_qat.engine.inspect import inspect_engine, layers_from_json
from trt_qat.errors import EngineError


def _tensor(name: str, text: str) -> dict[str, Any]:
    return {"Name": name, "Dimensions": [1, 16, 320, 320], "Format/Datatype": text}


LAYERS = [
    {
        "Name": "model.0.conv + SiLU",
        "LayerType": "CaskConvolution",
        "Inputs": [_tensor("images", "Row major linear FP32")],
        "Outputs": [_tensor("a", "Int8 NC/32HW32")],
    },
    {
        "Name": "model.1.conv + SiLU",
        "LayerType": "CaskConvolution",
        "Inputs": [_tensor("a", "Int8 NC/32HW32")],
        "Outputs": [{"Name": "b", "Dimensions": [1, 32, 160, 160], "Format": "CHW32", "DataType": "INT8"}],
    },
]
BINDINGS_10 = {"Layers": LAYERS, "Bindings": ["images", "output0"]}
IO_TENSORS_11 = {"Layers": LAYERS, "I/O Tensors": [{"Name": "images", "IOMode": "Input"}, {"Name": "output0"}]}


@pytest.mark.parametrize("content", [BINDINGS_10, IO_TENSORS_11])
def test_layers_of_both_versions(content: dict[str, Any]) -> None:
    first, second = layers_from_json(json.dumps(content))
    assert (first.name, first.kind) == ("model.0.conv + SiLU", "CaskConvolution")
    assert first.touches_io
    assert not first.is_int8
    assert second.is_int8
    assert not second.touches_io
    assert second.inputs[0].shape == (1, 16, 320, 320)
    assert second.outputs[0].is_int8


def test_names_only_engine() -> None:
    (layer,) = layers_from_json('{"Layers": ["model.0.conv"], "Bindings": []}')
    assert (layer.name, layer.kind, layer.inputs) == ("model.0.conv", "", ())


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"Layers": [{}]}', '{"Layers": [1]}'])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(EngineError, match="not understood"):
        layers_from_json(text)


def test_inspecting_needs_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspect, "gpu_names", tuple)
    (tmp_path / "x.plan").write_bytes(b"plan")
    with pytest.raises(EngineError, match="No NVIDIA GPU"):
        inspect_engine(tmp_path / "x.plan", "tensorrt-rtx")
