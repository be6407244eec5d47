"""One target per parser: how its inputs are made from good ones, and what must hold for each.

An input is bytes. A target either returns, and its own invariants held, or raises a :class:`TrtQatError` whose message is
one line. Everything else is a finding: another exception, a warning that reaches the terminal, too much time or memory.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import os
import re
import struct
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import cv2
import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from mutations import json_values, mutated_bytes, mutated_json, mutated_text, odd_numbers, text_lines
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from trt_qat.errors import TrtQatError


@dataclass(frozen=True)
class Target:
    """A parser under test.

    Args:
        inputs: makes the strategy of its inputs; called once.
        check: parses one; asserts what must hold for a value that is accepted.
    """

    name: str
    inputs: Callable[[], SearchStrategy[bytes]]
    check: Callable[[bytes, Path], None]


def parsed(target: Target, content: bytes) -> bool:
    """Let a target see an input; whether it accepted it.

    Raises:
        AssertionError: an invariant does not hold, or the message of the refusal is not one line.
    """
    logging.getLogger("trt_qat").setLevel(logging.CRITICAL)  # converters log what they leave out
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        try:
            target.check(content, Path(folder))
        except TrtQatError as exc:
            message = str(exc)
            assert message.strip(), "an empty message"
            assert len(" ".join(message.splitlines())) < 5000, f"a message of {len(message)} characters"
            return False
    return True


def _file(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


# -- text and settings -------------------------------------------------------------------------------------------------


def _labels() -> SearchStrategy[bytes]:
    side = st.floats(0.05, 1)
    centre = st.floats(0.4, 0.6)
    box = st.tuples(st.integers(0, 6), centre, centre, side, side).map(lambda values: " ".join(map(repr, values)))
    polygon = st.lists(st.floats(0, 1), min_size=6, max_size=12).map(lambda values: f"0 {' '.join(map(repr, values))}")
    number = st.one_of(st.floats(0, 1).map(repr), odd_numbers(), st.integers(-2, 9).map(str), st.floats().map(repr))
    odd = st.lists(number, min_size=0, max_size=12).map(" ".join)
    near = st.tuples(box, st.integers(0, 4), number).map(_with_column)
    return st.one_of(
        text_lines(box), text_lines(polygon), text_lines(st.one_of(box, box, near)), text_lines(st.one_of(near, odd)),
        text_lines(st.one_of(box, st.text(max_size=20))),
    )  # fmt: skip


def _with_column(row_column_value: tuple[str, int, str]) -> str:
    row, column, value = row_column_value
    columns = row.split()
    columns[column] = value
    return " ".join(columns)


def _check_labels(content: bytes, folder: Path) -> None:
    from trt_qat.data.labels import label_defects, read_labels

    path = _file(folder, "0.txt", content)
    defects = label_defects(path, 7)
    assert all(len(str(defect)) < 5000 for defect in defects), "a defect of many characters"
    labels = read_labels(path, 7)
    assert not any(defect.severity == "error" for defect in defects), "read in spite of an error"
    assert np.isfinite(labels.boxes_cxcywh).all(), "a box that is not finite"
    assert ((labels.class_ids >= 0) & (labels.class_ids < 7)).all(), "a class id out of range"
    assert (labels.boxes_cxcywh[:, 2:] > 0).all(), "a box without area"
    assert len(labels.class_ids) == len(labels.boxes_cxcywh)


CONFIG = Path(__file__).resolve().parents[2] / "configs"


def _config_files() -> SearchStrategy[bytes]:
    good = [path.read_text(encoding="utf-8") for path in sorted(CONFIG.glob("*.yaml"))]
    values = json_values().map(lambda value: json.dumps({"qat": value, "model": {"imgsz": value}}).encode())
    return st.one_of(mutated_text(good), values)


def _check_config_file(content: bytes, folder: Path) -> None:
    from trt_qat.config import Config

    config = Config.load([_file(folder, "c.yaml", content)], [])
    _check_config(config)


def _check_config(config: Any) -> None:
    text = json.dumps(config.model_dump(mode="json"), allow_nan=False)
    assert json.loads(text)
    assert config.model.imgsz is None or (config.model.imgsz % 32 == 0 and config.model.imgsz >= 32)


def _set_options() -> SearchStrategy[bytes]:
    from trt_qat.config import Config

    defaults = {
        f"{section}.{key}": value
        for section, values in Config.load([], []).model_dump(mode="json").items()
        for key, value in values.items()
    }
    syntax = [
        "!!python/name:os.system",
        "&a [*a]",
        "[",
        "{",
        "'",
        "null",
        "true",
        "2024-02-31",
        "1:1",
        "0x10",
        "~",
        ".nan",
    ]
    odd = st.one_of(odd_numbers(), json_values().map(json.dumps), st.text(max_size=30), st.sampled_from(syntax))
    key = st.sampled_from(sorted(defaults))
    good = key.map(lambda name: f"{name}={json.dumps(defaults[name])}")
    number = st.tuples(key, st.one_of(st.integers(-3, 5000).map(str), st.floats(0, 2).map(repr))).map("=".join)
    return st.one_of(
        good.flatmap(lambda text: mutated_text([text])),
        *[option.map(lambda text: text.encode("utf-8", "surrogatepass")) for option in (
            number, st.tuples(key, odd).map("=".join), st.text(max_size=60))],
    )  # fmt: skip


def _check_set(content: bytes, folder: Path) -> None:
    from trt_qat.config import Config

    _check_config(Config.load([], [content.decode("utf-8", "surrogateescape")]))


def _yaml() -> SearchStrategy[bytes]:
    seeds = [
        "a: &a [1, 2]\nb: [*a, *a]\nc: {<<: {x: 1}, y: 2024-01-01}\n",
        "train: images\nnames: {0: a, 1: 'b'}\nnc: 2\npath: .\n",
        "- !!set {a, b}\n- !!binary aGk=\n- 0o17\n- 1:30\n- .inf\n- ~\n- |\n  text\n- >-\n  more\n",
        "? [a, b]\n: {c: d}\n---\nx\n...\n",
    ]
    return mutated_text(seeds)


def _check_yaml(content: bytes, folder: Path) -> None:
    from trt_qat.reading import parse_yaml

    parse_yaml(content.decode("utf-8", "replace"), "x")


def _json() -> SearchStrategy[bytes]:
    return st.one_of(
        json_values().map(lambda value: json.dumps(value).encode()),
        mutated_text(['{"a": [1, 2.5e3, "\\u00e9", null, true]}']),
    )


def _check_json(content: bytes, folder: Path) -> None:
    from trt_qat.reading import parse_json

    json.dumps(parse_json(content, "x"))


def _data_yaml() -> SearchStrategy[bytes]:
    good = [
        "path: .\ntrain: images/train\nval: images/train\nnames: [a, b]\nnc: 2\n",
        "train: list.txt\nnames: {0: a}\n",
    ]
    values = json_values().map(lambda value: json.dumps({"train": "images/train", "names": value}).encode())
    others = st.tuples(st.sampled_from(["train", "val", "path", "nc", "names"]), json_values()).map(
        lambda pair: json.dumps({"train": "images/train", "names": ["a"], pair[0]: pair[1]}).encode()
    )
    names = st.one_of(
        st.lists(st.text(max_size=6), min_size=1, max_size=5), st.dictionaries(st.integers(0, 3), st.text(max_size=6))
    )
    plausible = st.tuples(names, st.one_of(st.none(), st.integers(0, 5))).map(
        lambda pair: json.dumps(
            {"train": "images/train", "names": pair[0], **({"nc": pair[1]} if pair[1] else {})}
        ).encode()
    )
    return st.one_of(mutated_text(good), values, others, plausible)


def _check_data_yaml(content: bytes, folder: Path) -> None:
    from trt_qat.data.dataset import load_dataset

    (folder / "images/train").mkdir(parents=True)
    (folder / "images/train/0.png").write_bytes(b"")
    (folder / "list.txt").write_text("./images/train/0.png\n")
    dataset = load_dataset(_file(folder, "data.yaml", content))
    assert list(dataset.names) == list(range(len(dataset.names)))
    assert dataset.train
    assert dataset.val


# -- models ------------------------------------------------------------------------------------------------------------


SMALL: dict[str, Any] = {
    "nc": 2,
    "scales": {"n": [0.33, 0.25, 64]},
    "scale": "n",
    "backbone": [[-1, 1, "Conv", [32, 3, 2]], [-1, 1, "Conv", [32, 3, 2]], [-1, 3, "C2f", [32, True]], [-1, 1, "SPPF", [32, 5]]],
    "head": [[-1, 1, "nn.Upsample", ["None", 2, "nearest"]], [[-1, 0], 1, "Concat", [1]], [-1, 1, "C2f", [32]],
             [[3, 6], 1, "Detect", ["nc"]]],
}  # fmt: skip


@cache
def _small(quantized: bool) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Header and tensors of a checkpoint of the small network."""
    import trt_qat

    with tempfile.TemporaryDirectory() as folder:
        path = _file(Path(folder), "small.yaml", json.dumps(SMALL).encode())
        model = trt_qat.load(path, imgsz=64)
        if quantized:
            model = trt_qat.quantize(model, [np.full((64, 64, 3), 114, np.uint8)], calibrator="max", images=1, batch=1)
        saved = trt_qat.save(Path(folder, "small.safetensors"), model).path
        with safe_open(saved, framework="np") as stream:
            return json.loads(stream.metadata()["header"]), {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118


def _checkpoint(header: bytes, tensors: Mapping[str, NDArray[Any]]) -> bytes:
    return save(dict(tensors), metadata={"header": header.decode("utf-8", "replace")})


def _checkpoints() -> SearchStrategy[bytes]:
    def of(quantized: bool) -> SearchStrategy[bytes]:
        header, tensors = _small(quantized)
        encoded = json.dumps(header).encode()
        other_header = mutated_json(header).map(lambda text: _checkpoint(text, tensors))
        other_tensors = _other_tensors(tensors).map(lambda changed: _checkpoint(encoded, changed))
        return st.one_of(other_header, other_header, other_tensors, mutated_bytes([_checkpoint(encoded, tensors)]))

    return st.one_of(of(quantized=False), of(quantized=True))


@st.composite
def _other_tensors(draw: st.DrawFn, tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """One tensor of other values, shape, type or name, or none of that name; ranges as often as weights."""
    changed = dict(tensors)
    ranges = [name for name in tensors if name.startswith("amax.")]
    name = draw(st.sampled_from(draw(st.sampled_from([list(tensors), ranges or list(tensors)]))))
    kind = draw(st.sampled_from(["value", "value", "all", "shape", "type", "remove", "rename"]))
    value = draw(st.sampled_from([np.nan, np.inf, -np.inf, -1.0, 0.0, 3e38, 1e-45, 1.0]))
    array = changed.pop(name).copy()
    if kind == "remove":
        return changed
    if kind == "value" and array.size:
        array.reshape(-1)[draw(st.integers(0, array.size - 1))] = value
    elif kind == "all":
        array[...] = value
    elif kind == "shape":
        array = np.ones(draw(st.lists(st.integers(0, 9), max_size=5)), np.float32)
    elif kind == "type":
        array = np.nan_to_num(array).astype(draw(st.sampled_from(["f2", "f8", "i8", "u1", "?"])))
    changed[draw(st.sampled_from([f"{name}x", "amax.x", "x", "model.0"])) if kind == "rename" else name] = array
    return changed


def _check_checkpoint(content: bytes, folder: Path) -> None:
    import trt_qat

    _check_model(trt_qat.load(_file(folder, "a.safetensors", content)))


def _check_model(model: Any) -> None:
    assert list(model.names) == list(range(len(model.names))), "class ids with a gap"
    assert all(isinstance(name, str) for name in model.names.values())
    assert model.imgsz % 32 == 0 and 32 <= model.imgsz <= 8192, f"imgsz {model.imgsz}"  # noqa: PT018
    assert all(bool(value.isfinite().all()) for value in model.network.parameters()), "weights that are not finite"
    if model.quantized is not None:
        ranges = model.quantized.amax().values()
        assert all(bool((value.isfinite() & (value >= 0)).all()) for value in ranges), "a range that is none"


def _architectures() -> SearchStrategy[bytes]:
    return st.one_of(mutated_json(SMALL), _plausible_architectures())


@st.composite
def _plausible_architectures(draw: st.DrawFn) -> bytes:
    """A backbone of common layers with odd widths, repeats and activations."""
    width = st.sampled_from([8, 16, 32, 64, 7, 1, 33])
    layers: list[list[Any]] = [[-1, 1, "Conv", [draw(width), 3, 2]]]
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(
            st.sampled_from(
                ["Conv", "C2f", "C3", "SPPF", "Bottleneck", "DWConv", "GhostConv", "C3k2", "nn.MaxPool2d", "nn.ReLU"]
            )
        )
        arguments = {
            "Conv": [draw(width), draw(st.integers(1, 5)), draw(st.integers(1, 2))],
            "nn.MaxPool2d": [2, 2],
            "nn.ReLU": [],
        }
        layers.append(
            [draw(st.sampled_from([-1, -1, -1, 0])), draw(st.integers(1, 4)), kind, arguments.get(kind, [draw(width)])]
        )
    activations = [
        "nn.ReLU()",
        "torch.nn.LeakyReLU(0.1)",
        "nn.Hardswish()",
        "nn.SiLU(inplace=True)",
        "nn.Linear(2, 2)",
        "nn.ReLU6",
    ]
    content = {"nc": draw(st.integers(1, 5)), "backbone": layers, "head": [[[len(layers) - 1], 1, "Detect", ["nc"]]]}
    if draw(st.booleans()):
        content["activation"] = draw(st.sampled_from(activations))
    return json.dumps(content).encode()


def _check_architecture(content: bytes, folder: Path) -> None:
    import trt_qat

    _check_model(trt_qat.load(_file(folder, "a.yaml", content)))


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

    report = lint(_file(folder, "a.onnx", content), "tensorrt")
    json.dumps(report.as_dict(), allow_nan=False)
    assert report.as_text()


def _check_onnx_metadata(content: bytes, folder: Path) -> None:
    from trt_qat.engine.onnx_file import onnx_metadata

    found = onnx_metadata(_file(folder, "a.onnx", content))
    assert all(isinstance(key, str) and isinstance(value, str) for key, value in found.items())


def _metadata() -> SearchStrategy[bytes]:
    names = st.one_of(
        st.dictionaries(st.integers(-1, 9), st.text(max_size=5), max_size=5).map(repr),
        st.lists(st.text(max_size=5), max_size=5).map(repr), json_values().map(repr), mutated_text(["{0: 'a', 1: 'b'}"]).map(
            lambda content: content.decode("utf-8", "replace")),
        st.tuples(st.sampled_from("-~([{+"), st.integers(1, 20_000)).map(lambda pair: pair[0] * pair[1] + "1"),
    )  # fmt: skip
    size = st.one_of(odd_numbers(), st.lists(st.integers(-64, 10_000), max_size=3).map(repr), names)
    return st.fixed_dictionaries({}, optional={"names": names, "imgsz": size, "stride": size}).map(
        lambda content: json.dumps(content).encode()
    )


def _check_runner_metadata(content: bytes, folder: Path) -> None:
    from trt_qat.runtime.runner import class_names, image_size

    metadata = json.loads(content)
    shape = (1, 3, None, None)
    names = class_names(metadata)
    assert all(isinstance(key, int) and isinstance(name, str) for key, name in names.items())
    assert not names or sorted(names) == list(range(len(names))), "class ids with a gap"
    size = image_size(metadata, shape)
    assert 32 <= size <= 8192, f"image size {size}"


SIDECAR = {
    "onnx": "a.onnx", "onnx_sha256": "0" * 64, "flavor": "tensorrt-rtx", "tensorrt_version": "1.0", "size_bytes": 4,
    "build_seconds": 1.5, "metadata": {"names": "{0: 'a'}", "imgsz": "[64, 64]"},
}  # fmt: skip


def _check_sidecar(content: bytes, folder: Path) -> None:
    from trt_qat.engine.engine_file import read_engine

    (folder / "a.plan").write_bytes(b"plan")
    _file(folder, "a.json", content)
    _check_engine(*read_engine(folder / "a.plan"))


def _check_engine(described: Any, plan: bytes) -> None:
    content = described if isinstance(described, dict) else described.model_dump()
    assert content["flavor"] in ("tensorrt", "tensorrt-rtx")
    assert isinstance(plan, bytes)


def _engines() -> SearchStrategy[bytes]:
    header = mutated_json({"names": {"0": "a"}, "imgsz": [64, 64], "stride": 32, "batch": 1, "task": "detect"})
    framed = header.map(lambda text: struct.pack("<i", len(text)) + text + b"plan")
    wrong = st.tuples(st.integers(-(2**31), 2**31 - 1), st.binary(max_size=60)).map(
        lambda pair: struct.pack("<i", pair[0]) + pair[1]
    )
    return st.one_of(framed, framed, wrong)


def _check_ultralytics_engine(content: bytes, folder: Path) -> None:
    from trt_qat.engine.engine_file import read_engine

    _check_engine(*read_engine(_file(folder, "a.engine", content)))


# -- what the stages leave for themselves ------------------------------------------------------------------------------


def _caches() -> SearchStrategy[bytes]:
    limits = {"model.0.conv": [2.0, 1.5], "model.1.conv": [4.0, 3.0]}
    counts = {f"{name}.counts": np.ones(128) for name in limits}
    good = save(counts, metadata={"limits": json.dumps(limits)})
    odd = st.sampled_from(
        [np.full(128, np.nan), -np.ones(128), np.zeros(0), np.ones((2, 64)), np.ones(3), np.zeros(128)]
    )
    made = st.tuples(mutated_json(limits), st.one_of(st.none(), odd)).map(
        lambda pair: save(
            counts if pair[1] is None else {**counts, "model.0.conv.counts": pair[1]},
            metadata={"limits": pair[0].decode("utf-8", "replace")},
        )
    )
    return st.one_of(made, mutated_bytes([good]))


def _check_cache(content: bytes, folder: Path) -> None:
    from trt_qat.quantization.calibration_cache import load_histograms

    found = load_histograms(_file(folder, "a.safetensors", content))
    for histogram in (found or {}).values():
        counts = histogram.counts
        assert counts.ndim == 1, f"counts of shape {counts.shape}"
        assert np.isfinite(counts).all() and (counts >= 0).all(), "counts that are none"  # noqa: PT018
        assert 0 <= histogram.maximum <= histogram.limit < math.inf, f"{histogram.maximum} and limit {histogram.limit}"


@cache
def _choice() -> dict[str, Any]:
    from trt_qat.quantization.auto import CANDIDATES
    from trt_qat.quantization.calibration import Calibration, Candidate

    rows = tuple(Candidate(calibrator, 0.1 * index, index == 0) for index, calibrator in enumerate(CANDIDATES))
    content: dict[str, Any] = json.loads(json.dumps(Calibration(CANDIDATES[0], rows).as_dict()))
    return content


def _check_choice(content: bytes, folder: Path) -> None:
    from trt_qat.quantization.calibration_cache import load_choice

    found = load_choice(_file(folder, "a.json", content))
    if found is not None:
        assert all(0 <= candidate.error < math.inf for candidate in found.candidates), "an error that is none"
        json.dumps(found.as_dict(), allow_nan=False)


RANKING = {
    "key": {"metric": "error", "weights": "0" * 16}, "metric": "error", "groups": 2, "float": {},
    "layers": [{"group": "model.0.conv", "label": "model.0.conv", "convs": ["model.0.conv"], "error": 0.5, "map50_95_drop": None}],
}  # fmt: skip


@cache
def _ranking() -> dict[str, Any]:
    from trt_qat.evaluation.group_sensitivity import GroupSensitivity

    row = GroupSensitivity("model.0.conv", ("model.0.conv",), 0.5, None).as_dict()
    return {**RANKING, "layers": json.loads(json.dumps([row, {**row, "group": "model.1.conv"}]))}


def _check_ranking(content: bytes, folder: Path) -> None:
    from trt_qat.evaluation.sensitivity import SensitivityFile

    path = _file(folder, "a.json", content)
    ranking, said = SensitivityFile(path, {"metric": "error", "weights": "0" * 16}, 2).read()
    assert len(said.splitlines()) <= 1
    if ranking is not None:
        assert all(row.error is None or math.isfinite(row.error) for row in ranking.rows), "an error that is none"
        json.dumps([row.as_dict() for row in ranking.rows], allow_nan=False)


# -- datasets of other formats, images, sources ------------------------------------------------------------------------

COCO = {
    "images": [{"id": 1, "file_name": "0.png", "width": 16, "height": 16}, {"id": 2, "file_name": "1.png"}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 8, 8], "iscrowd": 0}],
    "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
}
VOC = (
    "<annotation><filename>0.png</filename><size><width>16</width><height>16</height><depth>3</depth></size>"
    "<object><name>a</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax>"
    "</bndbox></object></annotation>"
)


