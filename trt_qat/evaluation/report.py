"""The result table, as Markdown and as JSON rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trt_qat.results import ResultRow

HEADER = (
    "model",
    "precision",
    "runtime",
    "mAP50-95",
    "mAP50",
    "images",
    "MB",
    "ms median",
    "p90",
    "p99",
)


def cells(row: ResultRow) -> tuple[str, ...]:
    """One row as text, in the order of :data:`HEADER`."""
    latency = row.latency_ms
    return (
        row.model,
        row.precision,
        row.runtime,
        f"{row.map50_95:.4f}",
        f"{row.map50:.4f}",
        str(row.images),
        f"{row.size_bytes / 1e6:.2f}",
        f"{latency.median:.1f}",
        f"{latency.p90:.1f}",
        f"{latency.p99:.1f}",
    )


def markdown_table(rows: Sequence[ResultRow]) -> str:
    """A GitHub-flavoured Markdown table, one line per model."""
    lines = [HEADER, tuple("---" for _ in HEADER), *(cells(row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def markdown_report(rows: Sequence[ResultRow], provenance: Mapping[str, Any]) -> str:
    """The page that a run leaves: the table, how it was measured, and from what."""
    sha256 = provenance["weights_sha256"][:16] or "none: random weights"
    versions = ", ".join(f"{name} {version}" for name, version in provenance["versions"].items())
    return (
        "# FP32, PTQ and QAT, measured on the exported files\n\n"
        + markdown_table(rows)
        + "\nmAP as fractions on the val split, letterboxed input. Latency: one forward pass, interleaved.\n"
        + f"\nWeights `{provenance['weights']}` (sha256 {sha256}), "
        + f"data `{provenance['data']}`; {versions}.\n"
        + "\nThe TensorRT plan was built, not run: running it needs an NVIDIA GPU.\n"
    )
