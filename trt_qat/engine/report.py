"""``inspect``: compiled engines side by side, what they are estimated to take, and what the lint said of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trt_qat.engine.compile import compile_onnx
from trt_qat.engine.compiled import FUSED, CompiledEngine
from trt_qat.engine.engine_file import SUFFIXES
from trt_qat.engine.inspect import inspect_engine
from trt_qat.engine.lint_check import LintCheck, check_lint
from trt_qat.engine.roofline import GPUS, LAUNCH_US, LEFT_OUT, Estimate, Gpu, estimate, gpu_named
from trt_qat.progress import SILENT, Progress

HEADER = ("file", "kernels", "convolutions", "fused", "pointwise", "copies", "reformats", "casts")
SIZES_HEADER = ("file", "activations, MB", "weights, MB", "plan, MB", "GMAC")
LAYERS_HEADER = ("kernel", "role", "fused", "module", "ONNX nodes", "in", "out", "shape", "kB", "weights kB", "MMAC")
_BOUND_ON = "orin-nx"  # shown by default beside the cards that the engine was compiled for


@dataclass(frozen=True)
class Inspected:
    """One file.

    Args:
        estimates: one per GPU that was asked for; none of an engine that holds names only.
        lint: what the lint said about the ONNX file and the engine shows; None for a plan.
    """

    engine: CompiledEngine
    estimates: tuple[Estimate, ...]
    lint: LintCheck | None

    @property
    def label(self) -> str:
        """The file's name."""
        return Path(self.engine.source).name

    def as_dict(self) -> dict[str, Any]:
        """The object of ``--json``."""
        return {
            **self.engine.as_dict(),
            "estimates": [entry.as_dict() for entry in self.estimates],
            "lint": None if self.lint is None else self.lint.as_dict(),
        }


def inspect_files(
    files: Sequence[Path],
    sm: int,
    batch: int = 1,
    gpus: Sequence[str] = (),
    launch_us: float = LAUNCH_US,
    progress: Progress = SILENT,
) -> tuple[Inspected, ...]:
    """Compile ONNX files, or look into plans on a GPU, and estimate what they take.

    Args:
        files: ``*.onnx``, compiled by TensorRT-RTX here; ``*.plan`` or ``*.engine``, which need a GPU.
        sm: compute capability to compile for; a plan has its own.
        batch: images per inference.
        gpus: keys of :data:`~trt_qat.engine.roofline.GPUS`; by default the cards of ``sm`` that run TensorRT-RTX, and
            one Orin as a lower bound.
        launch_us: assumed cost of a launch.

    Raises:
        ConfigError: an unknown GPU, compute capability or batch.
        ArtifactError: a file is missing or not what its name says.
        MissingDependency: the TensorRT package is not installed.
        EngineError: TensorRT refuses a file, or what it says cannot be read.
    """
    chosen = tuple(gpu_named(name) for name in gpus) if gpus else _default_gpus(sm)
    return tuple(_inspect(file, sm, batch, chosen, launch_us) for file in progress.over(list(files), "compiling"))


def _default_gpus(sm: int) -> tuple[Gpu, ...]:
    return (*(gpu for gpu in GPUS.values() if gpu.sm == sm and gpu.runs_rtx), GPUS[_BOUND_ON])


def _inspect(file: Path, sm: int, batch: int, gpus: tuple[Gpu, ...], launch_us: float) -> Inspected:
    if file.suffix in SUFFIXES:
        engine, lint = inspect_engine(file, batch=batch), None
    else:
        engine = compile_onnx(file, sm, batch)
        lint = check_lint(file, engine)
    estimates = tuple(estimate(engine, gpu, launch_us) for gpu in gpus) if engine.detailed else ()
    return Inspected(engine, estimates, lint)


