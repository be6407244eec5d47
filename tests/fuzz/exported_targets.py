"""Targets for what is exported: ONNX files, OpenVINO folders, engines and side-cars, their metadata, the runtimes."""

from __future__ import annotations

import ast
import contextlib
import json
import math
import struct
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from mutations import (
    edited_xml,
    json_values,
    mutated_bytes,
    mutated_json,
    mutated_text,
    nudged_json,
    odd_numbers,
)
from target import Target, written


@cache
def _tiny() -> bytes:
    from tiny_onnx import write_tiny_detector

    with tempfile.TemporaryDirectory() as folder:
        return write_tiny_detector(Path(folder, "tiny.onnx")).read_bytes()


def _onnx_bytes() -> SearchStrategy[bytes]:
    return st.one_of(mutated_bytes([_tiny()]), _onnx_models())


@st.composite
def _onnx_models(draw: st.DrawFn) -> bytes:
    """The tiny detector with some fields of its messages changed: what random bytes seldom reach."""
    import onnx

    model = onnx.ModelProto.FromString(_tiny())
    for _ in range(draw(st.integers(1, 4))):
        _change_message(draw, model)
    return model.SerializeToString()


def _change_message(draw: st.DrawFn, message: Any) -> None:
    """Walk down a protobuf message by chance, and change, copy or remove a field."""
    fields = message.ListFields()
    if not fields:
        return
    field, value = draw(st.sampled_from(fields))
    repeated = hasattr(value, "append") or hasattr(value, "add")
    nested = field.message_type is not None
    if nested and draw(st.integers(0, 3)):
        return _change_message(draw, draw(st.sampled_from(list(value))) if repeated else value)
    if repeated and not nested:
        entries = list(value)
        entries[draw(st.integers(0, len(entries) - 1))] = draw(_scalar(field))
        message.ClearField(field.name)
        getattr(message, field.name).extend(entries)
    elif repeated:
        entry = draw(st.sampled_from(list(value)))
        if draw(st.booleans()):
            value.add().CopyFrom(entry)
        else:
            value.remove(entry)
    elif nested:
        message.ClearField(field.name)
    else:
        with contextlib.suppress(ValueError):  # an enum without this number
            setattr(message, field.name, draw(_scalar(field)))
    return None


def _scalar(field: Any) -> SearchStrategy[Any]:
    if field.cpp_type == field.CPPTYPE_STRING:
        if field.type == field.TYPE_BYTES:
            return st.binary(max_size=100)
        return st.sampled_from(["", "images", "output0", "weights", "maps", "shape", "Conv", "QuantizeLinear", "If",
                                "a\nb", "x" * 3000, "../x"])  # fmt: skip
    if field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return st.sampled_from([0.0, -1.0, math.nan, math.inf, 3e38])
    if field.cpp_type == field.CPPTYPE_ENUM:
        return st.integers(0, 25)
    limit = (1 << 63) - 1 if "64" in str(field.cpp_type) or field.cpp_type == field.CPPTYPE_INT64 else (1 << 31) - 1
    return st.sampled_from([0, 1, -1, 2, 7, 10, 99, limit, -limit])


def _check_lint(content: bytes, folder: Path) -> None:
    from trt_qat.linter.report import lint

    report = lint(written(folder, "a.onnx", content), "tensorrt")
    json.dumps(report.as_dict(), allow_nan=False)
    assert report.as_text()


def _check_onnx_metadata(content: bytes, folder: Path) -> None:
    from trt_qat.engine.onnx_file import onnx_metadata

    found = onnx_metadata(written(folder, "a.onnx", content))
    assert all(isinstance(key, str) and isinstance(value, str) for key, value in found.items())


def _metadata() -> SearchStrategy[bytes]:
    names = st.one_of(
        st.dictionaries(st.integers(-1, 9), st.text(max_size=5), max_size=5).map(repr),
        st.lists(st.text(max_size=5), max_size=5).map(repr), json_values().map(repr), mutated_text(["{0: 'a', 1: 'b'}"]).map(
            lambda content: content.decode("utf-8", "replace")),
        st.tuples(st.sampled_from("-~([{+"), st.integers(1, 20_000)).map(lambda pair: pair[0] * pair[1] + "1"),
    )  # fmt: skip
    size = st.one_of(odd_numbers(), st.lists(st.integers(-64, 10_000), max_size=3).map(repr), names)
    good = {
        "names": "{0: 'a', 1: \"b's\", 2: 'Cấm'}",
        "imgsz": "[640, 640]",
        "stride": "32",
        "task": "detect",
        "batch": "1",
    }
    inside = st.tuples(
        st.lists(st.text("ab'\"\\\\é, :{}", min_size=1, max_size=6), min_size=1, max_size=4).map(dict_text),
        st.sampled_from(["[64, 64]", "[32,32]", "640", "(96, 96)", "[8192, 8192]", "[64, 96]"]),
    ).map(lambda pair: json.dumps({"names": pair[0], "imgsz": pair[1], "stride": "32"}).encode())
    wild = st.fixed_dictionaries({}, optional={"names": names, "imgsz": size, "stride": size}).map(
        lambda content: json.dumps(content).encode()
    )
    return st.one_of(inside, nudged_json(good), wild)


