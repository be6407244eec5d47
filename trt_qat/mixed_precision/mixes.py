"""Mixed precision to an accuracy budget: the fewest scale groups left float that keep it, each mix measured as a file.

Nothing is retrained. Groups are tried in two orders: by what they cost in accuracy, and by what they cost in accuracy
for what they save in time; and with two kinds of weights: the fine-tuned ones, where a group that is left float gets
back those of before (what it learned was to make up for its own rounding), and the calibrated ones throughout. How many
groups are needed is searched on what ``measure`` finds for each mix; what needs the fewest is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from typing import Any, get_args

import torch
from torch import Tensor, nn

from trt_qat.checkpoint import Model
from trt_qat.evaluation.group_sensitivity import GroupSensitivity
from trt_qat.evaluation.sensitivity import measure_groups
from trt_qat.mixed_precision.budget_search import (
    Measured,
    Search,
    Step,
    Weights,
    best_of,
    drop_points,
    fewest_float_groups,
    meets_budget,
)
from trt_qat.progress import SILENT, Progress
from trt_qat.quantization.divergence import OutputDivergence
from trt_qat.quantization.insert import QuantizedModel
from trt_qat.results import Measure, file_content, other_names
from trt_qat.vision.size import ImageSize

_REASON = "left float to meet qat.max_drop"

# Measures a model (float, or with some or all groups in INT8) as it would be deployed.
MeasureModel = Callable[[Model], Measured]


@dataclass(frozen=True)
class Candidate:
    """A group with what it costs in accuracy and the share of the network's multiplications that it computes."""

    sensitivity: GroupSensitivity
    macs_share: float

    @property
    def error_per_share(self) -> float:
        """How much accuracy leaving this group float wins for the time that it costs."""
        return self.sensitivity.cost / self.macs_share

    def as_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return self.sensitivity.as_dict() | {"macs_share": self.macs_share, "error_per_share": self.error_per_share}


def rank_candidates(
    model: QuantizedModel, batches: Iterable[Tensor], imgsz: ImageSize, progress: Progress = SILENT
) -> list[Candidate]:
    """Every group, the most costly alone at the top.

    Args:
        batches: float32 tensors of shape (n, 3, h, w) in [0, 1].
        imgsz: height and width of the input, pixels.
    """
    shares = macs_shares(model, imgsz)
    rows = measure_groups(model, OutputDivergence(model, batches), None, progress=progress)
    candidates = [Candidate(row, shares[row.group]) for row in rows]
    return sorted(candidates, key=lambda candidate: -candidate.sensitivity.cost)


