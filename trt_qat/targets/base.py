"""What a target is: the client that an exported file is for, and what that client needs of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from trt_qat.checkpoint import Model
from trt_qat.config import ExportFormat, ExportSection, Precision
from trt_qat.registry import TARGETS

# Writes a model to a path; the section's precision and opset are settled.
Writer = Callable[[Model, Path, ExportSection], None]


@dataclass(frozen=True)
class Target:
    """A client of exported files.

    Args:
        name: as in :data:`trt_qat.registry.TARGETS`.
        summary: one line for ``trt-qat targets``.
        precision: of the INT8 file, where none is asked for.
        opset: where none is asked for.
        writers: how each format that it takes is written; the first is the default.
    """

    name: str
    summary: str
    precision: Precision
    writers: Mapping[ExportFormat, Writer]
    opset: int = 19


def target_from_name(name: str) -> Target:
    """The target of a name.

    Raises:
        ConfigError: there is none.
    """
    target: Target = TARGETS.load(name)
    return target