def dict_text(names: list[str]) -> str:
    """As Ultralytics writes class names."""
    return repr(dict(enumerate(names)))


def _check_runner_metadata(content: bytes, folder: Path) -> None:
    from trt_qat.runtime.runner import class_names, image_size

    metadata = {key: str(value) for key, value in json.loads(content).items()}  # a runner has texts only
    shape = (1, 3, None, None)
    names = class_names(metadata)
    assert all(isinstance(key, int) and isinstance(name, str) for key, name in names.items())
    assert not names or sorted(names) == list(range(len(names))), "class ids with a gap"
    with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
        said = ast.literal_eval(metadata["names"]) if "names" in metadata else {}
        if isinstance(said, dict) and all(type(key) is int and isinstance(name, str) for key, name in said.items()):
            assert said == names, f"{names} out of {said}"
    size = image_size(metadata, shape)
    assert all(32 <= side <= 8192 for side in size), f"image size {size}"


SIDECAR = {
    "onnx": "a.onnx", "onnx_sha256": "0" * 64, "flavor": "tensorrt-rtx", "tensorrt_version": "1.0", "size_bytes": 4,
    "build_seconds": 1.5, "inputs": [{"name": "images", "dtype": "float32", "shape": [-1, 3, 64, 64]}],
    "outputs": [{"name": "output0", "dtype": "float32", "shape": [-1, 5, 84]}],
    "profiles": [{"images": {"min": [1, 3, 64, 64], "opt": [2, 3, 64, 64], "max": [4, 3, 64, 64]}}],
    "compute_capabilities": [75, 120], "metadata": {"names": "{0: 'a'}", "imgsz": "[64, 64]", "stride": "32"},
    "gpu": {"name": "NVIDIA A", "compute_capability": 89}, "hardware_compatible": "ampere_plus", "names": {"0": "a"},
    "version_compatible": True, "optimization_level": 3, "onnx_version": "1.0", "trt_qat_version": "1.0",
    "preprocessing": {"size": [64, 64], "resize": "letterbox", "pad_value": 114, "scale": 1 / 255, "channels": "RGB"},
}  # fmt: skip


def _sidecars() -> SearchStrategy[bytes]:
    return st.one_of(nudged_json(SIDECAR), mutated_json(SIDECAR))


def _check_sidecar(content: bytes, folder: Path) -> None:
    from trt_qat.engine.engine_file import read_engine

    (folder / "a.plan").write_bytes(b"plan")
    written(folder, "a.json", content)
    _check_engine(*read_engine(folder / "a.plan"))


def _check_engine(described: Any, plan: bytes) -> None:
    content = described if isinstance(described, dict) else described.model_dump()
    assert content["flavor"] in ("tensorrt", "tensorrt-rtx")
    assert isinstance(plan, bytes)


def _engines() -> SearchStrategy[bytes]:
    good = {"names": {"0": "a", "1": "b"}, "imgsz": [64, 64], "stride": 32, "batch": 1, "task": "detect"}
    header = st.one_of(nudged_json(good), mutated_json(good))
    framed = header.map(lambda text: struct.pack("<i", len(text)) + text + b"plan")
    wrong = st.tuples(st.integers(-(2**31), 2**31 - 1), st.binary(max_size=60)).map(
        lambda pair: struct.pack("<i", pair[0]) + pair[1]
    )
    return st.one_of(framed, framed, wrong)


def _check_ultralytics_engine(content: bytes, folder: Path) -> None:
    from trt_qat.engine.engine_file import read_engine

    _check_engine(*read_engine(written(folder, "a.engine", content)))


@cache
def _ir() -> tuple[str, bytes]:
    """XML and weights of the tiny detector."""
    from trt_qat.runtime.packages import import_openvino

    openvino = import_openvino()
    with tempfile.TemporaryDirectory() as folder:
        network = openvino.Core().read_model(written(Path(folder), "tiny.onnx", _tiny()))
        openvino.save_model(network, Path(folder, "tiny.xml"), compress_to_fp16=False)
        return Path(folder, "tiny.xml").read_text(), Path(folder, "tiny.bin").read_bytes()


