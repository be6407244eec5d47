from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_onnx import Recorded, colour_image, write_tiny_detector

from trt_qat.errors import ArtifactError, DatasetError
from trt_qat.runtime.annotate import Annotated, annotate_files
from trt_qat.runtime.video import read_video


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
        def step(self, description: str, done: int, total: int) -> None:
            if done == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _annotated(video, tmp_path / "out" / "x.mp4", model, Stop())
    assert list((tmp_path / "out").iterdir()) == []
