"""FP16 or INT8 on this GPU? Each form of a network compiled, estimated and measured for accuracy, and one recommended.

Milliseconds are estimates (:mod:`trt_qat.engine.roofline`) of what TensorRT-RTX's compiler made of each file; nothing
is run on a GPU. mAP is measured on the very file that was compiled.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnx
import onnx_graphsurgeon as gs

from trt_qat.checkpoint import Model, with_weight_scales
from trt_qat.config import ExportSection, Precision
from trt_qat.engine.compile import compile_onnx
from trt_qat.engine.compiled import CompiledEngine, Kernel
from trt_qat.engine.onnx_nodes import node_by_name
from trt_qat.engine.roofline import LEFT_OUT, Estimate, Gpu, estimate, gpu_named
from trt_qat.errors import ConfigError
from trt_qat.exporter.float_groups import leave_float_
from trt_qat.exporter.onnx_export import export_onnx
from trt_qat.exporter.tensorrt_rtx import to_tensorrt_rtx_
from trt_qat.mixed_precision.budget_search import Measured, fewest_float_groups
from trt_qat.mixed_precision.compiler_search import cheapest_mix
from trt_qat.progress import SILENT, Progress
from trt_qat.quantization.insert import QuantizedModel
from trt_qat.targets.export import export

FP16: Final = "FP16"
CHANNEL: Final = "INT8 per channel"
FACTORS: Final = "INT8, factors behind the convolution"
TENSOR: Final = "INT8 per tensor"
MIXED: Final = "mixed"
_REASON = "left float: INT8 is estimated slower there"

Accuracy = Callable[[Path], float]
"""mAP50-95 of a file, as a fraction."""
Rank = Callable[[Model], Sequence[str]]
"""Scale groups of a calibrated model, the one that costs most accuracy first."""


@dataclass(frozen=True)
class Form:
    """One way to deploy the network: its file, what the compiler makes of it, how long that takes at least.

    Args:
        name: one of :data:`FP16`, :data:`CHANNEL`, :data:`FACTORS`, :data:`TENSOR` and :data:`MIXED`.
        map50_95: of the file, a fraction; None where it was not measured.
        float_groups: scale groups left float.
        int8_groups: those in INT8.
    """

    name: str
    file: Path
    engine: CompiledEngine
    estimate: Estimate
    map50_95: float | None
    float_groups: tuple[str, ...] = ()
    int8_groups: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The JSON object; "estimated_ms" is an estimate, no latency."""
        return {
            "form": self.name,
            "file": str(self.file),
            "kernels": self.engine.kernel_count,
            "activation_bytes": self.engine.activation_bytes,
            "weight_bytes": self.engine.weight_bytes,
            "plan_bytes": self.engine.plan_bytes,
            "estimated_ms": self.estimate.total_ms,
            "map50_95": self.map50_95,
            "int8_groups": len(self.int8_groups),
            "float_groups": list(self.float_groups),
        }


