"""Two workers of a Ray that is started here: the same detections as one process, also where a worker is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from tiny_onnx import write_tiny_detector

from trt_qat.cli import cli
from trt_qat.config import InferSection
from trt_qat.errors import ArtifactError, DatasetError
from trt_qat.runtime import infer as job
from trt_qat.runtime.ray_data import infer_on_ray

ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'trt_qat[ray]'")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:::ray.*"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray's processes outlive their handles
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, 5 images, one that is none, and a video of 30 frames."""
    folder = tmp_path_factory.mktemp("ray")
    write_tiny_detector(folder / "tiny.onnx")
    (folder / "in").mkdir()
    rng = np.random.default_rng(0)
    for number in range(5):
        assert cv2.imwrite(str(folder / "in" / f"{number}.png"), _picture(rng))
    (folder / "in" / "broken.png").write_bytes(b"no picture")
    video = cv2.VideoWriter(str(folder / "in" / "clip.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 64))
    for _ in range(30):
        video.write(_picture(rng))
    video.release()
    return folder


def _picture(rng: np.random.Generator) -> np.ndarray:
    """Some of the 8x8 cells red, green or blue."""
    cells = np.full((8, 8, 3), 128, np.uint8)
    for row, column, colour in zip(*rng.integers(0, 8, (2, 6)), rng.integers(0, 3, 6), strict=True):
        cells[row, column] = 255 * np.eye(3, dtype=np.uint8)[colour]
    return cells.repeat(8, axis=0).repeat(8, axis=1)


@pytest.fixture(scope="module", autouse=True)
def importable() -> Iterator[None]:
    """Ray's workers are new processes: they find this package where this one did."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        yield


@pytest.fixture(scope="module")
def cluster(importable: None) -> Iterator[str]:
    """One Ray for several tests: each would need seconds to start its own."""
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield "auto"
    ray.shutdown()


def _rows(folder: Path) -> Rows:
    import pyarrow.dataset

    found: Rows = pyarrow.dataset.dataset(str(folder), format="parquet").to_table().to_pylist()
    return sorted(found, key=lambda row: (row["source"], row["frame"] or 0))


def test_two_workers_find_what_one_process_finds(cluster: str, place: Path) -> None:
    done = infer_on_ray(cluster, [str(place / "in")], str(place / "out"), place / "tiny.onnx", workers=2)
    rows = _rows(place / "out")
    assert (done.files, done.workers, done.frames, done.failed) == (7, 2, 35, 1)
    assert done.first_error is not None
    assert "broken.png' is not an image" in done.first_error
    (broken,) = [row for row in rows if row["error"] is not None]
    assert broken["source"] == str(place / "in" / "broken.png")
    assert broken["detections"] is None
    for name in (*(f"{number}.png" for number in range(5)), "clip.avi"):
        outputs = job.Outputs(save=False, results=True)
        alone = job.infer([place / "in" / name], place / "tiny.onnx", outputs=outputs).results
        assert alone is not None
        found = [row for row in rows if row["source"].endswith(f"{os.sep}{name}")]
        assert len(alone) == len(found) == (30 if name == "clip.avi" else 1)
        assert [row["detections"] for row in found] == [row["detections"] for row in alone]
        assert [row["seconds"] for row in found] == [row["seconds"] for row in alone]
        assert [row["frame"] for row in found] == [row["frame"] for row in alone] == list(range(len(found)))
        assert all(row["detections"] for row in found)
    with pytest.raises(ArtifactError, match=r"holds .* of another run"):
        infer_on_ray(cluster, [str(place / "in")], str(place / "out"), place / "tiny.onnx")


def test_a_killed_worker_loses_nothing(cluster: str, place: Path) -> None:
    many = place / "many"
    many.mkdir()
    noise = np.random.default_rng(1).integers(0, 255, (720, 1280, 3), np.uint8)
    noise[:64, :64] = _picture(np.random.default_rng(2))
    assert cv2.imwrite(str(many / "0000.png"), noise)
    for number in range(1, 300):
        os.link(many / "0000.png", many / f"{number:04}.png")
    done: list[Any] = []
    run = threading.Thread(
        target=lambda: done.append(
            infer_on_ray(cluster, [str(many)], str(place / "killed"), place / "tiny.onnx", workers=2)
        )
    )
    run.start()
    try:
        victim = _wait_for(lambda: next(iter(_busy_workers()), None), run)
        time.sleep(0.5)  # in the middle of its files
        assert run.is_alive()
        assert victim in _busy_workers()
        os.kill(victim, signal.SIGKILL)
        _wait_for(lambda: victim not in _busy_workers() or None, run)
        assert run.is_alive()
    finally:
        run.join(timeout=120)
    assert [(result.frames, result.failed) for result in done] == [(300, 0)]
    rows = _rows(place / "killed")
    assert [row["source"] for row in rows] == [str(many / f"{number:04}.png") for number in range(300)]
    assert all(row["detections"] == rows[0]["detections"] for row in rows)


def _busy_workers() -> list[int]:
    """Processes of Ray that hold a detector; the name that Ray gives them says it."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and b"ray::MapWorker(MapBatches(Worker))" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return sorted(found)


def _wait_for(found: Callable[[], Any], run: threading.Thread) -> Any:
    """What ``found`` gives as soon as it gives something."""
    until = time.monotonic() + 60
    while (value := found()) is None:
        assert run.is_alive()
        assert time.monotonic() < until
        time.sleep(0.02)
    return value


def test_an_error_of_a_worker_is_that_of_the_run(cluster: str, place: Path) -> None:
    (place / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(ArtifactError, match=r"bad\.onnx' is not an ONNX file"):
        infer_on_ray(cluster, [str(place / "in")], str(place / "bad"), place / "bad.onnx", InferSection(conf=0.5))


def test_the_command_starts_a_ray_of_its_own(place: Path) -> None:
    words = ["infer", str(place / "in" / "*.png"), "--ray", "local", "--model", str(place / "tiny.onnx"), "--out"]
    done = subprocess.run(
        [sys.executable, "-m", "trt_qat", *words, str(place / "told")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stdout == f"5 frames of 6 files, 1 worker\nWritten: {place / 'told'}\n"
    assert done.stderr.startswith("Error: 1 of 6 files left out; the first: '")
    assert done.stderr.count("\n") == 1
    assert len(_rows(place / "told")) == 6
    refused = CliRunner().invoke(cli, [*words, str(place / "x"), "--save-txt", "labels", "--track"])
    assert refused.stderr == "Error: --ray writes Parquet and nothing else: leave --save-txt, --track away.\n"


def test_what_is_no_file_is_refused(place: Path) -> None:
    with pytest.raises(DatasetError, match=r"'rtsp://\*\*\*@camera/1' is a stream"):
        infer_on_ray("local", ["rtsp://me:secret@camera/1"], str(place / "none"), place / "tiny.onnx")


def test_a_cluster_that_is_not_there(place: Path) -> None:
    words = ["infer", str(place / "in"), "--ray", "127.0.0.1:1", "--model", str(place / "tiny.onnx"), "--out"]
    done = subprocess.run(
        [sys.executable, "-m", "trt_qat", *words, str(place / "none")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Error: No Ray cluster at '127.0.0.1:1': ")
    assert done.stderr.count("\n") == 1
