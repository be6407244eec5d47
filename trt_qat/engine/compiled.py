"""What a compiler made of a network: kernels, what each reads and writes, what is fused, the memory that moves.

One report for every source: the words of a build (``compiler_log.py``) and IEngineInspector's JSON (``inspect.py``).
Types are called as NVIDIA calls them: Float, Half, BFloat16, Int8, FP8 ...

Bytes are counted from shapes: each tensor that a kernel lists among its inputs and outputs once, without regard to
strides. A kernel that reads a slice of a wider buffer reads the slice, not the buffer; a cache's share is not known.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Final, Literal, get_args

from trt_qat.linter.view import UNKNOWN_MODULE

BITS: Final[Mapping[str, int]] = {
    "Float": 32,
    "Half": 16,
    "BFloat16": 16,
    "FP8": 8,
    "Int8": 8,
    "UInt8": 8,
    "Bool": 8,
    "Int32": 32,
    "Int64": 64,
}
"""Bits of an element; only types that a compiler was seen to name."""

Role = Literal["convolution", "matmul", "pool", "pointwise", "cast", "copy", "reformat"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)
Fused = Literal["bias", "activation", "add", "requantization"]
FUSED: Final[tuple[Fused, ...]] = get_args(Fused)

_ACTIVATIONS: Final = frozenset(
    {"Sigmoid", "Relu", "LeakyRelu", "PRelu", "HardSwish", "HardSigmoid", "Clip", "Tanh", "Elu", "Gelu", "Mish"}
    | {"Softplus", "Swish", "Selu", "Silu", "Sigm"}  # the last two are Myelin's abbreviations
)
MOVES: Final = frozenset({"Move", "Slic", "Conc", "Resh", "Tran", "Resi", "Tile", "Pad", "Copy"})
"""Steps that move values and change none, in Myelin's abbreviations."""
FLOATS: Final = frozenset({"Float", "Half", "BFloat16"})
"""Types that are no grid."""
_NARROW: Final = frozenset({"Int8", "FP8"})


