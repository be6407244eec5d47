"""The TensorRT runner against a stand-in engine that doubles its input on "device" memory.

Whether the real classes have these methods is test_tensorrt_bindings' question; a real GPU's is tests/gpu's.
"""

from __future__ import annotations

import ctypes
import gc
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from trt_qat.errors import ArtifactError, RunnerError
from trt_qat.runtime import tensorrt
from trt_qat.runtime.tensorrt import TensorRtRunner


class Machine:
    """One fake GPU: its memory, its TensorRT, and the order in which things happened."""

    def __init__(self, batch: int = -1) -> None:
        self.events: list[str] = []
        self.live: dict[int, Any] = {}
        self.shape: tuple[int, ...] = (batch, 3, 2, 2)
        self.profile = [(1, 3, 2, 2), (1, 3, 2, 2), (4, 3, 2, 2)]
        self.loads = True
        self.runs = True
        self.engine_error = ""
        self.stream = 77

    # --- DeviceMemory
    def alloc(self, nbytes: int) -> int:
        buffer = ctypes.create_string_buffer(nbytes)
        self.live[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    def free(self, address: int) -> None:
        del self.live[address]

    def host_array(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return np.zeros(shape, dtype)

    def free_host(self, array: np.ndarray) -> None:
        pass

    def copy_to_device(self, address: int, source: np.ndarray) -> None:
        ctypes.memmove(address, source.ctypes.data, source.nbytes)

    def copy_to_host(self, target: np.ndarray, address: int) -> None:
        ctypes.memmove(target.ctypes.data, address, target.nbytes)

    def synchronize(self) -> None:
        self.events.append("synchronize")

    def elapsed_ms(self, enqueue: Callable[[], object]) -> float:
        self.events.append("timed")
        enqueue()
        return 1.5

    def close(self) -> None:
        self.events.append("memory closed")
        self.live.clear()

    # --- tensorrt
    def module(self) -> SimpleNamespace:
        machine = self

        class ILogger:
            ERROR, INTERNAL_ERROR = 1, 0

        class Part:
            def __del__(self) -> None:
                machine.events.append(f"{type(self).__name__} dropped")

        class Context(Part):
            def __init__(self, engine: Any) -> None:
                self.engine = engine
                self.addresses: dict[str, int] = {}
                self.shape: tuple[int, ...] = ()

            def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
                self.shape = shape
                return True

            def get_tensor_shape(self, name: str) -> tuple[int, ...]:
                return self.shape

            def set_tensor_address(self, name: str, address: int) -> bool:
                self.addresses[name] = address
                return True

            def execute_async_v3(self, stream: int) -> bool:
                assert stream == machine.stream
                count = int(np.prod(self.shape))
                arrays = [np.ctypeslib.as_array((ctypes.c_uint16 * count).from_address(a)).view(np.float16) for a in
                          (self.addresses["images"], self.addresses["out"])]  # fmt: skip
                arrays[1][:] = arrays[0] * 2
                return machine.runs

        class Engine(Part):
            num_io_tensors = 2

            def __init__(self, runtime: Any) -> None:
                self.runtime = runtime

            def get_tensor_name(self, index: int) -> str:
                return ("images", "out")[index]

            def get_tensor_mode(self, name: str) -> str:
                return "in" if name == "images" else "out"

            def get_tensor_shape(self, name: str) -> tuple[int, ...]:
                return machine.shape

            def get_tensor_dtype(self, name: str) -> str:
                return "half"

            def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
                return machine.profile

            def create_execution_context(self) -> Context:
                return Context(self)

        class Runtime(Part):
            def __init__(self, logger: Any) -> None:
                self.logger = logger

            def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
                if not machine.loads:
                    self.logger.log(ILogger.ERROR, "incompatible\nversion.")
                    return None
                return Engine(self)

        return SimpleNamespace(
            ILogger=ILogger,
            Runtime=Runtime,
            TensorIOMode=SimpleNamespace(INPUT="in"),
            nptype=lambda name: np.float16,
            __version__="11.0",
        )


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Built with an older version for this one, too, and trusted."""
    monkeypatch.setenv(tensorrt.TRUST_PLAN, "1")
    path = tmp_path / "x.plan"
    path.write_bytes(b"plan")
    sidecar = {
        "flavor": "tensorrt",
        "tensorrt_version": "10.9",
        "metadata": {"names": "{0: 'a'}"},
        "version_compatible": True,
    }
    path.with_suffix(".json").write_text(json.dumps(sidecar))
    return path


def _install(monkeypatch: pytest.MonkeyPatch, machine: Machine) -> Machine:
    trt = machine.module()
    monkeypatch.setattr(tensorrt, "gpu_names", lambda: ("NVIDIA Fake",))
    monkeypatch.setattr(tensorrt, "import_tensorrt", lambda flavor: trt)
    monkeypatch.setattr(tensorrt, "open_device_memory", lambda: machine)
    return machine


def _batch(count: int) -> np.ndarray:
    return np.arange(count * 12, dtype=np.float32).reshape(count, 3, 2, 2)


def test_batches_of_changing_size(monkeypatch: pytest.MonkeyPatch, plan: Path) -> None:
    machine = _install(monkeypatch, Machine())
    with TensorRtRunner(plan) as runner:
        assert (runner.name, runner.device) == ("tensorrt", "NVIDIA Fake")
        assert runner.input_shape == (None, 3, 2, 2)
        assert runner.metadata == {"names": "{0: 'a'}"}
        for count in (1, 4, 4, 2):
            (output,) = runner.infer(_batch(count))
            assert output.dtype == np.float32
            np.testing.assert_array_equal(output, _batch(count) * 2)
            assert len(machine.live) == 2
        with pytest.raises(RunnerError, match=r"batches of 1 to 4, found 5.*max_batch"):
            runner.infer(_batch(5))
        np.testing.assert_array_equal(runner.infer(_batch(2))[0], _batch(2) * 2)


def test_what_the_gpu_takes_is_timed_without_copies(monkeypatch: pytest.MonkeyPatch, plan: Path) -> None:
    machine = _install(monkeypatch, Machine())
    with TensorRtRunner(plan) as runner:
        assert runner.gpu_milliseconds(_batch(2)) == 1.5
        assert machine.events == ["synchronize", "timed"]  # the batch is there before the clock starts
        machine.runs = False
        with pytest.raises(RunnerError, match="failed to run the engine"):
            runner.gpu_milliseconds(_batch(2))
    with pytest.raises(RunnerError, match="closed"):
        runner.gpu_milliseconds(_batch(2))


def test_static_batch(monkeypatch: pytest.MonkeyPatch, plan: Path) -> None:
    _install(monkeypatch, Machine(batch=2))
    with TensorRtRunner(plan) as runner:
        assert runner.input_shape == (2, 3, 2, 2)
        runner.infer(_batch(2))
        with pytest.raises(RunnerError, match="takes shape"):
            runner.infer(_batch(1))


def test_release_in_order_and_use_after_exit(monkeypatch: pytest.MonkeyPatch, plan: Path) -> None:
    machine = _install(monkeypatch, Machine())
    with TensorRtRunner(plan) as runner:
        runner.infer(_batch(1))
    gc.collect()
    assert machine.events == ["synchronize", "Context dropped", "Engine dropped", "Runtime dropped", "memory closed"]
    with pytest.raises(RunnerError, match="closed"):
        runner.infer(_batch(1))
    with pytest.raises(RunnerError, match="closed"), runner:
        pass


def test_failures_release_the_memory_and_say_why(monkeypatch: pytest.MonkeyPatch, plan: Path) -> None:
    machine = _install(monkeypatch, Machine())
    machine.loads = False
    with pytest.raises(RunnerError, match=r"TensorRT 11.0 on NVIDIA Fake cannot load .*10.9: incompatible version\."):
        TensorRtRunner(plan)
    assert machine.events[-1] == "memory closed"
    machine.loads, machine.runs = True, False
    with TensorRtRunner(plan) as runner, pytest.raises(RunnerError, match="failed to run the engine"):
        runner.infer(_batch(1))


def test_no_gpu_and_missing_sidecar(monkeypatch: pytest.MonkeyPatch, plan: Path) -> None:
    monkeypatch.setattr(tensorrt, "gpu_names", tuple)
    with pytest.raises(RunnerError, match=r"No NVIDIA GPU found: .*--runtime openvino"):
        TensorRtRunner(plan)
    plan.with_suffix(".json").unlink()
    with pytest.raises(ArtifactError, match=r"Side-car .* does not exist"):
        TensorRtRunner(plan)


def _described(plan: Path, **said: Any) -> None:
    content = {"flavor": "tensorrt", "tensorrt_version": "11.0", "metadata": {"names": "{0: 'a'}"}, **said}
    plan.with_suffix(".json").write_text(json.dumps(content))


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
    monkeypatch: pytest.MonkeyPatch, plan: Path, said: dict[str, Any], why: str
) -> None:
    machine = _install(monkeypatch, Machine())
    monkeypatch.setattr(tensorrt, "compute_capability", lambda: 89)
    monkeypatch.delenv(tensorrt.TRUST_PLAN)
    _described(plan)
    with TensorRtRunner(plan) as runner:
        assert runner.infer(_batch(1))[0].shape == (1, 3, 2, 2)
    gc.collect()
    machine.events.clear()
    _described(plan, **said)
    with pytest.raises(RunnerError, match=why) as caught:
        TensorRtRunner(plan)
    assert str(plan) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert machine.events == []  # no memory, no runtime


def test_code_in_a_plan_runs_where_it_is_trusted_only(monkeypatch: pytest.MonkeyPatch, plan: Path) -> None:
    _install(monkeypatch, Machine())
    with TensorRtRunner(plan) as runner:
        assert runner._runtime.engine_host_code_allowed is True
    _described(plan)
    with TensorRtRunner(plan) as runner:
        assert not hasattr(runner._runtime, "engine_host_code_allowed")  # TensorRT's default: no


def test_images_of_changing_size(monkeypatch: pytest.MonkeyPatch, plan: Path) -> None:
    machine = _install(monkeypatch, Machine())
    machine.shape = (-1, 3, -1, -1)
    machine.profile = [(1, 3, 2, 2), (1, 3, 2, 4), (4, 3, 4, 8)]
    with TensorRtRunner(plan) as runner:
        assert runner.input_shape == (None, 3, None, None)
        for shape in ((1, 3, 2, 2), (2, 3, 4, 8), (2, 3, 2, 8)):
            batch = np.ones(shape, np.float32)
            np.testing.assert_array_equal(runner.infer(batch)[0], batch * 2)
        for shape, said in (
            ((5, 3, 2, 2), r"batches of 1 to 4, found 5.*engine.max_batch"),
            ((1, 3, 8, 8), r"heights of 2 to 4, found 8.*engine.max_size"),
            ((1, 3, 4, 1), r"widths of 2 to 8, found 1.*engine.min_size"),
        ):
            with pytest.raises(RunnerError, match=said):
                runner.infer(np.ones(shape, np.float32))
