"""What to try for a layer: one row per rule, from a condition on its figures to a command, what costs no speed first.

Nothing is advised without a figure of the run behind it, and every command is one that can be typed: the call that made
the run with a setting more, into a folder beside it.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from trt_qat.report import numbers
from trt_qat.report.layer_facts import CLIPPED, LARGE_SHARE, LEVELS, LOST_DB, Layer, Network, weakest
from trt_qat.report.record import ConvRecord, ExportedRecord, KernelRecord, QuantizerRecord

FAR_RANGE: Final = 2.0
"""Times the bulk of the values: one of the eight bits is then there for one value in a thousand."""
WEAK_WEIGHTS_DB: Final = 30.0
"""With a scale per channel the demo's have 42 to 48 dB, the weakest of the dashcam signs' (docs/qat.md) 31."""
UNLIKE: Final = 2.0
"""Times what a member of a group reaches: that member lacks one of the eight bits."""
STILL_RISING_POINTS: Final = 0.19
"""Of mAP50-95 (or agreement): three seeds of one fine-tuning differ by as much (docs/qat.md)."""
DROP_POINTS: Final = 0.2
"""Of mAP50-95 (or agreement): less is no more than chance on some hundred images."""
MUCH_FLOAT: Final = 0.01
"""Of the network's multiply-accumulates: less cannot be seen in the time."""
MORE_MOVED: Final = 1.25
"""Times half of FP32's bytes; less is within what halving is off as a guess of FP16's."""
_GPU: Final = "rtx4090"
_PLAIN: Final = r"[\w.]+"  # YAML needs no quotes for it
_ROLES: Final = {
    "role head_last": "; class scores near 0 are smaller than a step of INT8",
    "role dfl": "; its weights are constants of the box decoding",
}
TRIED: Final = "-tried"
ADVICE: Final = "-advice"


@dataclass(frozen=True)
class Remedy:
    """One thing to try.

    Args:
        rule: which row of :data:`RULES` says so.
        why: the figures.
        action: what to do.
        expected: what the figures say it could bring, and what it costs.
        command: to type, None where there is nothing to run.
    """

    rule: str
    why: str
    action: str
    expected: str
    command: str | None

    def as_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class Rule:
    """A row of :data:`RULES`: what it is called, and what it says of a layer of the run in a folder."""

    name: str
    check: Callable[[Layer, Path], tuple[str, str, str, str | None] | None]


def remedies(layer: Layer, run: Path) -> tuple[Remedy, ...]:
    """What to try for a layer, in this order; leaving it alone where no rule finds anything or INT8 costs nothing.

    Args:
        run: the folder whose record it is of, as the user names it.
    """
    found = [Remedy(rule.name, *said) for rule in RULES if (said := rule.check(layer, run)) is not None]
    if not found or (_costs_nothing(layer.network) and not layer.errors):
        return (Remedy("leave-it", *_leave_it(layer)), *found)
    return tuple(found)


Said = tuple[str, str, str, str | None]  # why, action, expected, command


def _lint_error(layer: Layer, run: Path) -> Said | None:
    if not layer.errors:
        return None
    file, finding = layer.errors[0]
    path = (run.parent if run.suffix == ".json" else run) / file.file.path
    return (
        f"The lint finds '{finding.rule}' ({finding.severity}) at {finding.node} of {file.name}: {finding.message}.",
        finding.advice,
        f"{'the client takes the file' if finding.severity == 'broken' else 'INT8 speed that is lost now'}; "
        f"{len(layer.errors)} of the file's {file.lint.errors if file.lint else 0} errors are at this layer.",
        f"trt-qat lint {shlex.quote(str(path))} --target {shlex.quote(file.target)}",
    )