@dataclass(frozen=True)
class Advice:
    """All forms, and the recommended one.

    Args:
        max_drop: what INT8 may cost, mAP points; None for any price.
        tried: mixes that the compiler judged.
    """

    gpu: Gpu
    batch: int
    max_drop: float | None
    forms: tuple[Form, ...]
    tried: int

    @property
    def fp16(self) -> Form:
        """The form that INT8 has to beat."""
        return self.forms[0]

    @property
    def recommended(self) -> Form:
        """The one with the lowest estimate among those that keep the accuracy; FP16 where nothing is below it."""
        return min((form for form in self.forms if self.keeps_accuracy(form)), key=lambda form: form.estimate.total_ms)

    def keeps_accuracy(self, form: Form) -> bool:
        """Whether a form is within ``max_drop`` of FP16."""
        if form.map50_95 is None or self.fp16.map50_95 is None or self.max_drop is None:
            return True
        return 100 * (self.fp16.map50_95 - form.map50_95) <= self.max_drop

    @property
    def sentence(self) -> str:
        """The recommendation in words."""
        best, where = self.recommended, f"{self.gpu.label} at batch {self.batch}"
        if best is self.fp16:
            return f"Use FP16: no INT8 form is estimated to be faster on {where}{self._within()}."
        times = self.fp16.estimate.total_ms / best.estimate.total_ms
        return (
            f"Use {best.name}: estimated {best.estimate.total_ms:.3f} ms on {where}, FP16 "
            f"{self.fp16.estimate.total_ms:.3f} ms ({times:.2f}x). Measure it there before you rely on it."
        )

    def _within(self) -> str:
        return "" if self.max_drop is None else f" within {self.max_drop:g} mAP points"

    def as_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {
            "gpu": self.gpu.name,
            "sm": self.gpu.sm,
            "batch": self.batch,
            "max_drop_points": self.max_drop,
            "what": "estimates, nothing was run on a GPU",
            "left_out": LEFT_OUT,
            "launch_us": self.fp16.estimate.launch_us,
            "mixes_tried": self.tried,
            "forms": [form.as_dict() for form in self.forms],
            "recommended": self.recommended.name,
            "sentence": self.sentence,
        }


@dataclass(frozen=True)
class Adviser:
    """Makes the forms of one calibrated model for one GPU and batch.

    Args:
        model: calibrated, with scales per channel.
        out: folder for the files.
        accuracy: measures a file; None where no data is at hand.
        rank: asked only if the cheapest mix costs more than ``max_drop``.
    """

    model: Model
    gpu: Gpu
    batch: int
    out: Path
    accuracy: Accuracy | None
    rank: Rank
    progress: Progress = SILENT

    def advise(self, max_drop: float | None, limit: int) -> Advice:
        """Make, compile and measure every form.

        Args:
            max_drop: mAP points.
            limit: mixes to compile at most.
        """
        fp16 = self.form(FP16, "fp16", self.model, "fp16")
        channel = self.form(CHANNEL, "int8_channel", self.model, "int8+fp16", target="tensorrt")
        factors = self.form(FACTORS, "int8_factors", self.model, "int8+fp16")
        tensor = self.form(TENSOR, "int8_tensor", with_weight_scales(self.model, "tensor"), "int8+fp16")
        floats, tried = self.cheapest(fp16, factors, limit)
        forms = [fp16, channel, factors, tensor]
        if 0 < len(floats) < len(self.groups):
            forms.append(self.mixed(floats, fp16, max_drop))
        return Advice(self.gpu, self.batch, max_drop, tuple(forms), tried)

    @property
    def quantized(self) -> QuantizedModel:
        """The model's quantizers."""
        return self.model.require_quantized()

    @property
    def groups(self) -> tuple[str, ...]:
        """Every scale group."""
        return tuple(group.name for group in self.quantized.placement.groups)

    def form(self, name: str, stem: str, model: Model, precision: Precision, target: str = "tensorrt-rtx") -> Form:
        """Export, compile, estimate and measure."""
        section = ExportSection(target=target, precision=precision, batch=self.batch, check=False)
        self.progress.note(f"{name}: exporting and compiling")
        file = export(model, self.out / f"{stem}.onnx", section).path
        engine = compile_onnx(file, self.gpu.sm)
        found = None if self.accuracy is None else self.accuracy(file)
        int8: tuple[str, ...] = ()
        if precision != "fp16":
            int8 = tuple(group.name for group in model.require_quantized().placement.groups)
        floats = tuple(group for group in self.groups if group not in int8)
        return Form(name, file, engine, estimate(engine, self.gpu), found, floats, int8)

    def cheapest(self, fp16: Form, int8: Form, limit: int) -> tuple[frozenset[str], int]:
        """The groups that the compiler would leave float, and how many mixes it judged."""
        convs = {group.name: group.convs for group in self.quantized.placement.groups}
        gains = group_gains(convs, fp16.estimate, int8.estimate)
        known = {frozenset(self.groups): fp16.estimate.total_ms, frozenset[str](): int8.estimate.total_ms}
        with tempfile.TemporaryDirectory() as folder:
            plain = Path(folder) / "plain.onnx"
            section = ExportSection(precision="int8+fp16", batch=self.batch)
            model = onnx.load(export_onnx(self.model, plain, section).path)
            mixes = 0

            def cost(groups: frozenset[str]) -> float:
                nonlocal mixes
                mixes += 1
                self.progress.step("compiling mixes", mixes, limit)
                if groups in known:
                    return known[groups]
                mixed = gs.import_onnx(model)
                leave_float_(mixed, [conv for group in groups for conv in convs[group]])
                to_tensorrt_rtx_(mixed)
                onnx.save(gs.export_onnx(mixed), str(plain))
                return estimate(compile_onnx(plain, self.gpu.sm), self.gpu).total_ms

            mix = cheapest_mix(gains, cost, limit)
        return mix.float_groups, mix.tried

    def mixed(self, floats: frozenset[str], fp16: Form, max_drop: float | None) -> Form:
        """The cheapest mix; where it costs more accuracy than allowed, with the fewest further groups left float."""

        def made(more: Sequence[str]) -> Form:
            left = self.quantized.leave_float([*floats, *more], _REASON)
            return self.form(MIXED, "mixed", self.model.with_quantized(left, self.model.stage, {}), "int8+fp16")

        first = made(())
        if max_drop is None or fp16.map50_95 is None or first.map50_95 is None:
            return first
        if 100 * (fp16.map50_95 - first.map50_95) <= max_drop:
            return first
        ranked = [group for group in self.rank(self.model) if group not in floats][:-1]  # one group stays INT8
        search = fewest_float_groups(
            ranked,
            _measured(fp16),
            _measured(first),
            max_drop,
            lambda more: _measured(made(more)),
            "fine-tuned" if self.model.stage == "qat" else "calibrated",
        )
        return made(search.chosen.groups)


