from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_onnx import Recorded, colour_image, write_tiny_detector

from trt_qat.errors import ArtifactError, DatasetError
from trt_qat.runtime.annotate import Annotated, annotate_files
from trt_qat.runtime.video import read_video, write_video


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_detector(tmp_path / "tiny.onnx")


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "source.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (128, 128))
    for _ in range(5):
        frame = colour_image(128, 128)
        frame[32:64, 32:64] = (0, 0, 255)
        writer.write(frame)
    writer.release()
    return path


def _annotated(video: Path, out: Path, model: Path, progress: Recorded | None = None) -> Annotated:
    return annotate_files(video, out, model, runtime="onnxruntime", progress=progress or Recorded(), conf=0.5)


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv", ".mov"])
def test_every_frame_is_annotated(tmp_path: Path, model: Path, video: Path, suffix: str) -> None:
    progress = Recorded()
    out = tmp_path / "out" / f"result{suffix}"
    done = _annotated(video, out, model, progress)
    assert (done.frames, done.frames_announced, done.detections, done.errors) == (5, 5, 5 * 4, [])
    assert [frame for frame, _ in done.per_frame] == [0, 1, 2, 3, 4]
    assert done.median_ms is not None
    assert done.median_ms > 0
    assert progress.steps == [("source.avi", frame, 5) for frame in range(1, 6)]
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    with read_video(out) as written, read_video(video) as original:
        assert written.fps == pytest.approx(10)
        assert written.size_wh == (128, 128)
        pairs = list(zip(written.frames, original.frames, strict=True))
    assert len(pairs) == 5
    for drawn, plain in pairs:  # boxes and labels of one class, in its colour
        assert np.abs(drawn.astype(int) - plain).max() > 100


def test_a_damaged_video_is_annotated_as_far_as_it_goes(tmp_path: Path, model: Path, video: Path) -> None:
    content = video.read_bytes()
    video.write_bytes(content[: content.rindex(b"00dc", 0, content.index(b"idx1"))])  # the last frame and the index
    done = _annotated(video, tmp_path / "out.avi", model)
    assert 0 < done.frames < 5  # decoders run ahead of what they give
    assert done.frames_announced == 5


def test_unreadable_videos(tmp_path: Path, model: Path) -> None:
    for name, content in {"empty.mp4": b"", "text.mp4": b"hello\n" * 100, "text.avi": b"RIFF"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DatasetError, match=name):
            _annotated(tmp_path / name, tmp_path / "out" / "x.mp4", model)
    with pytest.raises(DatasetError, match="does not exist"):
        _annotated(tmp_path / "none.mp4", tmp_path / "out" / "x.mp4", model)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_outputs_that_cannot_be(tmp_path: Path, model: Path, video: Path) -> None:
    with pytest.raises(ArtifactError, match="must end in"):
        _annotated(video, tmp_path / "x.txt", model)
    before = video.read_bytes()
    with pytest.raises(ArtifactError, match="is the source itself"):
        _annotated(video, video, model)
    assert video.read_bytes() == before


def test_an_error_midway_leaves_nothing(tmp_path: Path, model: Path, video: Path) -> None:
    class Stop(Recorded):
        def step(self, description: str, done: int, total: int, detail: str = "") -> None:
            if done == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _annotated(video, tmp_path / "out" / "x.mp4", model, Stop())
    assert list((tmp_path / "out").iterdir()) == []


