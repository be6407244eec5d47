"""ONNX files, plans, side-cars and Ultralytics engines."""

from __future__ import annotations

import itertools
import json
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from case import (
    EVALUATE,
    MARKER,
    Case,
    Make,
    changed,
    copied,
    cut,
    data,
    deep,
    flipped,
    text,
    with_set,
    with_tiny,
    words,
)
from onnx import TensorProto, helper, numpy_helper

INFER = "infer good.png --model bad.onnx --runtime {runtime} --out out.png"
INSPECT = "inspect bad.onnx --html out.html --json out.json"
PARITY = "parity tiny.onnx bad.onnx --runtime-a onnxruntime --data set --bisect --json out.json"
LINT = "lint bad.onnx --svg out.svg --json out.json"


def _model(change: Callable[[Any], object], source: str = "tiny.onnx") -> Make:
    """The tiny detector, changed in place."""

    def make(place: Path, kit: Path) -> None:
        model = onnx.load(kit / source)
        change(model)
        (place / "bad.onnx").write_bytes(model.SerializeToString())

    return make


def _meta(**values: str) -> Make:
    def change(model: Any) -> None:
        props = {entry.key: entry.value for entry in model.metadata_props} | values
        del model.metadata_props[:]
        for key, value in props.items():
            model.metadata_props.add(key=key, value=value)

    return _model(change)


def _input(kind: int = TensorProto.FLOAT, shape: Any = (1, 3, 64, 64)) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        model.graph.input[0].CopyFrom(helper.make_tensor_value_info("images", kind, shape))

    return change


def _output(kind: int = TensorProto.FLOAT, shape: Any = (1, 7, 64)) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info("output0", kind, shape))

    return change


def _initializer(name: str, value: Any) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        for tensor in model.graph.initializer:
            if tensor.name == name:
                tensor.CopyFrom(numpy_helper.from_array(np.asarray(value), name))

    return change


def _nodes(*nodes: Any, front: bool = False) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        old = list(model.graph.node)
        del model.graph.node[:]
        model.graph.node.extend([*nodes, *old] if front else [*old, *nodes])

    return change


def _chain(count: int) -> Callable[[Any], None]:
    names = ["output0", *(f"t{i}" for i in range(count))]
    return _nodes(*(helper.make_node("Identity", [a], [b], b) for a, b in itertools.pairwise(names)))


def _cycle(model: Any) -> None:
    model.graph.node[1].input[0] = "maps"


def _same_output_twice(model: Any) -> None:
    model.graph.node[2].output[0] = "colours"


def _no_outputs(model: Any) -> None:
    del model.graph.output[:]


def _no_inputs(model: Any) -> None:
    del model.graph.input[:]


def _no_nodes(model: Any) -> None:
    del model.graph.node[:]


def _empty_node(model: Any) -> None:
    model.graph.node.add()


def _external(location: str, length: str = "84", offset: str = "0") -> Callable[[Any], None]:
    def change(model: Any) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=value)

    return change


def _dims(*dims: int) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        del model.graph.initializer[0].dims[:]
        model.graph.initializer[0].dims.extend(dims)

    return change


def _attribute(name: str, value: Any) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        node = model.graph.node[0]
        kept = [entry for entry in node.attribute if entry.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])

    return change


def _subgraphs(depth: int) -> Make:
    """If in If in If; written as bytes, for the library that would write it refuses what is so deep."""

    def field(number: int, content: bytes) -> bytes:
        return _varint(number << 3 | 2) + _varint(len(content)) + content

    def make(place: Path, kit: Path) -> None:
        graph = b""
        for _ in range(depth):
            branch = field(1, b"then_branch") + field(6, graph) + _varint(20 << 3) + _varint(5)
            graph = field(1, field(1, b"images") + field(2, b"x") + field(4, b"If") + field(5, branch))
        (place / "bad.onnx").write_bytes((kit / "tiny.onnx").read_bytes() + field(7, graph))

    return make


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _function(model: Any) -> None:
    """A function that calls itself."""
    node = helper.make_node("Again", ["x"], ["y"], domain="d")
    model.functions.append(helper.make_function("d", "Again", ["x"], ["y"], [node], [helper.make_opsetid("", 19)]))
    model.opset_import.append(helper.make_opsetid("d", 1))
    model.graph.node.append(helper.make_node("Again", ["images"], ["z"], domain="d"))