@cache
def _png() -> bytes:
    return cv2.imencode(".png", np.arange(768, dtype=np.uint8).reshape(16, 16, 3))[1].tobytes()


def _image_folder(folder: Path) -> Path:
    (folder / "images").mkdir()
    for index in range(2):
        (folder / f"images/{index}.png").write_bytes(_png())
    return folder / "images"


def _check_coco(content: bytes, folder: Path) -> None:
    from trt_qat.data.convert import yolo_from_coco

    _check_converted(
        yolo_from_coco(_file(folder, "a.json", content), _image_folder(folder), folder / "out", 0.5), folder
    )


def _voc() -> SearchStrategy[bytes]:
    """Good XML with odd values and repeated, missing or empty elements; and text that is no XML."""
    content = st.one_of(odd_numbers(), st.sampled_from(["", " ", "a", "b", "0.png", "1.png", "../0.png", "/dev/zero", "&#10;", "1", "16"]),
                        st.integers(-5, 40).map(str), st.text(max_size=8).map(escape))  # fmt: skip
    edit = st.tuples(st.integers(0, 20), st.sampled_from(["text", "text", "text", "remove", "double"]), content)
    return st.one_of(st.lists(edit, min_size=1, max_size=3).map(_edited_voc), mutated_text([VOC]))


