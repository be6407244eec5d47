"""Where the FP32 model made the labels, nothing that a user sees calls agreement with it mAP."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from example_record import example_record

from trt_qat.cli import cli
from trt_qat.config import Config, ParitySection
from trt_qat.engine.compiled import CompiledEngine
from trt_qat.engine.roofline import GPUS, Estimate
from trt_qat.errors import ArtifactError, ConsistencyError
from trt_qat.evaluation import sensitivity_chart
from trt_qat.evaluation.group_sensitivity import GroupSensitivity
from trt_qat.evaluation.head import HeadDecision
from trt_qat.evaluation.parity_report import MapPair, broken_thresholds, read_parity, write_parity
from trt_qat.evaluation.report import markdown_table
from trt_qat.evaluation.sensitivity import Ranking, SensitivityFile, ranking_of
from trt_qat.mixed_precision.advice import FACTORED, FP16, Advice, Form
from trt_qat.mixed_precision.budget_search import Measured, Search, Step
from trt_qat.mixed_precision.files import REPORT, kept_budget, read_budget
from trt_qat.mixed_precision.mixes import Budget, _report, table
from trt_qat.report.answer import answer
from trt_qat.report.compare import Tolerance, compare
from trt_qat.report.explain import explain, overview
from trt_qat.report.layer_facts import Network
from trt_qat.report.markdown import markdown_report
from trt_qat.report.page import html_page
from trt_qat.report.record import RunRecord, read_record, write_record
from trt_qat.results import NO_ACCURACY, NOT_ONE, read_rows, write_rows

RECORD = example_record(measure="agreement")
ROWS = tuple(entry.result for entry in RECORD.files)
PAIR = RECORD.parity[0].model_copy(update={"map50_95": MapPair(first=0.98, second=0.92)})
HEAD = HeadDecision(0.99, 0.989, 64, "agreement")
ALL_SETTINGS = json.dumps(Config().model_dump(mode="json"))
NAMED = re.compile(r"(?<![a-z])map(?![a-z])", re.IGNORECASE)  # mAP50-95, map50_95, max_map_drop; not "mapped"
BINARY = re.compile(r'data:[\w/]+;base64,[^"]*|"jpeg": "[^"]*"')


def clean(text: str) -> str:
    """The text itself, if it does not say mAP."""
    shown = BINARY.sub("", text)
    found = NAMED.search(shown)
    assert found is None, f"...{shown[max(0, found.start() - 60) : found.end() + 60]}..."
    return text


@cache
def page() -> str:
    return html_page(example_record(groups=2, images=1, measure="agreement"))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, list(map(str, arguments)))


def in_budget(met: bool) -> dict[str, Any]:
    """What a search for a mix reports, of two mixes."""
    int8 = Step(0, (), Measured(0.90, 2.0, 2.0), "fine-tuned")
    some = Step(1, ("g",), Measured(0.97, 2.5, 2.0), "calibrated", "error")
    return _report(Search((int8, some), int8, met=met), Measured(0.99, 9.0, 2.0), [], 0.5, "agreement")


def advice(max_drop: float | None) -> Advice:
    engine = CompiledEngine("x.onnx", "tensorrt-rtx", "1.7", 89, ())
    forms = (
        Form(name, Path("x.onnx"), engine, Estimate(GPUS["rtx4090"], (), ms, 2.0, lower_bound=False), value)
        for name, ms, value in ((FP16, 1.0, 0.99), (FACTORED, 0.5, 0.9))
    )
    return Advice(GPUS["rtx4090"], 1, max_drop, tuple(forms), 4, "agreement")


def explained(record: RunRecord) -> str:
    layers = [explain(layer, Path("runs/mine")) for layer in Network(record).layers]
    return "\n".join(text for found in layers for text in (found.as_text(), json.dumps(found.as_dict())))


def budget_text(met: bool) -> str:
    content = in_budget(met)
    header, rows, said = table(content)
    return "\n".join((str(header), str(rows), said, json.dumps(content)))


RENDERINGS: dict[str, tuple[Callable[[], str], str]] = {
    "the answer": (
        lambda: answer(RECORD),
        "agrees with FP32 to 0.3789 (agreement50-95; FP32 itself 0.3776: +0.13",
    ),
    "the page": (page, '<th scope="col" class="n fold">agreement<wbr><span>50-95</span></th>'),
    "Markdown": (lambda: markdown_report(RECORD), "| file | agreement50-95 | points | 95 % | agreement50 |"),
    "what was evaluated": (lambda: markdown_table(ROWS), "| agreement50-95 | agreement50 |"),
    "evaluate --json": (lambda: json.dumps([row.as_dict() for row in ROWS]), '"agreement50_95": 0.3776'),
    "explain": (lambda: explained(RECORD), "agreement50-95 with this group alone in INT8: -0.31 points."),
    "the overview": (lambda: json.dumps(overview(RECORD, Path("r")).as_dict()), "model.0"),
    "parity": (lambda: "\n".join(PAIR.lines()), "agreement50-95: 0.9800 and 0.9200, -6.00 points"),
    "parity not measured": (
        lambda: "\n".join(PAIR.model_copy(update={"map50_95": None, "not_measured": "No box."}).lines()),
        "agreement50-95: not measured. No box.",
    ),
    "parity --json": (lambda: json.dumps(PAIR.as_dict()), '"agreement50_95": {"first": 0.98'),
    "a broken threshold": (
        lambda: "\n".join(broken_thresholds(PAIR, ParitySection())),
        "agreement50-95 falls by 6.00 points (parity.max_drop=1, 1.4 on so few images)",
    ),
    "a budget": (lambda: budget_text(met=True), "All INT8 is within 0.5 points of agreement50-95."),
    "a budget that is missed": (lambda: budget_text(met=False), "No mix is within 0.5 points of agreement50-95;"),
    "advice": (lambda: json.dumps(advice(0.5).as_dict()), "no INT8 form within 0.5 points of agreement50-95 is"),
    "the head's decision": (
        lambda: f"{HEAD} {json.dumps(HEAD.as_dict())}",
        '{"int8": true, "float_agreement50_95": 0.99, "int8_agreement50_95": 0.989',
    ),
    "the settings": (lambda: ALL_SETTINGS, '"max_drop": 1.0'),
}


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_nothing_calls_agreement_map(rendering: str) -> None:
    make, said = RENDERINGS[rendering]
    assert said in clean(make())


def test_page_and_markdown_say_what_it_is_not() -> None:
    for said in (NO_ACCURACY, NOT_ONE):
        assert said in page()
        assert said in markdown_report(RECORD)
    assert "Agreement against latency" in page()
    assert NO_ACCURACY not in markdown_report(example_record())


def test_a_record_says_once_what_was_measured(tmp_path: Path) -> None:
    file = write_record(tmp_path, RECORD)
    content = json.loads(clean(file.read_text()))
    assert content["measure"] == "agreement"
    assert content["training"]["epochs"][1]["agreement50_95"] == 0.3755
    assert content["budget"]["mixes"][0]["agreement50_95"] == pytest.approx(0.3714)
    assert content["placement"]["groups"][0]["agreement50_95_drop"] == pytest.approx(0.0031)
    assert content["files"][0]["result"]["details"].keys() >= {"agreement75", "agreement95"}
    assert read_record(tmp_path) == RECORD
    content["files"][0]["result"] = replace(ROWS[0], measure="mAP").as_dict() | {"measure": "mAP"}
    file.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match="file 'fp32' says mAP, the run agreement"):
        read_record(tmp_path)


def test_files_are_read_as_they_were_written(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.json", ROWS)
    assert read_rows(tmp_path / "rows.json") == ROWS
    write_parity(tmp_path / "parity.json", [PAIR])
    assert read_parity(tmp_path / "parity.json") == (PAIR,)
    (tmp_path / REPORT).write_text(json.dumps(in_budget(True)))
    assert read_budget(tmp_path / REPORT).of_float.map50_95 == 0.99
    assert kept_budget(tmp_path, None).report == in_budget(True)  # type: ignore[arg-type]
    rows = [GroupSensitivity("g", ("model.0.conv",), None, 0.02)]
    file = SensitivityFile(tmp_path / "s.json", {"metric": "drop", "measure": "agreement"}, 1)
    written = file.write(Ranking(rows, {"map50_95": 0.99, "map50": 0.995, "images": 4}))
    assert written["float"] == {"agreement50_95": 0.99, "agreement50": 0.995, "images": 4}
    assert written["layers"][0]["agreement50_95_drop"] == 0.02
    assert (file.read()[0], ranking_of(file.path)) == (
        Ranking(rows, {"map50_95": 0.99, "map50": 0.995, "images": 4}),
        tuple(rows),
    )
    for path in tmp_path.iterdir():
        clean(path.read_text())


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"map50_95": 0.4}, "rows.0.map50_95 = 0.4: Unexpected keyword"),
        ({"agreement50_95": 41.8}, "rows.0.agreement50_95 = 41.8: Input should be less"),
        ({"agreement50": None}, "rows.0.agreement50 = None"),
        ({"measure": "mAP"}, "rows.0.map50_95 = "),
        ({"measure": "accuracy"}, "rows.0.map50_95 = "),
        ({"measure": ["agreement"]}, "rows.0.map50_95 = "),
    ],
)
def test_a_file_that_mixes_the_names_is_refused(change: dict[str, Any], found: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([replace(ROWS[0], details=None).as_dict() | change]))
    with pytest.raises(ArtifactError) as caught:
        read_rows(file)
    assert str(caught.value).startswith(f"'{file}': {found}")
    assert "\n" not in str(caught.value)


def test_compare_names_it_and_says_what_it_is_not(tmp_path: Path) -> None:
    write_record(tmp_path, RECORD)
    found = run("compare", tmp_path, tmp_path, "--model", "fp32=qat", "--json", tmp_path / "c.json")
    assert found.exit_code == 0, found.stderr
    assert "fp32 -> qat: agreement50-95 0.3776 to 0.3791" in clean(found.stdout)
    assert NO_ACCURACY in found.stdout
    assert json.loads(clean((tmp_path / "c.json").read_text()))["pairs"][0]["agreement50_95"] == [0.3776, 0.3791]
    worse = run("compare", tmp_path, tmp_path, "--model", "qat=ptq")
    assert worse.exit_code == 1
    clean(worse.stdout + worse.stderr)


def test_agreement_is_not_compared_with_map(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write_record(tmp_path / "a", RECORD)
    write_rows(tmp_path / "b.json", [replace(ROWS[0], measure="mAP")])
    with pytest.raises(ConsistencyError) as caught:
        compare(tmp_path / "a", tmp_path / "b.json", Tolerance(), ["fp32=fp32.onnx"])
    assert str(caught.value) == (
        "'fp32.onnx' has agreement with the FP32 model and 'fp32.onnx' mAP, against people's labels: they do not "
        "compare. Evaluate both on one dataset."
    )
    refused = run("compare", tmp_path / "a", tmp_path / "b.json")
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)


def test_the_commands_on_a_record(tmp_path: Path) -> None:
    write_record(tmp_path, RECORD)
    layer = run("explain", tmp_path, "--layer", "model.0", "--json", tmp_path / "e.json")
    listed = run("explain", tmp_path)
    report = run("report", tmp_path, "--format", "markdown")
    for result in (layer, listed, report):
        assert result.exit_code == 0, result.stderr
        clean(result.stdout + result.stderr)
    assert json.loads(clean((tmp_path / "e.json").read_text()))["sensitivity"]["agreement50_95_drop"] > 0


def test_the_chart_of_a_ranking_names_its_axis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []
    saved = sensitivity_chart.Figure.savefig

    def looked_at(figure: Any, *arguments: Any, **keys: Any) -> None:
        texts.extend(axes.get_xlabel() for axes in figure.axes)
        saved(figure, *arguments, **keys)

    monkeypatch.setattr(sensitivity_chart.Figure, "savefig", looked_at)
    rows = [GroupSensitivity("g", ("model.0.conv",), 0.1, 0.02)]
    sensitivity_chart.draw_sensitivity(rows, tmp_path / "s.png", "agreement")
    assert texts == ["agreement50-95 drop, points", "output error (scores and boxes)"]


def test_python_reads_the_same_names_either_way() -> None:
    assert asdict(ROWS[0]).keys() == asdict(example_record().files[0].result).keys()
    assert isinstance(Budget(None, True, in_budget(True)).report["float"]["agreement50_95"], float)  # type: ignore[arg-type]