_INT8_ZERO = np.int8(0)


def _quantizers(scale: Any, zero: Any = _INT8_ZERO) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(scale, np.float32), "s"))
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(zero), "z"))
        pair = (helper.make_node("QuantizeLinear", ["images", "s", "z"], ["q"], "q"),
                helper.make_node("DequantizeLinear", ["q", "s", "z"], ["dq"], "dq"))  # fmt: skip
        _nodes(*pair, front=True)(model)
        model.graph.node[2].input[0] = "dq"

    return change


def _names(change: Callable[[int], str]) -> Callable[[Any], None]:
    def renamed(model: Any) -> None:
        for index, node in enumerate(model.graph.node):
            node.name = change(index)

    return renamed


METADATA: dict[str, Make] = {
    "imgsz 1e9": _meta(imgsz="[1000000000, 1000000000]"),
    "imgsz text": _meta(imgsz="big"),
    "imgsz code": _meta(imgsz=f"__import__('os').system('touch {MARKER}')"),
    "imgsz power": _meta(imgsz="9**9**9**9"),
    "imgsz 5000 digits": _meta(imgsz="9" * 5000),
    "imgsz inf": _meta(imgsz="1e999"),
    "imgsz other than the input": _meta(imgsz="[640, 640]"),
    "imgsz of strings": _meta(imgsz="['64', '64']"),
    "imgsz minus signs": _meta(imgsz="-" * 20_000 + "1"),
    "names minus signs": _meta(names="-" * 20_000 + "1"),
    "names brackets": _meta(names="[" * 20_000 + "]" * 20_000),
    "names brackets 90": _meta(names="(" * 90 + ")" * 90),
    "names 1000 tildes": _meta(names="~" * 100_000),
    "names code": _meta(names=f"__import__('os').system('touch {MARKER}')"),
    "names code in a dict": _meta(names=f"{{0: __import__('os').system('touch {MARKER}')}}"),
    "names number": _meta(names="5"),
    "names text": _meta(names="'red'"),
    "names empty": _meta(names=""),
    "names of 2": _meta(names="{0: 'a', 1: 'b'}"),
    "names far apart": _meta(names="{0: 'a', 1: 'b', 1000000000000: 'c'}"),
    "names nan": _meta(names="{1e999: 'a'}"),
    "names NUL": _meta(names="{0: 'a\\0', 1: 'b\\n\\x1b[2J', 2: 'c'}"),
    "names real NUL": _meta(names="{0: 'a\0', 1: 'b', 2: 'c'}"),
    "names set": _meta(names="{'a', 'b', 'c'}"),
    "names bytes": _meta(names="{0: b'a', 1: b'b', 2: b'c'}"),
    "names not hashable": _meta(names="{[]: 'a'}"),
    "names of a megabyte": _meta(names=str({0: "a" * 1_000_000, 1: "b", 2: "c"})),
    "names of 100000": _meta(names=str(dict.fromkeys(range(100_000), "a"))),
    "stride text": _meta(stride="x" * 1000),
    "stride 0": _meta(stride="0"),
    "stride inf": _meta(stride="1e999"),
    "task segment": _meta(task="segment"),
    "precision code": _meta(precision="\x1b[2J; rm -rf"),
    "100000 entries": _model(lambda model: helper.set_model_props(model, {f"k{i}": "v" for i in range(100_000)})),
    "entry of 10 MB": _meta(description="x" * 10_000_000),
}
GRAPHS: dict[str, Make] = {
    "STRING input": _model(_input(TensorProto.STRING)),
    "INT64 input": _model(_input(TensorProto.INT64)),
    "DOUBLE input": _model(_input(TensorProto.DOUBLE)),
    "UINT8 input": _model(_input(TensorProto.UINT8)),
    "COMPLEX input": _model(_input(TensorProto.COMPLEX64)),
    "FLOAT8 input": _model(_input(TensorProto.FLOAT8E4M3FN)),
    "input of unknown type": _model(_input(99)),
    "input of no type": _model(lambda model: model.graph.input[0].ClearField("type")),
    "input is a sequence": _model(lambda model: model.graph.input[0].CopyFrom(
        helper.make_tensor_sequence_value_info("images", TensorProto.FLOAT, None))),
    "input without shape": _model(_input(shape=None)),
    "input of no dimension": _model(_input(shape=())),
    "input of 1 dimension": _model(_input(shape=(3,))),
    "input of 9 dimensions": _model(_input(shape=(1,) * 9)),
    "input of 2**40": _model(_input(shape=(1, 3, 1 << 40, 1 << 40))),
    "input of 2**15": _model(_input(shape=(1, 3, 1 << 15, 1 << 15))),
    "input of 0": _model(_input(shape=(1, 3, 0, 0))),
    "input of -1": _model(_input(shape=(-1, 3, -1, -1))),
    "input not square": _model(_input(shape=(1, 3, 64, 96))),
    "input of 64 channels": _model(_input(shape=(1, 64, 64, 64))),
    "batch 1e6": _model(_input(shape=(10**6, 3, 64, 64))),
    "dynamic everything": _model(_input(shape=("a", "b", "c", "d"))),
    "input named oddly": _model(lambda model: setattr(model.graph.input[0], "name", "../../x\n\0")),
    "two inputs": _model(lambda model: model.graph.input.append(
        helper.make_tensor_value_info("more", TensorProto.FLOAT, (1, 3, 64, 64)))),
    "no inputs": _model(_no_inputs),
    "no outputs": _model(_no_outputs),
    "no nodes": _model(_no_nodes),
    "empty node": _model(_empty_node),
    "output STRING": _model(_output(TensorProto.STRING)),
    "output INT64": _model(_output(TensorProto.INT64)),
    "output of 5 dimensions": _model(_output(shape=(1, 1, 1, 7, 64))),
    "output of nobody": _model(lambda model: setattr(model.graph.output[0], "name", "nobody")),
    "output is the input": _model(lambda model: setattr(model.graph.output[0], "name", "images")),
    "cycle": _model(_cycle),
    "node reads itself": _model(_nodes(helper.make_node("Identity", ["self"], ["self"], "self"))),
    "same output twice": _model(_same_output_twice),
    "50000 nodes": _model(_chain(50_000)),
    "19000 nodes": _model(_chain(19_000)),
    "200000 inputs of a node": _model(_nodes(helper.make_node("Concat", ["images"] * 200_000, ["c"], axis=0))),
    "subgraphs 30": _subgraphs(30),
    "subgraphs 5000": _subgraphs(5000),
    "function calls itself": _model(_function),
    "unknown operator": _model(_nodes(helper.make_node("Mystery", ["images"], ["m"]))),
    "unknown domain": _model(_nodes(helper.make_node("Relu", ["images"], ["m"], domain="com.example"))),
    "python operator": _model(_nodes(helper.make_node("PyOp", ["images"], ["m"], domain="pyopmulti_1"))),
    "ATen operator": _model(_nodes(helper.make_node("ATen", ["images"], ["m"], domain="org.pytorch.aten"))),
    "EPContext": _model(_nodes(helper.make_node(
        "EPContext", ["images"], ["m"], domain="com.microsoft", ep_cache_context="../../x.so", source="x", main_context=1,
        embed_mode=0))),
    "opset 0": _model(lambda model: setattr(model.opset_import[0], "version", 0)),
    "opset 9999": _model(lambda model: setattr(model.opset_import[0], "version", 9999)),
    "opset 1": _model(lambda model: setattr(model.opset_import[0], "version", 1)),
    "no opset": _model(lambda model: model.ClearField("opset_import")),
    "IR 9999": _model(lambda model: setattr(model, "ir_version", 9999)),
    "IR 0": _model(lambda model: setattr(model, "ir_version", 0)),
    "weights NaN": _model(_initializer("weights", np.full((7, 3, 1, 1), np.nan, np.float32))),
    "weights infinite": _model(_initializer("weights", np.full((7, 3, 1, 1), np.inf, np.float32))),
    "boxes 3e38": _model(_initializer("grid", np.full((1, 7, 8, 8), 3e38, np.float32))),
    "boxes -3e38": _model(_initializer("grid", np.full((1, 7, 8, 8), -3e38, np.float32))),
    "boxes NaN": _model(_initializer("grid", np.full((1, 7, 8, 8), np.nan, np.float32))),
    "weights of another shape": _model(_initializer("weights", np.zeros((7, 5, 1, 1), np.float32))),
    "weights of strings": _model(_initializer("weights", np.array([b"a"] * 21, dtype=object).reshape(7, 3, 1, 1))),
    "shape 2**62": _model(_initializer("shape", np.array([1 << 62, 1 << 62, -1]))),
    "shape -1 -1": _model(_initializer("shape", np.array([-1, -1, -1]))),
    "dims overflow": _model(_dims(1 << 62, 1 << 62)),
    "dims negative": _model(_dims(-7, -3, 1, 1)),
    "dims more than data": _model(_dims(1000, 1000)),
    "data type 99": _model(lambda model: setattr(model.graph.initializer[0], "data_type", 99)),
    "external /etc/passwd": _model(_external("/etc/passwd")),
    "external ../outside": _model(_external("../outside.bin")),
    "external pipe": _model(_external("pipe.bin")),
    "external zero": _model(_external("/dev/zero")),
    "external missing": _model(_external("none.bin")),
    "external of 2**60": _model(_external("inside.bin", str(1 << 60))),
    "external offset": _model(_external("inside.bin", "84", str(1 << 62))),
    "external length text": _model(_external("inside.bin", "many")),
    "external link": _model(_external("link.bin")),
    "kernel 1e9": _model(_attribute("kernel_shape", [10**9, 10**9])),
    "kernel 0": _model(_attribute("kernel_shape", [0, 0])),
    "kernel -1": _model(_attribute("kernel_shape", [-1, -1])),
    "strides 0": _model(_attribute("strides", [0, 0])),
    "strides text": _model(_attribute("strides", "wide")),
    "pads 1e9": _model(_attribute("pads", [10**9] * 4)),
    "scale 0": _model(_quantizers(0.0)),
    "scale NaN": _model(_quantizers(np.nan)),
    "scale negative": _model(_quantizers(-1.0)),
    "scale infinite": _model(_quantizers(np.inf)),
    "scale empty": _model(_quantizers(np.zeros(0))),
    "scale matrix": _model(_quantizers(np.ones((3, 3)))),
    "scale of 100": _model(_quantizers(np.ones(100))),
    "zero point float": _model(_quantizers(1.0, np.float32(0))),
    "zero point of 3": _model(_quantizers(1.0, np.zeros(3, np.int8))),
    "node names with newlines": _model(_names(lambda index: f"a\n\x1b[2J{index}")),
    "node names with quotes": _model(_names(lambda index: f'"]; digraph {{<script>alert({index})</script>')),
    "node names of a megabyte": _model(_names(lambda index: "n" * 1_000_000)),
    "node names same": _model(_names(lambda index: "same")),
    "node names empty": _model(_names(lambda index: "")),
}  # fmt: skip
_FEW = frozenset({"STRING input", "50000 nodes", "cycle", "no nodes", "external /etc/passwd", "external zero", "scale 0",
                  "node names with newlines", "input of 2**40", "dims overflow"})  # fmt: skip
