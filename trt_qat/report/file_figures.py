"""What lint and compiler say of an exported file, for the record."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from trt_qat.engine.compile import compile_onnx
from trt_qat.engine.compiled import CompiledEngine
from trt_qat.errors import TrtQatError
from trt_qat.linter.report import lint
from trt_qat.report.record import CompilerRecord, KernelRecord, LintFinding, LintRecord

SM = 89
"""RTX 40: of the cards that TensorRT-RTX compiles for, the one with the most published rates."""


def lint_record(file: Path, target: str) -> LintRecord:
    """What the lint says of a file for the client that it was exported for."""
    report = lint(file, target)
    return LintRecord(
        target=target,
        errors=report.errors,
        warnings=report.warnings,
        counts=asdict(report.counts),
        findings=tuple(LintFinding(**asdict(finding)) for finding in report.findings),
    )


def compiler_record(file: Path) -> tuple[CompilerRecord | None, str]:
    """What TensorRT-RTX makes of a file, or one line that says why it was not compiled."""
    try:
        return _compiled(compile_onnx(file, SM)), ""
    except TrtQatError as exc:  # no figure of the run depends on it
        return None, str(exc)


def _compiled(engine: CompiledEngine) -> CompilerRecord:
    return CompilerRecord(
        flavor=engine.flavor,
        version=engine.version,
        sm=engine.sm,
        plan_bytes=engine.plan_bytes,
        activation_bytes=engine.activation_bytes,
        weight_bytes=engine.weight_bytes,
        kernels=tuple(
            KernelRecord(
                name=kernel.name,
                role=kernel.role,
                module=kernel.module,
                input_type=kernel.input_type,
                output_type=kernel.output_type,
                fused=kernel.fused,
                activation_bytes=kernel.activation_bytes,
                weight_bytes=kernel.weight_bytes,
                macs=kernel.macs,
            )
            for kernel in engine.kernels
        ),
    )