def kernel_cells(inspected: Inspected) -> tuple[str, ...]:
    """A row under :data:`HEADER`."""
    engine = inspected.engine
    if not engine.detailed:
        return (inspected.label, str(engine.kernel_count), "names only", *[""] * (len(HEADER) - 3))
    pairs = engine.convolutions
    fused = {what: sum(what in kernel.fused for kernels in pairs.values() for kernel in kernels) for what in FUSED}
    return (
        inspected.label,
        str(engine.kernel_count),
        ", ".join(f"{len(kernels)} {source}->{result}" for (source, result), kernels in pairs.items()),
        ", ".join(f"{what} {number}" for what, number in fused.items() if number) or "nothing",
        str(engine.count("pointwise")),
        str(engine.count("copy")),
        str(engine.count("reformat")),
        str(engine.count("cast")),
    )


def size_cells(inspected: Inspected) -> tuple[str, ...]:
    """A row under :data:`SIZES_HEADER`."""
    engine = inspected.engine
    plan = f"{engine.plan_bytes / 1e6:.2f}"
    if not engine.detailed:
        return (inspected.label, "?", "?", plan, "?")
    megabytes = (engine.activation_bytes / 1e6, engine.weight_bytes / 1e6)
    return (inspected.label, *(f"{value:.1f}" for value in megabytes), plan, f"{engine.macs / 1e9:.3f}")


def estimate_table(inspected: Sequence[Inspected]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows: a GPU each, a file per column."""
    header = ("estimate, not measured", "from", *(f"{entry.label}, ms" for entry in inspected if entry.estimates))
    columns = [entry.estimates for entry in inspected if entry.estimates]
    rows = []
    for shown in zip(*columns, strict=True):
        bound = shown[0].lower_bound
        cells = [f"at least {one.total_ms:.3f}" if bound else f"{one.total_ms:.3f}" for one in shown]
        rows.append((shown[0].gpu.label, "TensorRT: lower bound" if bound else "TensorRT-RTX kernels", *cells))
    return header, rows


def layer_cells(engine: CompiledEngine) -> Iterable[tuple[str, ...]]:
    """Rows under :data:`LAYERS_HEADER`, one per kernel."""
    for kernel in engine.kernels:
        yield (
            kernel.name,
            kernel.role,
            "+".join(kernel.fused),
            kernel.module,
            " ".join(kernel.onnx_nodes),
            "+".join(tensor.dtype for tensor in kernel.inputs),
            "+".join(tensor.dtype for tensor in kernel.outputs),
            "x".join(str(size) for size in kernel.outputs[0].shape) if kernel.outputs else "",
            f"{kernel.activation_bytes / 1e3:.1f}",
            f"{kernel.weight_bytes / 1e3:.1f}",
            f"{kernel.macs / 1e6:.2f}",
        )


def notes(inspected: Sequence[Inspected], sm: int) -> list[str]:
    """What has to be said beside the tables."""
    lines = []
    for entry in inspected:
        if entry.lint is not None:
            lines += [f"{entry.label}: {line}" for line in entry.lint.lines()]
    shown = [one for entry in inspected for one in entry.estimates]
    launch = next((one.launch_us for one in shown if not one.lower_bound), None)
    if launch is not None:
        lines.append(
            "Estimate: per kernel the longer of bytes / bandwidth and operations / rate (published peaks), plus "
            f"{launch:g} us per launch (assumed). Left out: {LEFT_OUT}."
        )
    other = sorted({one.gpu.label for one in shown if not one.lower_bound and one.gpu.sm != sm})
    if other:
        lines.append(
            f"{', '.join(other)}: estimated from the kernels for SM {sm}; give its own --sm for its own kernels."
        )
    if any(one.lower_bound for one in shown):
        lines.append(
            "Lower bound: Orin and data-centre cards run TensorRT, whose kernels are others than these; no fusion goes "
            "below weights, input and output moved once, or all arithmetic of direct convolutions on the GPU at full "
            "rate. Nothing more can be said here."
        )
    return lines
