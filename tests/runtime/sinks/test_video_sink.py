from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_onnx import Recorded

from trt_qat.errors import ArtifactError
from trt_qat.runtime.frames import Frame, Result
from trt_qat.runtime.sinks import encoding
from trt_qat.runtime.sinks.video import VideoSink
from trt_qat.vision.detections import Detections

SUFFIXES = [".mp4", ".avi", ".mkv", ".mov"]
NOTHING = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))


def _result(picture: NDArray[np.uint8], number: int = 0, seconds: float | None = None) -> Result:
    return Result(Frame(picture, "street.mp4", number, seconds), NOTHING, annotated_bgr=picture)


def _noise(frames: int, size_wh: tuple[int, int] = (128, 128)) -> Iterator[NDArray[np.uint8]]:
    chosen = np.random.default_rng(0)
    yield from (chosen.integers(0, 256, (size_wh[1], size_wh[0], 3), dtype=np.uint8) for _ in range(frames))


def _write(out: Path, pictures: Sequence[NDArray[np.uint8]], fps: float = 10, live: bool = False) -> None:
    with VideoSink(out, fps, live) as sink:
        for number, picture in enumerate(pictures):
            sink.write(_result(picture, number, number / fps))


def _read(path: Path) -> tuple[list[NDArray[np.uint8]], list[float]]:
    """Pictures and times of all frames."""
    with av.open(f"file:{path}") as container:
        frames = list(container.decode(video=0))
    return [frame.to_ndarray(format="bgr24") for frame in frames], [float(frame.time or 0) for frame in frames]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("fps", "frames"), [(25, 1), (29.97, 31), (23.976, 7)])
def test_all_frames_of_a_written_file_are_found_again(tmp_path: Path, suffix: str, fps: float, frames: int) -> None:
    _write(tmp_path / f"x{suffix}", list(_noise(frames)), fps)
    capture = cv2.VideoCapture(str(tmp_path / f"x{suffix}"))
    assert sum(1 for _ in iter(capture.grab, False)) == capture.get(cv2.CAP_PROP_FRAME_COUNT) == frames
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(fps, rel=1e-3)
    capture.release()
    assert [path.name for path in tmp_path.iterdir()] == [f"x{suffix}"]


