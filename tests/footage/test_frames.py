"""Which frames of a video are kept, and which of them are held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from clips import number_in, numbered, write_clip

from trt_qat.errors import DatasetError
from trt_qat.footage.frames import (
    FEWEST,
    Moment,
    differing,
    held_out_by_time,
    held_out_count,
    numbered_frames,
    thumbnail,
)
from trt_qat.progress import SILENT


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames 0 to 29 at 10 per second; 10 to 19 show the picture of 10."""
    pictures = [numbered(10 if 10 <= number < 20 else number) for number in range(30)]
    clip: Path = write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", pictures, fps=10)
    return clip


def test_a_picture_that_stays_is_kept_once(clip: Path) -> None:
    kept = differing(clip, 3.0, SILENT)
    assert [moment.number for moment in kept] == [*range(11), *range(20, 30)]
    assert [moment.seconds for moment in kept] == pytest.approx([moment.number / 10 for moment in kept])


def test_the_threshold_is_the_mean_difference_of_thumbnails(clip: Path) -> None:
    grey = np.full((36, 64, 3), 100, np.uint8)
    brighter = np.full((36, 64, 3), 104, np.uint8)
    assert np.abs(thumbnail(grey) - thumbnail(brighter)).mean() == 4
    assert thumbnail(grey).shape == (18, 32)
    assert [moment.number for moment in differing(clip, 255, SILENT)] == [0]


def test_frames_by_their_numbers(clip: Path) -> None:
    found = list(numbered_frames(clip, [3, 7, 25], SILENT))
    assert [frame.number for frame in found] == [3, 7, 25]
    assert [number_in(frame.image_bgr) for frame in found] == [3, 7, 25]
    assert list(numbered_frames(clip, [], SILENT)) == []


def moments(*seconds: float) -> list[Moment]:
    return [Moment(number, time) for number, time in enumerate(seconds)]


def test_the_end_is_held_out_with_a_gap() -> None:
    long = moments(*range(100))  # a frame a second: two seconds apart
    train, val = held_out_by_time(long, 0.2)
    assert val == long[80:]
    assert train == long[:78]
    short = moments(*(number / 10 for number in range(50)))  # 4.9 seconds: a tenth of them
    train, val = held_out_by_time(short, 0.2)
    assert val == short[40:]
    assert train == short[:36]
    assert val[0].seconds - train[-1].seconds > 0.49


def test_of_few_frames_none_is_held_out() -> None:
    assert held_out_by_time(moments(0, 1, 2, 3), 0.2) == (moments(0, 1, 2, 3), [])
    assert held_out_by_time([], 0.2) == ([], [])
    assert [held_out_count(images, 0.2) for images in (FEWEST - 1, FEWEST, 10, 56)] == [0, 1, 2, 11]
    assert held_out_count(6, 0.99) == 5


def test_what_is_no_video_is_said(tmp_path: Path) -> None:
    (tmp_path / "x.mp4").write_bytes(b"no video")
    with pytest.raises(DatasetError, match=r"x\.mp4' cannot be read"):
        differing(tmp_path / "x.mp4", 3.0, SILENT)