NO_ONNX = {
    "empty": b"",
    "text": b"hello\n",
    "zeros": bytes(1000),
    "ones": b"\xff" * 1000,
    "pickle": b"\x80\x04\x95" + bytes(100),
    "deep messages": b"\x3a\xff\xff\xff\x7f" * 1000,
    "length of 2**63": b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
    "groups": b"\x0b" * 100_000,
    "another message": b"\x08\x09\x12\x05hello",
}
SIDECARS: dict[str, Any] = {
    "empty": "", "text": "hello", "list": "[]", "null": "null", "number": "5", "deep": deep(100_000),
    "NaN": '{"flavor": NaN}', "flavor null": '{"flavor": null}', "flavor list": '{"flavor": ["tensorrt"]}',
    "flavor mapping": '{"flavor": {}}', "flavor os": '{"flavor": "os"}', "flavor true": '{"flavor": true}',
    "no metadata": '{"flavor": "tensorrt-rtx"}', "metadata list": '{"flavor": "tensorrt-rtx", "metadata": []}',
    "metadata text": '{"flavor": "tensorrt-rtx", "metadata": "x"}',
    "metadata of numbers": '{"flavor": "tensorrt-rtx", "metadata": {"names": 5, "imgsz": {}}}',
    "sha number": '{"flavor": "tensorrt-rtx", "onnx_sha256": 5, "metadata": {}}',
    "long integer": '{"flavor": ' + "9" * 10_000 + "}",
    "UTF-16": "\udcff\udcfe{\0}\0", "binary": "\udcff\udc80" * 100, "surrogate": '{"flavor": "\\ud800"}',
    "hash of itself": '{"flavor": "tensorrt-rtx", "content_sha256": 5}',
    "hash of another": '{"flavor": "tensorrt-rtx", "content_sha256": "' + "0" * 64 + '"}',
    "another preparation": '{"flavor": "tensorrt-rtx", "preprocessing": {"size": [64, 64], "scale": 1.0}}',
    "long version": '{"flavor": "tensorrt-rtx", "tensorrt_version": "' + "9" * 100_000 + '"}',
    "same key twice": '{"flavor": "tensorrt-rtx", "flavor": 5}',
    "70 MB": '{"flavor": "' + "x" * 70_000_000 + '"}',
}  # fmt: skip


