from __future__ import annotations

from pathlib import Path

import cv2
import pytest
from clips import write_clip
from tiny_onnx import colour_image

from trt_qat.errors import ArtifactError
from trt_qat.runtime.sinks.choice import targets_of
from trt_qat.runtime.sources import open_sources


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("7.png", "0/a.png", "0/b.JPG", "1/a.png"):
        Path(name).parent.mkdir(exist_ok=True)
        cv2.imwrite(name, colour_image(16, 16))
    for clip in ("drive.MKV", "drive.avi", "1/drive.mkv"):
        write_clip(Path(clip), 2)


def _targets(sources: list[str], out: str | None) -> list[str]:
    opened = open_sources(sources)
    try:
        found = targets_of(opened, None if out is None else Path(out))
        return [str(found[source.text]) for source in opened]
    finally:
        for source in opened:
            source.close()


@pytest.mark.parametrize(
    ("sources", "out", "targets"),
    [
        (["7.png"], None, ["runs/infer/7.png"]),
        (["7.png"], "seen", ["seen/7.png"]),
        (["7.png"], "seen/x.jpg", ["seen/x.jpg"]),
        (["drive.MKV"], None, ["runs/infer/drive.mkv"]),
        (["drive.avi"], "1", ["1/drive.avi"]),
        (["drive.avi"], "x.mov", ["x.mov"]),
        (["0"], None, ["runs/infer/0"]),
        (["0"], "seen", ["seen"]),
        (["0/*.png"], None, ["runs/infer/_"]),
        (["7.png", "0", "drive.MKV", "1/drive.mkv"], None, ["7.png", "", "drive.mkv", "drive_2.mkv"]),
        (["0", "1/*.png"], "seen", ["0", "_"]),
        (["0/a.png", "1/a.png"], "seen", ["a.png", "a_2.png"]),
    ],
)
def test_targets(sources: list[str], out: str | None, targets: list[str]) -> None:
    folder = "" if len(sources) == 1 else f"{out or 'runs/infer'}/"
    assert _targets(sources, out) == [(folder + target).rstrip("/") for target in targets]


@pytest.mark.parametrize(
    ("sources", "out", "message"),
    [
        (["7.png"], "7.png", "is the source itself"),
        (["7.png"], "x.foo", "must be a folder or end in"),
        (["0"], "7.png", "is a file"),
        (["0"], "0", "is the source itself"),
        (["drive.avi"], "drive.avi", "is the source itself"),
        (["drive.avi"], "x.foo", "must end in .avi, .m4v, .mkv, .mov, .mp4"),
        (["drive.avi"], "./x.foo", "must end in"),
        (["7.png", "drive.avi"], "7.png", "is a file; the results of 2 sources need a folder"),
        (["7.png", "drive.avi"], "x.mp4", "is a file; the results of 2 sources need a folder"),
        (["7.png", "drive.avi"], ".", "'7.png' is the source itself"),
        (["7.png", "7.png"], None, "Source '7.png' is given twice"),
    ],
)
def test_targets_that_cannot_be(sources: list[str], out: str | None, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        _targets(sources, out)


def test_a_target_that_is_a_link_to_itself_is_left_to_the_writer() -> None:
    Path("loop.png").symlink_to("loop.png")
    assert _targets(["7.png"], "loop.png") == ["loop.png"]
