"""What a rule says: a finding, and the row of the rule table it belongs to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from trt_qat.linter.graph import QdqGraph

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)


@dataclass(frozen=True)
class Finding:
    """One place in the file where a rule does not hold.

    ``error``: TensorRT refuses it, or INT8 speed or accuracy is lost in a way that is never wanted.
    ``warning``: worth a look. ``info``: a deviation that good files have on purpose.
    """

    rule: str
    severity: Severity
    node: str
    module: str
    message: str
    advice: str


@dataclass(frozen=True)
class Rule:
    """A named check. ``check`` reads the graph and yields findings that carry ``name``."""

    name: str
    summary: str
    check: Callable[[QdqGraph], Iterator[Finding]]
