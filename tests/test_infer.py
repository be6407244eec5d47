from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper
from tiny_onnx import Recorded, colour_image, write_colour_set, write_tiny_detector

import trt_qat
from trt_qat.cli import cli
from trt_qat.cli import infer as command
from trt_qat.demo.generate import DEMO_NAMES, generate_demo_set
from trt_qat.errors import ArtifactError
from trt_qat.runtime.infer import default_model, infer
from trt_qat.runtime.sinks.choice import Outputs


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a model, an image, a folder and a video."""
    monkeypatch.chdir(tmp_path)
    Path("engines").mkdir()
    write_tiny_detector(Path("engines/tiny_int8.onnx"))
    image = colour_image(128, 128)
    image[32:48, 32:48] = (0, 0, 255)
    Path("photos/deeper").mkdir(parents=True)
    for name in ("one.png", "photos/a.jpg", "photos/b.PNG", "photos/deeper/c.png"):
        cv2.imwrite(name, image)
    Path("photos/notes.txt").write_text("no image")
    writer = cv2.VideoWriter("drive.avi", cv2.VideoWriter.fourcc(*"MJPG"), 5, (128, 128))
    for _ in range(3):
        writer.write(image)
    writer.release()
    return tmp_path


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(command, list(arguments))


def test_image(place: Path) -> None:
    result = _run("one.png", "--json", "out/one.json")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("'engines/tiny_int8.onnx' runs on openvino (")
    assert lines[1].startswith("1 frames, 1 detections, median ")
    assert lines[2] == f"Written: {Path('runs/infer/one.png')}"
    assert cv2.imread("runs/infer/one.png").shape == (128, 128, 3)
    written = json.loads(Path("out/one.json").read_text())
    (row,) = written["results"]
    assert (row["source"], row["frame"], row["image"]) == ("one.png", 0, "one.png")
    (found,) = row["detections"]
    assert (found["class_id"], found["name"]) == (0, "red")
    assert found["score"] > 0.9
    assert found["box_xyxy"] == pytest.approx([32, 32, 48, 48], abs=0.2)


def test_folder(place: Path) -> None:
    progress = Recorded()
    done = infer(["photos"], outputs=Outputs(results=True), runtime="onnxruntime", progress=progress)
    assert (done.frames, done.detections, done.runtime, done.errors) == (2, 2, "onnxruntime", [])
    assert [row["image"] for row in done.results or ()] == ["photos/a.jpg", "photos/b.PNG"]
    assert sorted(path.name for path in Path("runs/infer/photos").iterdir()) == ["a.jpg", "b.PNG"]
    assert progress.steps == [("frames", 1, 2), ("frames", 2, 2)]
    assert done.median_ms is not None
    assert done.median_ms > 0


def test_a_folder_goes_on_at_a_bad_image_and_says_so_at_the_end(place: Path) -> None:
    Path("photos/a.jpg").write_bytes(Path("photos/a.jpg").read_bytes()[:200])
    Path("photos/empty.png").touch()
    cv2.imwrite("photos/long.png", colour_image(1, 66000))
    Path("photos/long.png").rename("photos/long.jpg")  # read by content; a JPEG of that length cannot be written
    result = _run("photos", "--json", "found.json", "--out", "seen")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[1].startswith("2 frames, 1 detections, median ")
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: 3 of 4 images left out; the first: Image 'photos/a.jpg' cannot be read: ")
    assert [path.name for path in Path("seen").iterdir()] == ["b.PNG"]
    written = json.loads(Path("found.json").read_text())
    assert [row["image"] for row in written["results"]] == ["photos/b.PNG", "photos/long.jpg"]
    assert len(written["results"][0]["detections"]) == 1
    assert [entry["frame"] for entry in written["errors"]] == ["a.jpg", "empty.png", "long.jpg"]
    assert "does not encode 66000 x 1 pixels as *.jpg" in written["errors"][2]["error"]


def test_a_folder_of_bad_images_only(place: Path) -> None:
    for path in ("photos/a.jpg", "photos/b.PNG"):
        Path(path).write_text("no image")
    result = _run("photos", "--json", "found.json")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[1] == "0 frames, 0 detections"
    assert result.stderr.startswith("Error: 2 of 2 images left out; the first: Image 'photos/a.jpg' ")
    written = json.loads(Path("found.json").read_text())
    assert (written["results"], written["median_ms"], len(written["errors"])) == ([], None, 2)


def test_pipes_never_block(place: Path) -> None:
    """In a folder one is left out and said; alone it is an error."""
    os.mkfifo("photos/pipe.jpg")
    done = _process("photos", "--json", "found.json")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line == (
        "Error: 1 of 3 images left out; the first: Image 'photos/pipe.jpg' is a pipe, not a file. Give a file."
    )
    assert len(json.loads(Path("found.json").read_text())["results"]) == 2
    alone = _process("photos/pipe.jpg")
    assert (alone.returncode, len(alone.stderr.splitlines())) == (1, 1)
    assert "is a pipe, not a file" in alone.stderr


def _process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trt_qat", "infer", *arguments, "--runtime", "onnxruntime"]
    settings = {**os.environ, "PYTHONPATH": str(Path(trt_qat.__file__).parents[1]), **environment}
    return subprocess.run(
        command, capture_output=True, text=True, errors="replace", check=False, timeout=60, env=settings
    )


C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize(
    "locale",
    # odd names in the usual locale are in tests/hostile as well
    [pytest.param({}, id="UTF-8", marks=pytest.mark.slow), pytest.param(C_LOCALE, id="C")],
)
@pytest.mark.parametrize("name", ["biển báo".encode(), b"\xff\xfe"], ids=["Vietnamese", "not UTF-8"])
def test_any_name_in_any_locale(place: Path, name: bytes, locale: dict[str, str]) -> None:
    folder = Path(os.fsdecode(name))
    folder.mkdir()
    for suffix, source in (("png", "one.png"), ("avi", "drive.avi")):
        (folder / f"{os.fsdecode(name)}.{suffix}").write_bytes(Path(source).read_bytes())
    for source in (folder, folder / f"{os.fsdecode(name)}.avi"):
        done = _process(str(source), "--out", str(folder / "out"), "--json", str(folder / "x.json"), **locale)
        assert (done.returncode, done.stderr) == (0, ""), done
        assert json.loads((folder / "x.json").read_text(encoding="utf-8"))["detections"] in (4, 3)
    written = sorted(os.fsencode(path.name) for path in (folder / "out").iterdir())
    assert written == [name + b".avi", name + b".png"]
    if name != b"\xff\xfe":
        found = json.loads((folder / "x.json").read_text(encoding="utf-8"))
        assert found["sources"] == ["biển báo/biển báo.avi"]


LIMITED = """
import resource, sys
from trt_qat.__main__ import main
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, -1))
sys.argv = ["trt-qat", *sys.argv[1:]]
main()
"""


@pytest.mark.parametrize("source", ["large.bmp", "drive.avi"])
def test_a_result_that_does_not_fit_is_one_line_and_leaves_nothing(place: Path, source: str) -> None:
    cv2.imwrite("large.bmp", colour_image(128, 128))
    command = [sys.executable, "-c", LIMITED, "infer", source, "--runtime", "onnxruntime", "--out", "out"]
    settings = {**os.environ, "PYTHONPATH": str(Path(trt_qat.__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=settings)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"Error: Cannot write 'out/{source}'")
    assert "Written" not in done.stdout
    assert list(Path("out").iterdir()) == []


@pytest.mark.parametrize(("out", "written"), [("seen", "seen/drive.avi"), ("seen/x.mp4", "seen/x.mp4")])
def test_video(place: Path, out: str, written: str) -> None:
    result = _run("drive.avi", "--out", out, "--conf", "0.5", "--runtime", "onnxruntime")
    assert result.exit_code == 0, result.output
    assert "runs on onnxruntime (CPU): it was asked for." in result.stdout
    assert "3 frames, 3 detections" in result.stdout
    assert Path(written).stat().st_size > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.mp4"], "Source 'none.mp4' does not exist"),
        (["engines"], "holds no images"),
        (["photos/notes.txt"], "names 'no image', which is no image, video or address"),
        (["engines/tiny_int8.onnx"], "neither an image nor a video"),
        (["broken.png"], "cannot be read"),
        (["broken.mp4"], "cannot be read"),
        (["one.png", "--model", "none.onnx"], "does not exist"),
        (["one.png", "--model", "broken.onnx"], "not an ONNX file"),
        (["one.png", "--model", "photos/notes.txt"], r"must be one of \*.onnx, .*\*.plan"),
        (["one.png", "--runtime", "tensorrt"], r"'tensorrt' needs \*.plan or \*.engine"),
        (["rtsp://me:geheim@127.0.0.1:9/cam"], r"Source 'rtsp://\*\*\*@127.0.0.1:9/cam' cannot be opened: "),
        (["99"], "99' "),
        (["one.png", "--count-line", "door:1,2"], "--count-line 'door:1,2' is not NAME:"),
        (["one.png", "--classes", "rde"], r"the model has no class 'rde'. Did you mean 'red'\?"),
        (["one.png", "--batch", "4"], "infer.batch=4: the model takes 1 at a time"),
        (["one.png", "--device", "cuda:0", "--runtime", "openvino"], "computes on the CPU, not on 'cuda:0'"),
        (["one.png", "one.png"], "Source 'one.png' is given twice"),
        (["one.png", "drive.avi", "--out", "x.mp4"], "results of 2 sources need a folder"),
        (["one.png", "--out", "one.png"], "is a file that this command reads"),
        (["one.png", "--out", "x.foo"], "must be a folder or end in"),
        (["photos", "--out", "one.png"], "is a file"),
        (["photos", "--out", "photos"], "is the source itself"),
        (["drive.avi", "--out", "x.foo"], "must end in"),
        (["one.png", "--json", "photos"], "is a folder"),
    ],
)
def test_expected_failures_are_one_line(place: Path, arguments: list[str], message: str) -> None:
    Path("broken.png").write_bytes(Path("one.png").read_bytes()[:60])
    Path("broken.mp4").write_text("hello")
    Path("broken.onnx").write_bytes(Path("engines/tiny_int8.onnx").read_bytes()[:200])
    result = _run(*arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert re.search(message, line)
    assert not Path("runs").exists() or not [path for path in Path("runs").rglob("*") if path.is_file()]


@pytest.mark.parametrize("arguments", [[], ["one.png", "--conf", "1.5"], ["one.png", "--runtime", "torch"], ["--nope"]])
def test_wrong_usage_exits_2(arguments: list[str]) -> None:
    assert _run(*arguments).exit_code == 2


def test_default_model_prefers_int8_then_the_newest(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"No model in .*--model PATH"):
        default_model(tmp_path / "none")
    for age, name in enumerate(["new.onnx", "old_INT8.plan", "older_int8.onnx"]):
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    (tmp_path / "notes_int8.txt").write_bytes(b"x")
    assert default_model(tmp_path).name == "old_INT8.plan"
    (tmp_path / "old_INT8.plan").unlink()
    (tmp_path / "older_int8.onnx").unlink()
    assert default_model(tmp_path).name == "new.onnx"


INPUTS = {
    "gray": ([1, 1, 64, 64], "1 channel"),
    "four channels": ([1, 4, 64, 64], "4 channels"),
    "channels last": ([1, 64, 64, 3], r"\(batch, 3, height, width\), found \(1, 64, 64, 3\)"),
    "three axes": ([3, 64, 64], r"\(batch, 3, height, width\), found \(3, 64, 64\)"),
}


@pytest.mark.parametrize(("shape", "message"), INPUTS.values(), ids=list(INPUTS))
def test_models_with_another_input_are_one_line(place: Path, shape: list[int | str], message: str) -> None:
    inputs = [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info("out", TensorProto.FLOAT, shape)]
    graph = helper.make_graph([helper.make_node("Relu", ["images"], ["out"])], "g", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.save(model, "other.onnx")
    data = write_colour_set(Path("set"), 1)
    for arguments in (["infer", "one.png", "--model", "other.onnx"], ["evaluate", "other.onnx", "--data", str(data)]):
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 1, result.output
        (line,) = result.stderr.splitlines()
        assert line.startswith("Error: ")
        assert "he model's input must " in line
        assert re.search(message, line)


@pytest.mark.parametrize("program", ["trt_qat.infer", "trt_qat infer"])
def test_it_runs_without_torch(place: Path, program: str) -> None:
    """As a user starts it, to the annotated image."""
    script = (
        "import runpy, sys\n"
        f"module, *words = {program!r}.split()\n"
        "sys.argv = [module, *words, 'one.png']\n"
        "try: runpy.run_module(module, run_name='__main__')\n"
        "except SystemExit as exc: assert not exc.code, exc.code\n"
        "loaded = sorted({'torch', 'ultralytics', 'tensorrt', 'tensorrt_rtx', 'rich'} & set(sys.modules))\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("Written: runs/infer/one.png\n")
    assert Path("runs/infer/one.png").is_file()


@pytest.mark.slow
def test_without_any_model_the_demo_detector_is_made_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    generate_demo_set(tmp_path / "set", train=1, val=1)
    arguments = ["infer", "set/images/val", "--json", "found.json"]
    wrong = CliRunner().invoke(cli, ["infer", "none.jpg"])
    assert wrong.exit_code == 1
    assert not Path("engines").exists()  # a wrong source is said before a model is made
    said = CliRunner().invoke(cli, arguments)
    assert said.exit_code == 0, said.output
    assert said.stdout.startswith("No model in engines/ and no --model: making 'engines/demo_int8.onnx'")
    (found,) = json.loads(Path("found.json").read_text())["results"]
    assert {box["name"] for box in found["detections"]} <= set(DEMO_NAMES)
    assert found["detections"]
    again = CliRunner().invoke(cli, arguments)
    assert "No model" not in again.stdout


def test_only_the_command_line_prints_and_exits() -> None:
    """And what stands around it; a build's child has streams of its own, Triton's client is a program."""
    said = re.compile(r"\bprint\(|\bclick\b|\bsys\.(exit|stdout|stderr)\b|\bSystemExit\b")
    package = Path(trt_qat.__file__).parent
    found = sorted(path.name for path in package.rglob("*.py") if said.search(path.read_text()))
    assert found == ["cli.py", "entry.py", "triton.py"]
