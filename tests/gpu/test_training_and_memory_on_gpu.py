"""What only a GPU shows of memory: copies there and back, and what happens where it runs out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from recording import Recording

from trt_qat.engine.gpu import gpu_names
from trt_qat.errors import RunnerError
from trt_qat.runtime.device_memory import CudaPythonMemory, DeviceMemory, PycudaMemory

if TYPE_CHECKING:
    from trt_qat.checkpoint import Model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not gpu_names(), reason="no NVIDIA GPU on this machine")]


@pytest.fixture(params=["pycuda", "cuda-python"])
def memory(request: pytest.FixtureRequest) -> Iterator[DeviceMemory]:
    if request.param == "pycuda":
        driver = pytest.importorskip("pycuda.driver", reason="pycuda is not installed")
        opened: DeviceMemory = PycudaMemory(driver)
    else:
        if find_spec("cuda") is None:
            pytest.skip("cuda-python is not installed")
        from cuda.bindings import runtime

        opened = CudaPythonMemory(runtime)
    yield opened
    opened.close()


def test_bytes_come_back_as_they_went(memory: DeviceMemory) -> None:
    source = memory.host_array((3, 5, 7), np.float32)
    source[:] = np.random.default_rng(0).random(source.shape, dtype=np.float32)
    expected = source.copy()
    target = memory.host_array((3, 5, 7), np.float32)
    address = memory.alloc(source.nbytes)
    memory.copy_to_device(address, source)
    memory.synchronize()
    source[:] = 0
    memory.copy_to_host(target, address)
    memory.synchronize()
    np.testing.assert_array_equal(target, expected)
    memory.free(address)
    memory.free_host(source)
    memory.free_host(target)


def test_more_than_there_is_gets_one_line(memory: DeviceMemory) -> None:
    with pytest.raises(RunnerError) as refused:
        memory.alloc(1 << 50)
    assert "\n" not in str(refused.value)
    memory.free(memory.alloc(1024))  # it goes on working


def test_qat_halves_its_batch_where_gpu_memory_runs_out(demo_detector: Model, demo_set: Path, tmp_path: Path) -> None:
    import torch

    from trt_qat import api

    int8 = api.quantize(replace(demo_detector, imgsz=640), demo_set, calibrator="max", images=2)
    progress = Recording()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(1.2 * 2**30 / total)
    try:
        tuned = api.finetune(int8, demo_set, tmp_path / "qat", epochs=1, batch=16, progress=progress)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert progress.notes[0] == "Memory ran out with qat.batch=16: going on with 8."
    assert tuned.stage == "qat"


def test_an_interrupted_run_ends_as_an_unbroken_one(demo_detector: Model, demo_set: Path, tmp_path: Path) -> None:
    from trt_qat import api

    class Interrupted(Recording):
        def step(self, description: str, done: int, total: int) -> None:
            if "epoch 2/" in description:
                raise KeyboardInterrupt

    int8 = api.quantize(demo_detector, demo_set, calibrator="max", images=2)
    api.finetune(int8, demo_set, tmp_path / "whole", epochs=2)
    with pytest.raises(KeyboardInterrupt):
        api.finetune(int8, demo_set, tmp_path / "broken", epochs=2, progress=Interrupted())
    api.finetune(int8, demo_set, tmp_path / "broken", epochs=2, resume=True)
    for name in ("last.safetensors", "best.safetensors", "quantization_error.csv"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes(), name
