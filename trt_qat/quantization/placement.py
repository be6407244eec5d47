"""Where quantizers go, decided on tensors: every tensor that an INT8 consumer reads gets ONE scale.

1. Every convolution that is not float by role or by name reads its input in INT8.
2. Tensors connected through copy-like operators (concat, split, max-pool, nearest upsample, reshape, ...) form a
   group; a group shares one quantizer, so that a concat is a pointer move and no tensor is quantized twice.
3. A residual add follows ``residual``: ``none`` reads floats; ``skip`` reads the INT8 form of an operand that an INT8
   consumer reads anyway; ``both`` puts both operands into one group and reads both in INT8.

No rule names a class of module. Source of the rules: NVIDIA's "Working with quantized types" (TensorRT documentation).
"""

from __future__ import annotations

import fnmatch
import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator
from torch import nn

from trt_qat.config import QuantizationSection, Residual, Scheme, WeightScales
from trt_qat.disjoint_sets import DisjointSets
from trt_qat.errors import QuantizationError
from trt_qat.model.graph import Operation, TensorGraph, convolutions
from trt_qat.model.roles import roles
from trt_qat.reading import FileModel, explain, shortened


@dataclass(frozen=True)
class AddOperand:
    """One operand of a residual add that is read in INT8.

    Args:
        module: dotted name of the module whose forward adds.
        call: which add of that forward, from 0.
        operand: 0 for the left, 1 for the right.
    """

    module: str
    call: int
    operand: int


@dataclass(frozen=True)
class ScaleGroup:
    """Tensors that share one quantizer.

    Args:
        name: the first tensor's name in the traced graph.
        convs: convolutions that read a member in INT8.
        adds: residual operands that are members.
        observed: the convolutions whose inputs show the group's values once, for calibration.
        observed_adds: the residual operands to watch besides, whose values no convolution of the group reads.
    """

    name: str
    convs: tuple[str, ...]
    adds: tuple[AddOperand, ...]
    observed: tuple[str, ...]
    observed_adds: tuple[AddOperand, ...] = ()


@dataclass(frozen=True)
class Placement:
    """The quantizers of a network: groups, and the convolutions left float with the reason.

    Args:
        weights: whether each quantized convolution's weight has a scale per output channel or one in all.
        scheme: whether the activations' codes lie evenly round zero or where the values are, see
            :mod:`trt_qat.quantization.zero_point`.
    """

    groups: tuple[ScaleGroup, ...]
    float_convs: Mapping[str, str]
    weights: WeightScales = "channel"
    scheme: Scheme = "symmetric"

    def without(self, groups: Collection[str], reason: str) -> Placement:
        """The placement in which these groups are float; ``reason`` is noted for each of their convolutions."""
        kept = tuple(group for group in self.groups if group.name not in groups)
        removed = {conv: reason for group in self.groups if group.name in groups for conv in group.convs}
        return replace(self, groups=kept, float_convs={**self.float_convs, **removed})

    def as_dict(self) -> dict[str, Any]:
        """A JSON form for checkpoints; :meth:`from_dict` is its inverse."""
        return {
            "groups": [
                {
                    "name": group.name,
                    "convs": list(group.convs),
                    "adds": [[a.module, a.call, a.operand] for a in group.adds],
                    "observed": list(group.observed),
                    "observed_adds": [[a.module, a.call, a.operand] for a in group.observed_adds],
                }
                for group in self.groups
            ],
            "float_convs": dict(self.float_convs),
            "weights": self.weights,
            "scheme": self.scheme,
        }

    @classmethod
    def from_dict(cls, content: Any) -> Placement:
        """Read what :meth:`as_dict` wrote.

        Raises:
            ValueError: it is something else; one line that names the field.
        """
        try:
            found = PlacementContent.model_validate_json(json.dumps(content))
        except ValidationError as exc:
            raise ValueError(explain(exc)) from exc
        except (TypeError, RecursionError) as exc:
            raise ValueError("it is no JSON value") from exc
        groups = tuple(
            ScaleGroup(
                name=group.name,
                convs=group.convs,
                adds=tuple(AddOperand(*add) for add in group.adds),
                observed=group.observed,
                observed_adds=tuple(AddOperand(*add) for add in group.observed_adds),
            )
            for group in found.groups
        )
        return cls(groups, found.float_convs, found.weights, found.scheme)


Name = Annotated[str, Field(min_length=1, max_length=500)]
AddContent = tuple[Name, Annotated[int, Field(ge=0, le=10_000)], Annotated[int, Field(ge=0, le=1)]]


class GroupContent(FileModel):
    """A :class:`ScaleGroup` in a file; an add is ``[module, call, operand]``."""

    name: Name
    convs: Annotated[tuple[Name, ...], Field(min_length=1)]
    adds: tuple[AddContent, ...]
    observed: tuple[Name, ...]
    observed_adds: tuple[AddContent, ...]

    @model_validator(mode="after")
    def _observes_members(self) -> GroupContent:
        if not (set(self.observed) <= set(self.convs) and set(self.observed_adds) <= set(self.adds)):
            raise ValueError(f"group {shortened(self.name)} observes what is not in it")
        return self