def test_pictures_come_back_as_they_were_in_h264(tmp_path: Path) -> None:
    street = cv2.GaussianBlur(next(_noise(1, (640, 360))), (0, 0), 9)
    street[100:200, 100:300] = (40, 30, 200)
    _write(tmp_path / "x.mp4", [street] * 3)
    for picture in _read(tmp_path / "x.mp4")[0]:
        assert cv2.PSNR(picture, street) > 35
    with av.open(str(tmp_path / "x.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt, context.color_range) == ("h264", "yuv420p", 1)
    content = (tmp_path / "x.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # plays while it loads


@pytest.mark.parametrize(("suffix", "exact"), [(".mp4", 1e-4), (".mov", 1e-4), (".mkv", 1e-3)])
@pytest.mark.parametrize("live", [False, True])
def test_each_frame_keeps_its_time(tmp_path: Path, suffix: str, exact: float, live: bool) -> None:
    seconds = [5.0, 5.04, 5.05, 5.5, 7.25, 7.25, 7.2833]  # begins late, changes its rate, says a time twice
    with VideoSink(tmp_path / f"x{suffix}", 25, live) as sink:
        for number, (picture, when) in enumerate(zip(_noise(len(seconds)), seconds, strict=True)):
            sink.write(_result(picture, number, when))
    found = _read(tmp_path / f"x{suffix}")[1]
    assert found == pytest.approx([when - 5 for when in seconds], abs=2 * exact)
    assert all(later > earlier for earlier, later in itertools.pairwise(found))


def test_a_source_that_begins_anew_follows(tmp_path: Path) -> None:
    with VideoSink(tmp_path / "x.mp4", 10) as sink:
        for number, when in enumerate([0, 0.1, 0.2, 0, 0.1]):
            sink.write(_result(np.zeros((64, 64, 3), np.uint8), number, when))
    assert _read(tmp_path / "x.mp4")[1] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4], abs=1e-4)


def test_frames_without_a_time_come_at_the_rate(tmp_path: Path) -> None:
    with VideoSink(tmp_path / "x.mp4", 4) as sink:
        for number in range(3):
            sink.write(_result(np.zeros((64, 64, 3), np.uint8), number))
    assert _read(tmp_path / "x.mp4")[1] == pytest.approx([0, 0.25, 0.5])


@pytest.mark.parametrize("size_wh", [(101, 64), (64, 33), (101, 33), (1, 1)])
def test_an_odd_side_is_one_pixel_longer(tmp_path: Path, size_wh: tuple[int, int]) -> None:
    picture = np.full((size_wh[1], size_wh[0], 3), (200, 120, 40), np.uint8)
    picture[:, size_wh[0] // 2 :] = (20, 40, 200)
    _write(tmp_path / "x.mp4", [picture] * 2)
    found = _read(tmp_path / "x.mp4")[0][1]
    assert found.shape == (size_wh[1] + size_wh[1] % 2, size_wh[0] + size_wh[0] % 2, 3)
    assert np.abs(found[: size_wh[1], : size_wh[0]].astype(int) - picture).mean() < 8
    assert np.abs(found[:, -1].astype(int) - (20, 40, 200)).mean() < 16


def test_a_frame_of_another_size_is_fitted_undistorted(tmp_path: Path) -> None:
    wide, tall = np.full((90, 160, 3), 255, np.uint8), np.full((160, 90, 3), 255, np.uint8)
    _write(tmp_path / "x.mp4", [wide, tall, wide])
    first, second, third = _read(tmp_path / "x.mp4")[0]
    assert first.shape == second.shape == third.shape == (90, 160, 3)
    white = second.min(axis=2) > 128
    assert white.any(axis=1).all()
    assert white.any(axis=0).sum() == pytest.approx(90 * 90 / 160, abs=2)
    assert third.min() > 200


def test_ctrl_c_and_the_error_of_another_stage_keep_what_was_written(tmp_path: Path) -> None:
    for stop in (KeyboardInterrupt, RuntimeError):
        out = tmp_path / f"{stop.__name__}.mp4"
        with pytest.raises(stop):
            _stopped(out, stop)
        assert len(_read(out)[0]) == 3
    assert len(list(tmp_path.iterdir())) == 2


def _stopped(out: Path, stop: type[BaseException]) -> None:
    with VideoSink(out, 10) as sink:
        for picture in _noise(3):
            sink.write(_result(picture))
        assert not out.exists()
        raise stop


def test_a_crash_of_a_live_recording_leaves_what_can_be_played(tmp_path: Path) -> None:
    """All but the last five seconds."""
    crash = (
        "import os, sys, numpy as np; from pathlib import Path\n"
        "from trt_qat.runtime.frames import Frame, Result; from trt_qat.runtime.sinks.video import VideoSink\n"
        "sink = VideoSink(Path(sys.argv[1]), 10, live=True); chosen = np.random.default_rng(0)\n"
        "for n in range(160):\n"
        "    picture = chosen.integers(0, 256, (64, 64, 3), dtype=np.uint8)\n"
        "    sink.write(Result(Frame(picture, 'camera', n, n / 10), None, annotated_bgr=picture))\n"
        "os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", crash, str(tmp_path / "x.mp4")], check=False)
    (left,) = tmp_path.glob(".x.mp4.*/x.mp4")
    played = 0
    with contextlib.suppress(av.error.InvalidDataError), av.open(str(left)) as container:  # the last one is cut
        for _ in container.decode(video=0):
            played += 1
    assert played >= 100


def test_nothing_written_leaves_nothing(tmp_path: Path) -> None:
    with VideoSink(tmp_path / "x.mp4", 10):
        pass
    assert list(tmp_path.iterdir()) == []


def test_what_was_there_stays_until_the_video_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "x.mp4"
    out.write_bytes(b"before")
    with VideoSink(out, 10) as sink:
        sink.write(_result(np.zeros((64, 64, 3), np.uint8)))
        assert out.read_bytes() == b"before"
    assert len(_read(out)[0]) == 1


def test_names_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"x\.txt': its name must end in \.avi, \.m4v, \.mkv, \.mov, \.mp4"):
        VideoSink(tmp_path / "x.txt")
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(ArtifactError, match="is a folder"):
        VideoSink(tmp_path / "folder.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(ArtifactError, match="is a pipe"):
        VideoSink(tmp_path / "pipe.mp4")


@pytest.mark.parametrize(
    "name",
    [b"\xff\xfe", "đường phố".encode(), b"a%03d", b"rtsp:x"],
    ids=["not UTF-8", "Vietnamese", "pattern", "protocol"],
)
def test_any_name_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: bytes) -> None:
    folder = tmp_path / os.fsdecode(name)
    path = folder / f"{os.fsdecode(name)}.mp4"
    _write(path, list(_noise(3)))
    assert list(folder.iterdir()) == [path]
    assert len(_read(path)[0]) == 3
    monkeypatch.chdir(folder)
    _write(Path(f"{os.fsdecode(name)}_2.mkv"), list(_noise(2)))
    assert len(_read(Path(f"{os.fsdecode(name)}_2.mkv"))[0]) == 2


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from trt_qat.errors import ArtifactError
from trt_qat.runtime.frames import Frame, Result
from trt_qat.runtime.sinks.video import VideoSink
if sys.argv[1] != "0": resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), -1))
chosen = np.random.default_rng(0)
for number, out in enumerate(sys.argv[2:]):
    try:
        with VideoSink(Path(out), 10, live=number % 2 == 1) as sink:
            for _ in range(120):
                picture = chosen.integers(0, 256, (128, 128, 3), dtype=np.uint8)
                sink.write(Result(Frame(picture, "x", 0), None, annotated_bgr=picture))
    except ArtifactError as exc:
        print(exc)
