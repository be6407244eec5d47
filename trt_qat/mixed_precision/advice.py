"""FP16 or INT8 on this GPU? Each form of a network compiled, estimated and measured for accuracy, and one recommended.

Milliseconds are estimates (:mod:`trt_qat.engine.roofline`) of what TensorRT-RTX's compiler made of each file; nothing
is run on a GPU. mAP (or agreement) is measured on the very file that was compiled.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnx
import onnx_graphsurgeon as gs
import torch

from trt_qat.checkpoint import Model, with_weight_scales
from trt_qat.config import ExportSection, Precision, QuantizationSection
from trt_qat.engine.compile import compile_onnx
from trt_qat.engine.compiled import CompiledEngine
from trt_qat.engine.onnx_nodes import node_by_name
from trt_qat.engine.roofline import LEFT_OUT, Estimate, Gpu, estimate, gpu_named
from trt_qat.errors import ConfigError
from trt_qat.exporter.float_groups import leave_float_
from trt_qat.exporter.onnx_export import export_onnx
from trt_qat.exporter.tensorrt_rtx import to_tensorrt_rtx_
from trt_qat.mixed_precision.budget_search import Measured, fewest_float_groups, meets_budget
from trt_qat.mixed_precision.compiler_search import Mix, cheapest_mix
from trt_qat.progress import SILENT, Progress
from trt_qat.quantization.insert import quantize_model
from trt_qat.results import Measure, file_content
from trt_qat.targets.export import export

FP16: Final = "FP16"
CHANNEL: Final = "INT8 per channel"
FACTORED: Final = "INT8 per channel, factored"
TENSOR: Final = "INT8 per tensor"
MIXED: Final = "mixed"
_PREFERRED = (CHANNEL, TENSOR, MIXED, FACTORED)  # the last keeps the scales per channel and all of INT8
_TELLABLE = 1.01
_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
_ANY = 8.0
NEEDS_CHANNELS: Final = "Advice starts from scales per channel. Calibrate with quantization.weights=channel."
NEEDS_SYMMETRIC: Final = (
    "Advice is about TensorRT-RTX, which takes no zero points. Calibrate with quantization.scheme=symmetric."
)
_REASON = "left float: INT8 is estimated slower there"

Accuracy = Callable[[Path], float]
"""mAP50-95 (or agreement) of a file, as a fraction."""
Rank = Callable[[Model], Sequence[str]]
"""Scale groups of a calibrated model, the one that costs most accuracy first."""


@dataclass(frozen=True)
class Form:
    """One way to deploy the network: its file, what the compiler makes of it, how long that takes at least.

    Args:
        name: one of :data:`FP16`, :data:`CHANNEL`, :data:`FACTORED`, :data:`TENSOR` and :data:`MIXED`.
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

    @property
    def ms(self) -> float:
        """The estimate, no latency."""
        return self.estimate.total_ms

    def as_dict(self) -> dict[str, Any]:
        """The JSON object; "estimated_ms" is an estimate, no latency."""
        return {
            "form": self.name,
            "file": str(self.file),
            "kernels": self.engine.kernel_count,
            "activation_bytes": self.engine.activation_bytes,
            "weight_bytes": self.engine.weight_bytes,
            "plan_bytes": self.engine.plan_bytes,
            "estimated_ms": self.ms,
            "map50_95": self.map50_95,
            "int8_groups": len(self.int8_groups),
            "float_groups": list(self.float_groups),
        }