def group_gains(convs: Mapping[str, Sequence[str]], fp16: Estimate, int8: Estimate) -> dict[str, float]:
    """By scale group, the milliseconds that its convolutions take less in INT8, with the kernels that they cause."""
    before, after = _by_convolution(fp16), _by_convolution(int8)
    return {
        group: sum(before.get(conv, 0.0) - after.get(conv, 0.0) for conv in members) for group, members in convs.items()
    }


def _by_convolution(found: Estimate) -> dict[str, float]:
    """Milliseconds by PyTorch module; a kernel that works for several is divided among them."""
    shares: dict[str, float] = {}
    for entry in found.kernels:
        modules = _modules(entry.kernel)
        for module in modules:
            shares[module] = shares.get(module, 0.0) + entry.ms / len(modules)
    return shares


def _modules(kernel: Kernel) -> set[str]:
    """Modules whose convolution, factor or bias a kernel computes; quantizers belong to whom they are computed with."""
    nodes = [node_by_name(name) for name in kernel.onnx_nodes]
    return {node.module for node in nodes if node.op not in ("QuantizeLinear", "DequantizeLinear")}


def _measured(form: Form) -> Measured:
    return Measured(form.map50_95 or 0.0, form.estimate.total_ms, form.estimate.total_ms)


def gpu_for_advice(name: str) -> Gpu:
    """A GPU whose compiler can be asked.

    Raises:
        ConfigError: unknown, or one that runs TensorRT proper.
    """
    gpu = gpu_named(name)
    if not gpu.runs_rtx:
        raise ConfigError(
            f"{gpu.label} runs TensorRT, whose compiler needs the GPU itself: nothing can be advised from here. "
            "Build and measure there (scripts/gpu_check.sh)."
        )
    return gpu
