"""Mixed precision to an accuracy budget: the fewest scale groups left float that keep mAP, each mix measured as a file.

Nothing is retrained. Groups are tried in two orders: by what they cost in accuracy, and by what they cost in accuracy
for what they save in time; and with two kinds of weights: the fine-tuned ones, where a group that is left float gets
back those of before (what it learned was to make up for its own rounding), and the calibrated ones throughout. How many
groups are needed is searched on exported files; what needs the fewest is kept.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from trt_qat.artifacts import CheckpointArtifact, atomic_path, write_json
from trt_qat.config import Config, Precision
from trt_qat.data.dataset import Dataset
from trt_qat.data.progress import Progress, silent
from trt_qat.errors import BudgetMissed, ConfigError, QuantizationError
from trt_qat.evaluation.accuracy import measure_accuracy
from trt_qat.evaluation.budget_search import (
    Measured,
    Search,
    Step,
    Weights,
    best_of,
    drop_points,
    fewest_float_groups,
    meets_budget,
)
from trt_qat.evaluation.group_sensitivity import GroupSensitivity
from trt_qat.evaluation.latency import measure_latency
from trt_qat.evaluation.sensitivity import measure_groups
from trt_qat.export.onnx_export import export_onnx
from trt_qat.quantization.insert import QuantizedModel
from trt_qat.quantization.quantized_error import OutputError
from trt_qat.runtime.selection import open_runner
from trt_qat.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

REPORT = "mixed_precision.json"
ALL_INT8 = "best_int8.safetensors"
_REASON = "left float to meet qat.max_drop"


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
    model: QuantizedModel, batches: Iterable[Tensor], imgsz: int, progress: Progress = silent
) -> list[Candidate]:
    """Every group, the most costly alone at the top.

    Args:
        batches: float32 tensors of shape (n, 3, h, w) in [0, 1].
        imgsz: side of the square input, pixels.
    """
    shares = macs_shares(model, imgsz)
    rows = measure_groups(model, OutputError(model, batches), None, progress=progress)
    candidates = [Candidate(row, shares[row.group]) for row in rows]
    return sorted(candidates, key=lambda candidate: -candidate.sensitivity.cost)


@torch.no_grad()
def macs_shares(model: QuantizedModel, imgsz: int) -> dict[str, float]:
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
            model.network.eval()(torch.zeros(1, 3, imgsz, imgsz, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    total = sum(macs.values())
    return {group.name: sum(macs[conv] for conv in group.convs) / total for group in model.placement.groups}


class ExportedMixes:
    """Measures mixes of one fine-tuned model, each exported anew, with the configured runtime.

    Args:
        tuned: the fine-tuned checkpoint, all INT8; left as it is.
        start: the calibrated checkpoint that fine-tuning started from; left as it is.
        dataset: mAP is measured on its val split.
        folder: for the files, which may be removed afterwards.

    Raises:
        ConfigError: see :func:`check_budget_runtime`.
    """

    def __init__(
        self, tuned: Checkpoint, start: Checkpoint, dataset: Dataset, config: Config, folder: Path, progress: Progress
    ):
        check_budget_runtime(config)
        self._tuned = tuned
        self._start = start
        self._dataset = dataset
        self._config = config
        self._folder = folder
        self._progress = progress
        self._int8 = _int8_precision(config)
        self._all_int8 = self._export(tuned, self._int8, "int8")

    def __call__(self, weights: Weights, groups: tuple[str, ...]) -> Measured:
        """Measure with these groups float; none means all INT8."""
        label = f"groups left float: {len(groups)}" if groups else "all INT8"
        if weights == "calibrated":
            label += ", calibrated weights"
        elif not groups:
            return self._measure(self._all_int8, label)
        mixed = load_checkpoint(self.save(weights, groups, self._folder / "mixed.safetensors").path)
        return self._measure(self._export(mixed, self._int8, "mixed"), label)

    def float_model(self) -> Measured:
        """Measure ``start`` with all its quantizers off, in the type that the mixes' float part has."""
        precision: Precision = "fp16" if self._int8 == "int8+fp16" else "fp32"
        return self._measure(self._export(self._start, precision, "float"), precision.upper())

    def save(self, weights: Weights, groups: tuple[str, ...], path: Path) -> CheckpointArtifact:
        """Write the checkpoint with these groups float."""
        tuned, start = _quantized(self._tuned), _quantized(self._start)
        mixed = (tuned if weights == "fine-tuned" else start).leave_float(groups, _REASON)
        for group in start.placement.groups:
            if group.name in groups:
                for conv in group.convs:
                    _copy_weights_(start.network.get_submodule(conv), mixed.network.get_submodule(conv))
        mix = {"max_drop": self._config.qat.max_drop, "left_float": list(groups), "int8_weights": weights}
        provenance = {**self._tuned.provenance, "mixed_precision": mix}
        return save_checkpoint(path, mixed, self._tuned.stage, self._tuned.imgsz, provenance)

    def _export(self, checkpoint: Checkpoint, precision: Precision, stem: str) -> Path:
        section = self._config.export.model_copy(update={"precision": precision})
        return export_onnx(checkpoint, self._folder / f"{stem}.onnx", section, checkpoint.imgsz).path

    def _measure(self, onnx: Path, label: str) -> Measured:
        evaluation = self._config.evaluation
        with (
            open_runner(onnx, evaluation.runtime, evaluation.threads) as runner,
            open_runner(self._all_int8, evaluation.runtime, evaluation.threads) as all_int8,
        ):
            batch = self._config.data.batch
            accuracy = measure_accuracy(runner, self._dataset, evaluation, batch, self._progress, label)
            latency, int8_latency = measure_latency([runner, all_int8], evaluation, self._progress)
        return Measured(accuracy.map50_95, latency.median, int8_latency.median)


