"""Two runs or result files against each other: what is chance, and when the exit code is 1."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from example_record import example_record

from trt_qat.cli import cli
from trt_qat.errors import ArtifactError, ConfigError, ConsistencyError
from trt_qat.report.compare import Comparison, MapDifference, Tolerance, compare, map_difference
from trt_qat.report.record import Machine, RunRecord, write_record
from trt_qat.results import AccuracyDetails, Latency, ResultRow, write_rows

RECORD = example_record(classes=1, groups=1, images=0, kernels=1)
ROW = next(entry.result for entry in RECORD.files if entry.name == "fp32")
DETAILS = ROW.details
assert DETAILS is not None
TOLERANCE = Tolerance()


def row(model: str, map50_95: float, drop: tuple[float, float] | None = (0, 0), ms: float = 10) -> ResultRow:
    """A row whose resamples lose from ``drop[0]`` to ``drop[1]`` points against 0.4, evenly."""
    assert DETAILS is not None
    details = (
        None if drop is None else replace(DETAILS, resampled=tuple((0.4 - np.linspace(*drop, 401) / 100).tolist()))
    )
    return replace(ROW, model=model, map50_95=map50_95, latency_ms=Latency(ms, ms, ms), details=details)


def files(folder: Path, *rows: ResultRow) -> list[Path]:
    """A result file for each row."""
    paths = [folder / f"{index}.json" for index in range(len(rows))]
    for path, entry in zip(paths, rows, strict=True):
        write_rows(path, [entry])
    return paths


def compared(folder: Path, second: ResultRow, tolerance: Tolerance = TOLERANCE) -> Comparison:
    """Against a row with 0.4 and 10 ms."""
    return compare(*files(folder, row("m.onnx", 0.4), second), tolerance)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["compare", *map(str, arguments)])


def test_the_interval_holds_95_of_100_resamples() -> None:
    found = map_difference(row("a", 0.4), row("b", 0.3917, (0.2, 1.4)))
    # of 401 even steps from -1.4 to -0.2 the 10th and the 390th
    assert found == MapDifference(-0.83, -1.37, -0.23)
    assert str(found) == "-0.83 points, 95 % of resamples -1.37 to -0.23"
    assert not found.is_chance


@pytest.mark.parametrize(
    ("map50_95", "drop", "verdict", "passes"),
    [
        (0.3917, (0.2, 1.4), "B is worse by 0.83 points (95 % of resamples: -1.37 to -0.23): more than chance and more "
         "than the tolerance of 0.5", False),
        (0.3917, (-0.2, 1.8), "B is worse by 0.83 points (95 % of resamples: -1.75 to +0.15): cannot be told from "
         "chance, yet more than the tolerance of 0.5", False),
        (0.3970, (0.1, 0.5), "B is worse by 0.30 points (95 % of resamples: -0.49 to -0.11): more than chance", True),
        (0.3970, (-0.4, 1), "B is worse by 0.30 points (95 % of resamples: -0.96 to +0.36): cannot be told from chance",
         True),
        (0.4055, (-0.1, -0.9), "B is better by 0.55 points (95 % of resamples: +0.12 to +0.88): more than chance",
         True),
        (0.4000, (0, 0), "B is neither better nor worse (95 % of resamples: +0.00 to +0.00): cannot be told from "
         "chance", True),
        (0.3950, (0.3, 0.7), "B is worse by 0.50 points (95 % of resamples: -0.69 to -0.31): more than chance", True),
        (0.3917, None, "B is worse by 0.83 points and more than the tolerance of 0.5; whether that is chance cannot be "
         "told without details", False),
    ],
)  # fmt: skip
def test_a_verdict_says_what_is_chance_and_the_measured_drop_decides(
    map50_95: float, drop: tuple[float, float] | None, verdict: str, passes: bool, tmp_path: Path
) -> None:
    found = compared(tmp_path, row("n.onnx", map50_95, drop))
    (pair,) = found.pairs
    assert pair.verdict == f"{verdict}; latency 10 to 10 ms, times 1.00"
    assert (pair.accurate, found.worse == ()) == (passes, passes)
    assert (pair.name, pair.second_name, pair.map50_95) == ("m.onnx", "n.onnx", (0.4, map50_95))


def test_without_details_the_command_that_makes_them_is_said(tmp_path: Path) -> None:
    found = compared(tmp_path, row("my n.onnx", 0.4, None))
    assert "What is chance needs details: trt-qat evaluate 'my n.onnx' --data DATA --details --json FILE" in found.notes


def test_latency_decides_where_it_is_asked_to(tmp_path: Path) -> None:
    second = row("n.onnx", 0.4, ms=12.5)
    assert compared(tmp_path, second).worse == ()
    assert compared(tmp_path, second, Tolerance(latency_ratio=1.25)).worse == ()
    found = compared(tmp_path, second, Tolerance(latency_ratio=1.2))
    assert found.worse == found.pairs
    assert found.pairs[0].latency_ratio == 1.25
    assert found.pairs[0].verdict.endswith("; latency 10 to 12.5 ms, times 1.25, more than the tolerance of 1.2")
    assert any("not interleaved" in note for note in found.notes)
    nothing = compare(*files(tmp_path, row("m", 0.4, ms=0), second), Tolerance(latency_ratio=2))
    assert nothing.worse[0].verdict.endswith("; no latency to compare with")


def test_rows_are_paired_by_the_name_of_the_file(tmp_path: Path) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    write_rows(a, [row("old/x.onnx", 0.4), row("old/y.onnx", 0.5), row("old/z.onnx", 0.1)])
    write_rows(b, [row("new/y.onnx", 0.5), row("new/x.onnx", 0.4), row("new/w.onnx", 0.1)])
    found = compare(a, b, TOLERANCE)
    assert [pair.name for pair in found.pairs] == ["x.onnx", "y.onnx"]
    assert found.notes[1:] == ("Only in A, not compared: z.onnx.", "Only in B, not compared: w.onnx.")
    (asked,) = compare(a, b, TOLERANCE, ["z.onnx=w.onnx"]).pairs
    assert (asked.name, asked.second_name) == ("z.onnx", "w.onnx")
    inside = compare(a, a, TOLERANCE, ["x.onnx=z.onnx"])  # one file: latencies were interleaved
    assert inside.notes == ()
    assert inside.worse[0].points == -30
    with pytest.raises(ConfigError, match=r"--model 'w.onnx' is not in '.*a.json', which has x.onnx, y.onnx, z.onnx"):
        compare(a, b, TOLERANCE, ["w.onnx"])
    write_rows(b, [row("v.onnx", 0.1), row("w.onnx", 0.1)])
    with pytest.raises(
        ConfigError, match=r"no name is in both\. Say which to compare with --model NAME_IN_A=NAME_IN_B"
    ):
        compare(a, b, TOLERANCE)


def test_one_model_measured_twice_is_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.json", [row("x.onnx", 0.4), row("x.onnx", 0.5)])
    with pytest.raises(ConsistencyError, match="measured one model twice"):
        compare(tmp_path / "a.json", tmp_path / "a.json", TOLERANCE)
    write_rows(tmp_path / "a.json", [row("old/x.onnx", 0.4), row("new/x.onnx", 0.4)])
    pairs = compare(tmp_path / "a.json", tmp_path / "a.json", TOLERANCE).pairs
    assert [pair.name for pair in pairs] == ["old/x.onnx", "new/x.onnx"]


def other(details: AccuracyDetails | None, **changes: object) -> AccuracyDetails:
    assert details is not None
    return replace(details, **changes)  # type: ignore[arg-type]


def test_what_is_no_pair_is_refused(tmp_path: Path) -> None:
    second = row("n.onnx", 0.4)
    with pytest.raises(
        ConsistencyError, match=r"other images or labels \(64 and 63\). Evaluate both on the same split"
    ):
        compared(tmp_path, replace(second, images=63, details=None))
    with pytest.raises(ConsistencyError, match=r"other images or labels\. "):
        compared(tmp_path, replace(second, details=other(second.details, images_sha256="ab")))
    with pytest.raises(ConsistencyError, match=r"has 401 resamples and 'n\.onnx' 2:"):
        compared(tmp_path, replace(second, details=other(second.details, resampled=(0.4, 0.4))))


def record(folder: Path, **changes: object) -> Path:
    """A run's folder."""
    folder.mkdir()
    write_record(folder, RunRecord.model_validate(RECORD.model_copy(update=changes)))
    return folder


