"""What a run's record says of one layer, and which layers stand out: the figures behind ``trt-qat explain``.

A layer is what an engineer points at: a convolution, or the whole scale group whose tensor it reads, since range, SQNR
and sensitivity are the group's. Layers are compared by what they cost at the network's output, then by their own noise.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, Final

from trt_qat.config import Config
from trt_qat.errors import ArtifactError, ConfigError
from trt_qat.reading import shown_name
from trt_qat.report import numbers
from trt_qat.report.compare import paired_difference
from trt_qat.report.record import (
    ConvRecord,
    ExportedRecord,
    FloatLayer,
    GroupRecord,
    Histogram,
    KernelRecord,
    LayerNoise,
    LintFinding,
    QuantizerRecord,
    RunRecord,
)

LEVELS: Final = 127
"""Steps of signed INT8 on either side of zero."""
BULK: Final = 0.999
"""Share of the values that is called their bulk: what the widest-clipping candidate of ``auto`` keeps."""
CLIPPED: Final = 1 - BULK
"""More clipped values than that candidate would clip are worth a look."""
LARGE_SHARE: Final = 0.1
"""Of the summed output error: ten such groups are all of it, so that doing something about one is seen."""
LOST_DB: Final = 3.0
"""Half of the signal-to-noise ratio; from there on the error monitor warns, too."""
DRIFT: Final = 0.5
"""Half as far again as at the start; the error monitor's limit."""
EXTREMES: Final = 3
"""So many of the weakest and of the most sensitive layers are listed however good they are."""
_NEAREST: Final = 3


def layer_label(name: str) -> str:
    """A convolution's module name, without the ending that all of them have."""
    return name.removesuffix(".conv") or name


@dataclass(frozen=True)
class Layer:
    """One layer of a run.

    Args:
        network: it is of.
        group: the scale group that it reads; None if it is float.
        convs: the convolutions that were asked for, all of the group's if the group was; empty if it is float.
        left_float: why it is float, None if it is INT8.
    """

    network: Network
    group: GroupRecord | None
    convs: tuple[ConvRecord, ...]
    left_float: FloatLayer | None = None

    @property
    def name(self) -> str:
        """What ``--layer`` takes."""
        return self.left_float.name if self.left_float else self.convs[0].name

    @property
    def label(self) -> str:
        """The name, and how many more convolutions are meant."""
        more = len(self.convs) - 1
        return layer_label(self.name) + (f" +{more}" if more > 0 else "")

    @property
    def activation(self) -> QuantizerRecord | None:
        """The quantizer of what it reads, at the last step."""
        return None if self.group is None else self.group.at("qat") or self.group.at("ptq")

    @property
    def sqnr_db(self) -> float | None:
        """Of what it reads, at the last step; None without noise, too."""
        return None if self.activation is None else self.activation.sqnr_db

    @property
    def histogram(self) -> Histogram | None:
        """Of what it reads."""
        return None if self.group is None else self.group.histogram

    @cached_property
    def bulk(self) -> float | None:
        """The magnitude below which :data:`BULK` of the values lie; exact to a bin of the histogram."""
        return None if self.histogram is None else bulk(self.histogram)

    @property
    def error_share(self) -> float | None:
        """Its group's part of the output errors of all groups, each alone in INT8."""
        if self.group is None or self.group.error is None or self.network.error <= 0:
            return None
        return max(0.0, self.group.error) / self.network.error

    @property
    def macs_share(self) -> float:
        """The group's part of the multiply-accumulates of all INT8 convolutions: what leaving it float takes out."""
        convs = () if self.group is None else self.group.convs
        return sum(conv.macs for conv in convs) / max(1, self.network.macs)

    @cached_property
    def findings(self) -> tuple[tuple[ExportedRecord, LintFinding], ...]:
        """What the lint says of its nodes, with the file; the worst first."""
        order = ("broken", "slow", "warning", "info")
        found = [
            (file, finding)
            for file in self.network.record.files
            if file.lint is not None
            for finding in file.lint.findings
            if any(is_of(finding.module, name) for name in self.conv_names)
        ]
        return tuple(sorted(found, key=lambda entry: order.index(entry[1].severity)))

    @property
    def errors(self) -> tuple[tuple[ExportedRecord, LintFinding], ...]:
        """Those of the findings that cost correctness or speed."""
        return tuple(entry for entry in self.findings if entry[1].severity in ("broken", "slow"))

    @property
    def conv_names(self) -> tuple[str, ...]:
        """The convolutions that were asked for, float ones too."""
        return (self.left_float.name,) if self.left_float else tuple(conv.name for conv in self.convs)

    def kernels(self, file: ExportedRecord | None) -> tuple[KernelRecord, ...]:
        """The launches that compute it in a compiled file."""
        compiled = file.compiler if file else None
        kernels = compiled.kernels if compiled else ()
        return tuple(one for one in kernels if any(is_of(one.module, name) for name in self.conv_names))

    @cached_property
    def noise(self) -> tuple[LayerNoise, ...]:
        """Its quantizers over the epochs, that of what it reads first."""
        group = self.group.name if self.group else ""
        wanted = [("activation", group), *(("weight", name) for name in self.conv_names)]
        rows = {(row.kind, row.layer): row for row in self.network.record.training.noise}
        return tuple(rows[key] for key in wanted if key in rows)

    @property
    def lost_db(self) -> float:
        """The most that one of its quantizers lost up to the kept epoch; 0 if none did, or it was not watched."""
        best = self.network.record.training.best
        ends = [(row.sqnr_db[0], row.sqnr_db[best]) for row in self.noise if best < len(row.sqnr_db)]
        return max((before - after for before, after in ends if before is not None and after is not None), default=0.0)

    @property
    def drift(self) -> float:
        """The largest drift of its ranges at the kept epoch, with its sign."""
        best = self.network.record.training.best
        return max((row.drift[best] for row in self.noise if best < len(row.drift)), key=abs, default=0.0)

    def weights(self) -> list[tuple[ConvRecord, QuantizerRecord]]:
        """The weight quantizers at the last step."""
        return [(conv, conv.weights[-1]) for conv in self.convs if conv.weights]


