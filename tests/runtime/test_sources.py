from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import pytest
from clips import number_in, numbered, write_clip

from trt_qat.errors import ConfigError, DatasetError
from trt_qat.progress import Silent
from trt_qat.runtime.access import stream_access
from trt_qat.runtime.decode import Decoder
from trt_qat.runtime.files import Images, Video, Waiting
from trt_qat.runtime.pace import Pace
from trt_qat.runtime.sources import Named, name_sources, open_sources, together


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("0/deeper").mkdir(parents=True)
    for name in ("0/b.JPG", "0/a.png", "0/notes.md", "0/deeper/c.png", "0/deeper/d.mp4", "drive.MKV", "7.png",
                 "a ! b.png", "-"):  # fmt: skip
        Path(name).write_bytes(b"x")


def _images(text: str, *paths: str, single: bool = False) -> Named:
    return Named(text, "images", tuple(map(Path, paths)), single)


def test_what_a_text_names() -> None:
    assert name_sources(["0"]) == [_images("0", "0/a.png", "0/b.JPG")]  # a folder comes before the camera of its name
    assert name_sources(["./0/"]) == [_images("./0/", "0/a.png", "0/b.JPG")]
    for name in ("7.png", "a ! b.png"):
        assert name_sources([name]) == [_images(name, name, single=True)]
    assert name_sources(["drive.MKV"]) == [Named("drive.MKV", "video", (Path("drive.MKV"),))]
    assert name_sources(["0"], recursive=True) == [
        _images("0", "0/a.png", "0/b.JPG", "0/deeper/c.png"),
        Named("0/deeper/d.mp4", "video", (Path("0/deeper/d.mp4"),), single=False),
    ]
    assert name_sources(["0/[ab].*"]) == [_images("0/[ab].*", "0/a.png", "0/b.JPG")]
    assert name_sources(["**/*.png"]) == [_images("**/*.png", "0/a.png", "0/deeper/c.png", "7.png", "a ! b.png")]
    for number in ("1", "01", "/dev/video1"):
        (found,) = name_sources([number])
        assert (found.kind, found.text) == ("camera", "/dev/video1")
    assert name_sources(["-"]) == [Named("-", "stdin")]  # ./- is the file
    assert [named.kind for named in name_sources(["7.png", "drive.MKV", "udp://@239.0.0.1:1234"])] == [
        "images", "video", "url",
    ]  # fmt: skip


@pytest.mark.parametrize("scheme", ["rtsp", "RTSP", "rtsps", "http", "https", "udp", "rtmp", "srt", "tcp"])
def test_addresses(scheme: str) -> None:
    url = f"{scheme}://user:ge/he:i@m@host/cam?token=geheim"
    assert name_sources([url]) == [Named(url, "url")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Source '' does not exist"),
        ("none.png", "Source 'none.png' does not exist"),
        ("x" * 5000, "does not exist"),
        ("admin:geheim@10.0.0.2/cam", r"Source '\*\*\*@10.0.0.2/cam' does not exist"),
        ("0/notes.md", "neither an image nor a video by its name"),
        ("0/deeper/c.png/d.png", "does not exist"),
        ("file:///photos/one.png", "known are http, https, rtmp, .* addresses"),
        ("concat://a|b", "known are"),
        ("ftp://user:geheim@host/a.mp4", r"'ftp://\*\*\*@host/a.mp4' cannot be opened: known are"),
        ("http://host/a\nb", "holds a space or a control character"),
        ("http://host/a\0b", "holds a space or a control character"),
        ("v4l2src device=/dev/video0 ! videoconvert ! appsink", "is a GStreamer pipeline"),
        ("rtspsrc location=rtsp://u:geheim@h/x user-pw=geheim ! sink", "is a GStreamer pipeline"),
        ("*.jpeg", r"Pattern '\*.jpeg' fits no image"),
        ("0/*.md", "fits no image"),
        ("/dev/null", "neither an image nor a video"),
        ("/dev/stdin", "neither an image nor a video"),
        ("/dev/video", "does not exist"),
    ],
)
def test_no_source(text: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message) as caught:
        name_sources([text])
    assert "geheim" not in str(caught.value)