def _int8_precision(config: Config) -> Precision:
    """What mixes are exported in: the configured precision, or the INT8 one with the same float type."""
    return "int8+fp16" if config.export.precision.endswith("fp16") else "int8+fp32"


def check_budget_runtime(config: Config) -> None:
    """Refuse a budget that could not be measured, before any training.

    Raises:
        ConfigError: ``qat.max_drop`` is set and the runtime does not run ONNX files.
    """
    if config.qat.max_drop is not None and config.evaluation.runtime not in ("openvino", "onnxruntime"):
        raise ConfigError(
            f"qat.max_drop is measured on ONNX files, which evaluation.runtime={config.evaluation.runtime} does not "
            "run. Use openvino or onnxruntime."
        )


def _quantized(checkpoint: Checkpoint) -> QuantizedModel:
    if checkpoint.quantized is None:
        raise QuantizationError("Mixed precision needs a quantized checkpoint, this one is float.")
    return checkpoint.quantized


@torch.no_grad()
def _copy_weights_(source: nn.Module, target: nn.Module) -> None:
    """Weight and bias of a convolution, not what its quantizers hold."""
    for theirs, mine in zip(source.parameters(recurse=False), target.parameters(recurse=False), strict=True):
        mine.copy_(theirs)


def keep_budget(
    start: Checkpoint,
    best: Path,
    dataset: Dataset,
    batches: Iterable[Tensor],
    config: Config,
    progress: Progress = silent,
) -> CheckpointArtifact:
    """Make ``best`` meet ``config.qat.max_drop`` by leaving groups float, if it does not yet.

    Writes ``mixed_precision.json`` beside ``best``; where a mix is kept, ``best`` becomes the mixed checkpoint and
    ``best_int8.safetensors`` keeps the one that was there.

    Args:
        start: the calibrated checkpoint that fine-tuning started from; without its quantizers it is the float model.
        best: the fine-tuned, all-INT8 checkpoint.
        batches: images for the output error, as :class:`~trt_qat.quantization.quantized_error.OutputError` takes them.

    Raises:
        BudgetMissed: no mix meets the budget. All files are written, ``best`` is the most accurate model measured.
    """
    max_drop = config.qat.max_drop or 0.0
    tuned = load_checkpoint(best)
    candidates: list[Candidate] = []
    with tempfile.TemporaryDirectory() as folder:
        mixes = ExportedMixes(tuned, start, dataset, config, Path(folder), progress)
        of_float, all_int8 = mixes.float_model(), Step(0, (), mixes("fine-tuned", ()), "fine-tuned")
        if meets_budget(of_float, all_int8.measured, max_drop):
            search = Search((all_int8,), all_int8, met=True)
        else:
            candidates = rank_candidates(_quantized(start), batches, start.imgsz, progress)
            search = _search(candidates, of_float, all_int8, max_drop, cache(mixes))
        if search.chosen != search.steps[0]:
            with atomic_path(best.with_name(ALL_INT8)) as temporary:
                shutil.copyfile(best, temporary)
            mixes.save(search.chosen.weights, search.chosen.groups, best)
    report = best.with_name(REPORT)
    write_json(report, _report(search, of_float, candidates, config))
    if not search.met:
        found = search.chosen.measured.map50_95
        raise BudgetMissed(
            f"No mix keeps mAP50-95 within {max_drop:g} points of the float model: {of_float.map50_95:.4f} float, "
            f"{found:.4f} at best (with {search.chosen.k} of {len(candidates)} groups float). "
            f"'{best}' is that model, '{report}' lists the measurements. Raise qat.max_drop or fine-tune longer."
        )
    return CheckpointArtifact(best)


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


def _report(search: Search, of_float: Measured, candidates: Sequence[Candidate], config: Config) -> dict[str, Any]:
    def line(step: Step) -> dict[str, Any]:
        drop = drop_points(of_float, step.measured)
        figures = {"drop_points": drop, **asdict(step.measured)}
        return {"k": step.k, "weights": step.weights, "order": step.order, "groups": list(step.groups), **figures}

    chosen = {candidate.sensitivity.group: candidate for candidate in candidates}
    return {
        "max_drop_points": config.qat.max_drop,
        "met": search.met,
        "runtime": config.evaluation.runtime,
        "precision": _int8_precision(config),
        "orders": "error: output error of the group alone in INT8; error / MACs share: that divided by its share of "
        "the multiply-accumulates, an estimate of its share of the latency",
        "weights": "fine-tuned: those that are INT8, float ones are as before; calibrated: all as before fine-tuning",
        "float": {"map50_95": of_float.map50_95, "latency_ms": of_float.latency_ms},
        "int8": line(search.steps[0]),
        "steps": [line(step) for step in search.steps],
        "chosen": line(search.chosen) | {"why": [chosen[group].as_dict() for group in search.chosen.groups]},
        "ranking": [candidate.as_dict() for candidate in candidates],
    }


def table(report: Path) -> tuple[tuple[str, ...], list[tuple[str, ...]], str]:
    """What a ``mixed_precision.json`` says, as text: header, rows, and a sentence about the choice."""
    content = json.loads(report.read_text(encoding="utf-8"))
    chosen, of_float = content["chosen"], content["float"]
    header = ("groups left float", "by", "weights", "mAP50-95", "drop, points", "ms median", "all INT8 beside it, ms")
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
    budget = f"{content['max_drop_points']:g} points"
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
