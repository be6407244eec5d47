"""Build, run and inspect on a real GPU, for every TensorRT flavor that is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_onnx import write_free_size, write_tiny_detector

from trt_qat.artifacts import EngineArtifact
from trt_qat.config import EngineSection, EvaluationSection
from trt_qat.engine.build import build_engine, sidecar_path
from trt_qat.engine.engine_file import read_sidecar
from trt_qat.engine.gpu import compute_capability, gpu_names
from trt_qat.engine.inspect import inspect_engine
from trt_qat.errors import EngineError, RunnerError
from trt_qat.evaluation.latency import CLOCKS, measure_gpu_latency, measure_latency
from trt_qat.runtime import tensorrt
from trt_qat.runtime.cuda_graph import CudaGraphs
from trt_qat.runtime.onnxruntime import OnnxRuntimeRunner
from trt_qat.runtime.selection import choose_runner
from trt_qat.runtime.tensorrt import TensorRtRunner

Batch = NDArray[np.float32]
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


def _outputs(runner: TensorRtRunner, batches: Sequence[Batch], threads: int = 1) -> list[list[Batch]]:
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(runner.infer, batches))


def test_the_same_result_whichever_way_it_comes(engine: EngineArtifact, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    batches = [generator.random((count, 3, 64, 64), dtype=np.float32) for count in (1,) * 6 + (4,) * 6 + (1, 2, 3) * 3]
    with TensorRtRunner(engine.path) as runner:
        assert (runner.parallel, runner.largest_batch) == (1, 4)
        expected = [runner.infer(batch) for batch in batches]  # the third of a shape and later are launched graphs
    ways = {}
    with TensorRtRunner(engine.path) as runner:
        ways["each batch first of its shape"] = [_fresh(runner, batch) for batch in batches]
    with TensorRtRunner(engine.path, mode="throughput") as runner:
        assert runner.parallel == 3
        ways["one thread"] = _outputs(runner, batches)
        ways["as many threads as requests"] = _outputs(runner, batches, 3)
        ways["more threads"] = _outputs(runner, batches * 4, 8)[-len(batches) :]
    monkeypatch.setattr(tensorrt, "open_graphs", lambda: None)
    with TensorRtRunner(engine.path) as runner:
        ways["no graphs"] = _outputs(runner, batches)
    for name, outputs in ways.items():
        for ours, theirs in zip(outputs, expected, strict=True):
            for one, other in zip(ours, theirs, strict=True):
                if engine.flavor == "tensorrt":
                    np.testing.assert_array_equal(one, other, err_msg=name)
                else:  # it swaps kernels for a free shape while they run
                    np.testing.assert_allclose(one, other, atol=5e-3, err_msg=name)


def _fresh(runner: TensorRtRunner, batch: Batch) -> list[Batch]:
    runner.infer(np.zeros((3 if len(batch) != 3 else 2, 3, 64, 64), np.float32))  # another shape comes between
    return runner.infer(batch)


def test_tensorrts_engine_is_recorded(engine: EngineArtifact, monkeypatch: pytest.MonkeyPatch) -> None:
    if engine.flavor != "tensorrt":
        pytest.skip("TensorRT-RTX records by itself")
    launched = []
    launch = CudaGraphs.launch
    monkeypatch.setattr(CudaGraphs, "launch", lambda *arguments: launched.append(1) or launch(*arguments))
    with TensorRtRunner(engine.path) as runner:
        for _ in range(4):
            runner.infer(np.zeros((1, 3, 64, 64), np.float32))
    assert len(launched) == 3


def test_an_error_leaves_the_runner_as_it_was(engine: EngineArtifact) -> None:
    batch = np.random.default_rng(0).random((1, 3, 64, 64), dtype=np.float32)
    with TensorRtRunner(engine.path, mode="throughput") as runner:
        expected = runner.infer(batch)[0]
        for _ in range(3):
            with pytest.raises(RunnerError, match="batches of 1 to 4"):
                runner.infer(np.zeros((5, 3, 64, 64), np.float32))
            np.testing.assert_array_equal(runner.infer(batch)[0], expected)


def test_no_memory_is_lost(engine: EngineArtifact) -> None:
    torch = pytest.importorskip("torch")
    batch = np.zeros((4, 3, 64, 64), np.float32)
    free = []
    for _ in range(12):
        with TensorRtRunner(engine.path, mode="throughput") as runner:
            _outputs(runner, [batch] * 9, 3)
        free.append(torch.cuda.mem_get_info()[0])
    assert free[2] - free[-1] < 8 << 20  # the first two load what stays


def test_the_gpus_own_clock(engine: EngineArtifact) -> None:
    section = EvaluationSection(latency_iterations=20, latency_warmup=5)
    with TensorRtRunner(engine.path) as first, TensorRtRunner(engine.path) as second:
        on_gpu = measure_gpu_latency([first, second], section)
        seen = measure_latency([first, second], section)
        output = first.infer(np.zeros((1, 3, 64, 64), np.float32))[0]
    for mine, whole in zip(on_gpu, seen, strict=True):
        assert 0 < mine.compute_ms.median < mine.with_copies_ms.median < whole.median
        assert all(set(CLOCKS) == set(gpu) for gpu in mine.clocks)
    assert np.isfinite(output).all()  # it runs as before after it was timed


@pytest.mark.parametrize("device", ["auto", "cuda", f"cuda:{max(0, len(gpu_names()) - 1)}"])
def test_the_gpu_that_was_asked_for(engine: EngineArtifact, device: str) -> None:
    index = 0 if device in ("auto", "cuda") else len(gpu_names()) - 1
    if compute_capability(index) != compute_capability():
        pytest.skip("the last GPU is of another kind than the one that the plan was built on")
    batch = np.random.default_rng(0).random((2, 3, 64, 64), dtype=np.float32)
    with TensorRtRunner(engine.path, device=device) as runner, TensorRtRunner(engine.path) as first:
        assert runner.device == gpu_names()[index]
        np.testing.assert_allclose(runner.infer(batch)[0], first.infer(batch)[0], atol=5e-3)
    with pytest.raises(RunnerError, match=f"There is no cuda:{len(gpu_names())} here"):
        TensorRtRunner(engine.path, device=f"cuda:{len(gpu_names())}")


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