@torch.no_grad()
def macs_shares(model: QuantizedModel, imgsz: ImageSize) -> dict[str, float]:
    """Share of all convolutions' multiply-accumulates per group: an estimate of its share of the latency."""
    macs: dict[str, int] = {}

    def count(module: nn.Module, inputs: Any, output: Tensor, name: str) -> None:
        del inputs
        macs[name] = macs.get(name, 0) + output[0].numel() * module.weight[0].numel()  # type: ignore[index]

    convs = [(name, module) for name, module in model.network.named_modules() if isinstance(module, nn.Conv2d)]
    hooks = [module.register_forward_hook(partial(count, name=name)) for name, module in convs]
    try:
        with model.quantizers_off():
            device = next(model.network.parameters()).device
            model.network.eval()(torch.zeros(1, 3, *imgsz, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    total = sum(macs.values())
    return {group.name: sum(macs[conv] for conv in group.convs) / total for group in model.placement.groups}


@dataclass(frozen=True)
class Budget:
    """What :func:`keep_budget` found.

    Args:
        model: the one to keep: within the budget, or the most accurate one measured.
        met: whether it is within the budget.
        report: everything that was measured, JSON values as :func:`~trt_qat.results.file_content` names them.
    """

    model: Model
    met: bool
    report: Mapping[str, Any]


def keep_budget(
    start: Model,
    tuned: Model,
    max_drop: float,
    measure: MeasureModel,
    batches: Iterable[Tensor],
    progress: Progress = SILENT,
    *,
    of: Measure = "mAP",
) -> Budget:
    """Leave groups float until mAP (or agreement) is within a budget, if it is not yet.

    Args:
        start: the calibrated model that fine-tuning started from; without its quantizers it is the float model.
        tuned: the fine-tuned one, all INT8.
        max_drop: the budget in points (0.2 is 0.002 as a fraction).
        batches: images for the output error, float32 tensors of shape (n, 3, h, w) in [0, 1].
        of: what the points are of.
    """
    measured = cache(lambda weights, groups: measure(mix(start, tuned, weights, groups, max_drop)))
    of_float = measure(float_of(start))
    all_int8 = Step(0, (), measured("fine-tuned", ()), "fine-tuned")
    candidates: list[Candidate] = []
    if meets_budget(of_float, all_int8.measured, max_drop):
        search = Search((all_int8,), all_int8, met=True)
    else:
        candidates = rank_candidates(start.require_quantized(), batches, start.imgsz, progress)
        search = _search(candidates, of_float, all_int8, max_drop, measured)
    chosen = search.chosen
    kept = tuned if chosen == all_int8 else mix(start, tuned, chosen.weights, chosen.groups, max_drop)
    return Budget(kept, search.met, _report(search, of_float, candidates, max_drop, of))


def float_of(model: Model) -> Model:
    """The float model that a calibrated one came from."""
    quantized = model.require_quantized()
    return replace(model.with_quantized(quantized.leave_float(_all(quantized), _REASON), "fp32", {}), quantized=None)


def mix(start: Model, tuned: Model, weights: Weights, groups: tuple[str, ...], max_drop: float) -> Model:
    """The model with these groups float, with the weights they had in ``start``; none means all INT8."""
    before = start.require_quantized()
    origin = tuned.require_quantized() if weights == "fine-tuned" else before
    mixed, in_float = origin.leave_float(groups, _REASON), before.leave_float(groups, _REASON)
    for group in before.placement.groups:
        if group.name in groups:
            for conv in group.convs:
                _copy_weights_(in_float.network.get_submodule(conv), mixed.network.get_submodule(conv))
    noted = {"max_drop": max_drop, "left_float": list(groups), "int8_weights": weights}
    return tuned.with_quantized(mixed, tuned.stage, {**tuned.provenance, "mixed_precision": noted})


def _all(model: QuantizedModel) -> list[str]:
    return [group.name for group in model.placement.groups]


@torch.no_grad()
def _copy_weights_(source: nn.Module, target: nn.Module) -> None:
    """Weight and bias of a convolution, not what its quantizers hold."""
    for theirs, mine in zip(source.parameters(recurse=False), target.parameters(recurse=False), strict=True):
        mine.copy_(theirs)


def _search(
    candidates: Sequence[Candidate],
    of_float: Measured,
    all_int8: Step,
    max_drop: float,
    measure: Callable[[Weights, tuple[str, ...]], Measured],
) -> Search:
    """Both orders with both kinds of weights, none further than the fewest groups found so far."""
    searches: list[Search] = []
    for weights in get_args(Weights):
        of_int8 = all_int8.measured if weights == all_int8.weights else measure(weights, ())
        for order, ranked in _orders(candidates).items():
            # the last group stays INT8: with all of them float it would be no INT8 model
            most = min((search.chosen.k for search in searches if search.met), default=len(ranked) - 1)
            groups = [candidate.sensitivity.group for candidate in ranked[:most]]
            searches.append(
                fewest_float_groups(groups, of_float, of_int8, max_drop, partial(measure, weights), weights, order)
            )
    return best_of(searches)


def _orders(candidates: Sequence[Candidate]) -> dict[str, list[Candidate]]:
    return {
        "error": list(candidates),
        "error / MACs share": sorted(candidates, key=lambda candidate: -candidate.error_per_share),
    }


def _report(
    search: Search, of_float: Measured, candidates: Sequence[Candidate], max_drop: float, of: Measure
) -> dict[str, Any]:
    def line(step: Step) -> dict[str, Any]:
        drop = drop_points(of_float, step.measured)
        figures = {"drop_points": drop, **asdict(step.measured)}
        return {"k": step.k, "weights": step.weights, "order": step.order, "groups": list(step.groups), **figures}

    chosen = {candidate.sensitivity.group: candidate for candidate in candidates}
    content: dict[str, Any] = {
        "measure": of,
        "max_drop_points": max_drop,
        "met": search.met,
        "orders": "error: output error of the group alone in INT8; error / MACs share: that divided by its share of "
        "the multiply-accumulates, an estimate of its share of the latency",
        "weights": "fine-tuned: those that are INT8, float ones are as before; calibrated: all as before fine-tuning",
        "float": {"map50_95": of_float.map50_95, "latency_ms": of_float.latency_ms},
        "int8": line(search.steps[0]),
        "steps": [line(step) for step in search.steps],
        "chosen": line(search.chosen) | {"why": [chosen[group].as_dict() for group in search.chosen.groups]},
        "ranking": [candidate.as_dict() for candidate in candidates],
    }
    return dict(file_content(content))


def table(content: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]], str]:
    """What :attr:`Budget.report` says, as text: header, rows, and a sentence about the choice."""
    measure: Measure = content.get("measure", "mAP")
    content = other_names(dict(content))
    chosen, of_float = content["chosen"], content["float"]
    header = (
        "groups left float",
        "by",
        "weights",
        f"{measure}50-95",
        "drop, points",
        "ms median",
        "all INT8 beside it, ms",
    )
    rows: list[tuple[str, ...]] = [
        ("all (the float model)", "", "", f"{of_float['map50_95']:.4f}", "", f"{of_float['latency_ms']:.1f}", "")
    ]
    for step in sorted(content["steps"], key=lambda step: int(step["k"])):
        figures = (f"{step['latency_ms']:.1f}", f"{step['int8_latency_ms']:.1f}")
        mark = "  <- kept" if step == {key: chosen[key] for key in step} else ""
        rows.append(
            (
                f"{step['k']}{mark}",
                step["order"],
                step["weights"],
                f"{step['map50_95']:.4f}",
                f"{step['drop_points']:.2f}",
                *figures,
            )
        )
    budget = f"{content['max_drop_points']:g} points of {measure}50-95"
    if not chosen["k"]:
        said = f"All INT8 is within {budget}." if content["met"] else f"No mix is within {budget}; all INT8 is kept."
        if chosen["weights"] == "calibrated":
            said += " It has the calibrated weights, which are more accurate than the fine-tuned ones."
    else:
        int8 = [group for group in content["ranking"] if group not in chosen["why"]]
        some, but = (chosen["why"], "") if len(chosen["why"]) <= len(int8) else (int8, "all but ")
        labels = ", ".join(GroupSensitivity.from_dict(group).label for group in some)
        said = (
            f"Left float{'' if content['met'] else f', though not within {budget}'}: {but}{labels}. "
            f"The INT8 groups have the {chosen['weights']} weights. It takes {chosen['latency_ms']:.1f} ms, all INT8 "
            f"{chosen['int8_latency_ms']:.1f} ms, the float model {of_float['latency_ms']:.1f} ms."
        )
    return header, rows, said
