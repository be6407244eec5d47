from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest
from tiny_onnx import NAMES, colour_image, write_tiny_detector

from trt_qat.errors import ArtifactError, DatasetError
from trt_qat.runtime.detector import Detector
from trt_qat.runtime.onnxruntime import OnnxRuntimeRunner
from trt_qat.runtime.video import annotate_video


@pytest.fixture
def detector(tmp_path: Path) -> Iterator[Detector]:
    with OnnxRuntimeRunner(write_tiny_detector(tmp_path / "tiny.onnx")) as runner:
        yield Detector(runner, conf=0.5)


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


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv", ".mov"])
def test_every_frame_is_annotated(tmp_path: Path, detector: Detector, video: Path, suffix: str) -> None:
    seen: list[tuple[int, int]] = []
    out = tmp_path / "out" / f"result{suffix}"
    summary = annotate_video(detector, video, out, NAMES, lambda done, total: seen.append((done, total)))
    assert (summary.frames, summary.frames_announced, summary.fps_source) == (5, 5, 10)
    assert summary.detections == 5 * 4
    assert summary.fps_processed > 0
    assert seen == [(done, 5) for done in range(1, 6)]
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    capture = cv2.VideoCapture(str(out))
    frames = 0
    while capture.read()[0]:
        frames += 1
    assert frames == 5
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(10)
    capture.release()


def test_unreadable_videos(tmp_path: Path, detector: Detector) -> None:
    for name, content in {"empty.mp4": b"", "text.mp4": b"hello\n" * 100, "text.avi": b"RIFF"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DatasetError, match=name):
            annotate_video(detector, tmp_path / name, tmp_path / "out" / "x.mp4", NAMES)
    with pytest.raises(DatasetError, match="does not exist"):
        annotate_video(detector, tmp_path / "none.mp4", tmp_path / "out" / "x.mp4", NAMES)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_outputs_that_cannot_be(tmp_path: Path, detector: Detector, video: Path) -> None:
    with pytest.raises(ArtifactError, match="must end in"):
        annotate_video(detector, video, tmp_path / "x.txt", NAMES)
    before = video.read_bytes()
    with pytest.raises(ArtifactError, match="over the source"):
        annotate_video(detector, video, video, NAMES)
    assert video.read_bytes() == before


def test_an_error_midway_leaves_nothing(tmp_path: Path, detector: Detector, video: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        annotate_video(detector, video, tmp_path / "out" / "x.mp4", NAMES, stop)
    assert list((tmp_path / "out").iterdir()) == []
