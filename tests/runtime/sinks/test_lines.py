from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from trt_qat.errors import ArtifactError
from trt_qat.runtime.frames import Frame, Result
from trt_qat.runtime.sinks.csv import COLUMNS, CsvSink
from trt_qat.runtime.sinks.jsonl import FrameRecord, JsonlSink
from trt_qat.vision.detections import Detections

NAMES = {0: "Cấm đi ngược chiều", 1: 'a "quoted", name'}
PICTURE = np.zeros((36, 64, 3), np.uint8)


def _found(tracked: bool = False) -> Detections:
    return Detections(
        np.array([[1.04, 2, 30.26, 20], [-1, 0, 64, 36]], np.float32),
        np.array([0.87654, 0.5], np.float32),
        np.array([0, 9]),
        np.array([7, -1]) if tracked else None,
    )


def _results() -> list[Result]:
    nothing = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    counts = {"cửa": {"in": 2, "out": 0}, "zone 1": {"inside": 1}}
    return [
        Result(Frame(PICTURE, "rtsp://user:secret@camera/1", 0, 0.0), _found(tracked=True), counts),
        Result(Frame(PICTURE, "photos", 3, None, Path(os.fsdecode(b"photos/\xff.jpg"))), _found()),
        Result(Frame(PICTURE, "street.mp4", 12, 1 / 3), nothing),
    ]


def test_json_lines_follow_their_schema(tmp_path: Path) -> None:
    out = tmp_path / "deeper" / "found.jsonl"
    with JsonlSink(out, NAMES) as sink:
        for count, result in enumerate(_results(), 1):
            sink.write(result)
            assert len(out.read_text(encoding="utf-8").splitlines()) == count  # seen at once by tail -f
    lines = out.read_text(encoding="utf-8").splitlines()
    assert "Cấm đi ngược chiều" in lines[0]
    assert "secret" not in lines[0]
    camera, image, video = (FrameRecord.model_validate_json(line) for line in lines)
    assert json.loads(lines[0]) == {
        "source": "rtsp://***@camera/1",
        "frame": 0,
        "seconds": 0.0,
        "width": 64,
        "height": 36,
        "detections": [
            {
                "class_id": 0,
                "name": "Cấm đi ngược chiều",
                "score": 0.8765,
                "box_xyxy": [1.0, 2.0, 30.3, 20.0],
                "track_id": 7,
            },
            {"class_id": 9, "name": "9", "score": 0.5, "box_xyxy": [-1.0, 0.0, 64.0, 36.0]},
        ],
        "counts": {"cửa": {"in": 2, "out": 0}, "zone 1": {"inside": 1}},
    }
    assert camera.detections[0].track_id == 7
    assert (image.image, image.seconds, image.counts) == ("photos/�.jpg", None, None)
    assert [found.track_id for found in image.detections] == [None, None]
    assert (video.frame, video.seconds, video.detections, video.image) == (12, 0.333333, (), None)


def test_csv_rows_say_the_same(tmp_path: Path) -> None:
    with CsvSink(tmp_path / "found.csv", NAMES) as sink:
        for result in _results():
            sink.write(result)
    with (tmp_path / "found.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 4
    assert tuple(rows[0]) == COLUMNS
    assert rows[0] == {
        "source": "rtsp://***@camera/1",
        "image": "",
        "frame": "0",
        "seconds": "0.0",
        "width": "64",
        "height": "36",
        "class_id": "0",
        "name": "Cấm đi ngược chiều",
        "score": "0.8765",
        "left": "1.0",
        "top": "2.0",
        "right": "30.3",
        "bottom": "20.0",
        "track_id": "7",
    }
    assert (rows[2]["image"], rows[2]["seconds"], rows[2]["track_id"]) == ("photos/�.jpg", "", "")


def test_a_csv_of_frames_without_detections_has_its_header(tmp_path: Path) -> None:
    with CsvSink(tmp_path / "found.csv", NAMES) as sink:
        sink.write(_results()[2])
    assert (tmp_path / "found.csv").read_text() == ",".join(COLUMNS) + "\n"


@pytest.mark.parametrize("make", [JsonlSink, CsvSink])
def test_nothing_written_replaces_nothing(tmp_path: Path, make: Callable[..., JsonlSink | CsvSink]) -> None:
    out = tmp_path / "found"
    with make(out, NAMES):
        pass
    assert not out.exists()
    out.write_text("before")
    with make(out, NAMES):
        pass
    assert out.read_text() == "before"


def test_places_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    for out, message in ((tmp_path, "folder"), (tmp_path / "file" / "x", "file is where"), (tmp_path / "pipe", "pipe")):
        with pytest.raises(ArtifactError, match=message):
            JsonlSink(out, NAMES)


WRITE = """
import resource, sys
from pathlib import Path
import numpy as np
from trt_qat.errors import ArtifactError
from trt_qat.runtime.frames import Frame, Result
from trt_qat.runtime.sinks.jsonl import JsonlSink
from trt_qat.vision.detections import Detections
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, -1))
found = Detections(np.ones((2, 4), np.float32), np.ones(2, np.float32), np.zeros(2, np.int64))
try:
    with JsonlSink(sys.stdout.buffer if sys.argv[1] == '-' else Path(sys.argv[1]), {0: "bi\\u1ec3n b\\u00e1o"}) as sink:
        for number in range(2000): sink.write(Result(Frame(np.zeros((4, 4, 3), np.uint8), "x", number, 0.0), found))
except ArtifactError as exc:
    print(exc, file=sys.stderr)
"""


def test_where_the_disk_is_full_whole_lines_are_kept(tmp_path: Path) -> None:
    out = tmp_path / "found.jsonl"
    done = subprocess.run([sys.executable, "-c", WRITE, str(out)], capture_output=True, text=True, check=False)
    assert done.stderr.startswith(f"Cannot write '{out}': File too large. Whole lines up to here are kept.")
    assert len(done.stderr.splitlines()) == 1
    lines = out.read_text(encoding="utf-8").splitlines()
    assert [FrameRecord.model_validate_json(line).frame for line in lines] == list(range(len(lines)))
    assert 4500 < out.stat().st_size <= 5000


def test_standard_output_is_utf8_in_any_locale_and_ends_where_nobody_reads() -> None:
    c_locale = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", WRITE, "-"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=c_locale) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = FrameRecord.model_validate_json(process.stdout.readline())
        process.stdout.close()
        said = process.stderr.read().decode()
    assert first.detections[0].name == "biển báo"
    assert said == "Nobody reads the output any more: the program that read it has ended.\n"
    assert process.returncode == 0
