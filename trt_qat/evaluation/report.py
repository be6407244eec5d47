"""The result table, as text and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

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