def test_runs_are_paired_by_the_names_of_their_files(tmp_path: Path) -> None:
    a = record(tmp_path / "a")
    worse = tuple(
        entry.model_copy(update={"result": replace(entry.result, map50_95=0.3)}) if entry.name == "ptq" else entry
        for entry in RECORD.files
        if entry.name != "qat_tensorrt"
    )
    b = record(tmp_path / "b", files=worse)
    found = compare(a, b / "run.json", TOLERANCE)
    assert [pair.name for pair in found.pairs] == ["fp32", "ptq", "qat", "qat_tensorrt-rtx"]
    assert [pair.name for pair in found.worse] == ["ptq"]
    assert found.notes[1:] == ("Only in A, not compared: qat_tensorrt.",)
    (cost,) = compare(a, a, TOLERANCE, ["fp32=qat"]).pairs
    assert cost.points == pytest.approx(0.15)
    assert cost.difference is not None


def test_a_run_and_a_result_file_are_paired_by_the_model_file(tmp_path: Path) -> None:
    a = record(tmp_path / "a")
    write_rows(tmp_path / "b.json", [replace(ROW, model="elsewhere/qat.onnx")])
    assert [(pair.name, pair.second_name) for pair in compare(a, tmp_path / "b.json", TOLERANCE).pairs] == [
        ("qat", "qat.onnx")
    ]
    (pair,) = compare(tmp_path / "b.json", a, TOLERANCE, ["qat.onnx=fp32"]).pairs
    assert (pair.name, pair.second_name, pair.points) == ("qat.onnx", "fp32", 0)


