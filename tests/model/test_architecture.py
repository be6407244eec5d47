"""Architectures that would run code, take all memory or all time, or mean nothing: one line each, nothing runs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from tiny_network import save_pt, tiny_architecture, tiny_network
from ultralytics.nn.modules import Conv
from ultralytics.nn.tasks import yaml_model_load

from trt_qat.checkpoint import FORMAT, load
from trt_qat.errors import ArtifactError
from trt_qat.model.architecture import ACTIVATIONS, HEADS, LAYERS, checked_architecture

MARK = "ran.txt"
PAYLOAD = f"__import__('pathlib').Path('{MARK}').write_text('ran')"
Change = Callable[[dict[str, Any]], object]


def key(name: str, value: Any) -> Change:
    return lambda architecture: architecture.update({name: value})


def cell(column: int, value: Any, row: int = 1) -> Change:
    return lambda architecture: architecture["backbone"][row].__setitem__(column, value)


def added(*rows: Any) -> Change:
    return lambda architecture: architecture["backbone"].extend(rows)


wide = key("scales", {"n": [1.0, 16, 65536]})


CODE = {
    **{
        f"activation {text[:40]}": key("activation", text)
        for text in (
            PAYLOAD,
            f"({PAYLOAD}, nn.SiLU())[1]",
            f"nn.SiLU({PAYLOAD})",
            f"nn.SiLU(inplace={PAYLOAD})",
            f"torch.nn.LeakyReLU(*[{PAYLOAD}])",
            f"nn.ReLU(**{{'inplace': {PAYLOAD}}})",
            f"(lambda: {PAYLOAD})()",
            f"[{PAYLOAD} for _ in (1,)]",
            f"(x := {PAYLOAD})",
            f"nn.SiLU() if {PAYLOAD} else 0",
            f"nn.SiLU().__class__({PAYLOAD})",
            "nn.SiLU",
            "nn.SiLU.__init__",
            "nn.Module()",
            "nn.Transformer()",
            "nn.modules.module.torch.load('x')",
            "torch.load('x.pt')",
            "torch.hub.load('a/b', 'c')",
            "eval('1')",
            "nn.LeakyReLU(1e9)",
            "nn.LeakyReLU('0.1')",
            "nn.Softplus(" + "-" * 200_000 + "1)",
            "(" * 90,
            "nn.SiLU()\0",
            "",
        )
    },
    **{
        f"module {name}": cell(2, name)
        for name in (
            *("torch_load", "load_checkpoint", "torch_safe_load", "TorchVision", "yaml_model_load", "parse_model"),
            *("DetectionModel", "WorldModel", "Ensemble", "Index", "Classify", "Segment", "RTDETRDecoder", "C2fAttn"),
            *("eval", "exec", "__builtins__", "__import__", "os", "Path", "LOGGER", "contextlib", "torch", "YOLO"),
            *("nn.Module", "nn.Linear", "nn.LazyConv2d", "nn.utils", "nn.__loader__", "nn.modules.module.torch"),
            *("torchvision.ops.misc", "torchvision.ops.DeformConv2d", "torchvision.ops.__spec__", "", "Conv ", "conv"),
        )
    },
    **{
        f"argument {text}": cell(3, [16, text])
        for text in ("locals", "d", "ch", "args", "scales", "m", "restricted", "a b", "[1, 2", "lambda: 0", PAYLOAD)
    },
}
NUMBERS = {
    **{f"nc {value}": key("nc", value) for value in (0, -1, 10**12, 1.5, "2", True, None, float("nan"), [])},
    **{f"repeats {value}": cell(1, value) for value in (0, -1, 10**9, 1.5, "3", True, None)},
    **{f"argument {value}": cell(3, [value]) for value in (10**9, -70000, float("nan"), float("inf"), 10**400, {})},
    "argument nested": cell(3, [[[[1]]]]),
    "arguments 17": cell(3, [1] * 17),
    "argument list of 65": cell(3, [[1] * 65]),
    "arguments no list": cell(3, 16),
    **{f"depth {v}": key("depth_multiple", v) for v in (0, -1, 1e9, float("nan"), "x")},
    **{f"width {v}": key("width_multiple", v) for v in (0, -1, 1e9, float("inf"), None)},
    **{
        f"scales {value}": key("scales", value)
        for value in (
            {"n": [1.0, 1.0]},
            {"n": [1e9, 1.0, 1024]},
            {"n": [1.0, 1e9, 1024]},
            {"n": [1.0, 1.0, 0]},
            {"n": [1.0, 1.0, float("nan")]},
            {"n": "big"},
            [1],
            {"s": [1.0, 1.0, 1024]},
        )
    },
    **{f"scale {value}": key("scale", value) for value in ("q", 3, "n" * 17)},
    **{f"reg_max {value}": key("reg_max", value) for value in (0, -1, 10**9, "x")},
    **{f"channels {value}": key("channels", value) for value in (0, 1, 4, 10**6)},
    **{f"{name} of another kind": key(name, "x") for name in ("end2end", "inplace", "ch")},
    **{f"unknown key {name}": key(name, 1) for name in ("kpt_shape", "text_model", "__class__", "anchors")},
}
STRUCTURE = {
    **{
        f"from {value}": cell(0, value)
        for value in (1, 5, -2, 10**9, "x", None, 1.5, True, [], [7], [0] * 65, [0, "x"])
    },
    "first row reads another": cell(0, 0, row=0),
    **{f"backbone {value!r}": key("backbone", value) for value in ([], "x", None, {}, [1], [[]], [[-1, 1, "Conv"]])},
    "row of five": added([-1, 1, "Conv", [8], 1]),
    "501 rows": added(*[[-1, 1, "nn.Identity", []]] * 501),
    "no head": lambda architecture: architecture.pop("head"),
    "no Detect": lambda architecture: architecture["head"].pop(),
    "Detect twice": lambda architecture: architecture["head"].append([[4], 1, "Detect", ["nc"]]),
    "Detect in the backbone": added([[1], 1, "Detect", ["nc"]]),
    "arguments of another layer": cell(3, ["nearest", None]),
    "Concat of one": lambda architecture: architecture["head"][1].__setitem__(0, 3),
}
SIZE = {
    "parameters": lambda a: wide(a) or added([-1, 1, "Conv", [65536, 1, 1]], [-1, 1, "Conv", [65536, 3, 1]])(a),
    "kernel": cell(3, [4096, 513, 2]),
    "width": lambda a: wide(a) or cell(3, [65536, 65, 2])(a),
    "repeats of many": added(*[[-1, 900, "C2f", [16]]] * 20),
    "modules": added([-1, 1, "RepNCSPELAN4", [16, 16, 8, 60000]]),
    "operations": added([-1, 1, "SPPF", [16, 5, 65536]]),
    "upsampled": added([-1, 1, "nn.Upsample", [None, 4096, "nearest"]]),
    "padded": added([-1, 1, "nn.ZeroPad2d", [60000]]),
    "attention": lambda a: (
        a["backbone"].insert(0, [-1, 1, "Conv", [64, 1, 1]]) or a["backbone"].insert(1, [-1, 1, "PSA", [64]])
    ),
    "multiplications": lambda a: (
        a["backbone"].insert(0, [-1, 1, "Conv", [1024, 3, 1]]) or a["backbone"].insert(1, [-1, 3, "Conv", [1024, 3, 1]])
    ),
}
EVERY = {**CODE, **NUMBERS, **STRUCTURE, **SIZE}


def hostile(change: Change) -> dict[str, Any]:
    architecture = tiny_architecture()
    change(architecture)
    return architecture


def as_yaml(architecture: dict[str, Any], folder: Path) -> Path:
    path = folder / "hostile.yaml"
    path.write_text(yaml.safe_dump(architecture), encoding="utf-8")
    return path


def as_checkpoint(architecture: dict[str, Any], folder: Path) -> Path:
    header = {
        "format": FORMAT,
        "stage": "fp32",
        "imgsz": 64,
        "architecture": architecture,
        "names": {"0": "a", "1": "b"},
        "provenance": {},
    }
    path = folder / "hostile.safetensors"
    save_file({"model.0.conv.weight": torch.ones(8, 3, 3, 3)}, path, metadata={"header": json.dumps(header)})
    return path


def as_pt(architecture: dict[str, Any], folder: Path) -> Path:
    network = tiny_network()
    network.yaml = architecture
    return save_pt(network, folder / "hostile.pt")


CARRIERS = {"yaml": as_yaml, "safetensors": as_checkpoint, "pt": as_pt}
PAIRS = [
    *((carrier, name) for carrier in CARRIERS for name in CODE),
    *(("yaml", name) for name in NUMBERS if not name.startswith("scale")),  # there the file's name gives the scale
    *(("safetensors", name) for name in NUMBERS if not name.startswith("nc ")),  # there the class names give nc
    *((carrier, name) for carrier in ("yaml", "safetensors") for name in STRUCTURE),
    *(("yaml", name) for name in SIZE),
]


@pytest.mark.parametrize(("carrier", "name"), PAIRS)
def test_hostile_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, carrier: str, name: str) -> None:
    path = CARRIERS[carrier](hostile(EVERY[name]), tmp_path)
    monkeypatch.chdir(tmp_path)
    activation = Conv.default_act
    before = time.monotonic()
    with pytest.raises(ArtifactError) as caught:
        load(path)
    assert time.monotonic() - before < 20
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 800
    assert "hostile" in message
    assert not (tmp_path / MARK).exists()
    assert Conv.default_act is activation


@pytest.mark.parametrize("carrier", CARRIERS)
def test_the_unchanged_one_is_loaded(tmp_path: Path, carrier: str) -> None:
    """Otherwise the refusals above would have another reason."""
    if carrier == "safetensors":
        with pytest.raises(ArtifactError, match="the weights do not fit the architecture"):
            load(as_checkpoint(tiny_architecture(), tmp_path))
    else:
        assert len(load(CARRIERS[carrier](tiny_architecture(), tmp_path)).names) == 2


def test_the_payload_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    eval(PAYLOAD)
    assert (tmp_path / MARK).exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("activation nn.Module()", "activation = 'nn.Module()': allowed is torch.nn.<name>"),
        ("module torch_load", "backbone.1.2 = 'torch_load': not a layer that trt_qat builds"),
        ("from 5", "backbone.1.0 = 5: row 1 can read only rows before it"),
        ("repeats of many", "repeats in all"),
        ("parameters", "TRT_QAT_MAX_PARAMETERS"),
        ("padded", "TRT_QAT_MAX_ACTIVATION_MB"),
        ("multiplications", "TRT_QAT_MAX_GIGAMACS"),
        ("unknown key text_model", "text_model = 1"),
    ],
)
def test_the_line_names_the_field(name: str, message: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        checked_architecture(hostile(EVERY[name]), Path("x.yaml"))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "text", ["nn.ReLU()", "torch.nn.LeakyReLU(0.1)", "nn.ELU(alpha=-1.0)", "nn.ReLU(inplace=True)"]
)
def test_activations_that_are_taken(text: str) -> None:
    assert checked_architecture({**tiny_architecture(), "activation": text}, Path("x.yaml"))["activation"] == text


def test_every_name_of_the_lists_exists() -> None:
    from ultralytics.nn import tasks

    for name in LAYERS | HEADS:
        kind = getattr(torch.nn, name[3:]) if name.startswith("nn.") else getattr(tasks, name)
        assert issubclass(kind, torch.nn.Module)
    assert all(issubclass(getattr(torch.nn, name), torch.nn.Module) for name in ACTIVATIONS)


@pytest.mark.parametrize(
    "name",
    [
        *("yolov3-tiny.yaml", "yolov5n.yaml", "yolov5n-p6.yaml", "yolov6n.yaml", "yolov8x.yaml", "yolov8n-p2.yaml"),
        *("yolov8n-ghost.yaml", "yolov9t.yaml", "yolov9e.yaml", "yolov10x.yaml", "yolo11n.yaml", "yolo12n.yaml"),
        *("yolo26x.yaml", "yolo26n-p6.yaml"),
    ],
)
def test_architectures_of_ultralytics_are_taken(name: str) -> None:
    content = yaml_model_load(name)
    assert checked_architecture(content, Path(name)) == content