def _edited_voc(edits: list[tuple[int, str, str]]) -> bytes:
    text = VOC
    for number, kind, content in edits:
        leaves = list(re.finditer(r"<(\w+)>([^<]*)</\1>", text))
        if not leaves:
            break
        leaf = leaves[number % len(leaves)]
        start, end = leaf.span(2) if kind == "text" else leaf.span()
        text = text[:start] + {"text": content, "remove": "", "double": leaf.group() * 2}[kind] + text[end:]
    return text.encode("utf-8", "surrogatepass")


def _check_voc(content: bytes, folder: Path) -> None:
    from trt_qat.data.convert import yolo_from_voc

    (folder / "voc").mkdir()
    (folder / "voc/1.xml").write_text(VOC.replace("0.png", "1.png"))
    _file(folder / "voc", "0.xml", content)
    _check_converted(yolo_from_voc(folder / "voc", _image_folder(folder), folder / "out", 0.5), folder)


def _check_converted(yaml_file: Path, folder: Path) -> None:
    from trt_qat.data.dataset import load_dataset
    from trt_qat.data.labels import read_labels

    dataset = load_dataset(yaml_file)
    for file in (folder / "out").rglob("labels/**/*.txt"):
        read_labels(file, len(dataset.names))


@cache
def _pictures() -> list[bytes]:
    image = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    made = [cv2.imencode(f".{suffix}", image)[1].tobytes() for suffix in ("jpg", "png", "bmp", "tiff", "webp")]
    from PIL import Image

    turned = Image.Exif()
    turned[0x0112] = 6  # orientation
    with_exif: tuple[dict[str, Any], ...] = ({"format": "TIFF", "compression": "tiff_lzw"}, {"format": "PNG"},
                                             {"format": "JPEG", "progressive": True}, {"format": "AVIF"})  # fmt: skip
    for options in (*({**options, "exif": turned} for options in with_exif), {"format": "GIF"}, {"format": "PPM"}):
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, **options)
        made.append(stream.getvalue())
    return made


