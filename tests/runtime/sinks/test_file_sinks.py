"""Sinks that write a file per image, frame or detection."""

from __future__ import annotations

import os
from pathlib import Path, PurePath

import cv2
import numpy as np
import pytest

from trt_qat.errors import ArtifactError, MissingDependency
from trt_qat.runtime.frames import Frame, Result
from trt_qat.runtime.sinks import show
from trt_qat.runtime.sinks.crops import CropsSink
from trt_qat.runtime.sinks.images import ImagesSink
from trt_qat.runtime.sinks.naming import FrameNames, UniqueNames, safe_name, source_name
from trt_qat.runtime.sinks.show import ShowSink
from trt_qat.runtime.sinks.yolo_txt import YoloTxtSink
from trt_qat.vision.detections import Detections

PICTURE = np.full((50, 100, 3), 90, np.uint8)
PICTURE[10:30, 20:60] = (200, 30, 10)


def _found(*boxes: tuple[float, float, float, float], class_id: int = 0) -> Detections:
    count = len(boxes)
    return Detections(
        np.array(boxes, np.float32).reshape(count, 4), np.full(count, 0.75, np.float32), np.full(count, class_id)
    )


def _result(frame: Frame, *boxes: tuple[float, float, float, float], class_id: int = 0) -> Result:
    return Result(frame, _found(*boxes, class_id=class_id), annotated_bgr=PICTURE)


def _image(path: str, source: str = "photos") -> Frame:
    return Frame(PICTURE, source, 0, path=Path(path))


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_yolo_labels(tmp_path: Path) -> None:
    with YoloTxtSink(tmp_path / "labels") as sink:
        sink.write(_result(_image("photos/a.jpg"), (20, 10, 60, 30), (-10, 0, 50, 99)))
        sink.write(_result(_image("photos/deeper/a.jpg")))
        sink.write(_result(Frame(PICTURE, "street.mp4", 7, 0.28), (0, 0, 100, 50), class_id=3))
    assert _files(tmp_path / "labels") == ["a.txt", "deeper/a.txt", "street_000007.txt"]
    assert (tmp_path / "labels/a.txt").read_text() == (
        "0 0.400000 0.400000 0.400000 0.400000\n0 0.250000 0.500000 0.500000 1.000000\n"
    )
    assert (tmp_path / "labels/deeper/a.txt").read_text() == ""
    assert (tmp_path / "labels/street_000007.txt").read_text() == "3 0.500000 0.500000 1.000000 1.000000\n"
    with YoloTxtSink(tmp_path, scores=True) as sink:
        sink.write(_result(_image("photos/a.jpg"), (0, 0, 100, 50)))
    assert (tmp_path / "a.txt").read_text() == "0 0.500000 0.500000 1.000000 1.000000 0.7500\n"


def test_crops_go_into_folders_of_their_classes(tmp_path: Path) -> None:
    names = {0: "Cấm đỗ", 1: "../../etc", 2: "a/b", 3: "a_b", 4: ".."}
    with CropsSink(tmp_path, names) as sink:
        frame = Frame(PICTURE, "street.mp4", 7, 0.28)
        sink.write(_result(frame, (20, 10, 60, 30), (-9, -9, 10.4, 10), (70, 60, 80, 70), (float("nan"),) * 4))
        for class_id in (1, 2, 3, 4, 9):
            sink.write(_result(_image("photos/deeper/x.png"), (0, 0, 10, 10), class_id=class_id))
    assert _files(tmp_path) == [
        "Cấm đỗ/street_000007_0.jpg",
        "Cấm đỗ/street_000007_1.jpg",
        "_.._etc/deeper_x_0.jpg",
        "a_b/deeper_x_0.jpg",
        "a_b_2/deeper_x_0.jpg",
        "class_4/deeper_x_0.jpg",
        "class_9/deeper_x_0.jpg",
    ]
    crop = cv2.imdecode(np.fromfile(tmp_path / "Cấm đỗ/street_000007_0.jpg", np.uint8), cv2.IMREAD_COLOR)
    assert crop.shape == (20, 40, 3)
    assert np.abs(crop.astype(int) - (200, 30, 10)).mean() < 4


def test_images_keep_their_names_and_folders_and_replace_none(tmp_path: Path) -> None:
    odd = os.fsdecode(b"photos/\xff.png")
    with ImagesSink(tmp_path / "out") as sink:
        for path in ("photos/a.jpg", "photos/b.PNG", "photos/deeper/a.jpg", odd):
            sink.write(_result(_image(path)))
        sink.write(_result(_image("others/a.jpg", "others")))
        sink.write(_result(_image("listed/A.jpg", "list.txt")))
    assert _files(tmp_path / "out") == sorted(
        ["a.jpg", "a_2.jpg", "A_3.jpg", "b.PNG", "deeper/a.jpg", os.fsdecode(b"\xff.png")]
    )
    assert cv2.imread(str(tmp_path / "out/b.PNG")).shape == PICTURE.shape
    assert sink.errors == []


