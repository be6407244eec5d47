from __future__ import annotations

import os
from pathlib import Path

import pytest

from trt_qat.errors import ArtifactError, DatasetError
from trt_qat.runtime.outputs import find_source, target_of


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("0/deeper").mkdir(parents=True)
    for name in ("0/b.JPG", "0/a.png", "0/notes.txt", "0/deeper/c.png", "drive.MKV", "7.png", "a ! b.png"):
        Path(name).write_bytes(b"x")


def test_what_a_text_names() -> None:
    folder = find_source("0")  # a folder of this name comes before the camera of this number
    assert folder.is_folder
    assert folder.images == (Path("0/a.png"), Path("0/b.JPG"))
    assert find_source("./0/").images == folder.images
    for name in ("7.png", "a ! b.png"):
        assert find_source(name).images == (Path(name),)
        assert not find_source(name).is_folder
    assert find_source("drive.MKV").images is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rtsp://127.0.0.1:8554/cam", None),
        ("RTSP://user@host/cam", "RTSP://***@host/cam"),
        ("rtsp://user:geheim@host:554/cam", "rtsp://***@host:554/cam"),
        ("rtsp://user:ge/he:i@m@host/cam", "rtsp://***@host/cam"),
        ("rtsps://:geheim@host/cam", "rtsps://***@host/cam"),
        ("http://host/video.mjpg", None),
        ("https://host/cam?user=me&pwd=geheim&size=2#x", "https://host/cam?user=***&pwd=***&size=2#x"),
        ("https://host/a.jpg?X-Token=geheim", "https://host/a.jpg?X-Token=***"),
        ("udp://@239.0.0.1:1234", None),
        ("rtmp://host/live", None),
        ("srt://host:9000", None),
        ("tcp://host:1", None),
        ("file:///photos/one.png", None),
        ("1", None),
        ("00", None),
        ("/dev/video0", None),
        ("/dev/video", None),
        ("/dev/null", None),
        ("-", None),
        ("v4l2src device=/dev/video0 ! videoconvert ! appsink", None),
    ],
)
def test_streams_and_cameras_are_not_supported_and_say_so(text: str, shown: str | None) -> None:
    with pytest.raises(DatasetError) as caught:
        find_source(text)
    assert str(caught.value).startswith(
        f"Source '{shown or text}' cannot be read: streams and cameras are not supported yet. "
    )
    assert "geheim" not in str(caught.value)


def test_a_folder_holds_whatever_has_an_images_name_but_folders() -> None:
    os.mkfifo("0/pipe.jpg")
    Path("0/folder.jpg").mkdir()
    assert [path.name for path in find_source("0").images or ()] == ["a.png", "b.JPG", "pipe.jpg"]


def test_a_folder_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRT_QAT_MAX_FILES", "1")
    with pytest.raises(DatasetError, match=r"Folder '0' has 2 files, the limit is 1\."):
        find_source("0")


def test_a_pipe_is_a_stream() -> None:
    os.mkfifo("camera.mp4")
    with pytest.raises(DatasetError, match=r"'camera.mp4' cannot be read: streams"):
        find_source("camera.mp4")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Source '' does not exist"),
        ("none.png", "Source 'none.png' does not exist"),
        ("x" * 5000, "does not exist"),
        ("admin:geheim@10.0.0.2/cam", r"Source '\*\*\*@10.0.0.2/cam' does not exist"),
        ("0/notes.txt", "neither an image nor a video by its name"),
        ("0/deeper/c.png/d.png", "does not exist"),
    ],
)
def test_no_source(text: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        find_source(text)


def test_folder_without_images() -> None:
    Path("0/empty").mkdir()
    with pytest.raises(DatasetError, match=r"Folder '0/empty' holds no images"):
        find_source("0/empty")


@pytest.mark.parametrize(
    ("source", "out", "target"),
    [
        ("7.png", None, "runs/infer/7.png"),
        ("7.png", "seen", "seen/7.png"),
        ("7.png", "seen/x.jpg", "seen/x.jpg"),
        ("drive.MKV", None, "runs/infer/drive.mp4"),
        ("0", None, "runs/infer/0"),
        ("0", "seen", "seen"),
    ],
)
def test_targets(source: str, out: str | None, target: str) -> None:
    assert target_of(find_source(source), out if out is None else Path(out)) == Path(target)


@pytest.mark.parametrize(
    ("source", "out", "message"),
    [
        ("7.png", "7.png", "is the source itself"),
        ("7.png", "x.foo", "must be a folder or end in"),
        ("0", "7.png", "is a file"),
        ("0", "0", "is the source itself"),
    ],
)
def test_targets_that_cannot_be(source: str, out: str, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        target_of(find_source(source), Path(out))


def test_a_target_that_is_a_link_to_itself_is_left_to_the_writer() -> None:
    Path("loop.png").symlink_to("loop.png")
    assert target_of(find_source("7.png"), Path("loop.png")) == Path("loop.png")