def _engine(header: bytes, length: int | None = None, rest: bytes = b"plan" * 100) -> bytes:
    return struct.pack("<i", len(header) if length is None else length) + header + rest


ENGINES = {
    "empty": b"",
    "three bytes": b"abc",
    "length 0": _engine(b"{}", 0),
    "length -1": _engine(b"{}", -1),
    "length -2**31": _engine(b"{}", -(2**31)),
    "length 2**31": _engine(b"{}", 2**31 - 1),
    "length of everything": _engine(b"{}", 402),
    "header no JSON": _engine(b"{{{"),
    "header list": _engine(b"[]"),
    "header null": _engine(b"null"),
    "header number": _engine(b"5"),
    "header deep": _engine(b"[" * 100_000 + b"]" * 100_000),
    "header long integer": _engine(b'{"a": ' + b"9" * 10_000 + b"}"),
    "header NaN": _engine(b'{"imgsz": NaN, "names": Infinity}'),
    "header binary": _engine(b"\xff\xfe\x80"),
    "flavor list": _engine(b'{"flavor": []}'),
    "flavor unknown": _engine(b'{"flavor": "os"}'),
    "flavor null": _engine(b'{"flavor": null}'),
    "names code": _engine(json.dumps({"names": f"__import__('os').system('touch {MARKER}')"}).encode()),
    "imgsz 1e9": _engine(json.dumps({"names": {"0": "a"}, "imgsz": [10**9, 10**9]}).encode()),
    "names minus signs": _engine(json.dumps({"names": "-" * 20_000 + "1"}).encode()),
    "no plan": _engine(b"{}", None, b""),
}


