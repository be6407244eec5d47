"""What a rule says: a place in the file, the row of the rule table that named it, and how bad that is for a client."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from trt_qat.linter.graph import QdqGraph
from trt_qat.linter.view import Node

Severity = Literal["broken", "slow", "warning", "info"]
"""How bad a finding is for the client that the file is for.

``broken``: the client refuses the file, or what it computes is of no use. ``slow``: the client is right, but
loses INT8 speed in a way that is never wanted. Both are errors. ``warning``: worth a look. ``info``: a deviation that
good files have on purpose.
"""
SEVERITIES: Final[tuple[Severity, ...]] = get_args(Severity)
ERRORS: Final[tuple[Severity, ...]] = ("broken", "slow")


@dataclass(frozen=True)
class Finding:
    """One place in the file where a rule does not hold."""

    rule: str
    severity: Severity
    node: str
    module: str
    message: str
    advice: str


@dataclass(frozen=True)
class Place:
    """What a check yields: where, what is there, what to do. ``deliberate``: good files have it on purpose."""

    node: Node
    message: str
    advice: str
    deliberate: bool = False


@dataclass(frozen=True)
class Rule:
    """A named check.

    Args:
        severity: how bad it is, for every target that ``elsewhere`` does not name; None: no such rule there. A target
            without rows of its own is thus checked as TensorRT is, whose rules are the strictest.
        elsewhere: the same for single targets.
    """

    name: str
    summary: str
    check: Callable[[QdqGraph], Iterator[Place]]
    severity: Severity | None
    elsewhere: Mapping[str, Severity | None] = field(default_factory=dict)

    def severity_for(self, target: str) -> Severity | None:
        """How bad it is for a target; None if the rule does not hold there."""
        return self.elsewhere.get(target, self.severity)

    def findings(self, graph: QdqGraph, target: str) -> Iterator[Finding]:
        """The places where the rule does not hold, for a target."""
        severity = self.severity_for(target)
        if severity is None:
            return
        for place in self.check(graph):
            shown: Severity = "info" if place.deliberate else severity
            module = graph.module_of(place.node)
            yield Finding(self.name, shown, place.node.name, module, place.message, place.advice)