def test_machines_that_differ_are_said_and_their_latencies_not_judged(tmp_path: Path) -> None:
    a = record(tmp_path / "a")
    b = record(tmp_path / "b", machine=Machine(cpu="Other", cores=4, gpus=("RTX 4090",)))
    found = compare(a, b, TOLERANCE)
    assert found.notes[0] == (
        "A ran on AMD EPYC 9B14 (2 cores) and B on Other (4 cores, RTX 4090): their latencies do not compare."
    )
    with pytest.raises(ConsistencyError, match=r"latencies do not compare\. Leave --max-latency-ratio away"):
        compare(a, b, Tolerance(latency_ratio=2))


def test_the_command_prints_a_line_for_each_and_exits_with_1(tmp_path: Path) -> None:
    a, b = files(tmp_path, row("m.onnx", 0.4), row("n.onnx", 0.3917, (0.2, 1.4)))
    result = run(a, b, "--json", tmp_path / "out.json")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[0] == (
        "m.onnx -> n.onnx: mAP50-95 0.4000 to 0.3917: B is worse by 0.83 points (95 % of resamples: -1.37 to -0.23): "
        "more than chance and more than the tolerance of 0.5; latency 10 to 10 ms, times 1.00."
    )
    assert result.stderr == "Error: 1 of 1 models in B are worse than the tolerance.\n"
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["worse"] == ["m.onnx"]
    assert written["pairs"][0]["difference"] == {"points": -0.83, "low": -1.37, "high": -0.23}
    assert written["tolerance"] == {"points": 0.5, "latency_ratio": None}
    allowed = run(a, b, "--max-drop", 1)
    assert (allowed.exit_code, allowed.stderr) == (0, "")
    assert run(a, b, "--max-drop", 1, "--max-latency-ratio", 0.9).exit_code == 1
    assert run(b, a).exit_code == 0


def test_a_terminal_obeys_no_name(tmp_path: Path) -> None:
    result = run(*files(tmp_path, row("\x1b[31mm.onnx", 0.4), row("n\n.onnx", 0.4)))
    assert result.stdout.startswith("\\x1b[31mm.onnx -> n\\n.onnx: mAP50-95 0.4000 to 0.4000: ")


@pytest.mark.parametrize("arguments", [["--max-drop", "-1"], ["--max-latency-ratio", "0"], ["--max-drop", "x"]])
def test_wrong_usage_exits_with_2(arguments: list[str], tmp_path: Path) -> None:
    assert run("a.json", "b.json", *arguments).exit_code == 2
    assert run("a.json").exit_code == 2


@pytest.mark.parametrize("text", ["", "{}", "[1]", '"x"', "null"])
def test_another_file_is_one_line(text: str, tmp_path: Path) -> None:
    (file,) = files(tmp_path, row("m.onnx", 0.4))
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"b\.json'"):
        compare(file, tmp_path / "b.json", TOLERANCE)
    result = run(file, tmp_path / "b.json")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert run(file, tmp_path).exit_code == 1


def test_it_needs_neither_torch_nor_a_table() -> None:
    """It works where only the plain install is: in a CI job beside the files."""
    code = (
        "import sys, trt_qat.report.compare; "
        "print(sorted({'torch', 'ultralytics', 'onnx', 'cv2', 'rich', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
