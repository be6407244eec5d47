"""The commands as the README shows them, run in one process on the shipped detector and a generated dataset."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import load_file
from tiny_onnx import colour_image, write_tiny_detector

import trt_qat
from trt_qat import checkpoint
from trt_qat.cli import cli
from trt_qat.demo.clip import write_street_clip
from trt_qat.engine.flavor import import_tensorrt
from trt_qat.errors import MissingDependency

QUICK = (
    "model:\n  imgsz: 160\nquantization:\n  batch: 4\nqat:\n  epochs: 1\n  batch: 4\n"
    "evaluation:\n  latency_iterations: 3\n  latency_warmup: 0\n"
)
DETECTOR = Path(trt_qat.__file__).parent / "demo" / "detector.safetensors"
WEIGHTS = "weights.safetensors"
CHAIN = ("--data", "demo/data.yaml", "--config", "quick.yaml")
ROW_KEYS = {"model", "precision", "runtime", "map50_95", "map50", "images", "size_bytes", "latency_ms"}


def _commands(group: click.Group, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _commands(command, (*prefix, name))
        else:
            yield (*prefix, name)


COMMANDS = list(_commands(cli))


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


def _succeed(*arguments: str) -> str:
    """Run a command that must succeed silently on stderr; its stdout."""
    result = _run(*arguments)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return result.stdout


def _json(path: str) -> Any:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def _check_rows(rows: list[dict[str, Any]], *more: str) -> None:
    for row in rows:
        assert set(row) == ROW_KEYS | set(more)
        assert set(row["latency_ms"]) == {"median", "p90", "p99"}
        assert 0 < row["latency_ms"]["median"] <= row["latency_ms"]["p90"] <= row["latency_ms"]["p99"]
        assert 0.25 < row["map50_95"] < row["map50"] <= 1  # the float detector has 0.42 at this size
        assert abs(row["map50_95"] - rows[0]["map50_95"]) < 0.05
        assert row["images"] == 4
        assert row["size_bytes"] == Path(row["model"]).stat().st_size


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder of this module's chain: demo/, quick.yaml and the shipped detector."""
    folder = tmp_path_factory.mktemp("chain")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert _run("data", "demo", "--train", "4", "--val", "4", "--out", "demo").exit_code == 0
        Path("quick.yaml").write_text(QUICK)
        shutil.copy(DETECTOR, WEIGHTS)
        yield folder


@pytest.fixture(scope="module")
def calibrated(place: Path) -> str:
    said = _succeed("calibrate", "--weights", WEIGHTS, *CHAIN, "--out", "out/ptq.safetensors", "--json", "out/ptq.json")
    assert said.endswith("\nCalibrated: out/ptq.safetensors\n")
    result = _json("out/ptq.json")
    assert result["checkpoint"] == "out/ptq.safetensors"
    chosen = min(result["candidates"], key=lambda candidate: candidate["error"])
    assert [candidate for candidate in result["candidates"] if candidate["chosen"]] == [chosen]
    assert result["calibrator"] == chosen["calibrator"]
    assert said.count(" chosen ") == 1
    return "out/ptq.safetensors"


@pytest.fixture(scope="module")
def tuned(calibrated: str) -> str:
    arguments = ("--weights", calibrated, *CHAIN, "--epochs", "1")
    assert _succeed("qat", *arguments, "--out", "out/qat") == "Fine-tuned: out/qat/best.safetensors\n"
    return "out/qat/best.safetensors"


@pytest.fixture(scope="module")
def exported(tuned: str) -> str:
    said = _succeed("export", tuned, "--config", "quick.yaml", "--out", "out/qat.onnx", "--json", "out/export.json")
    assert said.startswith("Exported: out/qat.onnx (for tensorrt, int8+fp16, ")
    assert _json("out/export.json") == {"onnx": "out/qat.onnx", "precision": "int8+fp16", "target": "tensorrt"}
    return "out/qat.onnx"