@dataclass(frozen=True)
class CompiledTensor:
    """A tensor that a kernel reads or writes.

    Args:
        format: how it lies in memory, in the compiler's words; empty if it says nothing.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    format: str = ""

    @property
    def bytes(self) -> int:
        """Size without padding."""
        return -(-prod(self.shape) * BITS[self.dtype] // 8)

    @property
    def is_int8(self) -> bool:
        """The tensor is stored in 8-bit integers."""
        return self.dtype == "Int8"


@dataclass(frozen=True)
class Kernel:
    """One launch on the GPU.

    Args:
        kind: the compiler's layer type, e.g. "correlation"; empty if the engine holds names only.
        onnx_nodes: the nodes that it computes, or parts of them: a convolution's scale may be in another kernel.
        constants: weights, scales and the like, which lie in the engine.
        macs: multiply-accumulates of its convolutions and matrix products, without padded channels where the ONNX
            file is known; 0 for every other kernel.
        onnx_ops: the operators of ``onnx_nodes``.
        module: the PyTorch module that it came from, e.g. ``model.2.m.0.cv1.conv``; "?" if nothing says so.
    """

    name: str
    kind: str
    onnx_nodes: tuple[str, ...]
    inputs: tuple[CompiledTensor, ...]
    outputs: tuple[CompiledTensor, ...]
    constants: tuple[CompiledTensor, ...]
    macs: int
    onnx_ops: tuple[str, ...] = ()
    module: str = UNKNOWN_MODULE

    @property
    def ops(self) -> tuple[str, ...]:
        """The steps that a generated kernel's name lists: ``__myl_MulCastAddSilu_myl0_6`` -> Mul, Cast, Add, Silu."""
        found = re.match(r"__myl_([A-Za-z]+)_myl\d", self.name)
        return tuple(re.findall(r"[A-Z][a-z0-9]*", found[1])) if found else ()

    @property
    def activation_bytes(self) -> int:
        """Bytes of its inputs and outputs."""
        return sum(tensor.bytes for tensor in (*self.inputs, *self.outputs))

    @property
    def weight_bytes(self) -> int:
        """Bytes of its constants."""
        return sum(tensor.bytes for tensor in self.constants)

    @property
    def is_convolution(self) -> bool:
        """It convolves; whether alone or with what follows, ``fused`` tells. A 1x1 may be done as a matrix product."""
        if self.is_product:
            return "Conv" in self.onnx_ops
        return self.kind in ("correlation", "deconv") or "Corr" in self.ops or "conv" in self.kind.lower()

    @property
    def is_transposed(self) -> bool:
        """It is a transposed convolution."""
        return "deconv" in self.kind.lower()

    @property
    def is_product(self) -> bool:
        """It is done as one matrix product, whatever the network calls it."""
        return self.kind == "gemm" or "Fc" in self.ops

    @property
    def input_type(self) -> str:
        """The type it reads (of a convolution: of its data); empty if it reads constants only."""
        return self.inputs[0].dtype if self.inputs else ""

    @property
    def output_type(self) -> str:
        """The type it writes."""
        return self.outputs[0].dtype if self.outputs else ""

    @property
    def is_int8(self) -> bool:
        """It reads INT8 data; a convolution then computes in INT8."""
        return any(tensor.is_int8 for tensor in self.inputs)

    @property
    def role(self) -> Role:
        """What it is there for.

        A copy moves values and changes neither type nor order in memory (slices, concats, nearest-neighbour resizing);
        a reformat changes the order, a cast the type as well.
        """
        if self.is_convolution:
            return "convolution"
        if self.macs:
            return "matmul"
        if "pool" in self.kind.lower():
            return "pool"
        if self.kind in ("Reformat", "NoOp", "Shuffle"):
            return "reformat" if self.input_type == self.output_type else "cast"
        if self.ops and set(self.ops) <= MOVES | {"Cast"}:
            if "Cast" in self.ops:
                return "cast"
            reordered = "Tran" in self.ops or self._formats(self.inputs) != self._formats(self.outputs)
            return "reformat" if reordered else "copy"
        return "pointwise"

    @property
    def fused(self) -> tuple[Fused, ...]:
        """What a convolution does besides: of :data:`FUSED`, in that order; empty for every other kernel."""
        if not self.is_convolution:
            return ()
        found: dict[Fused, bool] = {
            "bias": self._has_bias,
            "activation": bool(_ACTIVATIONS & {*self.ops, *self.onnx_ops}),
            "add": self._adds,
            "requantization": self.output_type in _NARROW,
        }
        return tuple(what for what in FUSED if found[what])

    @property
    def weight(self) -> CompiledTensor | None:
        """The weight of a convolution, out x in/groups x height x width (of a transposed one in x out/groups x ...).

        Usually a constant; where the weights are computed first (SM 75 converts INT8 to Half), the second input.
        """
        if not self.is_convolution:
            return None
        if self.is_product:
            larger = [one for one in self.constants if prod(one.shape) > self.outputs[0].shape[1]]
            return max(larger, key=lambda entry: prod(entry.shape), default=None)
        if self.constants and len(self.constants[0].shape) == 1 < prod(self.constants[0].shape):
            return self.constants[0]  # IEngineInspector of TensorRT lists its size only
        data, result = (self.inputs[0], self.outputs[0]) if self.inputs and self.outputs else (None, None)
        if data is None or result is None or len(data.shape) < 3 or len(result.shape) != len(data.shape):
            return None
        channels = (data if self.is_transposed else result).shape[1]
        for operands in (self.constants, self.inputs[1:]):
            fitting = [one for one in operands if len(one.shape) == len(data.shape) and one.shape[0] == channels]
            if fitting:
                return max(fitting, key=lambda entry: prod(entry.shape))
        return None

    @property
    def _has_bias(self) -> bool:
        others = len(self.constants) - any(tensor is self.weight for tensor in self.constants)
        # a convolution on its own lists two scaling factors even where they are 1 and 0
        return others > (2 if self.kind in ("correlation", "deconv") else 0)

    @property
    def _adds(self) -> bool:
        if not self.ops:
            return "Add" in self.onnx_ops
        return self.ops.count("Add") > (self.is_product and self._has_bias)  # a product adds its bias in a step

    @staticmethod
    def _formats(tensors: Iterable[CompiledTensor]) -> set[str]:
        return {tensor.format for tensor in tensors if len(tensor.shape) > 1}


