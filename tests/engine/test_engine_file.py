"""The schema of a plan's side-car and of an engine's header."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trt_qat.engine.engine_file import (
    EngineDescription,
    Gpu,
    Preprocessing,
    prepend_header,
    read_engine,
    read_sidecar,
    sidecar_path,
    write_sidecar,
)
from trt_qat.errors import ArtifactError
from trt_qat.vision import letterbox
from trt_qat.vision.letterbox import network_input

PLAN = b"a plan"
GOOD: dict[str, Any] = {
    "onnx": "x.onnx",
    "onnx_sha256": "0" * 64,
    "flavor": "tensorrt",
    "tensorrt_version": "10.1",
    "inputs": [{"name": "images", "dtype": "float32", "shape": [-1, 3, 64, 64]}],
    "outputs": [{"name": "output0", "dtype": "float32", "shape": [-1, 7, 64]}],
    "profiles": [{"images": {"min": [1, 3, 64, 64], "opt": [1, 3, 64, 64], "max": [8, 3, 64, 64]}}],
    "compute_capabilities": [89],
    "size_bytes": len(PLAN),
    "plan_sha256": hashlib.sha256(PLAN).hexdigest(),
    "build_seconds": 1.5,
    "metadata": {"names": "{0: 'a'}", "imgsz": "[64, 64]"},
}
VIOLATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "flavor": ({"flavor": "other"}, "flavor = 'other'"),
    "no flavor": ({"flavor": None}, "flavor = None"),
    "unknown field": ({"extra": 1}, "extra = 1"),
    "hash": ({"onnx_sha256": "xyz"}, "onnx_sha256 = 'xyz'"),
    "name is a number": ({"onnx": 3}, "onnx = 3"),
    "axis": ({"inputs": [{"name": "a", "dtype": "b", "shape": [-2]}]}, "inputs.0.shape.0 = -2"),
    "axis is a text": ({"inputs": [{"name": "a", "dtype": "b", "shape": ["3"]}]}, "inputs.0.shape.0 = '3'"),
    "huge axis": ({"outputs": [{"name": "a", "dtype": "b", "shape": [10**18]}]}, "outputs.0.shape.0"),
    "rank": ({"outputs": [{"name": "a", "dtype": "b", "shape": [1] * 9}]}, "outputs.0.shape"),
    "no tensor name": ({"inputs": [{"dtype": "b", "shape": [1]}]}, "inputs.0.name"),
    "profile": ({"profiles": [{"images": {"min": [1]}}]}, "profiles.0.images.opt"),
    "size": ({"size_bytes": 0}, "size_bytes = 0"),
    "seconds": ({"build_seconds": -1.0}, "build_seconds = -1.0"),
    "capability": ({"compute_capabilities": [8.9]}, "compute_capabilities.0 = 8.9"),
    "metadata": ({"metadata": {"names": 3}}, "metadata.names = 3"),
    "names": ({"metadata": {"names": "{0: 'a', 2: 'b'}"}}, "1 is missing"),
    "imgsz": ({"metadata": {"imgsz": "1000000000"}}, "imgsz"),
    "gpu": ({"gpu": {"name": ""}}, "gpu.name = ''"),
    "gpu capability": ({"gpu": {"name": "A", "compute_capability": "8.9"}}, "gpu.compute_capability = '8.9'"),
    "level": ({"optimization_level": 6}, "optimization_level = 6"),
    "compatible": ({"hardware_compatible": "all"}, "hardware_compatible = 'all'"),
    "version_compatible": ({"version_compatible": "yes"}, "version_compatible = 'yes'"),
    "order": (
        {"profiles": [{"images": {"min": [2, 3], "opt": [1, 3], "max": [8, 3]}}]},
        "profiles.0.images",
    ),
    "axes": ({"profiles": [{"images": {"min": [1], "opt": [1, 3], "max": [8, 3]}}]}, "as many axes"),
    "class names": ({"names": {"0": "a", "2": "b"}}, "1 is missing"),
    "another scale": ({"preprocessing": {"size": [64, 64], "scale": 1.0}}, "preprocessing.scale = 1.0: pixels"),
    "another order": ({"preprocessing": {"size": [64, 64], "channels": "BGR"}}, "preprocessing.channels = 'BGR'"),
    "another layout": ({"preprocessing": {"size": [64, 64], "layout": "NHWC"}}, "preprocessing.layout = 'NHWC'"),
    "another border": ({"preprocessing": {"size": [64, 64], "pad_value": 0}}, "preprocessing.pad_value = 0"),
    "stretched": ({"preprocessing": {"size": [64, 64], "resize": "stretch"}}, "preprocessing.resize = 'stretch'"),
    "no size": ({"preprocessing": {}}, "preprocessing.size"),
    "another plan": ({"plan_sha256": "0" * 64}, "its SHA-256 is another"),
}


def _plan(folder: Path, content: Any) -> Path:
    plan = folder / "x.plan"
    plan.write_bytes(PLAN)
    sidecar_path(plan).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return plan


def test_a_good_one(tmp_path: Path) -> None:
    plan = _plan(tmp_path, GOOD)
    assert read_engine(plan) == (read_sidecar(plan), PLAN)
    write_sidecar(tmp_path / "y.json", GOOD)
    assert read_sidecar(tmp_path / "y.plan") == read_sidecar(plan)
    assert read_sidecar(_plan(tmp_path, {"flavor": "tensorrt-rtx"})) == EngineDescription(flavor="tensorrt-rtx")


FULL: dict[str, Any] = GOOD | {
    "trt_qat_version": "0.1.0",
    "onnx_version": "1.23.2",
    "gpu": {"name": "NVIDIA RTX 4090", "compute_capability": 89},
    "hardware_compatible": "ampere_plus",
    "version_compatible": True,
    "optimization_level": 5,
    "names": {"0": "a"},
    "preprocessing": {"size": [64, 64]},
}


def test_the_preprocessing_is_the_one_of_the_letterbox() -> None:
    """A white and a black pixel side by side, through the code that feeds the plan."""
    image_bgr = np.zeros((2, 1, 3), np.uint8)
    image_bgr[0] = (0, 0, 255)  # red above black
    batch, _ = network_input(image_bgr, (64, 64))
    described = Preprocessing(size=(64, 64))
    assert batch.shape == (1, 3, 64, 64)  # NCHW
    assert batch[0, :, 0, 32] == pytest.approx([255 * described.scale, 0, 0])  # RGB
    assert batch[0, :, 0, 0] == pytest.approx([letterbox.PAD_VALUE * described.scale] * 3)
    assert described.pad_value == letterbox.PAD_VALUE


def test_every_field_comes_back_and_a_change_is_noticed(tmp_path: Path) -> None:
    """In every field, whatever it is changed to; line breaks and the order of the fields are no change."""
    (tmp_path / "x.plan").write_bytes(PLAN)
    write_sidecar(tmp_path / "x.json", FULL)
    described, text = read_sidecar(tmp_path / "x.plan"), (tmp_path / "x.json").read_text()
    assert described.gpu == Gpu(name="NVIDIA RTX 4090", compute_capability=89)
    assert described.names == {0: "a"}
    assert described.preprocessing == Preprocessing(size=(64, 64))
    content = json.loads(text)
    (tmp_path / "x.json").write_text(json.dumps(dict(reversed(content.items()))))
    assert read_sidecar(tmp_path / "x.plan") == described
    changes: dict[str, Any] = {
        "onnx": "y.onnx", "onnx_sha256": "1" * 64, "flavor": "tensorrt-rtx", "tensorrt_version": "10.2",
        "trt_qat_version": "9", "onnx_version": "9", "gpu": None, "inputs": [], "outputs": [], "profiles": [],
        "compute_capabilities": [], "hardware_compatible": "none", "version_compatible": False,
        "optimization_level": 1, "size_bytes": 1, "plan_sha256": "1" * 64, "build_seconds": 9.0,
        "names": {"0": "b"}, "preprocessing": {"size": [96, 96]}, "metadata": {}, "content_sha256": "1" * 64,
    }  # fmt: skip
    assert changes.keys() == content.keys()
    for key, value in changes.items():
        (tmp_path / "x.json").write_text(json.dumps(content | {key: value}))
        with pytest.raises(ArtifactError, match=r"x.json' was changed after it was written: .*build the engine again"):
            read_sidecar(tmp_path / "x.plan")


def test_the_header_says_what_the_runner_compares(tmp_path: Path) -> None:
    (tmp_path / "x.engine").write_bytes(PLAN)
    prepend_header(tmp_path / "x.engine", FULL)
    described, plan = read_engine(tmp_path / "x.engine")
    assert plan == PLAN
    assert (described.gpu, described.tensorrt_version) == (Gpu(name="NVIDIA RTX 4090", compute_capability=89), "10.1")
    assert (described.version_compatible, described.hardware_compatible) == (True, "ampere_plus")
    assert described.metadata == {**FULL["metadata"], "flavor": "tensorrt"}


@pytest.mark.parametrize(("change", "found"), VIOLATIONS.values(), ids=VIOLATIONS)
def test_a_violation_is_one_line(change: dict[str, Any], found: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError) as caught:
        read_engine(_plan(tmp_path, GOOD | change))
    assert found in str(caught.value)
    assert str(tmp_path / "x.json") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{"flavor": "other"}, {"build_seconds": float("nan")}, {"onnx_sha256": ""}])
def test_a_violation_is_not_written(change: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=next(iter(change))):
        write_sidecar(tmp_path / "x.json", GOOD | change)
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize("text", ["", "[]", "nul", "{", "[" * 100_000, '{"flavor": NaN}', "\ufeff"])
def test_no_json_object(text: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"x.json'.*Build the engine again"):
        read_sidecar(_plan(tmp_path, text))


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.json")
    with pytest.raises(ArtifactError, match="is a pipe"):
        read_sidecar(tmp_path / "x.plan")


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (b"[1]", "no JSON object"),
        (b"{", "not valid JSON"),
        (b'{"flavor": "cuda"}', "flavor"),
        (b'{"names": {"0": "a", "2": "b"}}', "1 is missing"),
        (b'{"names": "' + b"-" * 20_000 + b'"}', "names"),
        (b'{"imgsz": [7, 7]}', "imgsz"),
        (b'{"imgsz": [64, 64], "stride": 7}', "stride"),
        (b'{"task": "pose"}', "task"),
        (b'{"stride": -1}', "stride"),
        (b'{"trt_qat": 5}', "'trt_qat' is not what trt_qat writes"),
        (b'{"trt_qat": {"plan_sha256": ""}}', "'trt_qat' is not what trt_qat writes"),
        (b'{"trt_qat": {"gpu": 5}}', "gpu = 5"),
        (b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}", "x.engine"),
        (b'{"a": ' + b"[" * 700 + b"]" * 700 + b', "names": 1}', "x.engine"),
    ],
)
def test_a_header_that_is_wrong(header: bytes, found: str, tmp_path: Path) -> None:
    (tmp_path / "x.engine").write_bytes(struct.pack("<i", len(header)) + header + PLAN)
    with pytest.raises(ArtifactError) as caught:
        read_engine(tmp_path / "x.engine")
    assert found in str(caught.value)
    assert "x.engine'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_header_of_ultralytics(tmp_path: Path) -> None:
    header = json.dumps({"names": {"0": "it's", "1": "b"}, "imgsz": [64, 96], "stride": 32, "args": {"batch": 1}})
    (tmp_path / "x.engine").write_bytes(struct.pack("<i", len(header)) + header.encode() + PLAN)
    description, plan = read_engine(tmp_path / "x.engine")
    assert (description.flavor, plan) == ("tensorrt", PLAN)
    assert description.metadata["imgsz"] == "[64, 96]"