@dataclass(frozen=True)
class Advice:
    """All forms, and the recommended one.

    Args:
        max_drop: what INT8 may cost, points of mAP50-95 (or agreement); None for any price.
        tried: mixes that the compiler judged.
        measure: what was measured of the files.
    """

    gpu: Gpu
    batch: int
    max_drop: float | None
    forms: tuple[Form, ...]
    tried: int
    measure: Measure = "mAP"

    @property
    def fp16(self) -> Form:
        """The form that INT8 has to beat."""
        return self.forms[0]

    @property
    def recommended(self) -> Form:
        """The form to use, never one that is estimated slower than FP16.

        Of those that keep the accuracy and are within 1 % of the lowest estimate, which tells no smaller difference:
        FP16 before the others, then the most accurate one, then the one whose numbers are nearest to float.
        """
        allowed = [form for form in self.forms if self.keeps_accuracy(form) and form.ms <= self.fp16.ms]
        lowest = min(form.ms for form in allowed)
        near = [form for form in allowed if form.ms <= _TELLABLE * lowest]
        if self.fp16 in near:
            return self.fp16
        return max(near, key=lambda form: (form.map50_95 or 0.0, _PREFERRED.index(form.name)))

    def keeps_accuracy(self, form: Form) -> bool:
        """Whether a form is within ``max_drop`` of FP16."""
        return self.max_drop is None or not _costs_more(form, self.fp16, self.max_drop)

    @property
    def sentence(self) -> str:
        """The recommendation in words."""
        best, where = self.recommended, f"{self.gpu.label} at batch {self.batch}"
        if best is self.fp16:
            within = "" if self.max_drop is None else f" within {self.max_drop:g} points of {self.measure}50-95"
            return f"Use FP16: no INT8 form{within} is estimated to be faster by more than 1 % on {where}."
        return (
            f"Use {best.name}: estimated {best.ms:.3f} ms on {where}, FP16 {self.fp16.ms:.3f} ms "
            f"({self.fp16.ms / best.ms:.2f}x). Measure it there before you rely on it."
        )

    def as_dict(self) -> dict[str, Any]:
        """The JSON object, see :func:`~trt_qat.results.file_content`."""
        content: dict[str, Any] = file_content(
            {
                "measure": self.measure,
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
        )
        return content


class Adviser:
    """Makes the forms of one calibrated model; what several GPUs or batches share is exported and compiled once.

    Args:
        model: calibrated, with scales per channel.
        out: folder for the files, which take any batch.
        accuracy: measures a file; None where no data is at hand.
        rank: asked only if the cheapest mix costs more than is allowed.
        measure: what ``accuracy`` measures.
    """

    def __init__(
        self,
        model: Model,
        out: Path,
        accuracy: Accuracy | None,
        rank: Rank,
        progress: Progress = SILENT,
        *,
        measure: Measure = "mAP",
    ) -> None:
        quantized = model.require_quantized()
        self._model = model
        self._out = out
        self._accuracy = accuracy
        self._rank = rank
        self._progress = progress
        self._measure: Measure = measure
        self._convs = {group.name: group.convs for group in quantized.placement.groups}
        self._files: dict[str, Path] = {}
        self._map50_95: dict[Path, float] = {}
        self._engines: dict[tuple[str | frozenset[str], int, int], CompiledEngine] = {}
        self._plain: onnx.ModelProto | None = None

    def advise(self, gpu: Gpu, batch: int, max_drop: float | None, limit: int) -> Advice:
        """Make, compile and measure every form for one GPU.

        Args:
            batch: images per inference.
            max_drop: points.
            limit: mixes to compile at most.
        """
        fp16 = self._form(FP16, "fp16", self._model, gpu, batch, precision="fp16")
        factored = self._form(FACTORED, "int8_factored", self._model, gpu, batch)
        channel = self._form(CHANNEL, "int8_channel", self._model, gpu, batch, target="tensorrt")
        per_tensor = self._model if "int8_tensor" in self._files else with_weight_scales(self._model, "tensor")
        tensor = self._form(TENSOR, "int8_tensor", per_tensor, gpu, batch)
        mix = self._cheapest(fp16, factored, gpu, batch, limit)
        forms = [fp16, channel, tensor, factored]
        too_costly = max_drop is not None and _costs_more(factored, fp16, max_drop)
        if len(mix.float_groups) < len(self._convs) and (mix.float_groups or too_costly):
            forms.append(self._mixed(mix.float_groups, fp16, gpu, batch, max_drop))
        return Advice(gpu, batch, max_drop, tuple(forms), mix.tried, self._measure)

    def _form(
        self,
        name: str,
        stem: str,
        model: Model,
        gpu: Gpu,
        batch: int,
        *,
        precision: Precision = "int8+fp16",
        target: str = "tensorrt-rtx",
    ) -> Form:
        """Export, compile, estimate and measure, each only if that was not done before."""
        if stem not in self._files:
            self._progress.note(f"{name}: exporting")
            section = ExportSection(target=target, precision=precision, dynamic_batch=True, check=False)
            self._files[stem] = export(model, self._out / f"{stem}.onnx", section).path
        file = self._files[stem]
        if self._accuracy is not None and file not in self._map50_95:
            self._map50_95[file] = self._accuracy(file)
        engine = self._compiled(stem, file, gpu, batch)
        groups = () if precision == "fp16" else tuple(g.name for g in model.require_quantized().placement.groups)
        floats = tuple(group for group in self._convs if group not in groups)
        return Form(name, file, engine, estimate(engine, gpu), self._map50_95.get(file), floats, groups)

    def _compiled(self, what: str | frozenset[str], file: Path, gpu: Gpu, batch: int) -> CompiledEngine:
        key = (what, gpu.sm, batch)
        if key not in self._engines:
            self._engines[key] = compile_onnx(file, gpu.sm, batch)
        return self._engines[key]

    def _cheapest(self, fp16: Form, int8: Form, gpu: Gpu, batch: int, limit: int) -> Mix:
        """The groups that the compiler would leave float."""
        gains = group_gains(self._convs, fp16.estimate, int8.estimate)
        known = {frozenset(self._convs): fp16.estimate.total_ms, frozenset[str](): int8.estimate.total_ms}
        judged: set[frozenset[str]] = set()
        with tempfile.TemporaryDirectory() as folder:

            def cost(groups: frozenset[str]) -> float:
                judged.add(groups)
                self._progress.step("compiling mixes", len(judged), limit)
                if groups in known:
                    return known[groups]
                if (groups, gpu.sm, batch) not in self._engines:
                    self._write_mix(groups, Path(folder) / "mix.onnx")
                return estimate(self._compiled(groups, Path(folder) / "mix.onnx", gpu, batch), gpu).total_ms

            return cheapest_mix(gains, cost, limit)

    def _write_mix(self, groups: frozenset[str], file: Path) -> None:
        """What exporting a mix would write, as far as a compiler can tell, in a fraction of the time."""
        if self._plain is None:
            section = ExportSection(precision="int8+fp16", dynamic_batch=True)
            self._plain = onnx.load(export_onnx(self._model, file, section).path)
        graph = gs.import_onnx(self._plain)
        leave_float_(graph, [conv for group in groups for conv in self._convs[group]])
        to_tensorrt_rtx_(graph)
        onnx.save(gs.export_onnx(graph), str(file))

    def _mixed(self, floats: frozenset[str], fp16: Form, gpu: Gpu, batch: int, max_drop: float | None) -> Form:
        """The cheapest mix; where it costs more accuracy than allowed, with the fewest further groups left float."""
        made: dict[tuple[str, ...], Form] = {}

        def mix(more: tuple[str, ...]) -> Form:
            if more not in made:
                left = self._model.require_quantized().leave_float([*floats, *more], _REASON)
                model = self._model.with_quantized(left, self._model.stage, self._model.provenance)
                stem = f"mixed_{gpu.name}_{batch}" + (f"_{len(more)}" if more else "")
                made[more] = self._form(MIXED, stem, model, gpu, batch)
            return made[more]

        first = mix(())
        if max_drop is None or not _costs_more(first, fp16, max_drop):
            return first
        ranked = [group for group in self._rank(self._model) if group not in floats][:-1]  # one group stays INT8
        found = fewest_float_groups(
            ranked, _measured(fp16), _measured(first), max_drop, lambda more: _measured(mix(more)), "calibrated"
        )
        return mix(found.chosen.groups)


def group_gains(convs: Mapping[str, Sequence[str]], fp16: Estimate, int8: Estimate) -> dict[str, float]:
    """By scale group, the milliseconds that its convolutions take less in INT8, with the kernels that they cause."""
    known = {conv for members in convs.values() for conv in members}
    before, after = _by_convolution(fp16, known), _by_convolution(int8, known)
    return {
        group: sum(before.get(conv, 0.0) - after.get(conv, 0.0) for conv in members) for group, members in convs.items()
    }


def _by_convolution(found: Estimate, convs: Collection[str]) -> dict[str, float]:
    """Milliseconds by convolution; a kernel that computes parts of several is divided among them.

    Copies and quantizers are counted to the convolution that is launched next, which in most cases reads them.
    """
    shares: dict[str, float] = {}
    waiting = 0.0
    for entry in found.kernels:
        nodes = [node_by_name(name) for name in entry.kernel.onnx_nodes]
        served = {node.module for node in nodes if node.op not in _QUANTIZERS} & set(convs)
        if served or entry.kernel.is_convolution:
            for conv in served:
                shares[conv] = shares.get(conv, 0.0) + (entry.ms + waiting) / len(served)
            waiting = 0.0
        else:
            waiting += entry.ms
    return shares


def _costs_more(form: Form, fp16: Form, max_drop: float) -> bool:
    if form.map50_95 is None or fp16.map50_95 is None:
        return False
    return not meets_budget(_measured(fp16), _measured(form), max_drop)


def _measured(form: Form) -> Measured:
    return Measured(form.map50_95 or 0.0, form.ms, form.ms)


def with_any_ranges(model: Model, section: QuantizationSection) -> Model:
    """A float model with quantizers that nobody calibrated: a compiler looks at types, not at numbers.

    Its files must not be deployed. It takes no image and no forward pass.
    """
    quantized = quantize_model(copy.deepcopy(model.network), model.names, section)
    quantized.load_amax_({f"activation.{group.name}": torch.tensor(_ANY) for group in quantized.placement.groups})
    return model.with_quantized(quantized, "ptq", model.provenance)


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
