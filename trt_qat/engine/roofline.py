"""How long an engine's kernels take at least, from published rates: a roofline, never a measurement.

A kernel takes as long as its bytes at full memory bandwidth or its arithmetic at the full dense rate, whichever is
longer (S. Williams, A. Waterman, D. Patterson: Roofline, CACM 52(4), 2009), plus the cost of its launch; the estimate
is the sum. What it leaves out (:data:`LEFT_OUT`) makes real kernels slower or, where a cache or a second stream
helps, faster: it ranks files, it does not replace a measurement.

Orin and data-centre cards run TensorRT, whose kernels are others than those that TensorRT-RTX makes. For them only a
lower bound is given, which no fusion can beat: all arithmetic at full rate, or weights, input and output read and
written once. It holds for direct convolutions on the GPU alone (no Winograd, no structured sparsity, no DLA) whose
weights come from memory at each inference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from trt_qat.engine.compiled import CompiledEngine, Kernel
from trt_qat.errors import ConfigError, EngineError

LAUNCH_US: Final = 2.0
"""Assumed cost of one launch, microseconds: an assumption, neither measured here nor taken from a document.

A round figure between the microsecond or so that separates kernels in a row and the several of a launch that the GPU
has to wait for.
"""

LEFT_OUT: Final = (
    "what the L2 cache spares, occupancy, clocks below or above the published boost, tiles that do not fill the GPU, "
    "arithmetic of pointwise kernels, streams that overlap, copies to and from the GPU, pre- and post-processing"
)

Limit = Literal["memory", "arithmetic", "launch"]
_ARITHMETIC: Final[Mapping[str, str]] = {
    "Int8": "int8_tops",
    "UInt8": "int8_tops",
    "FP8": "int8_tops",  # the same dense rate on every card of the table that has FP8
    "Half": "fp16_tflops",
    "BFloat16": "fp16_tflops",
    "Float": "fp32_tflops",
}


@dataclass(frozen=True)
class Gpu:
    """Published peak rates of one GPU, dense (without structured sparsity).

    Args:
        name: key in :data:`GPUS`, e.g. "rtx4090".
        label: the product's name.
        sm: compute capability without its dot.
        bandwidth_gb_s: memory bandwidth, 1e9 bytes per second.
        fp32_tflops: of FP32 convolutions: FP32 or TF32, whichever is faster, because TensorRT allows TF32.
        fp16_tflops: of the tensor cores with FP16 accumulation, the higher rate of GeForce cards: so an advantage of
            INT8 never comes from an FP16 that is assumed too slow.
        int8_tops: of the tensor cores; a multiply-accumulate is two operations.
        runs_rtx: whether TensorRT-RTX is what one runs there.
        source: where the numbers are published, or what they are derived from.
    """

    name: str
    label: str
    sm: int
    bandwidth_gb_s: float
    fp32_tflops: float
    fp16_tflops: float
    int8_tops: float
    runs_rtx: bool
    source: str

    def operations_per_second(self, dtype: str) -> float:
        """The dense rate for operands of a type, operations per second.

        Raises:
            EngineError: no rate is known for it.
        """
        if dtype not in _ARITHMETIC:
            raise EngineError(f"No rate is known for arithmetic in {dtype}. Known: {', '.join(_ARITHMETIC)}.")
        return float(getattr(self, _ARITHMETIC[dtype])) * 1e12


@dataclass(frozen=True)
class KernelEstimate:
    """One kernel: time for its bytes, its arithmetic and its launch, all in milliseconds."""

    kernel: Kernel
    memory_ms: float
    arithmetic_ms: float
    launch_ms: float

    @property
    def ms(self) -> float:
        """The longer of bytes and arithmetic, and the launch."""
        return max(self.memory_ms, self.arithmetic_ms) + self.launch_ms

    @property
    def limit(self) -> Limit:
        """What most of it is."""
        parts: dict[Limit, float] = {
            "memory": self.memory_ms,
            "arithmetic": self.arithmetic_ms,
            "launch": self.launch_ms,
        }
        return max(parts, key=lambda part: parts[part])


@dataclass(frozen=True)
class Estimate:
    """The estimate of an engine on a GPU, never a measured latency.

    Args:
        kernels: one per kernel of the engine; empty for a lower bound, which knows nothing of kernels.
        total_ms: their sum, or the bound.
        lower_bound: the card runs another compiler: it takes at least so long, and nothing more is known.
    """

    gpu: Gpu
    kernels: tuple[KernelEstimate, ...]
    total_ms: float
    launch_us: float
    lower_bound: bool

    def limited_by(self, limit: Limit) -> float:
        """Milliseconds of the kernels that this limits."""
        return sum(entry.ms for entry in self.kernels if entry.limit == limit)

    def as_dict(self) -> dict[str, Any]:
        """The object of ``--json``."""
        shares: dict[str, Any] = {}
        if not self.lower_bound:
            limits: tuple[Limit, ...] = ("memory", "arithmetic", "launch")
            shares = {
                "launch_us": self.launch_us,
                "limited_ms": {limit: self.limited_by(limit) for limit in limits},
            }
        what = "lower bound" if self.lower_bound else "estimate"
        return {"gpu": self.gpu.name, "what": what, "ms": self.total_ms, **shares, "left_out": LEFT_OUT}


def estimate(engine: CompiledEngine, gpu: Gpu | str, launch_us: float = LAUNCH_US) -> Estimate:
    """Add up what an engine's kernels take at least on a GPU, from published rates. It is no measurement.

    Args:
        gpu: a GPU or its key in :data:`GPUS`.
        launch_us: assumed cost of one launch, microseconds. A lower bound has none.

    Raises:
        ConfigError: no such GPU, or a negative cost.
        EngineError: the engine holds names only, or computes in a type without a known rate.
    """
    if isinstance(gpu, str):
        gpu = gpu_named(gpu)
    if not launch_us >= 0:
        raise ConfigError(f"The cost of a launch is {launch_us} microseconds: it must be 0 or more.")
    if not engine.detailed:
        raise EngineError(f"'{engine.source}' holds the names of its layers only: nothing can be estimated from them.")
    if not gpu.runs_rtx:
        return Estimate(gpu, (), _lower_bound_ms(engine, gpu), 0.0, lower_bound=True)
    kernels = tuple(_kernel_estimate(kernel, gpu, launch_us) for kernel in engine.kernels)
    return Estimate(gpu, kernels, sum(entry.ms for entry in kernels), launch_us, lower_bound=False)


def gpu_named(name: str) -> Gpu:
    """A row of :data:`GPUS`.

    Raises:
        ConfigError: no such GPU.
    """
    if name not in GPUS:
        raise ConfigError(f"Unknown GPU '{name}'. Known: {', '.join(GPUS)}.")
    return GPUS[name]


def _kernel_estimate(kernel: Kernel, gpu: Gpu, launch_us: float) -> KernelEstimate:
    moved = kernel.activation_bytes + kernel.weight_bytes
    return KernelEstimate(kernel, _memory_ms(moved, gpu), _arithmetic_ms(kernel, gpu), launch_us / 1e3)


def _memory_ms(count: int, gpu: Gpu) -> float:
    return count / (gpu.bandwidth_gb_s * 1e9) * 1e3


def _arithmetic_ms(kernel: Kernel, gpu: Gpu) -> float:
    return 2 * kernel.macs / gpu.operations_per_second(kernel.input_type) * 1e3 if kernel.macs else 0.0


def _lower_bound_ms(engine: CompiledEngine, gpu: Gpu) -> float:
    """What no fusion goes below. A file with INT8 counts as INT8 throughout: another may compute more of it so."""
    once = sum(tensor.bytes for tensor in (*engine.inputs, *engine.outputs))
    weights = {tensor.name: tensor.bytes for kernel in engine.kernels for tensor in kernel.constants if kernel.macs}
    if any(tensor.is_int8 for kernel in engine.kernels for tensor in (*kernel.inputs, *kernel.outputs)):
        arithmetic = 2 * engine.macs / gpu.operations_per_second("Int8") * 1e3
    else:
        arithmetic = sum(_arithmetic_ms(kernel, gpu) for kernel in engine.kernels)
    return max(_memory_ms(once + sum(weights.values()), gpu), arithmetic)


_GA102 = "NVIDIA Ampere GA102 whitepaper V2 (256 dense FP16 and 512 dense INT8 operations per tensor core and clock)"
_ADA = "NVIDIA Ada whitepaper V2 (256 dense FP16 and 512 dense INT8 operations per tensor core and clock)"
_SUPER = "Super mode, the fastest, because a lower bound must hold in every mode"

# fmt: off
_ROWS: Final = (
    Gpu("rtx3060", "GeForce RTX 3060 12 GB", 86, 360, 12.7, 51.0, 101.9, True,
        f"derived from 112 tensor cores at 1.777 GHz, {_GA102}; bandwidth from NVIDIA's product page"),
    Gpu("rtxa2000", "RTX A2000", 86, 288, 8.0, 31.9, 63.9, True,
        "RTX A2000 datasheet (8.0 TFLOPS; 63.9 tensor TFLOPS sparse, halved; 288 GB/s); INT8 derived from "
        f"104 tensor cores at 1.2 GHz, {_GA102}"),
    Gpu("rtx4060", "GeForce RTX 4060", 89, 272, 15.1, 60.5, 120.9, True,
        f"derived from 96 tensor cores at 2.46 GHz, {_ADA}; NVIDIA's product page (242 AI TOPS sparse, 272 GB/s)"),
    Gpu("rtx4090", "GeForce RTX 4090", 89, 1008, 82.6, 330.3, 660.6, True,
        f"{_ADA}, table of GeForce RTX 4090; equals 512 tensor cores at 2.52 GHz"),
    Gpu("rtx5090", "GeForce RTX 5090", 120, 1792, 104.8, 419.0, 838.0, True,
        "derived from 680 tensor cores at 2.407 GHz, 256 dense FP16 and 512 dense INT8 operations per clock as in Ada; "
        "NVIDIA RTX Blackwell whitepaper (21760 CUDA cores, 1792 GB/s)"),
    Gpu("orin-nano", "Jetson Orin Nano 8 GB", 87, 102, 8.4, 16.7, 33.5, False,
        f"Jetson Orin Nano Super datasheet (67 INT8 TOPS sparse, halved; 102 GB/s); FP16 and TF32 derived as a half "
        f"and a quarter of INT8; {_SUPER}"),
    Gpu("orin-nx", "Jetson Orin NX 16 GB", 87, 102.4, 9.6, 19.2, 38.4, False,
        "derived from 32 tensor cores at 1.173 GHz (no document at hand confirms this clock), 1024 dense INT8 "
        f"operations per clock as in AGX Orin, without the DLAs; Jetson Orin NX datasheet (102.4 GB/s); {_SUPER}"),
    Gpu("agx-orin", "Jetson AGX Orin 64 GB", 87, 204.8, 21.2, 42.5, 85.0, False,
        "Jetson AGX Orin technical brief (GPU without DLAs: 170 INT8 TOPS sparse, halved; 204.8 GB/s); FP16 and TF32 "
        "derived as a half and a quarter of INT8"),
    Gpu("l4", "L4", 89, 300, 60.0, 121.0, 242.5, False,
        "L4 datasheet (TF32 120, FP16 242, INT8 485, all sparse, halved; 300 GB/s)"),
    Gpu("a100", "A100 SXM 80 GB", 80, 2039, 156.0, 312.0, 624.0, False,
        "A100 80 GB datasheet (TF32 156, FP16 312, INT8 624 dense; 2039 GB/s)"),
    Gpu("h100", "H100 SXM", 90, 3350, 494.7, 989.4, 1978.9, False,
        "NVIDIA H100 whitepaper, table of H100 SXM5 (TF32 494.7, FP16 989.4, INT8 1978.9 dense); 3.35 TB/s"),
)
# fmt: on
GPUS: Final[Mapping[str, Gpu]] = {gpu.name: gpu for gpu in _ROWS}
"""Cards by the name that ``--gpu`` takes."""
