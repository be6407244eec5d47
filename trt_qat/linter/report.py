"""``lint``: run every rule over a file and count what matters."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trt_qat.linter.finding import SEVERITIES, Finding
from trt_qat.linter.graph import QdqGraph
from trt_qat.linter.placement import avoidable_round_trips
from trt_qat.linter.rules import RULES
from trt_qat.linter.view import DEQUANTIZE
from trt_qat.registry import TARGETS

_SHOWN_PER_RULE = 5


@dataclass(frozen=True)
class LintCounts:
    """Sizes of the file. ``scales`` counts different activation scales, ``scale_groups`` the sets joined by copies."""

    convs: int
    int8_convs: int
    qdq_pairs: int
    scales: int
    scale_groups: int
    avoidable_round_trips: int


@dataclass(frozen=True)
class LintReport:
    """All findings of one file, in the order of the rule table."""

    path: Path
    findings: tuple[Finding, ...]
    counts: LintCounts

    @property
    def errors(self) -> int:
        """Number of error findings; the command exits 1 if there is any."""
        return sum(finding.severity == "error" for finding in self.findings)

    @property
    def warnings(self) -> int:
        """Number of warning findings."""
        return sum(finding.severity == "warning" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """The object of ``--json``: path, errors, warnings, counts, by_rule, findings."""
        return {
            "path": str(self.path),
            "errors": self.errors,
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
        return (
            f"{self.path}: {self.errors} errors, {self.warnings} warnings. "
            f"{counts.int8_convs} of {counts.convs} convolutions in INT8, {counts.qdq_pairs} Q/DQ pairs, "
            f"{counts.scales} activation scales in {counts.scale_groups} groups, "
            f"{counts.avoidable_round_trips} avoidable float round trips."
        )


def lint(path: str | Path, target: str = "tensorrt") -> LintReport:
    """Check any Q/DQ ONNX file against :data:`~trt_qat.linter.rules.RULES`.

    Args:
        target: whose rules: a name of ``trt-qat targets``.

    Raises:
        ArtifactError: the file is missing, truncated, or no ONNX graph.
    """
    path = Path(path)
    TARGETS.check(target)
    graph = QdqGraph.read(path)
    findings = tuple(finding for rule in RULES for finding in rule.check(graph))
    return LintReport(path, findings, count(graph))


def count(graph: QdqGraph) -> LintCounts:
    """Count convolutions, pairs, scales and round trips of a graph."""
    quantizations = [graph.quantization(node) for node in graph.quantizers]
    scales = {quantization.scale.tobytes() for quantization in quantizations if quantization.scale is not None}
    return LintCounts(
        convs=len(graph.convs),
        int8_convs=sum(graph.is_int8(conv) for conv in graph.convs),
        qdq_pairs=sum(node.op == DEQUANTIZE for node in graph.nodes),
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
