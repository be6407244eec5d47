"""What is said of a layer: the record's own figures, ranks among the others, and commands that can be typed."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from example_record import example_record

from trt_qat.cli import cli
from trt_qat.config import Config
from trt_qat.errors import ArtifactError, ConfigError, TrtQatError
from trt_qat.report.explain import HEADER, explain, overview
from trt_qat.report.layer_facts import Layer, Network, bulk, is_of, standing_out
from trt_qat.report.numbers import span
from trt_qat.report.record import (
    FloatLayer,
    GroupRecord,
    Histogram,
    LayerNoise,
    QuantizerRecord,
    RunRecord,
    write_record,
)
from trt_qat.report.remedies import RULES, Remedy, remedies
from trt_qat.report.text_histogram import COLUMNS, ROWS, text_histogram

RUN = Path("runs/demo/result")
RECORD = example_record()
WORST = 0  # the group with the largest error


def changed(record: RunRecord, **values: Any) -> RunRecord:
    return record.model_copy(update=values)


def with_group(index: int, record: RunRecord = RECORD, **values: Any) -> RunRecord:
    groups = [
        group.model_copy(update=values) if place == index else group
        for place, group in enumerate(record.placement.groups)
    ]
    return changed(record, placement=record.placement.model_copy(update={"groups": tuple(groups)}))


def with_settings(record: RunRecord = RECORD, **values: Any) -> RunRecord:
    """Settings by ``section__key``."""
    settings: dict[str, Any] = json.loads(json.dumps(record.settings))
    for name, value in values.items():
        section, _, key = name.partition("__")
        settings[section][key] = value
    return changed(record, settings=settings)


def with_map(qat: float, record: RunRecord = RECORD) -> RunRecord:
    """All files of the last step with this mAP50-95; FP32 has 0.3776."""
    files = [
        file.model_copy(update={"result": replace(file.result, map50_95=qat)}) if file.step == "qat" else file
        for file in record.files
    ]
    return changed(record, files=tuple(files))


def layer(record: RunRecord, index: int = WORST) -> Layer:
    return Network(record).layers[index]


def found(record: RunRecord, index: int = WORST) -> dict[str, Remedy]:
    """What is advised for a group, by rule."""
    return {entry.rule: entry for entry in remedies(layer(record, index), RUN)}


def peaked(low: float, high: float, clipped: float = 0.0) -> Histogram:
    """A hundred bins; all values but one in ten thousand in the lowest ten."""
    counts = (*[100_000] * 10, *[1] * 90)
    return Histogram(low=low, high=high, counts=counts, clipped=clipped, below_one_step=0.4, images=16)


def group_of(index: int, record: RunRecord = RECORD) -> GroupRecord:
    return record.placement.groups[index]


# Figures ---------------------------------------------------------------------------------------------------------


def test_figures_of_a_layer() -> None:
    groups = RECORD.placement.groups
    errors = [group.error or 0 for group in groups]
    assert errors.index(max(errors)) == WORST
    found = layer(RECORD)
    assert found.error_share == pytest.approx(errors[WORST] / sum(errors))
    macs = [sum(conv.macs for conv in group.convs) for group in groups]
    assert layer(RECORD, 3).macs_share == pytest.approx(macs[3] / sum(macs))
    assert found.sqnr_db == pytest.approx(25.0)  # at QAT; 24.0 at PTQ
    assert Network(RECORD).rank(found, lambda entry: entry.sqnr_db, lowest_first=True) == 1
    assert Network(RECORD).rank(found, lambda entry: entry.error_share, lowest_first=False) == 1
    assert Network(RECORD).drop_points == pytest.approx(100 * (0.3776 - 0.3789))


def test_the_bulk_of_a_histogram() -> None:
    """999 of 1000 values lie in the lowest tenth; the far side of a negative span counts as well."""
    assert bulk(peaked(0.0, 10.0)) == pytest.approx(1.0)
    assert bulk(peaked(-10.0, 10.0)) == pytest.approx(10.0)
    even = Histogram(low=0.0, high=8.0, counts=(5,) * 8, clipped=0.0, below_one_step=0.0, images=1)
    assert bulk(even) == pytest.approx(8.0)


@pytest.mark.parametrize(
    ("module", "conv", "belongs"),
    [
        ("model.2.cv1.conv", "model.2.cv1.conv", True),
        ("model.2.cv1.act", "model.2.cv1.conv", True),
        ("model.2.cv10.conv", "model.2.cv1.conv", False),
        ("model.22.cv2.0.2", "model.22.cv2.0.2", True),
        ("model.22.cv2.0.20", "model.22.cv2.0.2", False),
        ("", "model.0.conv", False),
    ],
)
def test_kernels_and_nodes_belong_to_their_block(module: str, conv: str, belongs: bool) -> None:
    assert is_of(module, conv) is belongs


def test_loss_and_drift_are_those_of_the_kept_epoch() -> None:
    rows = (
        LayerNoise(kind="activation", layer="silu", sqnr_db=(30.0, 26.5, 20.0), drift=(0.0, 0.1, 0.7)),
        LayerNoise(kind="weight", layer="model.0.conv", sqnr_db=(40.0, 39.0, None), drift=(0.0, -0.6, 0.9)),
        LayerNoise(kind="weight", layer="model.1.conv", sqnr_db=(40.0, 1.0, 1.0), drift=(0.0, 0.0, 0.0)),
    )
    record = changed(RECORD, training=RECORD.training.model_copy(update={"noise": rows, "best": 1}))
    assert [row.layer for row in layer(record).noise] == ["silu", "model.0.conv"]
    assert layer(record).lost_db == pytest.approx(3.5)
    assert layer(record).drift == pytest.approx(-0.6)


# Names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("model.3.conv", ["model.3.conv"]),
        ("silu_3", ["model.3.conv", "model.3.m.0.cv1.conv"]),
        ("model.3", ["model.3.conv", "model.3.m.0.cv1.conv"]),
        ("model.3.m.0.cv1", ["model.3.m.0.cv1.conv"]),
        ("3.m.0.cv1.conv", ["model.3.m.0.cv1.conv"]),
        ("model.22.dfl", ["model.22.dfl.conv"]),
    ],
)
def test_names(name: str, meant: list[str]) -> None:
    (layer,) = Network(RECORD).find(name)
    assert list(layer.conv_names) == meant


def test_a_name_of_several_layers() -> None:
    assert [layer.name for layer in Network(RECORD).find("model.22")] == ["model.22.cv2.0.2", "model.22.dfl.conv"]
    assert len(Network(RECORD).find("cv1.conv")) == 4


def test_an_unknown_name_names_its_neighbours() -> None:
    with pytest.raises(
        ConfigError, match=r"--layer 'model\.3\.cnv': the run has no such layer\. Near it: model\.3\.conv"
    ):
        Network(RECORD).find("model.3.cnv")
    with pytest.raises(ConfigError, match=r"Without --layer, explain lists those that matter\."):
        Network(RECORD).find("zzz")


# The list --------------------------------------------------------------------------------------------------------


def test_the_worst_comes_first() -> None:
    rows = standing_out(Network(RECORD))
    assert rows[0].layer.name == "model.4.conv"  # the lint finds something slow there
    assert rows[0].reasons[0] == "lint: requantize (slow)"
    shares = [row.layer.error_share or 0 for row in rows[1:]]
    assert shares == sorted(shares, reverse=True)
    assert rows[1].layer.group == group_of(WORST)
    assert rows[1].reasons[0] == "28 % of the summed output error"
    assert "SQNR 25.0 dB, weakest" in rows[1].reasons


def test_a_layer_without_a_reason_is_listed_only_if_asked_for() -> None:
    calm = example_record(groups=40)
    listed = overview(calm, RUN)
    assert 3 <= len(listed.rows) < 40
    assert all(row.reasons for row in listed.rows)
    asked = overview(calm, RUN, Network(calm).layers)
    assert len(asked.rows) == 42
    assert all(len(cells) == len(HEADER) for cells in asked.cells())


# What to try -----------------------------------------------------------------------------------------------------


def test_where_int8_costs_nothing_the_first_advice_is_to_leave_it() -> None:
    first, *more = remedies(layer(RECORD), RUN)
    assert (first.rule, first.command) == ("leave-it", None)
    assert "28 % of the summed output error" in first.why
    assert "0.13 points of mAP50-95 above FP32 (95 % of resamples" in first.expected
    assert more, "it is still said what could be done"
    assert "leave-it" not in found(with_map(0.37))


def test_a_lint_error_comes_first() -> None:
    first = remedies(layer(RECORD, 4), RUN)[0]
    assert first.rule == "lint-error"
    assert first.action == "Give both readers one quantizer."
    assert first.command == "trt-qat lint runs/demo/result/ptq.onnx --target openvino"


def test_a_range_far_above_the_values() -> None:
    """Of 127 steps for +-7.1 the values up to 0.71 have 13."""
    record = with_group(WORST, histogram=peaked(0.0, 7.1))
    remedy = found(record)["other-calibrator"]
    assert remedy.why == (
        "99.9 % of its values lie within 0.71, its range is 7.1: they have 13 of 127 steps, and 40 % round to zero."
    )
    assert "percentile 99.99 0.0052, mse 0.0067, entropy 0.0098" in remedy.expected
    assert remedy.command is not None
    assert remedy.command.endswith("--set quantization.auto_per_group=true")
    given = found(with_settings(record, quantization__calibrator="max"))["other-calibrator"]
    assert given.command is not None
    assert given.command.endswith("--set quantization.calibrator=auto")
    done = found(with_settings(record, quantization__auto_per_group=True))
    assert "other-calibrator" not in done
    assert done["learned-range"].command is not None
    assert done["learned-range"].command.endswith("--set qat.lsq=true --set qat.epochs=6")
    assert "6 epochs take about 14 minutes" in done["learned-range"].expected  # 137.5 s each
    assert "learned-range" not in found(
        with_settings(record, quantization__auto_per_group=True, qat__lsq=True),
    )
    assert "other-calibrator" not in found(with_group(5, histogram=peaked(0.0, 7.1)), 5), "5.6 % is little"


def test_clipped_values() -> None:
    even = Histogram(low=-1.0, high=9.0, counts=(7,) * 50, clipped=0.21, below_one_step=0.0, images=4)
    remedy = found(with_group(WORST, histogram=even))["other-calibrator"]
    assert remedy.why == "21 % of its values lie beyond its range of 7.1 and are clipped; the largest is 9."


def test_weights_with_one_scale() -> None:
    conv = group_of(WORST).convs[0]
    weak = conv.model_copy(
        update={"weights": tuple(entry.model_copy(update={"sqnr_db": 28.0}) for entry in conv.weights)}
    )
    record = with_group(WORST, convs=(weak,))
    assert "weights-per-channel" not in found(record)
    record = changed(record, placement=record.placement.model_copy(update={"weights": "tensor"}))
    remedy = found(record)["weights-per-channel"]
    assert remedy.why == "The weights of model.0.conv have one scale for 32 channels and 28.0 dB."
    assert remedy.expected.startswith("2 dB more at least")


def test_lost_in_training() -> None:
    row = LayerNoise(kind="activation", layer="silu", sqnr_db=(30.0, 28.0, 26.0), drift=(0.0, 0.2, 0.6))
    record = changed(RECORD, training=RECORD.training.model_copy(update={"noise": (row,)}))
    remedy = found(record)["smaller-steps"]
    assert remedy.why == "A quantizer of it lost 4.0 dB up to epoch 2, and a range drifted by +60%."
    assert remedy.command is not None
    assert remedy.command.endswith("--set qat.lr0=5e-06")


def test_more_epochs_only_while_the_last_is_the_best() -> None:
    assert "more-epochs" not in found(RECORD), "the second of three is the best"
    whole = RECORD.training
    rising = changed(RECORD, training=whole.model_copy(update={"epochs": whole.epochs[:3]}))
    remedy = found(rising)["more-epochs"]
    assert remedy.why == ("The fake-quantized network's mAP50-95 rose by 0.36 points in the last epoch, the best one.")
    assert remedy.command is not None
    assert remedy.command.endswith("--set qat.epochs=6")
    assert remedy.command.count("qat.epochs") == 1, "the earlier setting is replaced"
    assert "more-epochs" not in found(rising, 5), "5.6 % is little"


def test_members_of_a_group_that_reach_differently_far() -> None:
    large = group_of(1).convs[0].model_copy(update={"input_max": 5.9})
    small = group_of(1).convs[1].model_copy(update={"input_max": 0.5})
    record = with_group(1, convs=(large, small), error=1.0)
    remedy = found(record, 1)["unlike-members"]
    assert remedy.why == (
        "model.1.m.0.cv1.conv reads values up to 0.5 on a scale made for 5.92, 11 of 127 steps; "
        "model.1.conv reads the large ones."
    )
    assert remedy.command is not None
    assert remedy.command.endswith("--set 'quantization.exclude=[model.1.conv]'")
    alike = with_group(1, convs=(large, small.model_copy(update={"input_max": 4.0})), error=1.0)
    assert "unlike-members" not in found(alike, 1)


def test_leaving_a_costly_group_float() -> None:
    remedy = found(with_settings(quantization__exclude=["model.9"]))["leave-float"]
    assert remedy.why == "This group alone costs 28 % of the summed output error, and 0.31 points of mAP50-95."
    share = group_of(WORST).convs[0].macs / Network(RECORD).macs
    assert f"costs {100 * share:.2g} % of the INT8 multiply-accumulates in FP16." in remedy.expected
    assert remedy.command is not None
    assert remedy.command.endswith("--set 'quantization.exclude=[model.9,model.0.conv]'")
    assert "leave-float" not in found(RECORD, 5)


def test_what_a_mix_measured_is_said() -> None:
    remedy = found(with_group(1, error=1.0), 1)["leave-float"]
    assert remedy.expected.endswith("Measured: 0.21 points below float, 18.9 ms.")


def test_a_budget_where_int8_costs_map() -> None:
    record = with_settings(with_map(0.3676), qat__max_drop=None)
    remedy = found(record)["budget"]
    assert remedy.why.startswith("qat_tensorrt-rtx is 1.00 points of mAP50-95 below FP32, and this group is number 1")
    assert remedy.command is not None
    assert remedy.command.endswith("--set qat.max_drop=0.5")
    assert "budget" not in found(with_map(0.3676)), "it has one already"
    assert "budget" not in found(with_settings(qat__max_drop=None)), "it costs nothing"


def float_record(reason: str) -> RunRecord:
    """The two convolutions of the second group left float for a reason."""
    left = tuple(FloatLayer(name=conv.name, reason=reason) for conv in group_of(1).convs)
    placement = RECORD.placement.model_copy(update={"groups": RECORD.placement.groups[2:], "float_layers": left})
    return changed(RECORD, placement=placement)


@pytest.mark.parametrize(
    ("reason", "settings", "ending"),
    [
        ("role first_conv", {"float_roles": ["first_conv", "dfl"]}, "--set 'quantization.float_roles=[dfl]'"),
        (
            "excluded by 'model.1'",
            {"exclude": ["model.1", "*.9"]},
            "--set 'quantization.exclude=[\"*.9\",model.1.m.0.cv1.conv]'",
        ),
    ],
)
def test_a_float_layer_with_much_work(reason: str, settings: dict[str, Any], ending: str) -> None:
    record = with_settings(float_record(reason), **{f"quantization__{key}": value for key, value in settings.items()})
    (layer,) = Network(record).find("model.1.conv")
    remedy = {entry.rule: entry for entry in remedies(layer, RUN)}["to-int8"]
    kernels = layer.kernels(record.file("fp32"))
    whole = sum(kernel.macs for kernel in record.file("fp32").compiler.kernels)  # type: ignore[union-attr]
    share = sum(kernel.macs for kernel in kernels) / whole
    assert f"{100 * share:.0f} % of the network's multiply-accumulates" in remedy.why
    assert remedy.command is not None
    assert remedy.command.endswith(ending)


def test_the_head_stays_float() -> None:
    record = float_record("role head_last")
    (only,) = remedies(Network(record).find("model.1.conv")[0], RUN)
    assert only.rule == "leave-it"
    assert only.why == "It is float: role head_last."
    assert "smaller than a step of INT8" in only.expected


def test_what_moves_more_in_int8() -> None:
    files = [
        file.model_copy(
            update={
                "compiler": file.compiler.model_copy(
                    update={
                        "kernels": tuple(
                            kernel.model_copy(update={"activation_bytes": 900_000, "weight_bytes": 0})
                            for kernel in file.compiler.kernels
                        )
                    }
                )
            }
        )
        if file.compiler
        else file
        for file in RECORD.files
    ]
    remedy = found(changed(RECORD, files=tuple(files)))["moves-more"]
    assert remedy.why == (
        "In INT8 TensorRT-RTX moves 1.80 MB for it in 2 kernels; "
        "in FP16 that would be about 0.45 MB, half of FP32's, in 1."
    )
    assert remedy.command == (
        "trt-qat advise --weights detector.safetensors --data data.yaml --gpu rtx4090 --out result-advice"
    )


def test_a_layer_that_a_budget_left_float() -> None:
    (only,) = remedies(Network(float_record("left float to meet qat.max_drop")).find("model.1.conv")[0], RUN)
    assert only.rule == "leave-it"
    assert only.expected.endswith("the mix that was kept is 0.21 points below float, all in INT8 0.62.")


@pytest.mark.parametrize(
    ("record", "error", "said"),
    [
        (changed(RECORD, command="trt-qat 'run"), ArtifactError, "The record's command is none: No closing quotation"),
        (with_settings(quantization__exclude=7), ConfigError, r"quantization\.exclude"),
    ],
)
def test_a_record_that_somebody_edited(record: RunRecord, error: type[TrtQatError], said: str) -> None:
    with pytest.raises(error, match=said):
        remedies(layer(record), RUN)


# Commands --------------------------------------------------------------------------------------------------------


def all_advice() -> Iterator[Remedy]:
    worst = with_group(
        WORST,
        histogram=peaked(0.0, 7.1, clipped=0.2),
        convs=tuple(conv.model_copy(update={"input_max": 9.0}) for conv in group_of(WORST).convs),
    )
    row = LayerNoise(kind="activation", layer="silu", sqnr_db=(30.0, 20.0, 21.0, 22.0), drift=(0.0, 0.2, 0.6, 0.6))
    worst = changed(worst, training=worst.training.model_copy(update={"noise": (row,), "best": 3}))
    worst = with_settings(with_map(0.3676, worst), qat__max_drop=None)
    for record in (
        worst,
        with_settings(worst, quantization__calibrator="mse"),
        with_settings(worst, quantization__auto_per_group=True),
        float_record("excluded by 'model.1'"),
        RECORD,
    ):
        for entry in Network(record).layers:
            yield from remedies(entry, RUN)


def parsed(line: str) -> click.Context:
    """What the command line interface itself makes of a printed command, without running it."""
    program, verb, *words = shlex.split(line)
    assert program == "trt-qat"
    return cli.commands[verb].make_context(verb, words)


def test_every_printed_command_can_be_typed() -> None:
    commands = {entry.command for entry in all_advice() if entry.command is not None}
    compare = explain(layer(RECORD), RUN).compare
    assert compare == "trt-qat compare runs/demo/result result-tried"
    commands.add(compare)
    assert len(commands) > 8
    for command in commands | {overview(RECORD, RUN).command}:
        parameters = parsed(command).params
        Config.load((), parameters["overrides"])  # unknown keys and bad values are refused
        assert f"--out {RUN.name} " not in f"{command} ", "the run itself is left as it is"


def test_no_advice_without_a_figure() -> None:
    for entry in all_advice():
        assert any(letter.isdigit() for letter in entry.why + entry.expected), entry
        assert entry.rule in {rule.name for rule in RULES} | {"leave-it"}


# What is printed -------------------------------------------------------------------------------------------------


def test_the_whole_answer() -> None:
    explanation = explain(layer(RECORD, 3), RUN)
    text = explanation.as_text()
    group = group_of(3)
    for expected in (
        "model.3.conv: convolution 3x3, 128 → 256 channels, 6.0 M multiply-accumulates per image",
        "INT8: reads scale group silu_3, weights with a scale per output channel.",
        f"PTQ: ±{7.5 / 1.6:.4g}, by percentile 99.99, the best of 4 tried",
        f"QAT: ±{7.1 / 1.6:.4g} (-5.3% by the fine-tuning)",
        "0.052 % clipped, 9.1 % round to zero",
        f"Output error with this group alone in INT8: {group.error:.3g}",
        "Nothing at its nodes in ptq, qat, qat_tensorrt, qat_tensorrt-rtx.",
        "What NVIDIA's compiler makes of it (tensorrt-rtx 1.7.1, SM 89, not run)",
        "What to try, in this order\n  1. Leave it.",
    ):
        assert expected in text
    assert list(explanation.as_dict()) == [
        "layer", "what", "range", "sqnr", "sensitivity", "shares_scale", "lint", "compiler", "try", "compare",
    ]  # fmt: skip
    figures = json.loads(json.dumps(explanation.as_dict()))
    assert figures["range"]["ranges"] == pytest.approx({"ptq": 7.5 / 1.6, "qat": 7.1 / 1.6})
    assert figures["sqnr"]["weights"][1]["sqnr_db"]["qat"] == pytest.approx(38.2 + 1.2 - 2)
    assert figures["try"][0]["rule"] == "leave-it"


def test_what_shares_the_scale() -> None:
    conv = Network(RECORD).find("model.5.conv")[0]
    figures = explain(conv, RUN).as_dict()["shares_scale"]
    assert figures["group"] == "silu_5"
    assert figures["convolutions"] == ["model.5.m.0.cv1.conv"]
    assert figures["adds"] == ["model.5.m.0"]
    assert figures["written_by"] == ["model.4.conv"]


def test_a_float_layer_is_explained_too() -> None:
    text = explain(Network(RECORD).find("model.22.dfl")[0], RUN).as_text()
    assert "It stays float: role dfl." in text
    assert "Leave it." in text


def test_a_record_with_nothing_measured() -> None:
    """Without histogram, sensitivity, curves of the fine-tuning, compiler, drawing."""
    record = with_group(WORST, histogram=None, error=None, map50_95_drop=None)
    record = changed(
        record,
        files=tuple(file.model_copy(update={"compiler": None, "lint": None}) for file in record.files),
        training=record.training.model_copy(update={"noise": ()}),
        drawing=None,
    )
    explanation = explain(layer(record), RUN)
    assert [section.key for section in explanation.sections] == ["what", "range", "sqnr", "shares_scale", "lint"]
    assert [entry.rule for entry in explanation.remedies] == ["leave-it"]


def test_a_name_that_is_no_name(tmp_path: Path) -> None:
    """Neither a terminal's escape sequences nor the table's markup are obeyed."""
    conv = group_of(WORST).convs[0].model_copy(update={"name": "model.0\x1b[2J[/red].conv"})
    record = with_group(WORST, convs=(conv,))
    assert "model.0\N{REPLACEMENT CHARACTER}[2J[/red].conv: convolution" in explain(layer(record), RUN).as_text()
    write_record(tmp_path, record)
    listed = CliRunner().invoke(cli, ["explain", str(tmp_path)])
    assert listed.exit_code == 0, listed.output
    assert "[2J[/red]" in listed.output
    assert "\x1b" not in listed.output


def test_nothing_at_all_was_measured_or_everything_is_zero() -> None:
    nothing = Histogram(low=0.0, high=0.0, counts=(0,) * 4, clipped=0.0, below_one_step=0.0, images=0)
    group = group_of(WORST)
    still = tuple(entry.model_copy(update={"amax": 0.0, "sqnr_db": None}) for entry in group.activation)
    conv = group.convs[0].model_copy(update={"weights": (), "macs": 0})
    bare = group.model_copy(update={"histogram": nothing, "activation": still, "convs": (conv,), "error": 0.0})
    row = LayerNoise(kind="activation", layer="silu", sqnr_db=(), drift=())
    record = changed(
        RECORD,
        placement=RECORD.placement.model_copy(update={"groups": (bare,), "float_layers": ()}),
        training=RECORD.training.model_copy(update={"epochs": (), "noise": (row,)}),
    )
    assert [row.layer.name for row in overview(record, RUN).rows] == ["model.0.conv"]
    assert [entry.rule for entry in explain(layer(record), RUN).remedies] == ["leave-it"]


def test_histogram_of_a_positive_tensor() -> None:
    lines = text_histogram(peaked(0.0, 10.0), (-5.0, 5.0))
    assert len(lines) == ROWS + 2
    assert {len(line) for line in lines} == {COLUMNS}
    assert lines[0].rstrip() == "██████▅"  # a tenth of the columns
    assert [place for place, mark in enumerate(lines[ROWS]) if mark == "┻"] == [COLUMNS // 2]
    assert lines[-1].split() == ["0", "seen", "range", "5,", "10", "seen"]


def test_histogram_with_room_above_and_with_two_sides() -> None:
    wide = text_histogram(peaked(0.0, 10.0), (-20.0, 20.0))
    assert wide[ROWS][-1] == "┻"
    assert wide[-1].endswith("10 seen, range 20")
    both = text_histogram(peaked(-10.0, 10.0), (-10.0, 10.0))
    assert (both[ROWS][0], both[ROWS][-1]) == ("┻", "┻")


def test_both_ends_of_an_asymmetric_range() -> None:
    lines = text_histogram(peaked(-1.0, 10.0), (-1.5, 8.0))
    assert [place for place, mark in enumerate(lines[ROWS]) if mark == "┻"] == [0, int(9.5 / 11.5 * COLUMNS)]
    entry = QuantizerRecord(step="ptq", amax=4.73, sqnr_db=30.0, ends=(-1.5, 8.0))
    assert (entry.range, entry.reach) == ((-1.5, 8.0), 8.0)
    assert span(entry.range) == "\u22121.5 to 8"
    assert span(QuantizerRecord(step="ptq", amax=4.73, sqnr_db=30.0).range) == "\u00b14.73"
    shifted = tuple(entry.model_copy(update={"ends": (-0.25, 7.5)}) for entry in group_of(WORST).activation)
    explained = explain(layer(with_group(WORST, activation=shifted)), RUN)
    said = next(section for section in explained.sections if section.key == "range").lines[0]
    assert said.startswith("PTQ: \u22120.25 to 7.5, by ")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_record(tmp_path, RECORD)
    return tmp_path


def test_the_command(run: Path) -> None:
    runner = CliRunner()
    listed = runner.invoke(cli, ["explain", str(run)])
    assert listed.exit_code == 0, listed.output
    assert listed.output.splitlines()[-1] == f"Next: trt-qat explain {run} --layer model.4.conv"
    out = run / "layer.json"
    one = runner.invoke(cli, ["explain", str(run / "run.json"), "--layer", "model.3", "--json", str(out)])
    assert one.exit_code == 0, one.output
    assert "What to try, in this order" in one.output
    assert json.loads(out.read_text())["layer"] == "model.3.conv"
    several = runner.invoke(cli, ["explain", str(run), "--layer", "model.22"])
    assert "model.22.dfl.conv (float)" in several.output
    assert "model.3" not in several.output


def test_needs_no_training_framework() -> None:
    code = (
        "import sys, trt_qat.report.explain;"
        "print(sorted({'torch', 'tensorrt', 'tensorrt_rtx', 'ultralytics', 'pygraphviz'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