def is_of(module: str, conv: str) -> bool:
    """Whether a node or kernel of ``module`` belongs to a convolution: itself, or its block's norm and activation."""
    return module == conv or (conv.endswith(".conv") and module.startswith(conv.removesuffix("conv")))


def bulk(histogram: Histogram) -> float:
    """The magnitude below which :data:`BULK` of the values lie, from a histogram's bins, not below the true one."""
    count = len(histogram.counts)
    width = (histogram.high - histogram.low) / count
    edges = [histogram.low + width * index for index in range(count + 1)]
    bins = sorted(
        (max(abs(left), abs(right)), counted)
        for left, right, counted in zip(edges, edges[1:], histogram.counts, strict=False)
    )
    wanted = BULK * sum(histogram.counts)
    sums = accumulate(counted for _, counted in bins)
    return next((reach for (reach, _), total in zip(bins, sums, strict=True) if total >= wanted), bins[-1][0])


class Network:
    """All layers of a run.

    Args:
        record: of the run.
    """

    def __init__(self, record: RunRecord) -> None:
        self.record = record
        self.groups = record.placement.groups
        self.error = sum(max(0.0, group.error or 0.0) for group in self.groups)
        self.macs = sum(conv.macs for group in self.groups for conv in group.convs)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """One for each scale group and each float layer, in the order in which the network computes the groups."""
        left = tuple(Layer(self, None, (), entry) for entry in self.record.placement.float_layers)
        return (*(Layer(self, group, group.convs) for group in self.groups), *left)

    def setting(self, name: str) -> Any:
        """A key of the run's configuration, ``section.key``; its default where the record has none.

        Raises:
            ConfigError: the record holds something that is no such setting.
        """
        section, _, key = name.partition(".")
        values = self.record.settings.get(section)
        given = {key: values[key]} if isinstance(values, dict) and key in values else {}
        return getattr(getattr(Config().with_values(section, **given), section), key)

    @cached_property
    def words(self) -> tuple[str, ...]:
        """The command that made the run.

        Raises:
            ArtifactError: no shell takes it.
        """
        try:
            return tuple(shlex.split(self.record.command))
        except ValueError as exc:
            raise ArtifactError(f"The record's command is none: {exc}. Run `trt-qat run` in its folder again.") from exc

    @property
    def float_file(self) -> ExportedRecord | None:
        """The FP32 file."""
        return self.record.float_file

    @property
    def int8_file(self) -> ExportedRecord | None:
        """The INT8 file that stands for all."""
        return self.record.int8_file

    @property
    def compiled_file(self) -> ExportedRecord | None:
        """The INT8 file whose kernels are looked at: the one that the engine is built from, if it was compiled."""
        engine = self.record.engine
        built_from = None if engine is None else self.record.file(engine.built_from)
        compiled = [file for file in self.record.files if file.step != "fp32" and file.compiler is not None]
        return built_from if built_from in compiled else compiled[-1] if compiled else None

    @property
    def figure(self) -> str:
        """What points are of, ``mAP50-95`` or ``agreement50-95``."""
        return f"{self.record.measure}50-95"

    @property
    def drop_points(self) -> float | None:
        """What the INT8 file costs: FP32's mAP50-95 (or agreement) less its own, in points."""
        if self.float_file is None or self.int8_file is None:
            return None
        return 100 * (self.float_file.result.map50_95 - self.int8_file.result.map50_95)

    @property
    def drop_interval(self) -> str:
        """Between which values 95 % of the resamples of INT8 minus FP32 lie, in words; empty if nothing tells."""
        ours, theirs = self.int8_file, self.float_file
        if ours is None or theirs is None:
            return ""
        found = paired_difference(theirs.result, ours.result)
        return "" if found is None else f" (95 % of resamples {found.low:+.2f} to {found.high:+.2f})"

    def find(self, name: str) -> tuple[Layer, ...]:
        """What a name means: a convolution, a scale group, the beginning of modules' names, or their ending.

        Convolutions that read the same group are one layer.

        Raises:
            ConfigError: nothing has that name; the line says what is near.
        """
        for layer in self.layers:
            if layer.group is not None and layer.group.name == name:
                return (layer,)
        for meant in (_equals, _begins, _ends):
            if found := tuple(self._among(lambda known, meant=meant: meant(known, name))):  # type: ignore[misc]
                return found
        raise ConfigError(f"--layer '{shown_name(name)}': the run has no such layer. {self._near(name)}")

    def _among(self, wanted: Callable[[str], bool]) -> Iterable[Layer]:
        for layer in self.layers:
            if layer.left_float is not None and wanted(layer.left_float.name):
                yield layer
            if convs := tuple(conv for conv in layer.convs if wanted(conv.name)):
                yield Layer(self, layer.group, convs)

    def _near(self, name: str) -> str:
        names = [known for layer in self.layers for known in layer.conv_names]
        names += [group.name for group in self.groups]
        close = difflib.get_close_matches(name, names, n=_NEAREST, cutoff=0.4)
        return f"Near it: {', '.join(close)}." if close else "Without --layer, explain lists those that matter."

    def rank(self, layer: Layer, figure: Callable[[Layer], float | None], *, lowest_first: bool) -> int | None:
        """The place of a layer's group among all, 1 is the worst; None if it has no such figure."""
        own = figure(layer)
        others = [value for entry in self.layers if entry.group is not None and (value := figure(entry)) is not None]
        return None if own is None else 1 + sum(value < own if lowest_first else value > own for value in others)

    @cached_property
    def weight_count(self) -> int:
        """How many weights have a quantizer."""
        return sum(len(layer.weights()) for layer in self.layers)

    def weight_rank(self, sqnr_db: float) -> int:
        """The place of a weight's SQNR among all weights, 1 is the weakest."""
        return 1 + sum(
            weight.sqnr_db is not None and weight.sqnr_db < sqnr_db
            for layer in self.layers
            for _, weight in layer.weights()
        )