def _calibrator(layer: Layer, run: Path) -> Said | None:
    said = _range_fits_badly(layer)
    if said is None or not _is_costly(layer):
        return None
    calibration = layer.network.record.calibration
    if layer.network.setting("quantization.calibrator") != "auto":
        return (
            said,
            f"Let the calibrators be compared; {calibration.calibrator} was given.",
            "the range whose outputs are nearest to the float network's, at no cost in speed.",
            _again(layer.network, {"quantization.calibrator": "auto"}),
        )
    if layer.network.setting("quantization.auto_per_group"):
        return None
    tried = sorted(calibration.tried, key=lambda entry: entry.error)
    errors = ", ".join(f"{entry.calibrator} {entry.error:.4f}" for entry in tried[:3]) or "not in the record"
    return (
        said,
        f"Let each group choose its calibrator; all have {calibration.calibrator} now.",
        f"this group may leave the common choice (output error: {errors}), at no cost in speed.",
        _again(layer.network, {"quantization.auto_per_group": True}),
    )


def _range_fits_badly(layer: Layer) -> str | None:
    histogram, activation = layer.histogram, layer.activation
    if histogram is None or activation is None or layer.bulk is None:
        return None
    if activation.reach > FAR_RANGE * layer.bulk:
        used = max(1, round(LEVELS * layer.bulk / activation.amax))
        return (
            f"99.9 % of its values lie within {layer.bulk:.3g}, its range is {activation.reach:.3g}: they have {used} "
            f"of {_levels(activation)} steps, and {numbers.share(histogram.below_one_step)} round to zero."
        )
    if histogram.clipped >= CLIPPED:
        reach = max(abs(histogram.low), abs(histogram.high))
        return (
            f"{numbers.share(histogram.clipped)} of its values lie beyond its range of {activation.reach:.3g} "
            f"and are clipped; the largest is {reach:.3g}."
        )
    return None


def _levels(activation: QuantizerRecord) -> int:
    """Steps from zero to the farther end of the range."""
    return round(LEVELS * activation.reach / activation.amax)


def _weights_per_channel(layer: Layer, run: Path) -> Said | None:
    weak = _weakest(layer)
    if layer.network.record.placement.weights != "tensor" or weak is None:
        return None
    conv, sqnr = weak
    return (
        f"The weights of {conv.name} have one scale for {conv.output_channels} channels and {sqnr:.1f} dB.",
        "Give each output channel a scale of its own.",
        f"{WEAK_WEIGHTS_DB - sqnr:.0f} dB more at least, if they are like the demo's (42 to 48) or the signs' (31 up).",
        _again(layer.network, {"quantization.weights": "channel"}),
    )


def _weakest(layer: Layer) -> tuple[ConvRecord, float] | None:
    found = [(conv, weight.sqnr_db) for conv, weight in layer.weights() if weight.sqnr_db is not None]
    weak = [entry for entry in found if entry[1] < WEAK_WEIGHTS_DB]
    return min(weak, key=lambda entry: entry[1], default=None)


def _learned_range(layer: Layer, run: Path) -> Said | None:
    network = layer.network
    learned = network.setting("qat.lsq") or network.setting("quantization.toolkit") != "modelopt"
    said = _range_fits_badly(layer)
    if learned or said is None or not _is_costly(layer) or network.setting("quantization.calibrator") != "auto":
        return None
    if not network.setting("quantization.auto_per_group"):
        return None  # first what needs no training
    epochs = 2 * int(network.setting("qat.epochs"))
    return (
        said + " Calibrators per group did not change that.",
        "Learn the ranges with the weights (LSQ), over more epochs.",
        f"a range that follows the loss, not a histogram; {epochs} epochs take about {_time_of(network, epochs)}.",
        _again(network, {"qat.lsq": True, "qat.epochs": epochs}),
    )


def _lost_in_training(layer: Layer, run: Path) -> Said | None:
    if layer.lost_db < LOST_DB:
        return None
    rate = float(layer.network.setting("qat.lr0")) / 2
    return (
        f"A quantizer of it lost {layer.lost_db:.1f} dB up to epoch {layer.network.record.training.best}"
        + (f", and a range drifted by {layer.drift:+.0%}." if layer.drift else "."),
        "Fine-tune in smaller steps.",
        f"half the learning rate moves the weights half as far: less than {layer.lost_db:.1f} dB lost.",
        _again(layer.network, {"qat.lr0": rate}),
    )