@dataclass(frozen=True)
class CompiledEngine:
    """All kernels of an engine, in the order of launch.

    Args:
        source: the file.
        flavor: "tensorrt" or "tensorrt-rtx".
        version: of the compiler.
        sm: compute capability that it was compiled for, e.g. 89; None if the source does not say.
        plan_bytes: size of the engine file, its own code included; 0 if there is none.
        inputs: of the whole engine.
        outputs: of the whole engine.
    """

    source: str
    flavor: str
    version: str
    sm: int | None
    kernels: tuple[Kernel, ...]
    plan_bytes: int = 0
    inputs: tuple[CompiledTensor, ...] = ()
    outputs: tuple[CompiledTensor, ...] = ()

    @property
    def kernel_count(self) -> int:
        """Launches per inference."""
        return len(self.kernels)

    @property
    def activation_bytes(self) -> int:
        """Activations read and written per inference, once per kernel."""
        return sum(kernel.activation_bytes for kernel in self.kernels)

    @property
    def weight_bytes(self) -> int:
        """Constants read per inference, once per kernel."""
        return sum(kernel.weight_bytes for kernel in self.kernels)

    @property
    def macs(self) -> int:
        """Multiply-accumulates per inference."""
        return sum(kernel.macs for kernel in self.kernels)

    @property
    def convolutions(self) -> dict[tuple[str, str], tuple[Kernel, ...]]:
        """The convolutions by input and output type, the most frequent pair first."""
        found = [kernel for kernel in self.kernels if kernel.is_convolution]
        pairs = Counter((kernel.input_type, kernel.output_type) for kernel in found)
        return {
            pair: tuple(kernel for kernel in found if (kernel.input_type, kernel.output_type) == pair)
            for pair, _ in pairs.most_common()
        }

    @property
    def detailed(self) -> bool:
        """Whether the source tells more than names; without, there are no bytes and no types to count."""
        return all(kernel.kind for kernel in self.kernels)

    def count(self, role: Role) -> int:
        """How many kernels have a role."""
        return sum(kernel.role == role for kernel in self.kernels)

    def touches_io(self, kernel: Kernel) -> bool:
        """Whether a kernel reads an input or writes an output of the engine."""
        names = {tensor.name for tensor in (*self.inputs, *self.outputs)}
        return any(tensor.name in names for tensor in (*kernel.inputs, *kernel.outputs))

    def as_dict(self) -> dict[str, Any]:
        """The object of ``--json``; "layers" holds a row per kernel, and what names alone do not tell is null."""
        known = self.detailed
        return {
            "source": self.source,
            "flavor": self.flavor,
            "version": self.version,
            "sm": self.sm,
            "plan_bytes": self.plan_bytes,
            "kernels": self.kernel_count,
            "roles": {role: self.count(role) for role in ROLES} if known else None,
            "activation_bytes": self.activation_bytes if known else None,
            "weight_bytes": self.weight_bytes if known else None,
            "macs": self.macs if known else None,
            "convolutions": [_convolution_row(pair, kernels) for pair, kernels in self.convolutions.items()],
            "layers": [_layer_row(kernel) for kernel in self.kernels],
        }


def _convolution_row(pair: tuple[str, str], kernels: tuple[Kernel, ...]) -> dict[str, Any]:
    fused = Counter(what for kernel in kernels for what in kernel.fused)
    return {"input": pair[0], "output": pair[1], "count": len(kernels), "fused": {what: fused[what] for what in FUSED}}


def _layer_row(kernel: Kernel) -> dict[str, Any]:
    return {
        "name": kernel.name,
        "kind": kernel.kind,
        "role": kernel.role,
        "fused": list(kernel.fused),
        "module": kernel.module,
        "onnx": list(kernel.onnx_nodes),
        "inputs": [_tensor_row(tensor) for tensor in kernel.inputs],
        "outputs": [_tensor_row(tensor) for tensor in kernel.outputs],
        "activation_bytes": kernel.activation_bytes,
        "weight_bytes": kernel.weight_bytes,
        "macs": kernel.macs,
    }


def _tensor_row(tensor: CompiledTensor) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}
