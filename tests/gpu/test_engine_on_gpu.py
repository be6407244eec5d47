"""Build, run and inspect on a real GPU, for every TensorRT flavor that is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from tiny_onnx import write_free_size, write_tiny_detector

from trt_qat.artifacts import EngineArtifact
from trt_qat.config import EngineSection, EvaluationSection
from trt_qat.engine.build import build_engine, sidecar_path
from trt_qat.engine.engine_file import read_sidecar
from trt_qat.engine.gpu import gpu_names
from trt_qat.engine.inspect import inspect_engine
from trt_qat.errors import EngineError, RunnerError
from trt_qat.evaluation.latency import measure_gpu_latency, measure_latency
from trt_qat.runtime.onnxruntime import OnnxRuntimeRunner
from trt_qat.runtime.selection import choose_runner
from trt_qat.runtime.tensorrt import TensorRtRunner

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not gpu_names(), reason="no NVIDIA GPU on this machine")]


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> EngineArtifact:
    flavor = request.param
    if importlib.util.find_spec(flavor.replace("-", "_")) is None:
        pytest.skip(f"{flavor} is not installed")
    if flavor == "tensorrt-rtx" and "RTX" not in gpu_names()[0]:
        pytest.skip(f"tensorrt-rtx does not run on {gpu_names()[0]}")
    onnx = write_tiny_detector(tmp_path / "tiny.onnx", batch=None)
    return build_engine(onnx, tmp_path / "tiny.plan", EngineSection(flavor=flavor, max_batch=4))


def test_same_numbers_as_onnx_runtime(engine: EngineArtifact) -> None:
    batches = np.random.default_rng(0).random((7, 3, 64, 64), dtype=np.float32)
    with TensorRtRunner(engine.path) as runner, OnnxRuntimeRunner(engine.path.with_suffix(".onnx")) as reference:
        assert runner.input_shape == (None, 3, 64, 64)
        assert runner.device.startswith("NVIDIA")
        for part in (batches[:1], batches[1:5], batches[5:]):
            for ours, theirs in zip(runner.infer(part), reference.infer(part), strict=True):
                np.testing.assert_allclose(ours, theirs, atol=5e-3)
        with pytest.raises(RunnerError, match="batches of 1 to 4"):
            runner.infer(batches)
    with pytest.raises(RunnerError, match="closed"):
        runner.infer(batches[:1])


def test_the_gpus_own_clock(engine: EngineArtifact) -> None:
    section = EvaluationSection(latency_iterations=20, latency_warmup=5)
    with TensorRtRunner(engine.path) as first, TensorRtRunner(engine.path) as second:
        on_gpu = measure_gpu_latency([first, second], section)
        seen = measure_latency([first, second], section)
        output = first.infer(np.zeros((1, 3, 64, 64), np.float32))[0]
    for mine, whole in zip(on_gpu, seen, strict=True):
        assert 0 < mine.median < whole.median  # the copies come on top
    assert np.isfinite(output).all()  # it runs as before after it was timed


def test_open_and_close_many_times(engine: EngineArtifact) -> None:
    batch = np.zeros((1, 3, 64, 64), np.float32)
    first = None
    for _ in range(5):
        with TensorRtRunner(engine.path) as runner:
            output = runner.infer(batch)[0]
        first = output if first is None else first
        np.testing.assert_array_equal(output, first)


def test_height_and_width_of_the_profile(engine: EngineArtifact, tmp_path: Path) -> None:
    onnx = write_free_size(tmp_path / "free.onnx", props={"imgsz": "[64, 64]"})
    section = EngineSection(flavor=engine.flavor, min_size=(32, 64), max_size=(96, 128), max_batch=2)
    plan = build_engine(onnx, tmp_path / "free.plan", section).path
    with TensorRtRunner(plan) as runner, OnnxRuntimeRunner(onnx) as reference:
        assert runner.input_shape == (None, 3, None, None)
        for shape in ((1, 3, 64, 64), (2, 3, 96, 128), (1, 3, 32, 96)):
            batch = np.random.default_rng(0).random(shape, dtype=np.float32)
            np.testing.assert_allclose(runner.infer(batch)[0], reference.infer(batch)[0], atol=5e-3)
        with pytest.raises(RunnerError, match="heights of 32 to 96, found 128"):
            runner.infer(np.zeros((1, 3, 128, 128), np.float32))


def test_flags_of_tensorrt(engine: EngineArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if engine.flavor != "tensorrt":
        pytest.skip("TensorRT-RTX has none of them")
    onnx, batch = engine.path.with_suffix(".onnx"), np.random.default_rng(0).random((1, 3, 64, 64), dtype=np.float32)
    section = EngineSection(flavor="tensorrt", optimization_level=1, version_compatible=True)
    try:
        plan = build_engine(onnx, tmp_path / "flags.plan", section.replace(hardware_compatible="ampere_plus")).path
    except EngineError as exc:
        if "tensorrt-lean" not in str(exc):
            raise
        pytest.skip(str(exc))
    described = read_sidecar(plan)
    assert described.gpu is not None
    assert described.gpu.name == gpu_names()[0]
    with pytest.raises(RunnerError, match="TRT_QAT_TRUST_PLAN=1"):
        TensorRtRunner(plan)
    monkeypatch.setenv("TRT_QAT_TRUST_PLAN", "1")
    with TensorRtRunner(plan) as runner, OnnxRuntimeRunner(onnx) as reference:
        np.testing.assert_allclose(runner.infer(batch)[0], reference.infer(batch)[0], atol=5e-3)


def test_plan_is_chosen_for_its_onnx(engine: EngineArtifact) -> None:
    runner, reason = choose_runner(engine.path.with_suffix(".onnx"))
    with runner:
        assert runner.name == "tensorrt"
    assert "was built from" in reason


def test_inspection_finds_layers(engine: EngineArtifact) -> None:
    inspected = inspect_engine(engine.path, engine.flavor, batch=2)
    layers = inspected.kernels
    assert layers
    assert any(inspected.touches_io(layer) for layer in layers)
    assert inspected.inputs[0].shape == (2, 3, 64, 64)
    assert inspected.macs > 0


def test_damaged_plan_is_one_line(engine: EngineArtifact) -> None:
    damaged = engine.path.with_name("damaged.plan")
    damaged.write_bytes(engine.path.read_bytes()[:500])
    sidecar_path(damaged).write_text(engine.sidecar.read_text())
    with pytest.raises(RunnerError, match="cannot load") as caught:
        TensorRtRunner(damaged)
    assert "\n" not in str(caught.value)
