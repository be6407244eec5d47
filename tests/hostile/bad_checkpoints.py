"""trt_qat's own ``.safetensors``: each field of the header wrong, each kind of tensor wrong."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from bad_networks import ARCHITECTURES
from case import (
    CALIBRATE,
    EVALUATE,
    EXPORT,
    PYTHON_PAYLOAD,
    QAT,
    Case,
    changed,
    checkpoint_with,
    cut,
    deep,
    flipped,
    safetensors,
    setting,
    with_set,
    without,
    words,
)  # fmt: skip
from case import data as file

NAN, INF = float("nan"), float("inf")
WRONG: dict[str, Any] = {"null": None, "text": "x", "-1": -1, "list": [], "mapping": {}, "1e300": 1e300, "true": True}
HEADER = {
    **{f"{field} {name}": setting(field, value)
       for field in ("format", "stage", "imgsz", "architecture", "names", "provenance")
       for name, value in WRONG.items() if not (field == "provenance" and name == "mapping")},
    **{f"no {field}": without(field) for field in ("format", "stage", "imgsz", "architecture", "names", "provenance")},
    "imgsz NaN": setting("imgsz", NAN),
    "imgsz 100": setting("imgsz", 100),
    "imgsz 0": setting("imgsz", 0),
    "imgsz 1000000000": setting("imgsz", 32 * 10**8),
    "imgsz of 5000 digits": setting("imgsz", int("9" * 4000)),
    "imgsz text of code": setting("imgsz", PYTHON_PAYLOAD),
    "names of numbers": setting("names", {str(i): i for i in range(7)}),
    "names with a gap": setting("names", {"0": "a", "2": "b"}),
    "names from 1": setting("names", {str(i + 1): "a" for i in range(7)}),
    "names of text keys": setting("names", {"a": "b"}),
    "names of 3": setting("names", {"0": "a", "1": "b", "2": "c"}),
    "names of 100000": setting("names", {str(i): "a" for i in range(100_000)}),
    "names empty text": setting("names", {str(i): "" for i in range(7)}),
    "names with controls": setting("names", {str(i): "a\n\x1b[2J\x07" for i in range(7)}),
    "names surrogate": setting("names", {str(i): "\ud800" for i in range(7)}),
    "names of a megabyte": setting("names", {str(i): "a" * 1_000_000 for i in range(7)}),
    "unknown field": setting("extra", 1),
    "stage qat without placement": setting("stage", "qat"),
    "toolkit without placement": setting("toolkit", "modelopt"),
    "placement without ranges": setting("placement", {"groups": [], "float": {}}),
    "provenance deep": setting("provenance", json.loads(deep(400))),
    "provenance of NaN": setting("provenance", {"a": NAN}),
    "activation runs code": setting("architecture.activation", PYTHON_PAYLOAD),
    "activation class walk": setting("architecture.activation", "().__class__.__bases__[0].__subclasses__()"),
    "module torch_load": setting("architecture.backbone.0", [-1, 1, "torch_load", ["payload.pt"]]),
    "module TorchVision": setting("architecture.backbone.0", [-1, 1, "TorchVision", [512, "resnet18", "DEFAULT", True, 2, True]]),
    "module getattr": setting("architecture.backbone.0.2", "nn.modules.__builtins__"),
    "repeats 1e9": setting("architecture.backbone.2.1", 10**9),
    "channels 1e9": setting("architecture.backbone.0.3", [10**9, 3, 2]),
    "width 1e9": setting("architecture.scales.n", [0.33, 1e9, 1e12]),
    "depth 1e9": setting("architecture.scales.n", [1e9, 0.25, 1024]),
    "nc 1e12": setting("architecture.nc", 10**12),
    "scale unknown": setting("architecture.scale", "zzz"),
    "architecture of text": setting("architecture", "yolov8n.yaml"),
    "backbone missing": without("architecture.backbone"),
    "Detect elsewhere": setting("architecture.head.12.0", [2, 2, 2]),
    "from a later layer": setting("architecture.backbone.0.0", 20),
}  # fmt: skip


def _first(tensors: dict[str, Any], suffix: str = ".weight") -> str:
    return next(name for name in sorted(tensors) if name.endswith(suffix))


def _filled(value: float, suffix: str = ".weight") -> Callable[[dict[str, Any]], None]:
    def change(tensors: dict[str, Any]) -> None:
        name = _first(tensors, suffix)
        tensors[name] = np.full_like(tensors[name], value)

    return change


def _replaced(value: Any, suffix: str = ".weight") -> Callable[[dict[str, Any]], None]:
    def change(tensors: dict[str, Any]) -> None:
        tensors[_first(tensors, suffix)] = value

    return change


TENSORS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "NaN weight": _filled(NAN),
    "one NaN": lambda tensors: tensors.update({_first(tensors): _one_nan(tensors[_first(tensors)])}),
    "infinite weight": _filled(INF),
    "infinite bias": _filled(INF, ".bias"),
    "weights missing": lambda tensors: tensors.pop(_first(tensors)),
    "bias missing": lambda tensors: tensors.pop(_first(tensors, ".bias")),
    "all missing": lambda tensors: tensors.clear(),
    "left over": lambda tensors: tensors.update(extra=np.zeros(3, np.float32)),
    "left over in a layer": lambda tensors: tensors.update({"model.0.conv.more": np.zeros(3, np.float32)}),
    "scalar": _replaced(np.zeros((), np.float32)),
    "empty": _replaced(np.zeros(0, np.float32)),
    "no input channel": _replaced(np.zeros((16, 0, 3, 3), np.float32)),
    "one dimension": _replaced(np.zeros(16, np.float32)),
    "six dimensions": _replaced(np.zeros((1, 1, 1, 1, 1, 1), np.float32)),
    "other kernel": _replaced(np.zeros((16, 3, 5, 5), np.float32)),
    "other width": _replaced(np.zeros((8, 3, 3, 3), np.float32)),
    "integers": _replaced(np.zeros((16, 3, 3, 3), np.int64)),
    "double": _replaced(np.zeros((16, 3, 3, 3), np.float64)),
    "ranges of a float model": lambda tensors: tensors.update({"amax.model.0": np.ones((), np.float32)}),
}


def _one_nan(array: Any) -> Any:
    copy = array.copy()
    copy.reshape(-1)[0] = NAN
    return copy


def _amax(value: Any) -> Callable[[dict[str, Any]], None]:
    def change(tensors: dict[str, Any]) -> None:
        name = next(name for name in sorted(tensors) if name.startswith("amax."))
        if callable(value):
            value(tensors, name)
        else:
            tensors[name] = np.full_like(tensors[name], value) if np.isscalar(value) else value

    return change


QUANTIZED: dict[str, Callable[[bytes], bytes]] = {
    **{f"range {name}": checkpoint_with(None, _amax(value)) for name, value in
       {"NaN": NAN, "infinite": INF, "negative": -1.0, "zero": 0.0, "huge": 3e38, "denormal": 1e-45,
        "of two": np.ones(2, np.float32), "empty": np.zeros(0, np.float32), "integer": np.ones((), np.int64),
        "missing": lambda tensors, name: tensors.pop(name),
        "of nobody": lambda tensors, name: tensors.update({"amax.model.99": np.ones((), np.float32)})}.items()},
    **{f"placement {name}": checkpoint_with(setting("placement", value)) for name, value in WRONG.items()},
    **{f"toolkit {name}": checkpoint_with(setting("toolkit", value)) for name, value in WRONG.items()},
    "no toolkit": checkpoint_with(without("toolkit")),
    "no placement": checkpoint_with(without("placement")),
    "toolkit is a module": checkpoint_with(setting("toolkit", "os")),
    "placement of 100000 groups": checkpoint_with(lambda header: header["placement"]["groups"].extend(
        header["placement"]["groups"][:1] * 100_000)),
    "group twice": checkpoint_with(lambda header: header["placement"]["groups"].append(header["placement"]["groups"][0])),
    "no groups": checkpoint_with(setting("placement.groups", [])),
    "group of unknown layer": checkpoint_with(lambda header: header["placement"]["groups"][0].update(
        {key: ["model.99.conv"] for key, value in header["placement"]["groups"][0].items() if isinstance(value, list)})),
    "group of dunder": checkpoint_with(lambda header: header["placement"]["groups"][0].update(
        {key: ["__class__.__init__"] for key, value in header["placement"]["groups"][0].items() if isinstance(value, list)})),
    "group empty": checkpoint_with(setting("placement.groups.0", {})),
    "group null": checkpoint_with(setting("placement.groups.0", None)),
    "group of a ReLU": checkpoint_with(lambda header: header["placement"]["groups"][0].update(
        {key: ["model.0.act"] for key, value in header["placement"]["groups"][0].items() if isinstance(value, list)})),
    "names 3 of 7": checkpoint_with(setting("names", {"0": "a", "1": "b", "2": "c"})),
    "stage fp32": checkpoint_with(setting("stage", "fp32")),
}  # fmt: skip


def _raw_header(length: int, header: bytes) -> bytes:
    return struct.pack("<Q", length) + header


def _offsets(low: int, high: int, shape: list[int], kind: str = "F32") -> bytes:
    entry = {"a": {"dtype": kind, "shape": shape, "data_offsets": [low, high]}}
    encoded = json.dumps({"__metadata__": {"header": "{}"}, **entry}).encode()
    return struct.pack("<Q", len(encoded)) + encoded + bytes(16)


CONTAINER: dict[str, bytes] = {
    "empty": b"",
    "seven bytes": bytes(7),
    "zeros": bytes(1000),
    "header of 2**63": _raw_header(1 << 63, b"{}"),
    "header of 90 MB": _raw_header(90_000_000, b"{}"),
    "header no JSON": _raw_header(4, b"{{{{"),
    "header list": _raw_header(2, b"[]"),
    "header deep": _raw_header(40000, (b"[" * 20000) + b"]" * 20000),
    "metadata not text": _raw_header(26, b'{"__metadata__":{"a":123}}'),
    "offsets beyond the end": _offsets(0, 1 << 40, [1 << 38]),
    "offsets backwards": _offsets(16, 0, [4]),
    "offsets do not fit": _offsets(0, 16, [1000]),
    "shape overflows": _offsets(0, 16, [1 << 62, 1 << 62]),
    "kind unknown": _offsets(0, 16, [4], "Q99"),
    "no metadata": safetensors({"a": np.zeros(3, np.float32)}, {}),
    "header entry deep": safetensors({}, {"header": deep(100_000)}),
    "header entry no JSON": safetensors({}, {"header": "{"}),
    "header entry number": safetensors({}, {"header": "5"}),
    "header entry list": safetensors({}, {"header": "[]"}),
    "header entry NaN": safetensors({}, {"header": "NaN"}),
    "header entry long integer": safetensors({}, {"header": "9" * 100_000}),
    "format alone": safetensors({}, {"header": '{"format": "trt_qat-checkpoint-1"}'}),
    "format of a later version": safetensors({}, {"header": '{"format": "trt_qat-checkpoint-99"}'}),
}


def cases() -> Iterator[Case]:
    """All of them."""
    source = "demo.safetensors"
    export = words(EXPORT, weights="bad.safetensors")
    for name, header in HEADER.items():
        yield Case(f"checkpoint/{name}", export, changed("bad.safetensors", checkpoint_with(header), source))
    for name, tensors in TENSORS.items():
        yield Case(f"checkpoint/{name}", export, changed("bad.safetensors", checkpoint_with(None, tensors), source))
    for name, content in CONTAINER.items():
        yield Case(f"checkpoint/file: {name}", export, file("bad.safetensors", content))
    for share in (0.001, 0.5, 0.999):
        yield Case(f"checkpoint/cut at {share}", export, changed("bad.safetensors", cut(share), source))
    for seed in range(6):
        change = flipped(seed, 6, 0, 0.002)
        yield Case(f"checkpoint/bytes flipped {seed}", export, changed("bad.safetensors", change, source))
    int8 = words("export {weights} --no-check --out out.onnx", weights="bad.safetensors")
    for name, change in QUANTIZED.items():
        yield Case(
            f"checkpoint/quantized: {name}", int8, changed("bad.safetensors", change, "ptq.safetensors"), ("ptq",)
        )
    qat = words(QAT, weights="bad.safetensors", data="set")
    for name in ("range NaN", "range zero", "range missing", "range of two"):
        make = with_set(changed("bad.safetensors", QUANTIZED[name], "ptq.safetensors"))
        yield Case(f"checkpoint/qat: {name}", qat, make, ("ptq",), leaves=("calib", "out"), seconds=60)
    evaluate = words(EVALUATE, model="bad.safetensors", data="set")
    calibrate = words(CALIBRATE, weights="bad.safetensors", data="set")
    for name in ("NaN weight", "infinite bias"):
        make = with_set(changed("bad.safetensors", checkpoint_with(None, TENSORS[name]), source))
        yield Case(f"checkpoint/evaluate: {name}", evaluate, make)
        yield Case(f"checkpoint/calibrate: {name}", calibrate, make)
    make = with_set(changed("bad.safetensors", QUANTIZED["range NaN"], "ptq.safetensors"))
    yield Case("checkpoint/evaluate: range NaN", evaluate, make, ("ptq",))
    for key in ("activation with keyword code", "activation walrus"):
        activation = ARCHITECTURES[key].splitlines()[0].removeprefix('activation: "').removesuffix('"')
        make = changed("bad.safetensors", checkpoint_with(setting("architecture.activation", activation)), source)
        yield Case(f"checkpoint/{key}", export, make)
