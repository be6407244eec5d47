from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import pytest
from click.testing import CliRunner
from tiny_onnx import NAMES, colour_image, write_colour_set, write_tiny_detector

import trt_qat
from trt_qat.artifacts import file_sha256
from trt_qat.cli import cli
from trt_qat.config import Config
from trt_qat.errors import ArtifactError, MissingDependency, RunnerError
from trt_qat.registry import RUNTIMES
from trt_qat.runtime.infer import default_model
from trt_qat.runtime.onnxruntime import OnnxRuntimeRunner
from trt_qat.runtime.selection import choose_runner, known_endings, open_runner, runtime_for, runtimes_for


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
    suffixes = (".plan", ".engine")
    device = "NVIDIA Fake"
    input_shape = (1, 3, 64, 64)
    metadata: Mapping[str, str] = {}

    def __init__(self, plan: Path, threads: int = 0, mode: str = "latency", device: str = "auto") -> None:
        self.plan = plan


class NoGpu(FakeTensorRtRunner):
    def __init__(self, plan: Path, threads: int = 0, mode: str = "latency", device: str = "auto") -> None:
        raise RunnerError("No NVIDIA GPU found: not here. Use --runtime openvino.")


class NotInstalled:
    suffixes = (".onnx",)

    def __init__(self, path: Path, threads: int = 0, mode: str = "latency", device: str = "auto") -> None:
        raise MissingDependency("Runtime 'openvino' cannot be imported (no module): pip install 'trt_qat[openvino]'.")


class AddedRunner(OnnxRuntimeRunner):
    """What one new file would hold: a runtime for a file of its own."""

    name = "added"
    suffixes = (".added",)


def _row(monkeypatch: pytest.MonkeyPatch, name: str, runtime: type[Any]) -> None:
    monkeypatch.setitem(RUNTIMES.rows, name, f"{__name__}:{runtime.__name__}")


def test_open_runner_by_name(onnx: Path) -> None:
    for runtime in ("openvino", "onnxruntime"):
        with open_runner(onnx, runtime, threads=1) as runner:
            assert runner.name == runtime


@pytest.mark.parametrize(
    ("suffix", "runtime", "message"),
    [
        (".plan", "openvino", r"'openvino' needs \*.onnx or .*, found .*tiny.plan'. That one runs on tensorrt\."),
        (".plan", "onnxruntime", r"'onnxruntime' needs \*.onnx, found .* runs on tensorrt\."),
        (".onnx", "tensorrt", r"'tensorrt' needs \*.plan or \*.engine, found .* runs on openvino or onnxruntime\."),
        (".onnx", "torch", "cannot run exported files. Known: openvino, onnxruntime, tensorrt"),
    ],
)
def test_wrong_pairs(plan: Path, suffix: str, runtime: str, message: str) -> None:
    with pytest.raises(RunnerError, match=message):
        open_runner(plan.with_suffix(suffix), runtime)


def test_with_a_gpu_the_plan_is_chosen(monkeypatch: pytest.MonkeyPatch, plan: Path, onnx: Path) -> None:
    _row(monkeypatch, "tensorrt", FakeTensorRtRunner)
    for model in (plan, onnx):
        runner, reason = choose_runner(model)
        assert isinstance(runner, FakeTensorRtRunner)
        assert runner.plan == plan
        assert "tiny.plan' runs on tensorrt (NVIDIA Fake): it " in reason


def test_without_a_gpu_the_onnx_is_chosen(monkeypatch: pytest.MonkeyPatch, plan: Path, onnx: Path) -> None:
    _row(monkeypatch, "tensorrt", NoGpu)
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
    _row(monkeypatch, "tensorrt", FakeTensorRtRunner)
    write_tiny_detector(onnx, batch=None)
    runner, reason = choose_runner(onnx)
    assert runner.name == "openvino"
    assert "built from another version" in reason


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"flavor": "other"}', "pipe", "folder"])
def test_a_broken_sidecar_does_not_stop_its_onnx(plan: Path, onnx: Path, text: str) -> None:
    plan.with_suffix(".json").unlink()
    if text == "pipe":
        os.mkfifo(plan.with_suffix(".json"))
    elif text == "folder":
        plan.with_suffix(".json").mkdir()
    else:
        plan.with_suffix(".json").write_text(text)
    runner, reason = choose_runner(onnx)
    assert runner.name == "openvino"
    assert "'tiny.plan' does not run here: " in reason
    assert "tiny.json'" in reason
    assert "\n" not in reason
    with pytest.raises(ArtifactError, match=r"tiny\.json'"):
        choose_runner(plan)


def test_another_plan_behind_the_sidecar_is_said(plan: Path, onnx: Path) -> None:
    described = json.loads(plan.with_suffix(".json").read_text())
    plan.with_suffix(".json").write_text(json.dumps(described | {"plan_sha256": "0" * 64}))
    runner, reason = choose_runner(onnx)
    assert runner.name == "openvino"
    assert "is not the plan that" in reason


