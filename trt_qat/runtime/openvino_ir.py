"""An OpenVINO model as a folder: the XML of its layers, the weights beside it, what an exporter wrote about it.

All of it is checked here, before OpenVINO's own reader, which takes sizes and edges at their word, sees it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn
from xml.parsers import expat

from trt_qat.errors import ArtifactError
from trt_qat.limits import JSON_MEGABYTES, ONNX_NODES, ONNX_VALUES
from trt_qat.metadata import read_metadata
from trt_qat.reading import read_bytes, read_yaml, regular_file, shortened

_DEEPEST = 40
_VERSIONS = ("10", "11")  # with another one OpenVINO asks TensorFlow's reader, which writes to the terminal
_OUTER = 3  # net, layers, layer; those of a loop's body lie deeper
_ADVICE = "Export the model again."
_BITS = {"f64": 64, "i64": 64, "u64": 64, "f32": 32, "i32": 32, "u32": 32, "f16": 16, "bf16": 16, "i16": 16, "u16": 16}
_BITS |= {"i8": 8, "u8": 8, "boolean": 8, "f8e4m3": 8, "f8e5m2": 8, "i4": 4, "u4": 4, "nf4": 4}


def check_ir(xml: Path) -> dict[str, str]:
    """Refuse an IR that is not sound.

    Returns:
        The content of ``metadata.yaml``, each value as the text that an ONNX file would hold; empty without the file.

    Raises:
        ArtifactError: the XML, the weights or the metadata are missing, unreadable, or do not fit each other.
    """
    weights = regular_file(xml.with_suffix(".bin"), "Weights file of the OpenVINO IR")
    try:
        _check_layers(read_bytes(xml, "OpenVINO IR", JSON_MEGABYTES), weights.stat().st_size, str(xml))
    except (expat.ExpatError, ValueError, RecursionError) as exc:
        raise ArtifactError(f"'{xml}' is not a sound OpenVINO IR: {' '.join(str(exc).split())}. {_ADVICE}") from exc
    path = xml.parent / "metadata.yaml"
    if not path.exists():
        return {}
    try:
        content = read_yaml(path, "Metadata")
    except ArtifactError as exc:
        raise ArtifactError(f"{exc} {_ADVICE}") from exc
    if not isinstance(content, dict):
        raise ArtifactError(f"'{path}' does not describe a model: it is not a mapping. {_ADVICE}")
    try:
        texts = {str(key): str(value) for key, value in content.items()}
    except (RecursionError, ValueError) as exc:  # the second: an integer of more digits than Python prints
        raise ArtifactError(f"'{path}' holds a value that cannot be printed. {_ADVICE}") from exc
    read_metadata(texts, f"'{path}'")
    return texts


def _check_layers(content: bytes, weights: int, source: str) -> None:
    """Layers are few enough and in no circle, constants lie inside of the weights, sizes are those of a network."""
    known: set[str] = set()
    edges: list[tuple[str, str]] = []
    element: str | None = None
    for depth, name, attributes in _elements(content):
        if depth == 1 and (name != "net" or attributes.get("version") not in _VERSIONS):
            raise ValueError(f"it is <{name[:40]}> of version {shortened(attributes.get('version'))}, not of an IR")
        if name == "layer":
            element = attributes.get("type")
        if name == "layer" and depth == _OUTER:
            layer = attributes.get("id", "")
            if not layer or layer in known:
                raise ValueError(f"layer id {shortened(layer)} is missing or there twice")
            known.add(layer)
            ONNX_NODES.check(len(known), f"'{source}'", ArtifactError)
        elif name == "edge" and depth == _OUTER:
            edges.append((attributes.get("from-layer", ""), attributes.get("to-layer", "")))
        elif name == "data" and element == "Const":
            _check_constant(attributes, weights)
        elif name == "data" and element == "Parameter":
            kind = attributes.get("element_type")
            if kind not in ("f32", "f16"):
                raise ValueError(f"the input is {shortened(kind)}, the images must be a float tensor (f32 or f16)")
    if not known:
        raise ValueError("it holds no layer")
    _check_circles(known, edges)


def _check_constant(attributes: dict[str, str], weights: int) -> None:
    kind = attributes.get("element_type", "")
    sizes = [_number(size) for size in attributes.get("shape", "").split(",") if size.strip()]
    offset, size = _number(attributes.get("offset")), _number(attributes.get("size"))
    if kind not in _BITS:
        raise ValueError(f"a constant has the type {shortened(kind)}")
    count = math.prod(sizes)
    ONNX_VALUES.check(count, "A constant of the model", ArtifactError)
    if size != -(-count * _BITS[kind] // 8) or offset + size > weights:
        raise ValueError(f"a constant of {count} {kind} takes {size} bytes at {offset}, the weights have {weights}")


def _check_circles(known: set[str], edges: list[tuple[str, str]]) -> None:
    readers: dict[str, list[str]] = {layer: [] for layer in known}
    waiting = dict.fromkeys(known, 0)
    for source, reader in edges:
        if source not in known or reader not in known:
            raise ValueError(f"an edge goes from layer {shortened(source)} to {shortened(reader)}, which are not there")
        readers[source].append(reader)
        waiting[reader] += 1
    ready = [layer for layer, count in waiting.items() if count == 0]
    done = 0
    while ready:
        done += 1
        for reader in readers[ready.pop()]:
            waiting[reader] -= 1
            if waiting[reader] == 0:
                ready.append(reader)
    if done != len(known):
        raise ValueError("its layers are connected in a circle")


def _elements(content: bytes) -> Iterator[tuple[int, str, dict[str, str]]]:
    """Every element with its depth and its attributes, in order; no entity is defined or followed.

    Raises:
        ValueError: it defines a document type, or nests too deeply.
    """
    found: list[tuple[int, str, dict[str, str]]] = []
    depth = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _DEEPEST:
            raise ValueError(f"nested more than {_DEEPEST} levels deep")
        found.append((depth, name, attributes))

    def end(_: str) -> None:
        nonlocal depth
        depth -= 1

    def doctype(*_: Any) -> NoReturn:
        raise ValueError("it defines a document type, which an IR never does")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.StartDoctypeDeclHandler = doctype
    parser.Parse(content, True)
    return iter(found)


def _number(text: str | None) -> int:
    if text is None or not (text.strip().isascii() and text.strip().isdigit() and len(text) < 20):
        raise ValueError(f"{shortened(text)} is not a size")
    return int(text)
