"""Real builds: a free batch axis, and what cannot be compiled; the demo's are in test_lint_check.py."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from tiny_onnx import write_tiny_detector, write_unknown_operator

from trt_qat.engine import compile as compiling
from trt_qat.engine.compile import compile_onnx
from trt_qat.engine.compiled import CompiledEngine
from trt_qat.engine.onnx_nodes import nodes_of_file
from trt_qat.errors import ArtifactError, ConfigError, EngineError, MissingDependency

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")


def batched(path: Path, batch: int) -> CompiledEngine:
    return compile_onnx(path, 89, batch)


def test_a_free_batch_axis_has_the_batch_that_was_asked_for(tmp_path: Path) -> None:
    free = write_tiny_detector(tmp_path / "free.onnx", batch=None)
    one, four = batched(free, 1), batched(free, 4)
    assert [tensor.shape[0] for tensor in (*four.inputs, *four.outputs)] == [4, 4]
    assert four.macs == 4 * one.macs > 0
    fixed = write_tiny_detector(tmp_path / "fixed.onnx")
    assert batched(fixed, 1).macs == one.macs
    with pytest.raises(ConfigError, match=r"Batch 4 was asked for, but input 'images' is \(1, 3, 64, 64\), fixed"):
        batched(fixed, 4)


def test_what_cannot_be_compiled_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx_file = write_tiny_detector(tmp_path / "tiny.onnx")
    with pytest.raises(ConfigError, match=r"SM 90 is unknown to TensorRT-RTX 1.*Known: SM75, "):
        compile_onnx(onnx_file, 90)
    with pytest.raises(ConfigError, match="Batch 0 must be 1 or more"):
        compile_onnx(onnx_file, 89, 0)
    with pytest.raises(ArtifactError, match="does not exist"):
        compile_onnx(tmp_path / "none.onnx", 89)
    with pytest.raises(EngineError, match=r"cannot parse 'strange.onnx': node 'strange_node' \(Mystery\)"):
        compile_onnx(write_unknown_operator(tmp_path / "strange.onnx"), 89)
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match="Compiling needs the package 'tensorrt-rtx': pip install"):
        compile_onnx(onnx_file, 89)


def test_a_crash_of_the_compiler_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx_file = write_tiny_detector(tmp_path / "tiny.onnx")
    (tmp_path / "crashing_child.py").write_text("import os\nos.abort()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(compiling, "_CHILD_MODULE", "crashing_child")
    with pytest.raises(EngineError, match=r"could not build 'tiny.onnx': .*SIGABRT"):
        compile_onnx(onnx_file, 89)


@pytest.mark.parametrize("name", ["a{b", "a\nName: b", "x, LayerType: wait, Inputs: []", "r][ONNX Layer: s"])
def test_names_that_would_garble_the_log_are_refused(tmp_path: Path, name: str) -> None:
    path = write_tiny_detector(tmp_path / "tiny.onnx")
    model = onnx.load(path)
    model.graph.node[0].name = name
    onnx.save(model, path)
    with pytest.raises((EngineError, ArtifactError)) as caught:
        nodes_of_file(path, 1)
    assert "\n" not in str(caught.value)