def test_a_single_image_has_the_name_it_is_given(tmp_path: Path) -> None:
    with ImagesSink(tmp_path / "deeper" / "seen.png", is_file=True) as sink:
        sink.write(_result(_image("a.jpg", "a.jpg")))
    assert _files(tmp_path) == ["deeper/seen.png"]


def test_an_image_that_its_format_cannot_hold_is_left_out_and_said(tmp_path: Path) -> None:
    long = Result(_image("photos/long.jpg"), _found(), annotated_bgr=np.zeros((1, 66_000, 3), np.uint8))
    with ImagesSink(tmp_path) as sink:
        sink.write(long)
        sink.write(_result(_image("photos/a.jpg")))
    assert _files(tmp_path) == ["a.jpg"]
    ((name, error),) = sink.errors
    assert name == "long.jpg"
    assert "does not encode 66000 x 1 pixels as *.jpg" in error
    with pytest.raises(ArtifactError, match="does not encode"), ImagesSink(tmp_path / "x.jpg", is_file=True) as alone:
        alone.write(long)


def test_the_source_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "photos" / "a.jpg"
    path.parent.mkdir()
    path.write_bytes(b"before")
    (tmp_path / "link").symlink_to("photos")
    with pytest.raises(ArtifactError, match="source"), ImagesSink(tmp_path / "link") as sink:
        sink.write(_result(_image(str(path), str(path.parent))))
    assert path.read_bytes() == b"before"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("drive/street.mp4", "street"),
        ("rtsp://***@camera:554/live/1?token=***", "camera_554_live_1"),
        ("http://user:pa/ss@word@host/video.mp4", "host_video.mp4"),
        ("udp://@:1234", "__1234"),
        ("-", "stdin"),
        ("0", "0"),
        ("/dev/video0", "video0"),
        ("", "source"),
        ("../..", "source"),
        (os.fsdecode(b"\xff\xfe.mp4"), "__"),
        ("x" * 500, "x" * 80),
    ],
)
def test_names_of_sources(source: str, name: str) -> None:
    assert source_name(source) == name


def test_frames_have_names_of_their_own() -> None:
    names = FrameNames(".txt")
    found = [
        names.of(frame)
        for frame in (
            Frame(PICTURE, "a/street.mp4", 1, 0.0),
            Frame(PICTURE, "b/street.mp4", 1, 0.0),
            Frame(PICTURE, "a/street.mp4", 2, 0.1),
            _image("a.jpg", "a.jpg"),
            _image("a.png", "a.png"),
            _image("set/one/x.jpg", "set/*/x.jpg"),
            _image("set/../../x.jpg", "set"),
            _image("/tmp/y.jpg", "list.txt"),
            _image("/z.jpg", "/"),
        )
    ]
    assert [str(name) for name in found] == [
        "street_000001.txt",
        "street_2_000001.txt",
        "street_000002.txt",
        "a.txt",
        "a_2.txt",
        "one/x.txt",
        "x.txt",
        "y.txt",
        "z.txt",
    ]


def test_no_text_makes_a_name_that_leads_elsewhere() -> None:
    for text in ("..", ".", "", "   ", "/", "a/../b", "a\\b", "a\0b", "con:x", "\n"):
        name = safe_name(text, "nothing")
        assert not set(name) & set("/\\\0:\n")
        assert PurePath(name).name == name
    assert UniqueNames().of(1, PurePath("x")) == PurePath("x")


def test_a_window_without_a_display_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(MissingDependency, match="--show cannot open a window"):
        ShowSink()


def test_a_window_ends_by_its_keys_and_its_button(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenCV's window functions are recorded here: there is no display where this runs."""
    shown: list[str] = []
    keys = {ord("q"): True, 27: True, ord("x"): False, -1: False}
    monkeypatch.setattr(show, "_check_display", lambda: None)
    for name in ("namedWindow", "imshow", "destroyAllWindows"):
        monkeypatch.setattr(cv2, name, lambda *_, name=name: shown.append(name))
    for visible in (1.0, 0.0):
        monkeypatch.setattr(cv2, "getWindowProperty", lambda *_, visible=visible: visible)
        for key, ends in keys.items():
            monkeypatch.setattr(cv2, "waitKey", lambda _, key=key: key)
            shown.clear()
            with ShowSink() as sink:
                sink.write(_result(Frame(PICTURE, "camera", 0, 0.0)))
                assert sink.ended == (ends or not visible)
                sink.write(_result(Frame(PICTURE, "camera", 1, 0.1)))
            assert shown == ["namedWindow", *["imshow"] * (1 if sink.ended else 2), "destroyAllWindows"]