def _equals(known: str, name: str) -> bool:
    return known == name


def _begins(known: str, name: str) -> bool:
    return known.startswith(f"{name}.")


def _ends(known: str, name: str) -> bool:
    return known.endswith(f".{name}")


@dataclass(frozen=True)
class Listed:
    """A layer that stands out, and why: the worst reason first, each with its figure."""

    layer: Layer
    reasons: tuple[str, ...]


def standing_out(network: Network, among: Sequence[Layer] | None = None) -> tuple[Listed, ...]:
    """Layers with what stands out in them.

    Args:
        among: which; all of them are listed. None for all of the network that stand out.
    """
    listed = [Listed(layer, tuple(_reasons(layer))) for layer in (network.layers if among is None else among)]
    shown = [entry for entry in listed if entry.reasons or among is not None]
    return tuple(sorted(shown, key=lambda entry: _badness(entry.layer)))


def _badness(layer: Layer) -> tuple[int, float, float]:
    """Sorts what lint calls an error first, then by the cost at the network's output, then by the layer's own noise."""
    sqnr = layer.sqnr_db
    return -len(layer.errors), -(layer.error_share or 0.0), float("inf") if sqnr is None else sqnr


def _reasons(layer: Layer) -> Iterable[str]:
    for _, finding in layer.errors[:1]:
        yield f"lint: {finding.rule} ({finding.severity})"
    share = layer.error_share
    place = layer.network.rank(layer, lambda entry: entry.error_share, lowest_first=False)
    if share is not None and place is not None and (share >= LARGE_SHARE or place <= EXTREMES):
        yield f"{numbers.share(share)} of the summed output error"
    place = layer.network.rank(layer, lambda entry: entry.sqnr_db, lowest_first=True)
    if layer.sqnr_db is not None and place is not None and place <= EXTREMES:
        yield f"SQNR {layer.sqnr_db:.1f} dB, {weakest(place)}"
    for conv, weight in layer.weights():
        of_all = None if weight.sqnr_db is None else layer.network.weight_rank(weight.sqnr_db)
        if of_all is not None and of_all <= EXTREMES:
            yield f"weights of {conv.name}: {weight.sqnr_db:.1f} dB, {weakest(of_all)}"
    if layer.histogram is not None and layer.histogram.clipped >= CLIPPED:
        yield f"{numbers.share(layer.histogram.clipped)} of its values clipped"
    if layer.lost_db >= LOST_DB:
        yield f"lost {layer.lost_db:.1f} dB in the fine-tuning"
    if abs(layer.drift) >= DRIFT:
        yield f"a range drifted by {layer.drift:+.0%}"


def weakest(place: int) -> str:
    """``weakest``, ``2nd weakest`` ..."""
    ending = "th" if place % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(place % 10, "th")
    return "weakest" if place == 1 else f"{place}{ending} weakest"