def _more_epochs(layer: Layer, run: Path) -> Said | None:
    training = layer.network.record.training
    if len(training.epochs) < 2 or training.best != training.epochs[-1].epoch or not _is_costly(layer):
        return None
    before, after = (100 * epoch.map50_95 for epoch in training.epochs[-2:])
    if after - before < STILL_RISING_POINTS:
        return None
    epochs = 2 * int(layer.network.setting("qat.epochs"))
    return (
        f"The fake-quantized network's {layer.network.figure} rose by {after - before:.2f} points in the last epoch, "
        "the best one.",
        "Fine-tune longer.",
        f"what further epochs bring; {epochs} of them take about {_time_of(layer.network, epochs)}.",
        _again(layer.network, {"qat.epochs": epochs}),
    )


def _time_of(network: Network, epochs: int) -> str:
    timed = [epoch for epoch in network.record.training.epochs if epoch.seconds and epoch.epoch]
    if not timed:
        return f"{epochs} times one"
    minutes = (timed[-1].seconds or 0.0) / timed[-1].epoch * epochs / 60
    return f"{minutes:.0f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"


def _unlike_members(layer: Layer, run: Path) -> Said | None:
    group, activation = layer.group, layer.activation
    if group is None or activation is None or not _is_costly(layer):
        return None
    known = [(conv, conv.input_max) for conv in group.convs if conv.input_max is not None]
    farthest = min(activation.reach, max((reach for _, reach in known), default=0.0))
    small = [entry for entry in known if 0 < UNLIKE * entry[1] < farthest]
    large = [conv for conv, reach in known if UNLIKE * min((r for _, r in small), default=0.0) < reach]
    if not small or not large:
        return None
    conv, reach = min(small, key=lambda entry: entry[1])
    macs = sum(entry.macs for entry in large) / max(1, layer.network.macs)
    return (
        f"{conv.name} reads values up to {reach:.3g} on a scale made for {activation.reach:.3g}, "
        f"{max(1, round(LEVELS * reach / activation.amax))} of {_levels(activation)} steps; "
        f"{large[0].name} reads the large ones.",
        f"Leave {_listed([entry.name for entry in large])} float: the rest of the group then has its own range.",
        f"up to {_levels(activation)} steps for {conv.name}; costs {numbers.share(macs)} of the INT8 "
        f"multiply-accumulates in {_float_type(layer.network)}.",
        _excluding(layer.network, [entry.name for entry in large]),
    )


def _leave_float(layer: Layer, run: Path) -> Said | None:
    share, group = layer.error_share, layer.group
    if share is None or group is None or not _is_costly(layer) or share < layer.macs_share:
        return None
    drop = (
        "" if group.map50_95_drop is None else f", and {100 * group.map50_95_drop:.2f} points of {layer.network.figure}"
    )
    return (
        f"This group alone costs {numbers.share(share)} of the summed output error{drop}.",
        f"Leave it float ({_listed([conv.name for conv in group.convs])}).",
        f"about those {numbers.share(share)} back, as far as errors add; costs {numbers.share(layer.macs_share)} of "
        f"the INT8 multiply-accumulates in {_float_type(layer.network)}.{_mixes_say(layer)}",
        _excluding(layer.network, [conv.name for conv in group.convs]),
    )


def _mixes_say(layer: Layer) -> str:
    """What a mix with this group float measured, if ``qat.max_drop`` tried one; the smallest of them."""
    budget = layer.network.record.budget
    mixes = [] if budget is None or layer.group is None else [m for m in budget.mixes if layer.group.name in m.groups]
    if not mixes:
        return ""
    mix = min(mixes, key=lambda entry: len(entry.groups))
    with_others = f" with {len(mix.groups) - 1} more" if len(mix.groups) > 1 else ""
    return f" Measured{with_others}: {mix.drop_points:.2f} points below float, {mix.latency_ms:.1f} ms."


