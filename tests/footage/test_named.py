"""What ``--data`` names: a dataset, or images and videos; by names alone, nothing is opened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from trt_qat.data.dataset import Dataset
from trt_qat.errors import DatasetError
from trt_qat.footage.named import footage_in

FILES = (
    *("drive/b.jpg", "drive/a.PNG", "drive/more/c.jpg", "drive/clip.mp4", "drive/notes.md", "other/a.jpg"),
    *("set/data.yaml", "set/images/train/1.jpg", "layout/images/1.jpg", "layout/labels/1.txt", "bare/images/1.jpg"),
    *("listed.txt", "two.yaml", "nothing/notes.md", "[odd].jpg"),
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in FILES:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    Path("listed.txt").write_text("# by hand\nother/a.jpg\ndrive/clip.mp4\ndrive/b.jpg\n")
    return tmp_path


def named(data: str | Sequence[str], out: str | None = None) -> tuple[list[str], list[str]]:
    """Images and videos, relative to the working folder."""
    found = footage_in(data, None if out is None else Path(out))
    assert found is not None
    here = Path.cwd()
    assert all(file.is_absolute() for file in (*found.images, *found.videos))
    return tuple([file.relative_to(here).as_posix() for file in files] for files in (found.images, found.videos))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("data", "images", "videos"),
    [
        ("drive", ["drive/a.PNG", "drive/b.jpg", "drive/more/c.jpg"], ["drive/clip.mp4"]),
        ("drive/*.jpg", ["drive/b.jpg"], []),
        ("**/*.jpg", ["[odd].jpg", "bare/images/1.jpg", "drive/b.jpg", "drive/more/c.jpg", "layout/images/1.jpg",
                      "other/a.jpg", "set/images/train/1.jpg"], []),
        ("[odd].jpg", ["[odd].jpg"], []),
        ("listed.txt", ["drive/b.jpg", "other/a.jpg"], ["drive/clip.mp4"]),
        ("drive/clip.mp4", [], ["drive/clip.mp4"]),
        ("bare", ["bare/images/1.jpg"], []),
        ("layout/images", ["layout/images/1.jpg"], []),
        (["other", "drive/b.jpg", "drive"], ["other/a.jpg", "drive/b.jpg", "drive/a.PNG", "drive/more/c.jpg"],
         ["drive/clip.mp4"]),
    ],
)  # fmt: skip
def test_images_and_videos(place: Path, data: str | list[str], images: list[str], videos: list[str]) -> None:
    assert named(data) == (images, videos)


@pytest.mark.parametrize("data", ["set", "set/data.yaml", "layout", "two.yaml", "none.yaml", "none", "x" * 300, "a\0b"])
def test_a_dataset(place: Path, data: str) -> None:
    assert footage_in(data) is None
    assert footage_in([data]) is None
    assert footage_in(Dataset(place, (), (), {})) is None


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "No data is given"),
        ("none.mp4", "'none.mp4' does not exist"),
        ("drive/*.bmp", "Pattern 'drive/*.bmp' fits no image and no video"),
        ("nothing", "Folder 'nothing' holds neither a data.yaml nor a folder images/, and no images and no videos"),
        (["drive", "two.yaml"], "'two.yaml' is no image or video, and one of 2 that are given"),
        (["drive", "none"], "'none' is no image or video, and one of 2"),
        (["drive", "0"], "'0' is no image or video"),
        (["drive", "rtsp://user:secret@camera/1"], "'rtsp://***@camera/1' is no image or video"),
    ],
)
def test_what_is_neither_is_said_in_one_line(place: Path, data: str | list[str], said: str) -> None:
    with pytest.raises(DatasetError) as caught:
        footage_in(data)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_a_run_writes_does_not_count(place: Path) -> None:
    Path("two.yaml").unlink()
    for name in ("run/picture.jpg", "run/footage/images/train/0.jpg", "run/mine.jpg"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    assert [name for name in named(".", "run/footage")[0] if name.startswith("run")] == []
    assert named("run/mine.jpg", "run/footage") == (["run/mine.jpg"], [])
    with pytest.raises(DatasetError, match="holds no images and no videos but those that were written for it"):
        named("run/footage/images", "run/footage")