class PlacementContent(FileModel):
    """A :class:`Placement` in a file."""

    groups: tuple[GroupContent, ...]
    float_convs: dict[Name, str]
    weights: WeightScales = "channel"  # files up to 0.1 do not say it
    scheme: Scheme = "symmetric"  # nor this

    @model_validator(mode="after")
    def _each_once(self) -> PlacementContent:
        for what, names in (
            ("group", [group.name for group in self.groups]),
            ("convolution", [conv for group in self.groups for conv in group.convs] + list(self.float_convs)),
            ("operand", [add for group in self.groups for add in group.adds]),
        ):
            twice = [name for name, count in Counter(names).items() if count > 1]
            if twice:
                raise ValueError(f"{what} {shortened(twice[0])} is there twice")
        return self


def place(network: nn.Module, graph: TensorGraph, section: QuantizationSection) -> Placement:
    """Decide the quantizers of a traced network.

    Raises:
        QuantizationError: an ``exclude`` pattern matches no convolution, nothing is left to quantize, or a module that
            adds runs twice.
    """
    float_convs = _float_convolutions(network, graph, section)
    reads = [op for op in graph if op.parameter_module and op.parameter_module in convolutions(network)]
    int8_reads = [op for op in reads if op.parameter_module not in float_convs]
    if not int8_reads:
        raise QuantizationError("No convolution is left to quantize: 'float_roles' and 'exclude' cover them all.")

    sets = DisjointSets()
    _unite_copies(graph, sets)
    for conv in {op.parameter_module for op in int8_reads}:  # one module has one input quantizer, however often it runs
        sets.unite(op.inputs[0] for op in int8_reads if op.parameter_module == conv)
    adds = _residual_operands(graph, sets, {op.inputs[0] for op in int8_reads}, section.residual)
    return Placement(_groups(graph, sets, int8_reads, adds), float_convs, section.weights, section.scheme)


def _float_convolutions(network: nn.Module, graph: TensorGraph, section: QuantizationSection) -> dict[str, str]:
    role_of = roles(network, graph)
    run = {op.parameter_module for op in graph}
    reasons: dict[str, str] = {}
    for name in convolutions(network):
        if role_of.get(name) in section.float_roles:
            reasons[name] = f"role {role_of[name]}"
        elif name not in run:
            reasons[name] = "not part of the deployed graph"
    for pattern in section.exclude:
        matched = [
            name
            for name in convolutions(network)
            if fnmatch.fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")
        ]
        if not matched:
            raise QuantizationError(
                f"quantization.exclude pattern '{pattern}' matches no convolution. "
                "Give a module name or a glob such as 'model.22.*'."
            )
        reasons.update(dict.fromkeys(matched, f"excluded by '{pattern}'"))
    return reasons


def _unite_copies(graph: TensorGraph, sets: DisjointSets) -> None:
    for operation in graph:
        if operation.copy is not None:
            sets.unite((*operation.copy.carried(operation.inputs), operation.name))


def _residual_operands(
    graph: TensorGraph, sets: DisjointSets, int8_tensors: set[str], residual: Residual
) -> list[tuple[str, AddOperand]]:
    """Add operands to quantize, as (tensor, operand); ``both`` also unites the operands' groups."""
    if residual == "none":
        return []
    found: list[tuple[str, AddOperand]] = []
    calls: dict[str, int] = {}
    for operation in graph:
        if operation.operator != "add":
            continue
        call = calls.get(operation.module, 0)
        calls[operation.module] = call + 1
        if len(operation.inputs) != 2:
            continue  # adds a constant or itself
        if operation.repeated:
            raise QuantizationError(
                f"'{operation.module}' adds and runs more than once in a forward pass; "
                "its adds cannot be told apart. Set quantization.residual=none."
            )
        roots = {sets.find(name) for name in int8_tensors}
        in_int8 = [sets.find(name) in roots for name in operation.inputs]
        if residual == "both" and any(in_int8):
            sets.unite(operation.inputs)
            in_int8 = [True, True]
        for operand, (tensor, wanted) in enumerate(zip(operation.inputs, in_int8, strict=True)):
            if wanted:
                found.append((tensor, AddOperand(operation.module, call, operand)))
    return found


def _groups(
    graph: TensorGraph, sets: DisjointSets, int8_reads: list[Operation], adds: list[tuple[str, AddOperand]]
) -> tuple[ScaleGroup, ...]:
    by_root: dict[str, list[Operation]] = {}
    for read in int8_reads:
        by_root.setdefault(sets.find(read.inputs[0]), []).append(read)
    groups = []
    for root, reads in by_root.items():
        convs = tuple(dict.fromkeys(read.parameter_module for read in reads))
        operands = [(tensor, operand) for tensor, operand in adds if sets.find(tensor) == root]
        observed, observed_adds = _observed(graph, reads, operands)
        members = tuple(operand for _, operand in operands)
        groups.append(ScaleGroup(reads[0].inputs[0], convs, members, observed, observed_adds))
    return tuple(groups)


def _observed(
    graph: TensorGraph, reads: list[Operation], operands: list[tuple[str, AddOperand]]
) -> tuple[tuple[str, ...], tuple[AddOperand, ...]]:
    """One reader per tensor, without tensors whose values all appear in a later read tensor."""
    readers: dict[str, str | AddOperand] = dict(reversed(operands))
    readers |= {read.inputs[0]: read.parameter_module for read in reversed(reads)}
    consumers = graph.consumers()

    def covered(tensor: str) -> bool:
        return any(
            op.name in readers or covered(op.name)
            for op in consumers[tensor]
            if op.copy is not None and not op.copy.drops
        )

    chosen = dict.fromkeys(reader for tensor, reader in readers.items() if not covered(tensor))
    return (
        tuple(reader for reader in chosen if isinstance(reader, str)),
        tuple(reader for reader in chosen if isinstance(reader, AddOperand)),
    )