def test_lone_onnx_and_other_files(onnx: Path, tmp_path: Path) -> None:
    runner, reason = choose_runner(onnx)
    assert runner.name == "openvino"
    assert reason.endswith("there is no plan beside it.")
    (tmp_path / "model.pt").write_bytes(b"x")
    with pytest.raises(RunnerError, match=r"one of \*.onnx, .*\*.plan, \*.engine, found .*model.pt"):
        choose_runner(tmp_path / "model.pt")
    with pytest.raises(ArtifactError, match="does not exist"):
        choose_runner(tmp_path / "none.onnx")


def test_every_row_is_a_runtime() -> None:
    for name in RUNTIMES.rows:
        runtime = RUNTIMES.load(name)
        assert runtime.name == name
        assert all(suffix == suffix.lower() for suffix in runtime.suffixes)
    assert runtimes_for(Path("x.ONNX")) == ["openvino", "onnxruntime"]
    assert runtimes_for(Path("x_openvino_model")) == ["openvino"]
    assert runtimes_for(Path("x.plan")) == runtimes_for(Path("x.engine")) == ["tensorrt"]
    assert runtimes_for(Path("x.pt")) == []


def test_the_file_decides_unless_the_wish_fits() -> None:
    assert runtime_for(Path("x.onnx"), "onnxruntime") == "onnxruntime"
    assert runtime_for(Path("x.plan"), "onnxruntime") == "tensorrt"
    assert runtime_for(Path("x.tflite"), "onnxruntime") == "onnxruntime"  # and opening it says what it needs


def test_what_is_not_installed_is_passed_over_and_named(monkeypatch: pytest.MonkeyPatch, onnx: Path) -> None:
    _row(monkeypatch, "openvino", NotInstalled)
    runner, reason = choose_runner(onnx)
    assert runner.name == "onnxruntime"
    assert reason.endswith(
        "beside it; Runtime 'openvino' cannot be imported (no module): pip install 'trt_qat[openvino]'."
    )
    _row(monkeypatch, "onnxruntime", NotInstalled)
    with pytest.raises(MissingDependency, match=r"pip install 'trt_qat\[openvino\]'"):
        choose_runner(onnx)


BROKEN_SIDECARS = {
    "missing": None,
    "empty": b"",
    "bytes": b"\xff\xfe\x00",
    "truncated": b'{"flavor": "tensorrt", "onnx_',
    "a list": b"[1, 2]",
    "another's": b'{"name": "of something else"}',
    "wrong types": b'{"flavor": "tensorrt-rtx", "onnx_sha256": 7, "metadata": []}',
}


@pytest.mark.parametrize("content", BROKEN_SIDECARS.values(), ids=list(BROKEN_SIDECARS))
def test_a_broken_sidecar_beside_a_good_onnx_is_only_noted(plan: Path, onnx: Path, content: bytes | None) -> None:
    sidecar = plan.with_suffix(".json")
    sidecar.unlink()
    if content is not None:
        sidecar.write_bytes(content)
    image = colour_image(64, 64)
    image[8:16, 8:16] = (0, 0, 255)
    cv2.imwrite(str(plan.parent / "one.png"), image)
    arguments = ["infer", str(plan.parent / "one.png"), "--model", str(onnx), "--out", str(plan.parent / "out")]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    note, found, _ = done.stdout.splitlines()
    assert note.startswith(f"'{onnx}' runs on openvino (")
    assert "'tiny.plan' does not run here: " in note or "'tiny.plan' was built from another version" in note
    assert found.startswith("1 frames, 1 detections")


def test_a_runtime_is_one_file_and_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_colour_set(tmp_path / "set")
    Path("engines").mkdir()
    model = write_tiny_detector(Path("engines/tiny.onnx")).rename("engines/tiny.added")
    with pytest.raises(RunnerError, match=r"A model must be one of .*, found 'engines/tiny.added'"):
        choose_runner(model)
    monkeypatch.setitem(RUNTIMES.rows, "added", f"{__name__}:AddedRunner")
    assert known_endings().endswith("*.engine, *.added")
    assert default_model() == model
    with open_runner(model, "added") as runner:
        assert runner.name == "added"
    with trt_qat.Detector(model) as detect:
        assert (detect.runner.name, detect.names) == ("added", NAMES)
    done = CliRunner().invoke(cli, ["infer", "set/images/val", "--json", "found.json"])
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"'{model}' runs on added (CPU): it was given.\n3 frames, 9 detections")
    (row,) = trt_qat.evaluate([model], data, latency_iterations=3, latency_warmup=0)
    assert (row.runtime, row.map50_95) == ("added", pytest.approx(0.995, abs=1e-3))
    assert Config.load(overrides=["evaluation.runtime=added"]).evaluation.runtime == "added"
