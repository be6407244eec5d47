"""The TensorRT runner on a GPU that writes everything down (tests/fake_gpu.py), through both drivers.

Whether the real classes have these methods is test_tensorrt_bindings' question; a real GPU's is tests/gpu's.
"""

from __future__ import annotations

import gc
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_gpu import COMPUTE_MS, COPY_MS, Gpu, install

from trt_qat.errors import ArtifactError, NotEnoughMemory, RunnerError
from trt_qat.runtime import cuda_graph, tensorrt
from trt_qat.runtime.tensorrt import REQUESTS, TensorRtRunner

DRIVERS = ("pycuda", "cuda-python")


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Built with an older version for this one, too, and trusted."""
    monkeypatch.setenv(tensorrt.TRUST_PLAN, "1")
    path = tmp_path / "x.plan"
    path.write_bytes(b"plan")
    _described(path, tensorrt_version="10.9", version_compatible=True)
    return path


@pytest.fixture(params=DRIVERS)
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    machine = Gpu()
    install(monkeypatch, request.param, machine)
    yield machine
    _nothing_is_left(machine)


def _described(plan: Path, **said: Any) -> None:
    content = {"flavor": "tensorrt", "tensorrt_version": "11.0", "metadata": {"names": "{0: 'a'}"}, **said}
    plan.with_suffix(".json").write_text(json.dumps(content))


def _nothing_is_left(gpu: Gpu) -> None:
    if gpu.live:
        gc.collect()
    assert gpu.kinds() == {}
    if "push" in gpu.steps:
        assert set(gpu.pushes.values()) <= {0}


def _batch(count: int, height: int = 2, width: int = 2, first: float = 0) -> np.ndarray:
    size = count * 3 * height * width
    return np.arange(first, first + size, dtype=np.float32).reshape(count, 3, height, width)


def _check(runner: TensorRtRunner, batch: np.ndarray) -> None:
    out, sums = runner.infer(batch)
    assert (out.dtype, sums.dtype) == (np.float32, np.float32)
    np.testing.assert_array_equal(out, batch * 2)
    np.testing.assert_array_equal(sums, batch.reshape(len(batch), -1).sum(1))


def test_batches_of_changing_size(gpu: Gpu, plan: Path) -> None:
    with TensorRtRunner(plan) as runner:
        assert (runner.name, runner.device, runner.parallel) == ("tensorrt", "NVIDIA Fake", 1)
        assert (runner.input_shape, runner.largest_batch) == ((None, 3, 2, 2), 4)
        assert runner.metadata == {"names": "{0: 'a'}"}
        for count in (1, 4, 4, 2):
            _check(runner, _batch(count))
        with pytest.raises(RunnerError, match=r"batches of 1 to 4, found 5.*max_batch"):
            runner.infer(_batch(5))
        _check(runner, _batch(2))
    # memory grows with the largest batch and does not shrink; what is copied is what the batch has
    assert gpu.named("alloc") == gpu.named("host") == [(24,), (24,), (4,), (96,), (96,), (16,)]
    copied = [(call[0], call[3]) for call in gpu.calls if call[0] in ("to device", "to host")]
    one, four, two = ([("to device", 24 * n), ("to host", 24 * n), ("to host", 4 * n)] for n in (1, 4, 2))
    assert copied == one + four * 2 + two * 2


def test_what_one_call_does_in_which_order(gpu: Gpu, plan: Path) -> None:
    with TensorRtRunner(plan) as runner:
        runner.infer(_batch(2))
        start = len(gpu.calls)
        runner.infer(_batch(2))
        (stream,) = gpu.named("stream") and [call[0] for call in gpu.named("synchronize")][:1]
        steps = gpu.calls[start:]
        addresses = dict(gpu.named("address"))
        gpu.calls = gpu.calls[:start]
    names = [call[0] for call in steps if call[0] not in ("push", "pop", "cudaGetDevice", "cudaSetDevice")]
    recorded = ["begin", "execute", "end", "instantiate", "drop recording", "removed"]
    assert names == ["to device", *recorded, "launch", "to host", "to host", "synchronize"]
    into, *out = [call for call in steps if call[0] in ("to device", "to host")]
    assert into[1] == addresses["images"]
    assert [call[2] for call in out] == [addresses["out"], addresses["sums"]]
    assert all(call[4] == stream for call in (into, *out))
    assert ("begin", stream, cuda_graph.THREAD_LOCAL) in steps
    assert gpu.named("stream") == [(1,)]  # does not wait for the default stream


def test_a_shape_is_recorded_once_and_launched_often(gpu: Gpu, plan: Path) -> None:
    with TensorRtRunner(plan) as runner:
        for value in range(5):
            _check(runner, _batch(1, first=value))
        assert (gpu.steps.count("instantiate"), gpu.steps.count("launch")) == (1, 4)
        assert gpu.steps.count("execute") == 2  # to warm up, and while it was recorded
        for value in range(3):
            _check(runner, _batch(3, first=value))  # in memory that was moved
        assert (gpu.steps.count("instantiate"), gpu.steps.count("launch")) == (2, 6)
        assert gpu.steps.count("drop graph") == 1
        for count in (1, 2, 3, 1, 2, 3):
            _check(runner, _batch(count))
        assert gpu.steps.count("instantiate") == 2  # a shape that changes each time is never recorded


@pytest.mark.parametrize("step", ["begin", "end", "instantiate"])
def test_where_recording_fails_the_engine_is_enqueued(gpu: Gpu, plan: Path, step: str) -> None:
    gpu.failing = {step}
    with TensorRtRunner(plan) as runner:
        for value in range(4):
            _check(runner, _batch(1, first=value))
    assert gpu.steps.count(step) == 1  # it is not tried again
    assert "launch" not in gpu.steps


def test_an_engine_that_refuses_to_be_recorded(gpu: Gpu, plan: Path) -> None:
    with TensorRtRunner(plan) as runner:
        _check(runner, _batch(1))
        gpu.fail_at = len(gpu.steps) + (3 if "push" in gpu.steps else 4)  # current, copy, begin, execute
        _check(runner, _batch(1))
        assert gpu.steps[gpu.fail_at] == "execute"
        assert not gpu.recording
        _check(runner, _batch(1))


def test_a_driver_without_graphs(gpu: Gpu, plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graph, "driver_library", lambda: object())
    with TensorRtRunner(plan) as runner:
        for value in range(3):
            _check(runner, _batch(1, first=value))
    assert gpu.steps.count("execute") == 3


def test_tensorrt_rtx_records_by_itself(gpu: Gpu, plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = tensorrt.import_tensorrt("tensorrt")
    trt.CudaGraphStrategy = type("CudaGraphStrategy", (), {"WHOLE_GRAPH_CAPTURE": "whole"})  # type: ignore[attr-defined]
    with TensorRtRunner(plan) as runner:
        for value in range(3):
            _check(runner, _batch(1, first=value))
    assert gpu.named("context") == [("whole",)]
    assert "begin" not in gpu.steps


def test_requests_of_two_threads_overlap(gpu: Gpu, plan: Path) -> None:
    both = threading.Barrier(2)
    with TensorRtRunner(plan, mode="throughput") as runner, ThreadPoolExecutor(2) as threads:
        assert runner.parallel == REQUESTS == len(gpu.named("stream")) == len(gpu.named("context"))
        gpu.waiting = lambda: both.wait(10) and None  # each is waited for while the other is on its way
        for value in range(3):
            batches = [_batch(2, first=value), _batch(3, first=value + 100)]
            for batch, (out, _) in zip(batches, threads.map(runner.infer, batches), strict=True):
                np.testing.assert_array_equal(out, batch * 2)
        gpu.waiting = lambda: None
        streams = {call[0] for call in gpu.named("synchronize")}
        assert len(streams) == 2


def test_an_error_in_one_request_leaves_the_others_alone(gpu: Gpu, plan: Path) -> None:
    both = threading.Barrier(2)
    with TensorRtRunner(plan, mode="throughput") as runner, ThreadPoolExecutor(2) as threads:
        runner.infer(_batch(1))
        ((first,),) = gpu.named("synchronize")
        gpu.failing = {("execute", first), ("begin", first)}
        gpu.waiting = lambda: both.wait(10) and None
        outcomes = list(threads.map(lambda batch: _outcome(lambda: runner.infer(batch)), [_batch(1), _batch(1)]))
        gpu.waiting, gpu.failing = lambda: None, set()
        assert sorted(isinstance(outcome, RunnerError) for outcome in outcomes) == [False, True]
        (right,) = (outcome for outcome in outcomes if isinstance(outcome, list))
        np.testing.assert_array_equal(right[0], _batch(1) * 2)
        for _ in range(4):
            _check(runner, _batch(1))


def test_more_threads_than_requests_wait_and_all_are_right(gpu: Gpu, plan: Path) -> None:
    now, most, lock = [0], [0], threading.Lock()

    def waiting() -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        threading.Event().wait(0.001)
        with lock:
            now[0] -= 1

    with TensorRtRunner(plan) as runner, ThreadPoolExecutor(4) as threads:
        gpu.waiting = waiting
        batches = [_batch(1 + index % 3, first=index) for index in range(24)]
        for batch, (out, _) in zip(batches, threads.map(runner.infer, batches), strict=True):
            np.testing.assert_array_equal(out, batch * 2)
    assert most == [1]


def test_closing_waits_for_what_is_on_its_way(gpu: Gpu, plan: Path) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def waiting() -> None:
        reached.set()
        go_on.wait(10)

    with ThreadPoolExecutor(3) as threads:
        with TensorRtRunner(plan) as runner:
            gpu.waiting = waiting
            first = threads.submit(runner.infer, _batch(2))
            reached.wait(10)
            late = [threads.submit(runner.infer, _batch(1)) for _ in range(2)]
            while runner._idle.not_empty._waiters.__len__() < 2:  # type: ignore[attr-defined]
                threading.Event().wait(0.001)
            threading.Timer(0.02, go_on.set).start()
        results = [_outcome(future.result) for future in (first, *late)]
    np.testing.assert_array_equal(results[0][0], _batch(2) * 2)
    for result in results[1:]:  # they were before the one that closes, or they are told
        assert isinstance(result, list) or "closed" in str(result)


def _outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except (NotEnoughMemory, RunnerError) as exc:
        return exc


def test_what_the_gpu_takes_with_and_without_copies(gpu: Gpu, plan: Path) -> None:
    with TensorRtRunner(plan) as runner:
        for _ in range(3):  # enqueued, recorded, launched
            assert runner.gpu_milliseconds(_batch(2)) == COMPUTE_MS
        assert runner.gpu_milliseconds(_batch(2), copies=True) == COMPUTE_MS + 3 * COPY_MS
        assert gpu.steps.count("event") == 2
        _check(runner, _batch(2))
        gpu.failing = {"launch"}
        with pytest.raises(RunnerError, match="cuGraphLaunch: operation not permitted"):
            runner.gpu_milliseconds(_batch(2))
    with pytest.raises(RunnerError, match="closed"):
        runner.gpu_milliseconds(_batch(2))


def test_static_batch(gpu: Gpu, plan: Path) -> None:
    gpu.engine["batch"] = 2
    with TensorRtRunner(plan) as runner:
        assert (runner.input_shape, runner.largest_batch) == ((2, 3, 2, 2), 2)
        _check(runner, _batch(2))
        with pytest.raises(RunnerError, match="takes shape"):
            runner.infer(_batch(1))


def test_the_profile_that_holds_the_shape(gpu: Gpu, plan: Path) -> None:
    gpu.engine["profiles"] = [((1, 3, 2, 2), (1, 3, 2, 2), (1, 3, 2, 2)), ((2, 3, 2, 2), (4, 3, 2, 2), (8, 3, 2, 2))]
    with TensorRtRunner(plan, mode="throughput") as runner:
        assert runner.largest_batch == 8
        for count in (1, 8, 8, 8, 2, 1, 1, 1):
            _check(runner, _batch(count))
        assert [index for index, _ in gpu.named("profile")] == [1, 0]
        assert {stream for _, stream in gpu.named("profile")} == {call[0] for call in gpu.named("synchronize")}
        with pytest.raises(RunnerError, match=r"None of the engine's 2 profiles takes shape \(9, 3, 2, 2\)"):
            runner.infer(_batch(9))


def test_images_of_changing_size(gpu: Gpu, plan: Path) -> None:
    gpu.engine.update(shape=(-1, 3, -1, -1), profiles=[((1, 3, 2, 2), (1, 3, 2, 4), (4, 3, 4, 8))])
    with TensorRtRunner(plan) as runner:
        assert runner.input_shape == (None, 3, None, None)
        for shape in ((1, 2, 2), (2, 4, 8), (2, 2, 8)):
            _check(runner, _batch(*shape))
        for wrong, said in (
            ((5, 2, 2), r"batches of 1 to 4, found 5.*engine.max_batch"),
            ((1, 8, 8), r"heights of 2 to 4, found 8.*engine.max_size"),
            ((1, 4, 1), r"widths of 2 to 8, found 1.*engine.min_size"),
        ):
            with pytest.raises(RunnerError, match=said):
                runner.infer(_batch(*wrong))


def test_an_output_of_a_size_that_nobody_knows(gpu: Gpu, plan: Path) -> None:
    gpu.engine["nms"] = True
    with TensorRtRunner(plan) as runner, pytest.raises(RunnerError, match="'sums' depends on the image"):
        runner.infer(_batch(1))


@pytest.mark.parametrize(("device", "index"), [("auto", 0), ("cuda", 0), ("cuda:0", 0), ("cuda:1", 1), ("1", 1)])
def test_the_gpu_that_was_asked_for(gpu: Gpu, plan: Path, device: str, index: int) -> None:
    with TensorRtRunner(plan, device=device) as runner:
        assert runner.device == ("NVIDIA Fake", "NVIDIA Other")[index]
        _check(runner, _batch(1))
    if "retain" in gpu.steps:
        assert gpu.named("retain") == [(index,)]
    else:
        assert (index,) in gpu.named("cudaSetDevice")
        assert gpu.named("cudaSetDevice")[-1] == (0,)  # as it was


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("cpu", r"runs on a GPU .* not on 'cpu'. Use --runtime openvino"),
        ("cuda:2", r"There is no cuda:2 here, only cuda:0 \(NVIDIA Fake\), cuda:1 \(NVIDIA Other\)"),
        ("cuda:-1", "not on 'cuda:-1'"),
        ("gpu", "not on 'gpu'"),
    ],
)
def test_a_device_that_is_none(gpu: Gpu, plan: Path, device: str, said: str) -> None:
    with pytest.raises(RunnerError, match=said):
        TensorRtRunner(plan, device=device)
    assert gpu.calls == []


def test_release_in_order_and_use_after_exit(gpu: Gpu, plan: Path) -> None:
    with TensorRtRunner(plan, mode="throughput") as runner:
        runner.infer(_batch(1))
        runner.infer(_batch(1))
        start = len(gpu.calls)
    ends = [call[0] for call in gpu.calls[start:]]
    order = ["synchronize", "drop graph", "Context dropped", "free", "free host", "Engine dropped", "Runtime dropped"]
    places = [max(index for index, name in enumerate(ends) if name == end) for end in order[2:]]
    assert [name for name in ends if name in order[:4]][:4] == order[:4]  # of the request that was used
    assert places[0] < places[3] < places[4]
    assert max(index for index, name in enumerate(ends) if name.startswith("free")) < places[3]
    assert all(current for name in order[4:] for (current,) in gpu.named(name) if name.endswith("dropped"))
    with pytest.raises(RunnerError, match="closed"):
        runner.infer(_batch(1))
    with pytest.raises(RunnerError, match="closed"), runner:
        pass


def _life(plan: Path, gpu: Gpu) -> None:
    """A runner from its opening to its end, with every kind of call in it."""
    with TensorRtRunner(plan, mode="throughput") as runner:
        for count in (1, 1, 1, 2):  # warmed up, recorded, launched; other memory
            try:
                _check(runner, _batch(count))
            except (NotEnoughMemory, RunnerError) as exc:
                assert "\n" not in str(exc)  # noqa: PT017
                _check(runner, _batch(count))  # it goes on working
        for copies in (True, False):
            runner.gpu_milliseconds(_batch(2), copies)
        gpu.calls.append(("closing", len(gpu.steps)))


@pytest.mark.parametrize("driver", DRIVERS)
def test_whatever_fails_nothing_is_left(driver: str, plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Gpu()
    install(monkeypatch, driver, whole)
    whole.engine["profiles"].insert(0, ((2, 3, 2, 2), (2, 3, 2, 2), (4, 3, 2, 2)))  # each new context must change
    profiles = whole.engine["profiles"]
    _life(plan, whole)
    _nothing_is_left(whole)
    ((closing,),) = whole.named("closing")
    failed = set()
    for number, name in enumerate(whole.steps):
        if number >= closing and name in ("push", "cudaGetDevice", "cudaSetDevice"):
            continue  # a GPU that cannot be reached cannot be told to give anything back
        gpu = Gpu()
        gpu.engine["profiles"] = profiles
        gpu.fail_at = number
        install(monkeypatch, driver, gpu)
        outcome = _outcome(lambda gpu=gpu: _life(plan, gpu))  # type: ignore[misc]
        assert gpu.steps[number] == name
        if outcome is not None:
            failed.add(name)
            assert "\n" not in str(outcome)
        _nothing_is_left(gpu)  # although the error's traceback is still there
        made = [call[0] for call in gpu.calls]
        dropped = [index for index, call in enumerate(made) if call.endswith(" dropped")]
        assert [made[index] for index in dropped][-2:] == ["Engine dropped", "Runtime dropped"] or number < 8
    assert {"stream", "context", "deserialize", "record", "elapsed", "free", "free host", "drop graph"} <= failed


def test_failures_say_why(gpu: Gpu, plan: Path) -> None:
    gpu.failing = {"deserialize"}
    with pytest.raises(RunnerError, match=r"TensorRT 11.0 on NVIDIA Fake cannot load .*10.9: incompatible version\."):
        TensorRtRunner(plan)
    gpu.failing = {"alloc"}
    with TensorRtRunner(plan) as runner:
        with pytest.raises(
            NotEnoughMemory, match=r"allocation of 24 bytes: .*out of memory\. Lower the batch"
        ) as refused:
            runner.infer(_batch(1))
        assert "\n" not in str(refused.value)
        gpu.failing = {"execute"}
        with pytest.raises(RunnerError, match="failed to run the engine"):
            runner.infer(_batch(1))
        gpu.failing = set()
        _check(runner, _batch(1))


@pytest.mark.parametrize("step", ["alloc", "host"])
def test_a_batch_that_does_not_fit_leaves_room_for_a_smaller_one(gpu: Gpu, plan: Path, step: str) -> None:
    with TensorRtRunner(plan) as runner:
        _check(runner, _batch(1))
        gpu.failing = {(step, 96)}
        for _ in range(2):
            with pytest.raises(NotEnoughMemory, match="allocation of 96 bytes"):
                runner.infer(_batch(4))
        for count in (2, 1, 1, 1, 2):
            _check(runner, _batch(count))


def test_no_gpu_and_missing_sidecar(monkeypatch: pytest.MonkeyPatch, plan: Path) -> None:
    monkeypatch.setattr(tensorrt, "gpu_names", tuple)
    with pytest.raises(RunnerError, match=r"No NVIDIA GPU found: .*--runtime openvino"):
        TensorRtRunner(plan)
    plan.with_suffix(".json").unlink()
    with pytest.raises(ArtifactError, match=r"Side-car .* does not exist"):
        TensorRtRunner(plan)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"tensorrt_version": "10.9"}, r"it was built with TensorRT 10.9, here is 11.0, .*Build the engine again"),
        (
            {"gpu": {"name": "NVIDIA Other", "compute_capability": 86}},
            r"built on NVIDIA Other of compute capability 8.6, NVIDIA Fake has 8.9",
        ),
        ({"version_compatible": True}, r"code that runs on this machine .*set TRT_QAT_TRUST_PLAN=1"),
    ],
)
def test_what_cannot_run_is_refused_before_tensorrt_sees_it(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch, plan: Path, said: dict[str, Any], why: str
) -> None:
    monkeypatch.setattr(tensorrt, "compute_capability", lambda index: 89 - index)
    monkeypatch.delenv(tensorrt.TRUST_PLAN)
    _described(plan)
    with TensorRtRunner(plan) as runner:
        assert runner.infer(_batch(1))[0].shape == (1, 3, 2, 2)
    gpu.calls.clear()
    _described(plan, **said)
    with pytest.raises(RunnerError, match=why) as caught:
        TensorRtRunner(plan)
    assert str(plan) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert gpu.calls == []  # no memory, no runtime


def test_code_in_a_plan_runs_where_it_is_trusted_only(gpu: Gpu, plan: Path) -> None:
    with TensorRtRunner(plan) as runner:
        assert runner._runtime.engine_host_code_allowed is True
    _described(plan)
    with TensorRtRunner(plan) as runner:
        assert not hasattr(runner._runtime, "engine_host_code_allowed")  # TensorRT's default: no