def _noise(frames: int) -> Iterator[np.ndarray]:
    chosen = np.random.default_rng(0)
    yield from (chosen.integers(0, 256, (128, 128, 3), dtype=np.uint8) for _ in range(frames))


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv", ".mov"])
@pytest.mark.parametrize(("fps", "frames"), [(25, 1), (29.97, 31), (23.976, 7)])
def test_all_frames_of_a_written_file_are_found_again(tmp_path: Path, suffix: str, fps: float, frames: int) -> None:
    with write_video(tmp_path / f"x{suffix}", fps, (128, 128)) as write:
        for frame in _noise(frames):
            write(frame)
    with read_video(tmp_path / f"x{suffix}") as video:
        assert sum(1 for _ in video.frames) == video.frames_announced == frames
        assert video.fps == pytest.approx(fps, rel=1e-3)


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from trt_qat.errors import ArtifactError
from trt_qat.runtime.video import write_video
if sys.argv[2] != "0": resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), -1))
chosen = np.random.default_rng(0)
try:
    with write_video(Path(sys.argv[1]), 10, (128, 128)) as write:
        for _ in range(120): write(chosen.integers(0, 256, (128, 128, 3), dtype=np.uint8))
except ArtifactError as exc:
    print(exc)
"""


def _limited(out: Path, most_bytes: int) -> str:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(out), str(most_bytes)], capture_output=True, text=True, check=False
    )
    assert (done.stderr, done.returncode) == ("", 0)
    return done.stdout


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv"])
@pytest.mark.parametrize("most_bytes", [1000, 100_000])
def test_a_file_that_may_not_grow_is_one_line_and_leaves_nothing(tmp_path: Path, suffix: str, most_bytes: int) -> None:
    out = tmp_path / "out" / f"x{suffix}"
    (line,) = _limited(out, most_bytes).splitlines()
    assert line.startswith(f"Cannot write '{out}': only ")
    assert "of 120 frames arrived in the file. The disk is full, or the size of a file is limited." in line
    assert list(out.parent.iterdir()) == []


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "none", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        for suffix in (".mp4", ".avi"):
            (line,) = _limited(disk / f"x{suffix}", 0).splitlines()
            assert line.startswith(f"Cannot write '{disk / f'x{suffix}'}': ")
            assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    "name", [b"\xff\xfe", "đường phố".encode(), b"a%03d"], ids=["not UTF-8", "Vietnamese", "pattern"]
)
def test_any_name_is_read_and_written(tmp_path: Path, name: bytes) -> None:
    folder = tmp_path / os.fsdecode(name)
    path = folder / f"{os.fsdecode(name)}.mp4"
    before = set(Path(tempfile.gettempdir()).glob("trt_qat_*"))
    with write_video(path, 10, (128, 128)) as write:
        for frame in _noise(3):
            write(frame)
    assert list(folder.iterdir()) == [path]
    with read_video(path) as video:
        assert sum(1 for _ in video.frames) == 3
    assert set(Path(tempfile.gettempdir()).glob("trt_qat_*")) == before


def test_a_frame_of_another_size_is_not_dropped_in_silence(tmp_path: Path) -> None:
    with write_video(tmp_path / "x.mp4", 10, (128, 128)) as write:
        write(np.zeros((128, 128, 3), np.uint8))
        with pytest.raises(ArtifactError, match=r"frame 1 is \(64, 128\), not \(128, 128\)"):
            write(np.zeros((128, 64, 3), np.uint8))


def test_what_is_no_video_file_is_not_opened(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    for path, message in ((tmp_path / "pipe.mp4", "is a pipe"), (Path("/dev/zero"), "is a device")):
        with pytest.raises(DatasetError, match=message), read_video(path):
            pass
    (tmp_path / "junk.mp4").write_bytes(bytes(range(256)) * 40)
    with pytest.raises(DatasetError, match="cannot be read"), read_video(tmp_path / "junk.mp4"):
        pass
    assert capfd.readouterr() == ("", "")


def test_frames_are_not_decoded_beyond_the_limit(video: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with write_video(tmp_path / "large.avi", 10, (1200, 1000)) as write:
        write(np.zeros((1000, 1200, 3), np.uint8))
    monkeypatch.setenv("TRT_QAT_MAX_IMAGE_MEGAPIXELS", "1")
    with pytest.raises(DatasetError, match=r"large.avi' has 1.2 megapixels"), read_video(tmp_path / "large.avi"):
        pass
    with read_video(video) as small:
        assert small.size_wh == (128, 128)
