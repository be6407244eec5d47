"""``lint``: run every rule over a file and count what matters."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trt_qat.linter.finding import ERRORS, SEVERITIES, Finding, Severity
from trt_qat.linter.graph import QdqGraph
from trt_qat.linter.placement import avoidable_round_trips
from trt_qat.linter.rules import RULES
from trt_qat.registry import TARGETS

_SHOWN_PER_RULE = 5


@dataclass(frozen=True)
class LintCounts:
    """Sizes of the file.

    Args:
        convs: convolutions with a weight in the file.
        int8_convs: those that read INT8 data and an INT8 weight, by Q/DQ or by themselves.
        qoperator_convs: those of them that hold their quantization themselves (QLinearConv, ConvInteger).
        qdq_pairs: quantized activations: a Q whose result a DQ undoes, counted once however many DQs read it.
        quantized_weights: weights and other constants in INT8, behind a DQ or in a convolution of the kind above.
        scales: different activation scales.
        scale_groups: sets of activation quantizers that are joined by copies.
        avoidable_round_trips: how often INT8 data goes through float for nothing.
    """

    convs: int
    int8_convs: int
    qoperator_convs: int
    qdq_pairs: int
    quantized_weights: int
    scales: int
    scale_groups: int
    avoidable_round_trips: int


@dataclass(frozen=True)
class LintReport:
    """All findings of one file for one target, in the order of the rule table."""

    path: Path
    target: str
    findings: tuple[Finding, ...]
    counts: LintCounts

    @property
    def broken(self) -> int:
        """Number of findings for which the client refuses the file or computes something useless."""
        return self._number("broken")

    @property
    def slow(self) -> int:
        """Number of findings that cost INT8 speed in a way that is never wanted."""
        return self._number("slow")

    @property
    def errors(self) -> int:
        """Broken and slow together; the command exits 1 if there is any."""
        return self._number(*ERRORS)

    @property
    def warnings(self) -> int:
        """Number of warning findings."""
        return self._number("warning")

    def _number(self, *severities: Severity) -> int:
        return sum(finding.severity in severities for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """The object of ``--json``; ``errors`` is ``broken`` and ``slow`` together."""
        return {
            "path": str(self.path),
            "target": self.target,
            "errors": self.errors,
            "broken": self.broken,
            "slow": self.slow,
            "warnings": self.warnings,
            "counts": asdict(self.counts),
            "by_rule": dict(Counter(finding.rule for finding in self.findings)),
            "findings": [asdict(finding) for finding in self.findings],
        }

    def as_text(self, limit: int = _SHOWN_PER_RULE) -> str:
        """Findings grouped by severity and rule, at most ``limit`` of each rule, and a last line with the counts."""
        lines: list[str] = []
        for severity in SEVERITIES:
            for rule in RULES:
                group = [entry for entry in self.findings if (entry.rule, entry.severity) == (rule.name, severity)]
                if group:
                    lines += [f"{severity}: {rule.name} ({len(group)}): {rule.summary}", *_listed(group, limit), ""]
        return "\n".join([*lines, self._summary()])

    def _summary(self) -> str:
        counts = self.counts
        built_in = f" ({counts.qoperator_convs} with built-in quantization)" if counts.qoperator_convs else ""
        return (
            f"{self.path} for {self.target}: {self.broken} broken, {self.slow} slow, {self.warnings} warnings. "
            f"{counts.int8_convs} of {counts.convs} convolutions in INT8{built_in}, "
            f"{counts.qdq_pairs} Q/DQ pairs on activations, {counts.scales} scales in {counts.scale_groups} groups, "
            f"{counts.quantized_weights} quantized weights, "
            f"{counts.avoidable_round_trips} avoidable float round trips."
        )


def lint(path: str | Path, target: str = "tensorrt") -> LintReport:
    """Check any ONNX file against :data:`~trt_qat.linter.rules.RULES`, as the client that it is for sees it.

    Args:
        target: whose rules: a name of ``trt-qat targets``. A target that has no rules of its own is checked as
            ``tensorrt`` is.

    Raises:
        ArtifactError: the file is missing, truncated, or no ONNX graph.
        ConfigError: no such target.

    Examples:
        >>> report = lint("best_int8.onnx")
        >>> report.errors, report.counts.int8_convs
        (0, 57)
    """
    path = Path(path)
    TARGETS.check(target)
    graph = QdqGraph.read(path)
    findings = tuple(finding for rule in RULES for finding in rule.findings(graph, target))
    return LintReport(path, target, findings, count(graph))


def count(graph: QdqGraph) -> LintCounts:
    """Count convolutions, quantized tensors, scales and round trips of a graph."""
    quantizations = [graph.quantization(node) for node in graph.quantizers]
    scales = {quantization.scale.tobytes() for quantization in quantizations if quantization.scale is not None}
    built_in = len(graph.qoperator_convs)
    return LintCounts(
        convs=len(graph.convs) + built_in,
        int8_convs=sum(graph.is_int8(conv) for conv in graph.convs) + built_in,
        qoperator_convs=built_in,
        qdq_pairs=len(graph.pairs),
        quantized_weights=len(graph.quantized_weights),
        scales=len(scales),
        scale_groups=len(graph.scale_groups),
        avoidable_round_trips=avoidable_round_trips(graph),
    )


def _listed(group: list[Finding], limit: int) -> list[str]:
    lines: list[str] = []
    for finding in group[:limit]:
        lines += [f"  {finding.module}  [{finding.node}]", f"    {finding.message}", f"    -> {finding.advice}"]
    if len(group) > limit:
        lines.append(f"  ... and {len(group) - limit} more (--json lists all)")
    return lines