def _budget(layer: Layer, run: Path) -> Said | None:
    network = layer.network
    ours, points = network.int8_file, network.drop_points
    if ours is None or points is None or network.setting("qat.max_drop") is not None:
        return None
    if points < DROP_POINTS or not _is_costly(layer):
        return None
    place = network.rank(layer, lambda entry: entry.error_share, lowest_first=False)
    return (
        f"{ours.name} is {points:.2f} points of {network.figure} below FP32, and this group is number {place} of those "
        "that cost it.",
        "Let the fewest groups that meet a budget be left float, each mix measured.",
        f"at most {points / 2:.2g} points lost, half of now.",
        _again(network, {"qat.max_drop": float(f"{points / 2:.2g}")}),
    )


def _float_layer(layer: Layer, run: Path) -> Said | None:
    if layer.left_float is None:
        return None
    network, reason = layer.network, layer.left_float.reason
    ours, theirs = layer.kernels(network.compiled_file), layer.kernels(network.float_file)
    macs, all_macs = sum(kernel.macs for kernel in theirs), _compiled_macs(network.float_file)
    if not all_macs or macs < MUCH_FLOAT * all_macs:
        return None
    figures = (
        f"It is float ({reason}) and {numbers.share(macs / all_macs)} of the network's multiply-accumulates, in "
        f"{len(ours)} kernels that move {numbers.megabytes(_bytes(ours))} MB."
    )
    expected = (
        f"{numbers.share(macs / all_macs)} of the work in INT8; look at its sensitivity in that run before you keep it."
    )
    changed = _in_int8(network, layer.left_float.name, reason)
    return None if changed is None else (figures, "Put it to INT8.", expected, _again(network, changed))


def _in_int8(network: Network, name: str, reason: str) -> dict[str, Any] | None:
    """The settings without what keeps a layer float; None where it has to stay, or nothing tells how."""
    if reason == "role first_conv":
        roles = [role for role in network.setting("quantization.float_roles") if role != "first_conv"]
        return {"quantization.float_roles": roles}
    if reason.startswith("excluded by '"):
        pattern = reason.removeprefix("excluded by '").removesuffix("'")
        kept = [entry for entry in network.setting("quantization.exclude") if entry != pattern]
        layers = network.record.placement.float_layers
        others = [entry.name for entry in layers if entry.reason == reason and entry.name != name]
        return {"quantization.exclude": [*kept, *others]}
    return None


def _compiled_macs(file: ExportedRecord | None) -> int:
    return sum(kernel.macs for kernel in file.compiler.kernels) if file and file.compiler else 0


def _moves_more(layer: Layer, run: Path) -> Said | None:
    network = layer.network
    ours, theirs = layer.kernels(network.compiled_file), layer.kernels(network.float_file)
    if layer.group is None or not ours or not theirs:
        return None
    moved, half = _bytes(ours), _bytes(theirs) // 2
    if moved <= MORE_MOVED * half:
        return None
    advice = _beside(network, ADVICE)
    return (
        f"In INT8 TensorRT-RTX moves {numbers.megabytes(moved)} MB for it in {len(ours)} kernels; "
        f"in FP16 that would be about {numbers.megabytes(half)} MB, half of FP32's, in {len(theirs)}.",
        "Ask the compiler which layers INT8 makes slower, and leave those in FP16.",
        f"{numbers.megabytes(moved - half)} MB less to move here, at FP16's accuracy; for RTX GPUs only, name yours.",
        shlex.join(["trt-qat", "advise", *_given(network, "--weights", "--data"), "--gpu", _GPU, "--out", advice]),
    )


RULES: Final = (
    Rule("lint-error", _lint_error),
    Rule("other-calibrator", _calibrator),
    Rule("weights-per-channel", _weights_per_channel),
    Rule("learned-range", _learned_range),
    Rule("smaller-steps", _lost_in_training),
    Rule("more-epochs", _more_epochs),
    Rule("unlike-members", _unlike_members),
    Rule("leave-float", _leave_float),
    Rule("budget", _budget),
    Rule("to-int8", _float_layer),
    Rule("moves-more", _moves_more),
)
"""What costs no speed comes first, then training, then what takes layers out of INT8, then speed alone."""


def _is_costly(layer: Layer) -> bool:
    """Doing something about it is seen at the network's output."""
    return (layer.error_share or 0.0) >= LARGE_SHARE


