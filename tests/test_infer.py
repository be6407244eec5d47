from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from click.testing import CliRunner, Result
from tiny_onnx import colour_image, write_tiny_detector

from trt_qat.config import InferSection
from trt_qat.errors import ArtifactError
from trt_qat.infer import default_model, infer, main


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
    return CliRunner().invoke(main, list(arguments))


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
    assert row["frame"] == "one.png"
    (found,) = row["detections"]
    assert (found["class_id"], found["name"]) == (0, "red")
    assert found["score"] > 0.9
    assert found["box_xyxy"] == pytest.approx([32, 32, 48, 48], abs=0.2)


def test_folder(place: Path) -> None:
    seen: list[tuple[int, int]] = []
    summary = infer(Path("photos"), None, None, InferSection(), "onnxruntime", lambda *at: seen.append(at))
    assert (summary.frames, summary.detections, summary.runtime) == (2, 2, "onnxruntime")
    assert [name for name, _ in summary.per_frame] == ["a.jpg", "b.PNG"]
    assert sorted(path.name for path in Path("runs/infer/photos").iterdir()) == ["a.jpg", "b.PNG"]
    assert seen == [(1, 2), (2, 2)]
    assert summary.median_ms > 0


@pytest.mark.parametrize(("out", "written"), [("seen", "seen/drive.avi"), ("seen/x.mp4", "seen/x.mp4")])
def test_video(place: Path, out: str, written: str) -> None:
    result = _run("drive.avi", "--out", out, "--conf", "0.5", "--runtime", "onnxruntime")
    assert result.exit_code == 0, result.output
    assert "--runtime onnxruntime" in result.stdout
    assert "3 frames, 3 detections" in result.stdout
    assert Path(written).stat().st_size > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.mp4"], "Source 'none.mp4' does not exist"),
        (["engines"], "holds no images"),
        (["photos/notes.txt"], "neither an image nor a video"),
        (["broken.png"], "cannot be read"),
        (["broken.mp4"], "cannot be read"),
        (["one.png", "--model", "none.onnx"], "does not exist"),
        (["one.png", "--model", "broken.onnx"], "not an ONNX file"),
        (["one.png", "--model", "photos/notes.txt"], r"must be a \*.plan or \*.onnx"),
        (["one.png", "--runtime", "tensorrt"], "needs a TensorRT plan"),
        (["one.png", "--out", "one.png"], "is the source itself"),
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


def test_it_starts_without_torch() -> None:
    code = "import sys, trt_qat.infer; sys.exit(bool({'torch', 'ultralytics', 'tensorrt'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