def _surroundings(place: Path, kit: Path) -> None:
    """What external data may point at."""
    (place / "inside.bin").write_bytes(bytes(84))
    (place.parent / "outside.bin").write_bytes(bytes(84)) if os.access(place.parent, os.W_OK) else None
    os.mkfifo(place / "pipe.bin")
    os.symlink("/etc/passwd", place / "link.bin")


def _odd(path: str) -> dict[str, Make]:
    return {
        "pipe": lambda place, kit: os.mkfifo(place / path),
        "folder": lambda place, kit: (place / path).mkdir(),
        "zero": lambda place, kit: os.symlink("/dev/zero", place / path),
        "loop": lambda place, kit: os.symlink(path, place / path),
    }


def cases() -> Iterator[Case]:
    """All of them."""
    infer, lint = words(INFER, runtime="openvino"), words(LINT)
    inspect, parity = words(INSPECT), words(PARITY)
    evaluate = (*words(EVALUATE, model="bad.onnx", data="set"), "--runtime", "onnxruntime")
    for name, make in METADATA.items():
        yield Case(f"onnx/metadata: {name}", infer, with_tiny(make))
    for name in ("names minus signs", "imgsz 1e9", "names far apart", "entry of 10 MB"):
        yield Case(f"onnx/lint: metadata {name}", lint, with_tiny(METADATA[name]))
        yield Case(f"onnx/engine: metadata {name}", words("engine bad.onnx --out out.plan"), with_tiny(METADATA[name]))
    for name, make in GRAPHS.items():
        full = with_tiny(_surroundings, make)
        yield Case(f"onnx/{name}", infer, full)
        yield Case(f"onnx/lint: {name}", lint, full)
        if name in _FEW:
            yield Case(f"onnx/onnxruntime: {name}", words(INFER, runtime="onnxruntime"), full)
            yield Case(f"onnx/evaluate: {name}", evaluate, with_set(full))
            yield Case(f"onnx/engine: {name}", words("engine bad.onnx --out out.plan"), full)
            yield Case(f"onnx/inspect: {name}", inspect, full)
            yield Case(f"onnx/parity: {name}", parity, with_set(full))
    for name, content in NO_ONNX.items():
        yield Case(f"onnx/{name}", infer, with_tiny(data("bad.onnx", content)))
        yield Case(f"onnx/lint: {name}", lint, data("bad.onnx", content))
        yield Case(f"onnx/inspect: {name}", inspect, data("bad.onnx", content))
    for share in (0.2, 0.6, 0.98):
        yield Case(f"onnx/cut at {share}", infer, with_tiny(changed("bad.onnx", cut(share), "tiny.onnx")))
    for seed in range(6):
        make = with_tiny(changed("bad.onnx", flipped(seed, 4), "tiny.onnx"))
        yield Case(f"onnx/flipped {seed}", infer, make)
        yield Case(f"onnx/lint: flipped {seed}", lint, make)
    for seed in range(4):
        make = changed("bad.onnx", flipped(seed, 400), "int8.onnx")
        yield Case(f"onnx/lint: INT8 flipped {seed}", lint, make, ("onnx",))
    for name, make in _odd("bad.onnx").items():
        yield Case(f"onnx/{name}", infer, with_tiny(make))
        yield Case(f"onnx/lint: {name}", lint, make)
        yield Case(f"onnx/engine: {name}", words("engine bad.onnx --out out.plan"), make)
        yield Case(f"onnx/inspect: {name}", inspect, make)
    plan = words("infer good.png --model x.plan --out out.png")
    beside = words("infer good.png --model tiny.onnx --out out.png")
    for name, content in SIDECARS.items():
        both = with_tiny(copied("x.plan", "x.plan"), text("x.json", content))
        yield Case(f"plans/{name}", plan, both)
        good = with_tiny(copied("x.plan", "tiny.plan"), text("tiny.json", content))
        yield Case(f"plans/beside an ONNX: {name}", beside, good)
    for name, make in _odd("x.json").items():
        yield Case(f"plans/side-car {name}", plan, with_tiny(copied("x.plan", "x.plan"), make))
    for name, make in _odd("x.plan").items():
        yield Case(f"plans/plan {name}", plan, with_tiny(copied("x.json", "x.json"), make))
    for name, make in _odd("tiny.json").items():
        yield Case(f"plans/beside an ONNX: {name}", beside, with_tiny(copied("x.plan", "tiny.plan"), make))
    yield Case(
        "plans/evaluate",
        words(EVALUATE, model="x.plan", data="set"),
        with_set(copied("x.plan", "x.plan"), copied("x.json", "x.json")),
    )
    engine = words("infer good.png --model bad.engine --out out.png")
    for name, content in ENGINES.items():
        yield Case(f"engines/{name}", engine, with_tiny(data("bad.engine", content)))
    for seed in range(3):
        make = with_tiny(changed("bad.engine", flipped(seed, 5, 0, 0.1), "x.engine"))
        yield Case(f"engines/flipped {seed}", engine, make)
    for name, make in _odd("bad.engine").items():
        yield Case(f"engines/{name}", engine, with_tiny(make))
    for name, content in {
        "empty": "", "text": "hello", "laughs": '<!DOCTYPE a [<!ENTITY a "ha">]><net>&a;</net>', "net": "<net/>",
        "external": '<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/passwd">]><net name="&a;"/>',
        "deep": "<net>" * 10_000,
    }.items():  # fmt: skip
        make = with_tiny(text("bad_openvino_model/model.xml", content), data("bad_openvino_model/model.bin", b""))
        command = words("infer good.png --model bad_openvino_model --out out.png")
        yield Case(f"engines/openvino {name}", command, make)
    yield Case("engines/openvino empty folder", words("infer good.png --model a_openvino_model --out out.png"),
               with_tiny(lambda place, kit: (place / "a_openvino_model").mkdir()))  # fmt: skip
