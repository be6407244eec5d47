"""The estimate's arithmetic by numbers worked out by hand, and the table of GPUs."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from trt_qat.engine.compiled import CompiledEngine, CompiledTensor, Kernel
from trt_qat.engine.compiler_log import engine_from_log
from trt_qat.engine.roofline import GPUS, LAUNCH_US, LEFT_OUT, Gpu, estimate
from trt_qat.errors import ConfigError, EngineError

# 100 GB/s: 1 MB takes 10 us; 10 TFLOPS in FP16: 5 MMAC take 1 us; INT8 twice, FP32 half as fast
CARD = Gpu("card", "Card", 89, 100, 5, 10, 20, True, "made up")


def tensor(megabytes: float, dtype: str = "Half", name: str = "t") -> CompiledTensor:
    size = {"Half": 2, "Int8": 1, "Float": 4}[dtype]
    return CompiledTensor(name, dtype, (1, round(megabytes * 1e6 / size)))


def kernel(inputs: tuple[CompiledTensor, ...], output: CompiledTensor, macs: int = 0, weights: float = 0) -> Kernel:
    constants = (tensor(weights, "Int8", "w"),) if weights else ()
    return Kernel("k", "correlation" if macs else "kgen", (), inputs, (output,), constants, macs)


def engine(*kernels: Kernel) -> CompiledEngine:
    image, boxes = tensor(0.5, name="images"), tensor(0.25, name="output0")
    return CompiledEngine("x.onnx", "tensorrt-rtx", "1.7.1", 89, kernels, 0, (image,), (boxes,))


def test_a_kernel_takes_the_longer_of_bytes_and_arithmetic_and_its_launch() -> None:
    moving = kernel((tensor(2),), tensor(1))  # 3 MB: 30 us
    computing = kernel((tensor(0.1),), tensor(0.1), macs=500_000_000)  # 0.2 MB: 2 us; 1e9 operations: 100 us
    tiny = kernel((tensor(0.001),), tensor(0.001))  # 0.002 MB: 0.02 us
    found = estimate(engine(moving, computing, tiny), CARD, launch_us=5)
    assert [entry.ms for entry in found.kernels] == pytest.approx([0.035, 0.105, 0.00502])
    assert [entry.limit for entry in found.kernels] == ["memory", "arithmetic", "launch"]
    assert found.total_ms == pytest.approx(0.14502)
    assert found.limited_by("arithmetic") == pytest.approx(0.105)
    assert not found.lower_bound


@pytest.mark.parametrize(("dtype", "expected_us"), [("Int8", 50), ("Half", 100), ("Float", 200)])
def test_the_type_that_is_read_decides_the_rate(dtype: str, expected_us: float) -> None:
    found = estimate(engine(kernel((tensor(0.1, dtype),), tensor(0.1), macs=500_000_000)), CARD, launch_us=0)
    assert found.total_ms * 1e3 == pytest.approx(expected_us)


def test_weights_are_read_too() -> None:
    found = estimate(engine(kernel((tensor(1),), tensor(1), macs=1, weights=3)), CARD, launch_us=0)
    assert found.total_ms == pytest.approx(0.05)


def test_of_a_card_that_runs_tensorrt_only_a_bound_is_known() -> None:
    card = replace(CARD, runs_rtx=False)
    kernels = (kernel((tensor(8),), tensor(9), macs=500_000_000, weights=2), kernel((tensor(7),), tensor(7)))
    found = estimate(engine(*kernels), card, launch_us=5)
    assert found.lower_bound
    assert found.kernels == ()
    assert found.total_ms == pytest.approx(0.1)  # the arithmetic; weights, input and output once are 2.75 MB: 27.5 us
    light = kernel((tensor(8),), tensor(9), macs=50_000_000, weights=2)
    assert estimate(engine(light), card).total_ms == pytest.approx(0.0275)
    assert found.as_dict()["what"] == "lower bound"
    assert "launch_us" not in found.as_dict()


def test_the_bound_takes_a_file_with_int8_for_int8_throughout() -> None:
    """Another compiler may find INT8 kernels where this one did not."""
    left_float = kernel((tensor(1, "Half"),), tensor(1), macs=500_000_000)
    int8 = kernel((tensor(1, "Int8"),), tensor(1), macs=500_000_000)
    found = estimate(engine(left_float, int8), replace(CARD, runs_rtx=False))
    assert found.total_ms == pytest.approx(0.1)  # 2e9 operations at 20 TOPS; 0.15 with the rates of this engine


def test_json_says_that_it_is_an_estimate_and_what_it_leaves_out() -> None:
    said = estimate(engine(kernel((tensor(2),), tensor(1))), CARD).as_dict()
    assert said["what"] == "estimate"
    assert said["launch_us"] == LAUNCH_US
    assert said["left_out"] == LEFT_OUT
    assert sum(said["limited_ms"].values()) == pytest.approx(said["ms"])


def test_what_cannot_be_estimated_is_said() -> None:
    with pytest.raises(ConfigError, match=r"Unknown GPU 'rtx9090'. Known: rtx3060, .*h100"):
        estimate(engine(), "rtx9090")
    with pytest.raises(ConfigError, match="0 or more"):
        estimate(engine(), CARD, launch_us=-1)
    with pytest.raises(EngineError, match="names of its layers only"):
        estimate(engine(Kernel("k", "", (), (), (), (), 0)), CARD)
    odd = Kernel("k", "correlation", (), (CompiledTensor("t", "Bool", (1,)),), (tensor(1),), (), 5)
    with pytest.raises(EngineError, match="No rate is known for arithmetic in Bool"):
        estimate(engine(odd), CARD)


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_rates_of_a_card_are_dense_and_in_proportion(gpu: Gpu) -> None:
    """Tensor cores of every generation here do INT8 twice as fast as FP16, and FP16 at least twice as fast as FP32."""
    assert gpu.int8_tops == pytest.approx(2 * gpu.fp16_tflops, rel=0.02)
    assert gpu.fp16_tflops >= 1.95 * gpu.fp32_tflops
    assert len(gpu.source) > 20
    assert gpu.runs_rtx == ("RTX" in gpu.label)


@pytest.mark.parametrize(
    ("name", "cores", "ghz", "per_clock"),
    [
        ("rtx3060", 112, 1.777, 512),
        ("rtxa2000", 104, 1.2, 512),
        ("rtx4060", 96, 2.46, 512),
        ("rtx4090", 512, 2.52, 512),
        ("rtx5090", 680, 2.407, 512),
        ("orin-nano", 32, 1.02, 1024),
        ("orin-nx", 32, 1.173, 1024),
        ("agx-orin", 64, 1.3, 1024),
        ("l4", 240, 2.04, 512),  # its datasheet is below what its boost clock would give
        ("a100", 432, 1.41, 1024),
    ],
)
def test_int8_is_what_tensor_cores_and_clock_give(name: str, cores: int, ghz: float, per_clock: int) -> None:
    assert GPUS[name].int8_tops == pytest.approx(cores * ghz * per_clock / 1e3, rel=0.04)


def test_the_documented_table_is_the_table() -> None:
    document = (Path(__file__).resolve().parents[2] / "docs" / "compiler.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in document.splitlines() if re.match(r"\| `[a-z0-9-]+` \|", line)]
    assert rows == [
        [
            f"`{gpu.name}`",
            gpu.label,
            str(gpu.sm),
            *(f"{value:g}" for value in (gpu.bandwidth_gb_s, gpu.fp32_tflops, gpu.fp16_tflops, gpu.int8_tops)),
            "estimate" if gpu.runs_rtx else "lower bound",
            gpu.source,
        ]
        for gpu in GPUS.values()
    ]


def test_the_documented_estimates_are_those_of_the_recorded_logs(recorded: Callable[[str], str]) -> None:
    document = (Path(__file__).resolve().parents[2] / "docs" / "compiler.md").read_text(encoding="utf-8")
    engines = [
        engine_from_log(recorded(f"yolov8n_320_{name}"), version="1.7.1", sm=89)
        for name in ("fp32", "fp16", "int8_fp16")
    ]
    for gpu in (gpu for gpu in GPUS.values() if gpu.runs_rtx):
        estimates = " | ".join(f"{estimate(engine, gpu).total_ms:.2f}" for engine in engines)
        assert f"\n| {gpu.label} | {estimates} |\n" in document
