from __future__ import annotations

import pytest

from trt_qat.vision.size import image_size_of, rectangle_for, shown_size


@pytest.mark.parametrize(
    ("size_wh", "expected"),
    [
        ((640, 360), (384, 640)),
        ((360, 640), (640, 384)),
        ((1920, 1080), (384, 640)),
        ((640, 480), (480, 640)),
        ((1280, 962), (512, 640)),  # 481 rows
        ((961, 1280), (640, 480)),  # 480.5, which the letterbox rounds to 480
        ((500, 500), (640, 640)),
        ((10_000, 3), (32, 640)),
        ((1, 10_000), (640, 32)),
    ],
)
def test_the_rectangle_of_an_image(size_wh: tuple[int, int], expected: tuple[int, int]) -> None:
    assert rectangle_for(size_wh, 640) == expected


def test_the_rectangle_is_of_the_stride() -> None:
    assert rectangle_for((640, 360), 640, stride=64) == (384, 640)
    assert rectangle_for((640, 330), 640, stride=8) == (336, 640)


def test_one_number_is_a_square() -> None:
    assert image_size_of(64) == image_size_of([64, 64]) == (64, 64)
    assert image_size_of((64, 96)) == (64, 96)
    with pytest.raises(ValueError, match="unpack"):
        image_size_of((64, 96, 128))


def test_a_size_is_shown_as_a_configuration_says_it() -> None:
    assert (shown_size((640, 640)), shown_size((384, 640))) == ("640", "[384, 640]")
