"""What only a GPU shows of memory: copies there and back, and what happens where it runs out."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray
from recording import Recording

from trt_qat.engine.gpu import gpu_names
from trt_qat.errors import ConfigError, NotEnoughMemory, RunnerError
from trt_qat.runtime.cuda_driver import CudaDriver, CudaPythonDriver, PycudaDriver
from trt_qat.runtime.cuda_graph import open_graphs

if TYPE_CHECKING:
    from trt_qat.checkpoint import Model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not gpu_names(), reason="no NVIDIA GPU on this machine")]


@pytest.fixture(params=["pycuda", "cuda-python"])
def cuda(request: pytest.FixtureRequest) -> Iterator[CudaDriver]:
    """Either driver, on the first GPU, which is current."""
    if request.param == "pycuda":
        driver = pytest.importorskip("pycuda.driver", reason="pycuda is not installed")
        opened: CudaDriver = PycudaDriver(driver)
    else:
        if find_spec("cuda") is None:
            pytest.skip("cuda-python is not installed")
        from cuda.bindings import runtime

        opened = CudaPythonDriver(runtime)
    with opened.current():
        yield opened
    opened.close()


@dataclass
class Buffers:
    """Page-locked and device memory of the same size, and a stream."""

    stream: int
    source: NDArray[np.uint8]
    target: NDArray[np.uint8]
    device: int


@contextmanager
def _buffers(cuda: CudaDriver, nbytes: int) -> Iterator[Buffers]:
    made = Buffers(cuda.new_stream(), cuda.host_bytes(nbytes), cuda.host_bytes(nbytes), cuda.alloc(nbytes))
    yield made
    cuda.free(made.device)
    cuda.free_host(made.source)
    cuda.free_host(made.target)
    cuda.drop_stream(made.stream)


def test_bytes_come_back_as_they_went(cuda: CudaDriver) -> None:
    with _buffers(cuda, 4000) as memory:
        source, target = (part[:420].view(np.float32).reshape(3, 5, 7) for part in (memory.source, memory.target))
        source[:] = np.random.default_rng(0).random(source.shape, dtype=np.float32)
        expected = source.copy()
        cuda.copy_to_device(memory.device, source, memory.stream)
        cuda.synchronize(memory.stream)
        source[:] = 0
        cuda.copy_to_host(target, memory.device, memory.stream)
        cuda.synchronize(memory.stream)
        np.testing.assert_array_equal(target, expected)


def test_a_graph_copies_what_is_there_when_it_is_launched(cuda: CudaDriver) -> None:
    graphs = open_graphs()
    assert graphs is not None
    with _buffers(cuda, 64) as memory:

        def there_and_back() -> None:
            cuda.copy_to_device(memory.device, memory.source, memory.stream)
            cuda.copy_to_host(memory.target, memory.device, memory.stream)

        memory.target[:] = 0
        memory.source[:] = 1
        graph = graphs.record(memory.stream, there_and_back)
        cuda.synchronize(memory.stream)
        assert not memory.target.any()  # recording runs nothing
        for value in (1, 2, 3):
            memory.source[:] = value
            graphs.launch(graph, memory.stream)
            cuda.synchronize(memory.stream)
            assert set(memory.target.tolist()) == {value}
        graphs.drop(graph)
        with pytest.raises(RunnerError, match=r"^CUDA failed: ") as refused:  # no waiting while it records
            graphs.record(memory.stream, lambda: cuda.synchronize(memory.stream))
        assert "\n" not in str(refused.value)
        there_and_back()
        cuda.synchronize(memory.stream)
        assert set(memory.target.tolist()) == {3}  # the stream works on


def test_other_threads_use_the_gpu_at_the_same_time(cuda: CudaDriver) -> None:
    def copied(value: int) -> set[int]:
        with cuda.current(), _buffers(cuda, 1 << 20) as memory:
            for _ in range(20):
                memory.source[:] = value
                cuda.copy_to_device(memory.device, memory.source, memory.stream)
                cuda.copy_to_host(memory.target, memory.device, memory.stream)
                cuda.synchronize(memory.stream)
            return set(memory.target.tolist())

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(copied, range(8))) == [{value} for value in range(8)]


def test_more_than_there_is_gets_one_line(cuda: CudaDriver) -> None:
    with pytest.raises(NotEnoughMemory) as refused:
        cuda.alloc(1 << 50)
    assert "\n" not in str(refused.value)
    cuda.free(cuda.alloc(1024))  # it goes on working


def test_time_between_two_events(cuda: CudaDriver) -> None:
    start, end = cuda.new_event(), cuda.new_event()
    with _buffers(cuda, 64 << 20) as memory:

        def copies(count: int) -> float:
            cuda.record(start, memory.stream)
            for _ in range(count):
                cuda.copy_to_device(memory.device, memory.source, memory.stream)
            cuda.record(end, memory.stream)
            return cuda.elapsed_ms(start, end)

        copies(1)
        once, often = min(copies(1) for _ in range(5)), min(copies(8) for _ in range(5))
    assert 0.2 < once < 1000  # 64 MiB; no bus takes 300 GB/s
    assert 4 < often / once < 16
    cuda.drop_event(start)
    cuda.drop_event(end)


def test_the_last_gpu_can_be_named_and_the_next_is_not_there() -> None:
    import torch

    from trt_qat.model.device import torch_device

    count = torch.cuda.device_count()
    assert torch_device("auto") == torch_device("cuda") == torch.device("cuda", 0)
    assert torch_device(f"cuda:{count - 1}") == torch.device("cuda", count - 1)
    with pytest.raises(ConfigError, match=rf"there is no cuda:{count}, only cpu, cuda:0 \("):
        torch_device(f"cuda:{count}")


def test_calibration_finds_the_ranges_that_the_cpu_finds(demo_detector: Model, demo_set: Path) -> None:
    from trt_qat import api

    here, there = (
        api.quantize(demo_detector, demo_set, calibrator="max", images=4, device=device).require_quantized().amax()
        for device in ("cpu", "cuda")
    )
    assert here.keys() == there.keys()
    for name, amax in here.items():
        assert there[name].device == amax.device  # models lie on the CPU between the verbs
        np.testing.assert_allclose(there[name].numpy(), amax.numpy(), rtol=0.02, err_msg=name)  # TF32 keeps 10 bits


def test_export_is_the_same_file_from_either_device(demo_detector: Model, demo_set: Path, tmp_path: Path) -> None:
    from trt_qat import api

    int8 = api.quantize(demo_detector, demo_set, calibrator="max", images=2, device="cpu")
    files = [api.export(int8, tmp_path / f"{device}.onnx", device=device, check=False) for device in ("cpu", "cuda")]
    assert files[0].path.read_bytes() == files[1].path.read_bytes()


@pytest.mark.parametrize("amp", ["bfloat16", "float16"])
def test_qat_in_16_bit(amp: str, demo_detector: Model, demo_set: Path, tmp_path: Path) -> None:
    import torch

    from trt_qat import api
    from trt_qat.checkpoint import load

    if amp == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU does not compute in bfloat16")
    int8 = api.quantize(demo_detector, demo_set, calibrator="max", images=2)
    tuned = api.finetune(int8, demo_set, tmp_path / "qat", epochs=1, amp=amp, monitor=False, loss="both", lsq=True)
    rows = (tmp_path / "qat" / "results.csv").read_text().splitlines()
    figures = dict(zip(rows[0].split(","), map(float, rows[-1].split(",")), strict=True))
    assert all(np.isfinite(value) for name, value in figures.items() if name.startswith("train/"))
    last = load(tmp_path / "qat" / "last.safetensors")
    assert any(not torch.equal(a, b) for a, b in zip(last.network.parameters(), int8.network.parameters(), strict=True))
    ranges, before = last.require_quantized().amax(), int8.require_quantized().amax()
    for name, amax in ranges.items():
        np.testing.assert_allclose(amax.numpy(), before[name].numpy(), rtol=0.1, err_msg=name)
    assert tuned.stage in ("ptq", "qat")


def test_qat_halves_its_batch_where_gpu_memory_runs_out(demo_detector: Model, demo_set: Path, tmp_path: Path) -> None:
    import torch

    from trt_qat import api

    int8 = api.quantize(replace(demo_detector, imgsz=(640, 640)), demo_set, calibrator="max", images=2)
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
        def step(self, description: str, done: int, total: int, detail: str = "") -> None:
            if "epoch 2/" in description:
                raise KeyboardInterrupt

    int8 = api.quantize(demo_detector, demo_set, calibrator="max", images=2)
    api.finetune(int8, demo_set, tmp_path / "whole", epochs=2)
    with pytest.raises(KeyboardInterrupt):
        api.finetune(int8, demo_set, tmp_path / "broken", epochs=2, progress=Interrupted())
    api.finetune(int8, demo_set, tmp_path / "broken", epochs=2, resume=True)
    for name in ("last.safetensors", "best.safetensors", "quantization_error.csv"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes(), name