@pytest.fixture(scope="module")
def rtx() -> None:
    try:
        import_tensorrt("tensorrt-rtx")
    except MissingDependency as exc:
        pytest.skip(f"tensorrt_rtx cannot be imported: {exc}")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_lists_the_shared_options(command: tuple[str, ...]) -> None:
    result = _run(*command, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage: ")
    for option in ("--config PATH", "--set SECTION.KEY=VALUE", "--json PATH"):
        assert option in result.stdout
    short = _run(*command, "-h")
    assert (short.exit_code, short.stderr, short.stdout) == (0, "", result.stdout)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_knows_its_help_without_its_group(command: tuple[str, ...]) -> None:
    """A test or a tool may be the first that makes its context, and click keeps the help option of that one."""
    found: click.Command = cli
    for word in command:
        assert isinstance(found, click.Group)
        found = found.commands[word]
    assert found.context_settings["help_option_names"] == ["-h", "--help"]


def test_every_option_has_a_help_text_and_every_command_a_short_one() -> None:
    for words in COMMANDS:
        command: click.Command = cli
        for word in words:
            assert isinstance(command, click.Group)
            command = command.commands[word]
        options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
        assert [option.name for option in options if not option.help] == []
        assert not command.get_short_help_str(60).endswith("..."), words


def test_the_commands_are_these() -> None:
    assert set(cli.commands) == {
        "advise", "calibrate", "compare", "data", "demo", "deploy", "engine", "evaluate", "explain", "export", "infer",
        "inspect", "lint", "parity", "qat", "report", "run", "sensitivity", "targets", "train",
    }  # fmt: skip
    assert {words[1] for words in COMMANDS if words[0] == "data"} == {
        "validate",
        "convert",
        "demo",
        "demo-model",
        "demo-clip",
        "label",
    }


def test_help_and_import_load_no_heavy_package() -> None:
    script = (
        "import sys\n"
        "import trt_qat\n"
        "imported = set(sys.modules)\n"
        "from trt_qat.cli import cli\n"
        f"for words in {[[], *map(list, COMMANDS)]!r}:\n"
        "    try: cli([*words, '--help'])\n"
        "    except SystemExit as exc: assert exc.code == 0\n"
        "heavy = {'torch', 'ultralytics', 'modelopt', 'tensorrt', 'tensorrt_rtx', 'openvino', 'onnxruntime'}\n"
        "print(sorted(heavy & imported), sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[] []"


@pytest.mark.parametrize("program", [["-m", "trt_qat"], ["-c", "from trt_qat.__main__ import main; main()"]])
def test_version_from_a_shell(program: list[str]) -> None:
    done = subprocess.run([sys.executable, *program, "--version"], capture_output=True, text=True, check=False)
    assert done.stdout == f"trt-qat, version {trt_qat.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["frobnicate"],
        ["calibrate"],
        ["calibrate", "--weights", "a.pt", "--data", "d"],
        ["calibrate", "--nope"],
        ["qat", "--weights", "a.pt", "--data", "d", "--out", "o", "--epochs", "0"],
        ["sensitivity", "--weights", "a.pt", "--data", "d", "--out", "o.json", "--metric", "loss"],
        ["export", "a.pt", "--precision", "int4", "--out", "o.onnx"],
        ["export", "--out", "o.onnx"],
        ["engine", "a.onnx", "--flavor", "lean", "--out", "a.plan"],
        ["evaluate", "--data", "d"],
        ["evaluate", "a.onnx", "--data", "d", "--runtime", "tflite"],
        ["parity", "a.onnx", "--data", "d"],
        ["parity", "a.onnx", "b.onnx"],
        ["parity", "a.onnx", "b.onnx", "--data", "d", "--runtime-b", "tflite"],
        ["lint"],
        ["infer"],
        ["data", "convert", "--from", "csv", "--annotations", "a", "--images", "i", "--out", "o"],
        ["data", "demo", "--train", "0", "--out", "o"],
        ["data", "nothing"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = _run(*arguments)
    assert result.exit_code == 2
    assert "Error: " in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("out", ["/", "//", "root/."])
def test_the_root_of_the_file_system_is_no_place_for_results(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "root").symlink_to("/")
    result = CliRunner().invoke(cli, ["data", "demo", "--out", out])
    assert result.exit_code == 1
    assert "is the root of the file system. Choose a place in it." in result.output


def test_demo_and_validate(place: Path) -> None:
    said = _succeed("data", "validate", "demo/data.yaml", "--json", "out/findings.json")
    assert said.splitlines()[-1] == "4 train, 4 val images: 0 errors, 0 warnings"
    assert _json("out/findings.json") == []


def test_validate_exits_with_1_on_errors_and_still_writes_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("set/images/train", "set/labels/train"):
        Path(folder).mkdir(parents=True)
    cv2.imwrite("set/images/train/a.png", np.zeros((32, 32, 3), np.uint8))
    Path("set/labels/train/a.txt").write_text("9 0.5 0.5 0.1 0.1\n")
    Path("set/data.yaml").write_text("train: images/train\nnames: [sign]\n")
    result = _run("data", "validate", "set", "--json", "findings.json")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1] == "1 train, 1 val images: 1 errors, 1 warnings"
    findings = _json("findings.json")
    assert all(set(finding) == {"kind", "severity", "path", "detail"} for finding in findings)
    assert sorted(finding["severity"] for finding in findings) == ["error", "warning"]


def test_second_calibration_does_not_look_at_the_images_again(calibrated: str) -> None:
    before = {file: file.stat().st_mtime_ns for file in Path("calib").iterdir()}  # histograms and the auto choice
    assert len(before) == 2
    arguments = ("calibrate", "--weights", WEIGHTS, *CHAIN)
    _succeed(*arguments, "--out", "out/again.safetensors")
    _succeed(*arguments, "--set", "quantization.calibrator=max", "--out", "out/max.safetensors")
    _succeed(*arguments, "--set", "quantization.calibrator=mse", "--out", "out/mse.safetensors")
    assert {file: file.stat().st_mtime_ns for file in Path("calib").iterdir()} == before
    chosen, again, first, largest = (load_file(f"out/{name}.safetensors") for name in ("ptq", "again", "mse", "max"))
    assert chosen.keys() == again.keys() == largest.keys()
    assert all(np.array_equal(chosen[name], again[name]) for name in chosen)
    ranges = [name for name in first if name.startswith("amax.activation.")]
    assert len(ranges) > 30
    assert all((first[name] <= largest[name] * 1.0001).all() for name in ranges)
    assert any((first[name] < largest[name]).all() for name in ranges)


def test_sensitivity_ranks_every_group_and_continues(calibrated: str) -> None:
    arguments = ("--weights", calibrated, *CHAIN)
    said = _succeed("sensitivity", *arguments, "--out", "out/sens.json", "--json", "out/copy.json")
    content = _json("out/sens.json")
    worst = content["layers"][0]["convs"][0]
    assert said.splitlines()[-3:] == [
        "Ranking: out/sens.json",
        "Chart: out/sens.png",
        f"What to do about the first, after `trt-qat run`: trt-qat explain RUN --layer {worst}",
    ]
    assert content == _json("out/copy.json")
    assert content["metric"] == "error"
    assert len(content["layers"]) == content["groups"] > 30
    errors = [layer["error"] for layer in content["layers"]]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0
    shown = [line for line in said.splitlines() if line.startswith("│")]
    assert len(shown) == 15
    assert cv2.imread("out/sens.png") is not None
    again = _succeed("sensitivity", *arguments, "--out", "out/sens.json")
    assert again == f"Continuing 'out/sens.json': {len(errors)} of {len(errors)} groups are measured already.\n" + said


@pytest.mark.slow
def test_a_budget_that_all_int8_meets(calibrated: str) -> None:
    arguments = ("--weights", calibrated, *CHAIN)
    said = _succeed("qat", *arguments, "--max-drop", "100", "--out", "out/met", "--json", "out/met.json")
    assert said.splitlines()[0] == "Fine-tuned: out/met/best.safetensors"
    assert said.splitlines()[-2:] == [
        "All INT8 is within 100 points.",
        "Mixed precision: out/met/mixed_precision.json",
    ]
    assert _json("out/met.json") == {
        "checkpoint": "out/met/best.safetensors",
        "mixed_precision": "out/met/mixed_precision.json",
    }
    assert _json("out/met/mixed_precision.json")["met"] is True
    assert {file.name for file in Path("out/met").glob("best*")} == {"best.safetensors"}
    _succeed("qat", *arguments, "--out", "out/met")  # without a budget: what the last run said is gone
    assert not Path("out/met/mixed_precision.json").exists()


def test_resuming_with_other_weights_is_refused_before_they_are_calibrated(
    tuned: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trt_qat import api

    before = Path(tuned).read_bytes()
    monkeypatch.setattr(api, "quantize", lambda *_, **__: pytest.fail("calibrated"))
    result = _run("qat", "--weights", WEIGHTS, *CHAIN, "--epochs", "1", "--out", str(Path(tuned).parent), "--resume")
    assert result.exit_code == 1
    assert "belongs to a run with other weights" in result.stderr
    assert Path(tuned).read_bytes() == before


# Ranges that clip a tenth of all values ruin each of two groups: no mix keeps the accuracy, for one stays INT8.
RUINED = (
    "--set", "quantization.calibrator=percentile", "--set", "quantization.percentile=90",
    "--set",
    "quantization.exclude=['model.0.*', 'model.2.[!c]*', 'model.2.cv2.*', 'model.[3-9].*', 'model.[12][0-9].*']",
)  # fmt: skip


def test_a_budget_out_of_reach_exits_with_3_and_leaves_its_files(place: Path) -> None:
    arguments = ("--weights", WEIGHTS, *CHAIN, *RUINED, "--max-drop", "0.2")
    result = _run("qat", *arguments, "--out", "out/missed", "--json", "out/missed.json")
    assert result.exit_code == 3, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: No mix keeps mAP50-95 within 0.2 points of the float model; 'out/missed/best.")
    content = _json("out/missed/mixed_precision.json")
    groups, chosen = len(content["ranking"]), content["chosen"]
    assert (groups, content["met"], chosen["k"]) == (2, False, 1)
    assert f"{chosen['k']}  <- kept" in result.stdout
    assert max(step["k"] for step in content["steps"]) == groups - 1
    assert chosen["map50_95"] == max(step["map50_95"] for step in content["steps"])
    assert content["int8"]["map50_95"] < 0.1 < 0.3 < content["float"]["map50_95"]
    assert _json("out/missed.json")["checkpoint"] == "out/missed/best.safetensors"
    best, all_int8 = (load_file(f"out/missed/{name}.safetensors") for name in ("best", "best_int8"))
    ranges = [{name for name in file if name.startswith("amax.activation.")} for file in (best, all_int8)]
    assert (len(ranges[0]), len(ranges[1])) == (groups - chosen["k"], groups)
    _succeed("export", "out/missed/best.safetensors", "--config", "quick.yaml", "--out", "out/missed.onnx")


def test_a_quantized_checkpoint_is_not_calibrated_again(calibrated: str) -> None:
    arguments = ("--weights", calibrated, *CHAIN, "--out", "out/twice.safetensors")
    result = _run("calibrate", *arguments)
    assert result.exit_code == 1
    assert result.stderr == f"Error: '{calibrated}' is quantized already (ptq). Give the float weights.\n"
    assert not Path("out/twice.safetensors").exists()


def test_fine_tuning_changes_the_weights_and_keeps_both_checkpoints(calibrated: str, tuned: str) -> None:
    assert Path("out/qat/last.safetensors").is_file()
    before, after = load_file(calibrated), load_file("out/qat/last.safetensors")
    assert before.keys() == after.keys()
    assert any(not np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.usefixtures("rtx")
def test_engine(exported: str) -> None:
    said = _succeed("engine", exported, "--out", "engines/qat.plan", "--json", "out/engine.json")
    assert "\nBuilt: engines/qat.plan (tensorrt-rtx, " in said
    assert _json("out/engine.json") == {
        "plan": "engines/qat.plan",
        "sidecar": "engines/qat.json",
        "flavor": "tensorrt-rtx",
    }
    assert Path("engines/qat.plan").stat().st_size > 1e6
    assert _json("engines/qat.json")["onnx"] == "qat.onnx"


def test_evaluate_writes_the_documented_keys_and_what_compare_needs(exported: str, tuned: str) -> None:
    said = _succeed("evaluate", exported, tuned, *CHAIN, "--details", "--json", "out/rows.json")
    assert "mAP50-95" in said
    rows = _json("out/rows.json")
    resampled = [row.pop("details")["resampled"] for row in rows]
    assert [len(values) for values in resampled] == [1000, 1000]
    _check_rows(rows)
    assert [(row["model"], row["precision"], row["runtime"]) for row in rows] == [
        (exported, "int8+fp16", "openvino"),
        (tuned, "int8+fp32", "torch"),
    ]
    names = "qat.onnx=best.safetensors"
    said = _succeed("compare", "out/rows.json", "out/rows.json", "--model", names, "--max-drop", "5")
    assert said.startswith("qat.onnx -> best.safetensors: mAP50-95 ")
    assert " (95 % of resamples: " in said


def test_parity_of_a_checkpoint_and_its_file(exported: str, tuned: str) -> None:
    command = ("parity", tuned, exported, *CHAIN)
    said = _succeed(*command, "--json", "out/parity.json")
    report = _json("out/parity.json")
    assert report["broken"] == []
    assert (report["first"]["model"], report["second"]["model"]) == (tuned, exported)
    assert "Compared on 4 of 4 val images" in said
    result = _run(*command, "--set", "parity.max_logits=0", "--json", "out/broken.json")
    assert result.exit_code == 1
    assert result.stderr.startswith(
        f"Error: Parity is broken: '{tuned}' on torch and '{exported}' on openvino differ: "
    )
    assert len(result.stderr.splitlines()) == 1
    (broken,) = _json("out/broken.json")["broken"]
    assert broken.startswith("logits are off by 0.")
    twice = _run("parity", exported, exported, *CHAIN)
    assert twice.exit_code == 1
    assert "would be compared with itself" in twice.stderr


def test_lint_of_an_exported_file(exported: str) -> None:
    _succeed("lint", exported, "--json", "out/lint.json", "--svg", "out/lint.svg")
    assert "<svg" in Path("out/lint.svg").read_text(encoding="utf-8")
    assert isinstance(_json("out/lint.json"), dict)


RUN = ("run", "--weights", WEIGHTS, *CHAIN, "--out", "all")


@pytest.fixture(scope="module")
def ran(place: Path, rtx: None) -> str:
    """What `run` said, which has left ``all/`` and ``out/run.json``."""
    return _succeed(*RUN, "--json", "out/run.json")


def _named(said: str) -> list[Path]:
    """The files of ``all/`` that `run` names."""
    return [Path(line.split(": ")[-1]) for line in said.splitlines() if ": all/" in line]


@pytest.mark.usefixtures("rtx")
def test_run_does_all_stages(ran: str) -> None:
    rows = _json("all/result.json")
    _check_rows(rows, "details")
    assert rows == _json("out/run.json")
    assert [(row["model"], row["precision"]) for row in rows] == [
        ("all/fp32.onnx", "fp32"),
        ("all/ptq.onnx", "int8+fp32"),
        ("all/qat.onnx", "int8+fp32"),
        ("all/qat_tensorrt.onnx", "int8+fp16"),
        ("all/qat_tensorrt-rtx.onnx", "int8+fp16"),
    ]
    assert rows[1]["size_bytes"] < 0.4 * rows[0]["size_bytes"]
    fp32, ptq = load_file("all/fp32.safetensors"), load_file("all/ptq.safetensors")
    assert all(np.array_equal(fp32[name], ptq[name]) for name in fp32)  # the rows compare the same weights
    named = _named(ran)
    assert len(named) == 14
    assert ran.splitlines()[-1] == "report: all/report.html"
    assert all(file.stat().st_size > 0 for file in named)
    assert list(Path("all").rglob(".*")) == []


@pytest.mark.slow  # `run` above does the same on fewer images
@pytest.mark.usefixtures("rtx")
def test_the_demo_runs_on_what_the_package_brings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = _succeed("demo", "--out", "here", "--set", "qat.epochs=1", "--set", "evaluation.latency_iterations=3")
    assert said.startswith("Generated: here/data/data.yaml\n")
    rows = _json("here/result/result.json")
    assert [row["images"] for row in rows] == [64] * 5
    assert all(0.75 < row["map50_95"] < row["map50"] for row in rows)
    settings = checkpoint.load(Path("here/result/qat/best.safetensors")).provenance["config"]
    assert (settings["model"]["imgsz"], settings["qat"]["epochs"]) == ([320, 320], 1)  # the demo's, and what was given


STAGES = {
    "the float checkpoint: fp32.safetensors",
    "the calibration: ptq.safetensors",
    "the sensitivity: sensitivity.json",
    "the fine-tuning: best.safetensors, last.safetensors",
    "the FP32 file: fp32.onnx",
    "the PTQ file: ptq.onnx",
    "the QAT file: qat.onnx",
    "the QAT file for tensorrt: qat_tensorrt.onnx",
    "the QAT file for tensorrt-rtx: qat_tensorrt-rtx.onnx",
    "the engine: qat.plan, qat.json",
    "the evaluation: result.json",
    "the picture: picture.jpg",
    "the parity: parity.json",
    "the record: run.json",
    "the report: report.html, report.md",
}


@pytest.mark.usefixtures("rtx")
def test_run_again_makes_nothing_again(ran: str) -> None:
    before = {file: file.read_bytes() for file in _named(ran)}
    again = _succeed(*RUN)
    assert _reused(again) == STAGES
    assert again.splitlines()[len(STAGES) :] == ran.splitlines()[1:]  # the first says why the engine is built so
    assert {file: file.read_bytes() for file in before} == before


@pytest.mark.slow  # tests/footage makes the dataset, `run` above does the rest
@pytest.mark.usefixtures("rtx", "place")
def test_run_on_a_video_measures_agreement_and_reuses_its_frames() -> None:
    write_street_clip(Path("street.mp4"), frames=40)
    command = ("run", "--weights", WEIGHTS, "--data", "street.mp4", "--config", "quick.yaml", "--out", "driven")
    said = _succeed(*command)
    assert said.startswith("Footage in 'driven/footage': 10 images, and 3 held out; 13 of 13 differing frames")
    rows = _json("driven/result.json")
    assert {(row["measure"], row["images"]) for row in rows} == {("agreement", 3)}
    record = _json("driven/run.json")
    assert record["inputs"]["data"] == "street.mp4"
    assert "--data street.mp4" in record["command"]
    assert _reused(_succeed(*command)) == STAGES | {"the footage: data.yaml, footage.json"}
    best = Path("driven/qat/best.safetensors").read_bytes()
    next(Path("driven/footage/images/train").iterdir()).unlink()  # the frame comes back, and with it the same data
    assert _reused(_succeed(*command)) == STAGES
    assert Path("driven/qat/best.safetensors").read_bytes() == best
    assert "the footage: data.yaml, footage.json" not in _reused(_succeed(*command, "--set", "data.label_conf=0.2"))


@pytest.mark.slow  # tests/test_manifest.py shows the rule
@pytest.mark.usefixtures("rtx")
def test_run_makes_again_what_is_damaged_or_would_come_out_otherwise(ran: str) -> None:
    _succeed(*RUN)
    before = {file: file.read_bytes() for file in _named(ran)}
    Path("all/qat.onnx").write_bytes(Path("all/qat.onnx").read_bytes()[:-1])
    changed = _succeed(*RUN, "--set", "infer.conf=0.3")
    anew = {"the QAT file: qat.onnx", "the picture: picture.jpg", "the parity: parity.json", "the record: run.json"}
    assert _reused(changed) == STAGES - anew - {"the report: report.html, report.md"}
    depends = (".jpg", "parity.json", "run.json", ".html")  # on infer.conf
    assert {file: file.read_bytes() for file in before if not file.name.endswith(depends)} == {
        file: content for file, content in before.items() if not file.name.endswith(depends)
    }


@pytest.mark.slow
@pytest.mark.usefixtures("rtx", "ran")
def test_run_says_in_one_line_that_parity_is_broken() -> None:
    """Everything is written, one line says what is broken, and that is the exit code: again when nothing is redone."""
    for _ in range(2):
        result = _run(*RUN, "--set", "parity.max_logits=0.000001", "--json", "out/broken.json")
        assert result.exit_code == 1
        (line,) = result.stderr.splitlines()
        assert line.startswith("Error: Parity is broken: 'all/qat/best.safetensors' on torch and ")
        assert "(parity.max_logits=1e-06)" in line
        assert _json("out/broken.json") == _json("all/result.json")
    checkpoint, runtimes = _json("all/parity.json")["comparisons"]
    assert [checkpoint[side]["runtime"] for side in ("first", "second")] == ["torch", "openvino"]
    assert [runtimes[side]["runtime"] for side in ("first", "second")] == ["onnxruntime", "openvino"]
    assert all(row["images"] == row["of"] == 4 for row in (checkpoint, runtimes))


def _reused(said: str) -> set[str]:
    return {line.removeprefix("Reusing ").removesuffix(".") for line in said.splitlines() if line.startswith("Reusing")}


@pytest.mark.slow
@pytest.mark.usefixtures("rtx")
def test_run_goes_on_after_a_missed_budget_and_exits_with_3(place: Path) -> None:
    arguments = ("--weights", WEIGHTS, *CHAIN, *RUINED, "--set", "qat.max_drop=0.2")
    result = _run("run", *arguments, "--out", "missed", "--json", "out/missed_run.json")
    assert result.exit_code == 3, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: No mix keeps mAP50-95 within 0.2 points")
    rows = _json("missed/result.json")
    assert rows == _json("out/missed_run.json")
    assert rows[1]["map50_95"] < 0.1 < 0.3 < rows[0]["map50_95"]
    kept = _json("missed/qat/mixed_precision.json")["chosen"]
    assert rows[2]["map50_95"] == pytest.approx(kept["map50_95"], abs=0.005)  # the mix is what was exported
    for file in ("run.json", "report.html", "report.md", "picture.jpg", "qat.plan"):
        assert Path("missed", file).is_file()


def test_infer_takes_the_shared_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny_detector(Path("tiny.onnx"))
    image = colour_image(64, 64)
    image[8:16, 8:16] = (0, 0, 255)
    image[40:48, 40:48] = (0, 255, 0)
    cv2.imwrite("one.png", image)
    Path("strict.yaml").write_text("infer:\n  max_det: 1\n  conf: 0.99\n")
    command = ("infer", "one.png", "--model", "tiny.onnx", "--json", "found.json")
    counts = []
    for options in ((), ("--set", "infer.max_det=1"), ("--config", "strict.yaml", "--set", "infer.max_det=5")):
        _succeed(*command, *options)
        counts.append(len(_json("found.json")["results"][0]["detections"]))
    assert counts == [2, 1, 2]
    refused = _run(*command, "--set", "infer.cnof=0.5")
    assert refused.exit_code == 1
    assert refused.stderr == "Error: Unknown key 'infer.cnof' in --set infer.cnof=0.5. Did you mean 'conf'?\n"