def _costs_nothing(network: Network) -> bool:
    points = network.drop_points
    return points is not None and points < DROP_POINTS


def _leave_it(layer: Layer) -> Said:
    if layer.left_float is not None:
        return f"It is float: {layer.left_float.reason}.", "Leave it.", _why_float(layer), None
    parts = []
    if layer.sqnr_db is not None:
        place = layer.network.rank(layer, lambda entry: entry.sqnr_db, lowest_first=True)
        ranked = "" if place is None else f", {weakest(place)} of {len(layer.network.groups)}"
        parts.append(f"its SQNR is {layer.sqnr_db:.1f} dB{ranked}")
    if layer.error_share is not None:
        parts.append(f"it costs {numbers.share(layer.error_share)} of the summed output error")
    if layer.histogram is not None:
        parts.append(f"{numbers.share(layer.histogram.clipped)} of its values are clipped")
    said = "; ".join(parts) or "nothing that the run measured stands out"
    return f"{said[0].upper()}{said[1:]}.", "Leave it.", _what_is_left(layer.network), None


def _what_is_left(network: Network) -> str:
    file, points = network.int8_file, network.drop_points
    if file is None or points is None:
        return "nothing to gain that these figures show."
    place = "above" if points <= 0 else "below"
    said = f"{file.name} is {abs(points):.2f} points of {network.figure} {place} FP32{network.drop_interval}"
    return f"{said}: that is all there is to win."


def _why_float(layer: Layer) -> str:
    file = layer.network.float_file
    macs, whole = sum(kernel.macs for kernel in layer.kernels(file)), _compiled_macs(file)
    work = f"{numbers.share(macs / whole)} of the network's multiply-accumulates" if whole else "its work is not known"
    reason = layer.left_float.reason if layer.left_float else ""
    return f"{work}{_ROLES.get(reason, '')}{_kept_mix(layer.network) if 'max_drop' in reason else ''}."


def _kept_mix(network: Network) -> str:
    """What the mix that left it float measured, beside all in INT8."""
    mixes = network.record.budget.mixes if network.record.budget else ()
    kept = [mix for mix in mixes if mix.chosen]
    whole = [mix for mix in mixes if not mix.groups]
    said = f"; the mix that was kept is {kept[0].drop_points:.2f} points below float" if kept else ""
    return said + (f", all in INT8 {whole[0].drop_points:.2f}" if kept and whole else "")


def _excluding(network: Network, names: Sequence[str]) -> str:
    before = [str(entry) for entry in network.setting("quantization.exclude")]
    return _again(network, {"quantization.exclude": [*before, *names]})


def _again(network: Network, changed: dict[str, Any]) -> str:
    """The call that made the run with settings changed, into a folder beside the run's."""
    kept: list[str] = []
    for word in network.words:
        if kept and kept[-1] == "--set" and word.partition("=")[0] in changed:
            kept.pop()
        elif kept and kept[-1] == "--out":
            kept.append(tried_folder(network))
        else:
            kept.append(word)
    settings = [text for key, value in changed.items() for text in ("--set", f"{key}={_yaml(value)}")]
    return shlex.join([*kept, *settings])


def tried_folder(network: Network) -> str:
    """Where the commands write; the run itself stays as it is."""
    return _beside(network, TRIED)


def _beside(network: Network, ending: str) -> str:
    _, out = _given(network, "--out")
    return out.rstrip("/") + ending


def _given(network: Network, *options: str) -> list[str]:
    """Options of the call that made the run, with their values."""
    words = network.words
    values = {word: words[place] for place, word in enumerate(words[:-1], 1)}
    return [word for option in options for word in (option, values.get(option, option.strip("-")))]


def _yaml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(text if re.fullmatch(_PLAIN, text) else json.dumps(text) for text in map(str, value))}]"
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"


def _float_type(network: Network) -> str:
    precision = "" if network.int8_file is None else network.int8_file.result.precision
    return precision.partition("+")[2].upper() or "float"


def _bytes(kernels: Sequence[KernelRecord]) -> int:
    return sum(kernel.activation_bytes + kernel.weight_bytes for kernel in kernels)