"""


def _limited(most_bytes: int, folder: Path) -> tuple[list[Path], list[str]]:
    """The videos that had no room, each once as of a file and once as of a live source, and what was said."""
    outs = [folder / f"{name}{suffix}" for suffix in SUFFIXES for name in ("file", "live")]
    command = [sys.executable, "-c", LIMITED, str(most_bytes), *map(str, outs)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stderr, done.returncode) == ("", 0)
    return outs, done.stdout.splitlines()


@pytest.mark.parametrize("most_bytes", [1000, 100_000, 1_000_000])
def test_a_file_that_may_not_grow_is_one_line_and_leaves_nothing(tmp_path: Path, most_bytes: int) -> None:
    outs, lines = _limited(most_bytes, tmp_path / "out")
    advice = "Free some space or choose another --out."
    assert lines == [f"Cannot write '{out}': File too large. {advice}" for out in outs]
    assert list((tmp_path / "out").iterdir()) == []


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "none", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        outs, lines = _limited(0, disk)
        advice = "Free some space or choose another --out."
        assert lines == [f"Cannot write '{out}': No space left on device. {advice}" for out in outs]
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_another_encoder_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "ENCODERS", ("lib_not_there", "h264_v4l2m2m", "mpeg4"))
    progress = Recorded()
    with VideoSink(tmp_path / "x.mp4", 10, progress=progress) as sink:
        for picture in _noise(3):
            sink.write(_result(picture))
    assert len(_read(tmp_path / "x.mp4")[0]) == 3
    assert progress.notes == [f"No libx264 here: '{tmp_path / 'x.mp4'}' is encoded by mpeg4."]