def _check_image(content: bytes, folder: Path) -> None:
    from trt_qat.vision.image import image_size, read_image_bgr

    path = _file(folder, "a.jpg", content)
    image = read_image_bgr(path)
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3
    assert image_size(path) == (image.shape[1], image.shape[0])


def _sources() -> SearchStrategy[bytes]:
    part = st.sampled_from(
        ["rtsp://", "http://", "user", ":", "hunter2", "@", "host", "/", "a.mp4", "?", "token=", "hunter2", "&", "#", "\n",
         "%40", ";", " ", "key=", " ! ", "video0", "/dev/", "..", "-", "0", "[::1]", "\0", "é", "\\", "=", "password"]
    )  # fmt: skip
    there = st.sampled_from(["a.mp4", "./a.mp4", "image.png", "user:a.mp4", "../a.mp4", ".", "", "a.mp4/"])
    return st.one_of(st.lists(part, max_size=12).map("".join), st.text(max_size=40), there).map(
        lambda text: text.encode("utf-8", "surrogatepass")
    )


def _check_source(content: bytes, folder: Path) -> None:
    from trt_qat.runtime.sources import find_source

    text = content.decode("utf-8", "surrogateescape")
    here = Path.cwd()
    os.chdir(folder)
    for name in ("a.mp4", "host", "0", "-", "user:a.mp4", "image.png"):
        Path(name).touch()
    try:
        found = find_source(text)
        assert found.path.exists()
    except TrtQatError as exc:
        secret = re.match(r"[a-z]+://[^/?#\s]*hunter2[^/?#\s]*@", text) or re.search(
            r"://.*[?&](token|key|password)=hunter2", text
        )
        assert not (secret and secret.group() in str(exc)), "a secret in the message"
        raise
    finally:
        os.chdir(here)


