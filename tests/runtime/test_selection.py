from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tiny_onnx import write_tiny_detector

from trt_qat.artifacts import file_sha256
from trt_qat.errors import ArtifactError, RunnerError
from trt_qat.runtime import selection
from trt_qat.runtime.selection import choose_runner, open_runner


@pytest.fixture
def onnx(tmp_path: Path) -> Path:
    return write_tiny_detector(tmp_path / "tiny.onnx")


@pytest.fixture
def plan(onnx: Path) -> Path:
    path = onnx.with_suffix(".plan")
    path.write_bytes(b"plan")
    sidecar = {"flavor": "tensorrt-rtx", "onnx_sha256": file_sha256(onnx)}
    path.with_suffix(".json").write_text(json.dumps(sidecar))
    return path


class FakeTensorRtRunner:
    name = "tensorrt"
    device = "NVIDIA Fake"
    input_shape = (1, 3, 64, 64)
    metadata: Mapping[str, str] = {}

    def __init__(self, plan: Path) -> None:
        self.plan = plan


def _no_gpu(plan: Path) -> Any:
    raise RunnerError("No NVIDIA GPU found: not here. Use --runtime openvino.")


def test_open_runner_by_name(onnx: Path) -> None:
    for runtime in ("openvino", "onnxruntime"):
        with open_runner(onnx, runtime, threads=1) as runner:
            assert runner.name == runtime


@pytest.mark.parametrize(
    ("suffix", "runtime", "message"),
    [
        (".plan", "openvino", "'openvino' needs the ONNX file"),
        (".plan", "onnxruntime", "'onnxruntime' needs the ONNX file"),
        (".onnx", "tensorrt", "'tensorrt' needs a TensorRT plan"),
        (".onnx", "torch", "cannot run exported files. Known: openvino, onnxruntime, tensorrt"),
    ],
)
def test_wrong_pairs(plan: Path, suffix: str, runtime: str, message: str) -> None:
    with pytest.raises(RunnerError, match=message):
        open_runner(plan.with_suffix(suffix), runtime)


def test_with_a_gpu_the_plan_is_chosen(monkeypatch: pytest.MonkeyPatch, plan: Path, onnx: Path) -> None:
    monkeypatch.setattr(selection, "TensorRtRunner", FakeTensorRtRunner)
    for model in (plan, onnx):
        runner, reason = choose_runner(model)
        assert isinstance(runner, FakeTensorRtRunner)
        assert runner.plan == plan
        assert "tiny.plan' runs on tensorrt (NVIDIA Fake): it " in reason


def test_without_a_gpu_the_onnx_is_chosen(monkeypatch: pytest.MonkeyPatch, plan: Path, onnx: Path) -> None:
    monkeypatch.setattr(selection, "TensorRtRunner", _no_gpu)
    for model in (plan, onnx):
        runner, reason = choose_runner(model, threads=1)
        assert runner.name == "openvino"
        assert reason.endswith("'tiny.plan' does not run here: No NVIDIA GPU found: not here.")
    write_tiny_detector(onnx, batch=None)
    with pytest.raises(RunnerError, match="No NVIDIA GPU"):  # another model than the one asked for
        choose_runner(plan)
    onnx.unlink()
    with pytest.raises(RunnerError, match="No NVIDIA GPU"):
        choose_runner(plan)


def test_a_stale_plan_is_not_chosen(monkeypatch: pytest.MonkeyPatch, plan: Path, onnx: Path) -> None:
    monkeypatch.setattr(selection, "TensorRtRunner", FakeTensorRtRunner)
    write_tiny_detector(onnx, batch=None)
    runner, reason = choose_runner(onnx)
    assert runner.name == "openvino"
    assert "built from another version" in reason


def test_lone_onnx_and_other_files(onnx: Path, tmp_path: Path) -> None:
    runner, reason = choose_runner(onnx)
    assert runner.name == "openvino"
    assert reason.endswith("there is no plan beside it.")
    (tmp_path / "model.pt").write_bytes(b"x")
    with pytest.raises(RunnerError, match=r"\*.plan or \*.onnx"):
        choose_runner(tmp_path / "model.pt")
    with pytest.raises(ArtifactError, match="does not exist"):
        choose_runner(tmp_path / "none.onnx")