def test_a_folder_holds_whatever_has_the_name_of_an_image_or_video_but_folders() -> None:
    os.mkfifo("0/pipe.jpg")
    Path("0/folder.jpg").mkdir()
    assert [path.name for path in name_sources(["0"])[0].paths] == ["a.png", "b.JPG", "pipe.jpg"]
    Path("0/loop").symlink_to(".")
    assert len(name_sources(["0"], recursive=True)[0].paths) == 4
    Path("0/empty").mkdir()
    with pytest.raises(DatasetError, match=r"Folder '0/empty' holds no images"):
        name_sources(["0/empty"])


def test_lists() -> None:
    Path("0/list.txt").write_text("# seen\n\na.png\n../drive.MKV\nrtsp://me:geheim@host/cam\ndeeper/c.png\n", "utf-8")
    assert name_sources(["0/list.txt"]) == [
        _images("0/list.txt", "0/a.png", "0/deeper/c.png"),
        Named("0/../drive.MKV", "video", (Path("0/../drive.MKV"),), single=False),
        Named("rtsp://me:geheim@host/cam", "url"),
    ]
    for content, message in {
        "": "names nothing", "none.png": "names 'none.png', which is no image", "list.txt": "names 'list.txt'",
        "-": "names '-'", "deeper": "names 'deeper'", "file:///etc/passwd": "known are",
    }.items():  # fmt: skip
        Path("0/list.txt").write_text(content)
        with pytest.raises(DatasetError, match=message):
            name_sources(["0/list.txt"])
    Path("0/list.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DatasetError, match="not UTF-8"):
        name_sources(["0/list.txt"])


def test_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRT_QAT_MAX_FILES", "1")
    for text in ("0", "0/*"):
        with pytest.raises(DatasetError, match=r"'0.*' has 2 files, the limit is 1\."):
            name_sources([text])
    monkeypatch.setenv("TRT_QAT_MAX_SOURCES", "2")
    with pytest.raises(DatasetError, match=r"has 3 sources that are open at once, the limit is 2\."):
        name_sources(["7.png"] * 3)
    with pytest.raises(DatasetError, match="one standard input"):
        name_sources(["-", "-"])


def test_images_are_read_in_order_and_bad_ones_named() -> None:
    for number in range(4):
        cv2.imwrite(f"0/{number}.png", numbered(number))
    Path("0/2.png").write_bytes(b"x")
    (source,) = open_sources(["0/?.png"])
    frames = list(source.frames())
    assert [(number_in(frame.image_bgr), frame.number, frame.path) for frame in frames] == [
        (0, 0, Path("0/0.png")), (1, 1, Path("0/1.png")), (3, 3, Path("0/3.png")),
    ]  # fmt: skip
    assert {frame.seconds for frame in frames} == {None}
    assert [name for name, _ in source.errors] == ["2.png", "a.png"]
    assert (source.announced, source.live, source.fps, source.size_wh) == (5, False, None, None)
    (source,) = open_sources(["0/?.png"], every=3)
    assert [frame.number for frame in source.frames()] == [0, 3]
    assert source.announced == 2
    (source,) = open_sources(["0/2.png"])
    with pytest.raises(DatasetError, match=r"2\.png' is not an image"):
        list(source.frames())


def test_every_and_max_fps_of_a_video() -> None:
    write_clip(Path("x.mp4"), 25)
    (source,) = open_sources(["x.mp4"], every=10)
    assert [(frame.number, number_in(frame.image_bgr)) for frame in source.frames()] == [(0, 0), (10, 10), (20, 20)]
    assert source.announced == 3
    (source,) = open_sources(["x.mp4"], max_fps=5)
    assert [frame.number for frame in source.frames()] == [0, 5, 10, 15, 20]
    with pytest.raises(ConfigError, match="every = 0"):
        open_sources(["x.mp4"], every=0)


def test_groups_of_one_file_are_consecutive() -> None:
    write_clip(Path("x.mp4"), 7)
    groups = list(together(open_sources(["x.mp4"]), 3))
    assert [[frame.number for frame in group] for group in groups] == [[0, 1, 2], [3, 4, 5], [6]]


def test_files_take_turns() -> None:
    for name, count in {"a.mp4": 5, "b.mkv": 2, "c.avi": 3}.items():
        write_clip(Path(name), count)
    groups = list(together(open_sources(["a.mp4", "b.mkv", "c.avi"]), 4))
    assert [[f"{frame.source[0]}{frame.number}" for frame in group] for group in groups] == [
        ["a0", "b0", "c0", "a1"], ["b1", "c1", "a2", "c2"], ["a3", "a4"],
    ]  # fmt: skip
    assert all(frame.number == number_in(frame.image_bgr) for group in groups for frame in group)


def test_one_that_cannot_be_opened_opens_none() -> None:
    write_clip(Path("a.mp4"), 5)
    with pytest.raises(DatasetError, match=r"drive\.MKV"):
        open_sources(["a.mp4", "drive.MKV"])


def test_one_that_fails_later_is_noted_and_the_others_go_on() -> None:
    class Notes(list[str], Silent):
        def note(self, line: str) -> None:
            self.append(line)

    write_clip(Path("a.mp4"), 3)
    notes = Notes()
    sources = open_sources(["a.mp4", "7.png"])
    assert isinstance(sources[1], Images)
    assert sum(len(group) for group in together(sources, 2, notes)) == 3
    assert [line.partition(":")[0] for line in notes] == ["Source '7.png' is left out from here on"]
    assert [name for name, _ in sources[1].errors] == ["7.png"]
    with pytest.raises(DatasetError, match=r"7\.png"):
        list(together(open_sources(["7.png"]), 2))


def test_closing_ends_a_read_of_a_pipe_that_is_silent() -> None:
    reading, writing = os.pipe()
    content = write_clip(Path("x.mkv"), 100, codec="mjpeg", pixels="yuvj420p").read_bytes()[:-1000]
    feeding = threading.Thread(target=os.write, args=(writing, content))
    feeding.start()
    stream = Waiting(reading)
    source = Video("-", Decoder(stream_access("-", stream)), Pace(), stream)
    threading.Timer(0.2, source.close).start()
    begin = time.monotonic()
    assert len(list(source.frames())) >= 1
    assert 0.1 < time.monotonic() - begin < 2
    feeding.join()
    os.close(writing)
    os.close(reading)


def test_a_camera_that_is_not_there() -> None:
    with pytest.raises(DatasetError, match=r"Source '/dev/video63' cannot be opened: No such file or directory\."):
        open_sources(["63"])


READ = """
import sys
import threading
import time
from clips import number_in
from trt_qat.errors import DatasetError
from trt_qat.runtime.sources import open_sources
try:
    source, = open_sources(["-"])
    found = [number_in(frame.image_bgr) for frame in source.frames()]
    print(source.live, source.size_wh, found == list(range(len(found))), len(found))
except DatasetError as exc:
    print(exc)
"""


def test_standard_input() -> None:
    written = [
        (write_clip(Path("x.mkv"), 12).read_bytes(), "False (128, 64) True 12"),
        (numbered(0).tobytes() * 12, "What came on standard input cannot be read: "),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    running = [
        subprocess.Popen([sys.executable, "-c", READ], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        for _ in written
    ]
    for process, (content, said) in zip(running, written, strict=True):
        out, _ = process.communicate(content, timeout=60)
        assert out.decode().startswith(said)
        assert len(out.decode().splitlines()) == 1


def test_streams_that_say_what_they_are() -> None:
    jpegs = b"".join(cv2.imencode(".jpg", numbered(number))[1].tobytes() for number in range(12))
    for content in (write_clip(Path("x.ts"), 12).read_bytes(), jpegs):
        reading, writing = os.pipe()
        os.write(writing, content)
        os.close(writing)
        source = Video("-", Decoder(stream_access("-", Waiting(reading))), Pace())
        assert [number_in(frame.image_bgr) for frame in source.frames()] == list(range(12))
        os.close(reading)