TARGETS = {
    target.name: target
    for target in (
        Target("labels", _labels, _check_labels),
        Target("config-file", _config_files, _check_config_file),
        Target("config-set", _set_options, _check_set),
        Target("yaml", _yaml, _check_yaml),
        Target("json", _json, _check_json),
        Target("data-yaml", _data_yaml, _check_data_yaml),
        Target("checkpoint", _checkpoints, _check_checkpoint),
        Target("architecture", _architectures, _check_architecture),
        Target("onnx-metadata", _onnx_bytes, _check_onnx_metadata),
        Target("runner-metadata", _metadata, _check_runner_metadata),
        Target("side-car", lambda: mutated_json(SIDECAR), _check_sidecar),
        Target("ultralytics-engine", _engines, _check_ultralytics_engine),
        Target("lint", _onnx_bytes, _check_lint),
        Target("calibration-cache", _caches, _check_cache),
        Target("auto-choice", lambda: mutated_json(_choice()), _check_choice),
        Target("sensitivity", lambda: mutated_json(_ranking()), _check_ranking),
        Target("coco", lambda: mutated_json(COCO), _check_coco),
        Target("voc", _voc, _check_voc),
        Target("image", lambda: mutated_bytes(_pictures()), _check_image),
        Target("source", _sources, _check_source),
    )
}
