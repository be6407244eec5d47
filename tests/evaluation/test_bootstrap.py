from __future__ import annotations

import numpy as np

from trt_qat.evaluation.accuracy import MatchedImage
from trt_qat.evaluation.bootstrap import map_difference


def image(right: bool) -> MatchedImage:
    """One labelled object of class 0, found at every overlap or at none."""
    ids = np.zeros(1, np.int64)
    return MatchedImage(np.full((1, 10), right), np.full(1, 0.9, np.float32), ids, ids)


def test_equal_files_do_not_differ() -> None:
    images = [image(index % 3 > 0) for index in range(12)]
    found = map_difference(images, images, 20)
    assert (found.points, found.low, found.high) == (0, 0, 0)


def test_one_that_finds_everything_beats_one_that_finds_half() -> None:
    found = map_difference([image(index % 2 == 0) for index in range(40)], [image(True)] * 40, 200)
    assert 20 < found.low < found.points < found.high < 90
    assert found == map_difference([image(index % 2 == 0) for index in range(40)], [image(True)] * 40, 200)
    assert str(found).startswith(f"+{found.points:.2f} points, 95 % of resamples +")


def test_one_image_each_way_is_chance() -> None:
    """The first alone finds one, the second alone another: which of them is drawn more often decides."""
    first = [image(index < 20) for index in range(40)]
    second = [image(0 < index < 20 or index == 39) for index in range(40)]
    found = map_difference(first, second, 100)
    assert found.low < 0 < found.high