def _irs() -> SearchStrategy[bytes]:
    """XML, length of the weights and metadata.yaml as one JSON."""
    xml, weights = _ir()
    metadata = "names: {0: red, 1: green, 2: blue}\nimgsz: [64, 64]\nstride: 8\ntask: detect\n"
    texts = mutated_text([xml]).map(lambda content: content.decode("utf-8", "replace"))
    xmls = st.one_of(edited_xml(xml), edited_xml(xml), edited_xml(xml), texts)
    others = mutated_text([metadata]).map(lambda content: content.decode("utf-8", "replace"))
    length = st.one_of(st.just(len(weights)), st.integers(0, len(weights) + 8))
    parts = st.one_of(
        st.tuples(xmls, st.just(len(weights)), st.just(metadata)),
        st.tuples(st.just(xml), length, others), st.tuples(xmls, length, others),
    )  # fmt: skip
    return parts.map(lambda found: json.dumps(found).encode())


def _write_ir(content: bytes, folder: Path) -> Path:
    xml, length, metadata = json.loads(content)
    weights = (_ir()[1] + bytes(8))[:length]
    written(folder, "a.bin", weights)
    written(folder, "metadata.yaml", metadata.encode("utf-8", "surrogatepass"))
    return written(folder, "a.xml", xml.encode("utf-8", "surrogatepass"))


def _check_ir(content: bytes, folder: Path) -> None:
    from trt_qat.metadata import read_metadata
    from trt_qat.runtime.openvino_ir import check_ir

    texts = check_ir(_write_ir(content, folder))
    assert all(isinstance(key, str) and isinstance(value, str) for key, value in texts.items())
    read_metadata(texts)


def _check_openvino(content: bytes, folder: Path) -> None:
    from trt_qat.runtime.openvino import OpenVinoRunner

    _check_runner(OpenVinoRunner(_write_ir(content, folder)))


def _check_onnxruntime(content: bytes, folder: Path) -> None:
    from trt_qat.runtime.onnxruntime import OnnxRuntimeRunner

    _check_runner(OnnxRuntimeRunner(written(folder, "a.onnx", content)))


def _check_runner(runner: Any) -> None:
    """It runs, or says in one line why not."""
    from trt_qat.runtime.runner import class_names, image_size

    with runner:
        class_names(runner.metadata)
        size = image_size(runner.metadata, runner.input_shape)
        batch = runner.input_shape[0] or 1
        if max(size) > 256 or batch > 8:
            return
        for output in runner.infer(np.full((batch, 3, *size), 0.5, np.float32)):
            assert output.dtype == np.float32, f"an output of {output.dtype}"


@cache
def _logs() -> tuple[str, ...]:
    """Recorded logs, cut to their first layers and the end: a whole one would be nearly all that is mutated."""
    import gzip

    folder = Path(__file__).resolve().parents[1] / "engine" / "logs"
    texts = [gzip.decompress(path.read_bytes()).decode("utf-8") for path in sorted(folder.glob("*.gz"))]
    heads = [text.split("\n\n")[0].split("\n")[:12] for text in texts]
    return tuple("\n".join(head) + text[text.index("\n\n") :] for head, text in zip(heads, texts, strict=True))


def _log_bytes() -> SearchStrategy[bytes]:
    return mutated_text(_logs())


def _check_compiler_log(content: bytes, folder: Path) -> None:
    from trt_qat.engine.compiler_log import engine_from_log

    del folder
    engine = engine_from_log(content.decode("utf-8", "replace"), version="1.7.1.116", sm=89)
    said = json.loads(json.dumps(engine.as_dict(), allow_nan=False))
    assert said["activation_bytes"] == sum(layer["activation_bytes"] for layer in said["layers"]) >= 0
    assert said["macs"] >= 0


def _inspector_json() -> SearchStrategy[bytes]:
    tensor = {"Name": "a", "Dimensions": [1, 16, 8, 8], "Format/Datatype": "Row major Int8 format"}
    layer = {
        "Name": "conv", "LayerType": "CaskConvolution", "Inputs": [tensor], "Outputs": [tensor],
        "Weights": {"Type": "Int8", "Count": 256}, "Activation": "RELU", "Metadata": "[ONNX Layer: /conv/Conv]",
    }  # fmt: skip
    good = {"Layers": [layer, "named only"], "Bindings": ["a"], "I/O Tensors": [{"Name": "a"}]}
    return mutated_json(good)


def _check_inspector_json(content: bytes, folder: Path) -> None:
    from trt_qat.engine.inspect import engine_from_json

    del folder
    json.dumps(engine_from_json(content.decode("utf-8", "replace")).as_dict(), allow_nan=False)


TARGETS = (
    Target("compiler-log", _log_bytes, _check_compiler_log),
    Target("inspector-json", _inspector_json, _check_inspector_json),
    Target("onnx-metadata", _onnx_bytes, _check_onnx_metadata),
    Target("lint", _onnx_bytes, _check_lint),
    Target("onnxruntime", _onnx_bytes, _check_onnxruntime),
    Target("runner-metadata", _metadata, _check_runner_metadata),
    Target("side-car", _sidecars, _check_sidecar),
    Target("ultralytics-engine", _engines, _check_ultralytics_engine),
    Target("openvino-ir", _irs, _check_ir),
    Target("openvino", _irs, _check_openvino),
)
