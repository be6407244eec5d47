"""The result table, as text and as Markdown; its header says whether mAP or agreement was measured."""

from __future__ import annotations

from collections.abc import Sequence

from trt_qat.results import Measure, ResultRow


def header(measure: Measure) -> tuple[str, ...]:
    """The names of the columns."""
    figures = f"{measure}50-95", f"{measure}50"
    return ("model", "precision", "runtime", *figures, "images", "MB", "ms median", "p90", "p99")


def cells(row: ResultRow) -> tuple[str, ...]:
    """One row as text, in the order of :func:`header`."""
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
    """A GitHub-flavoured Markdown table, one line per model; at least one, all of one dataset."""
    names = header(rows[0].measure)
    lines = [names, tuple("---" for _ in names), *(cells(row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
