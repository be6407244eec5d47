from __future__ import annotations

import numpy as np
import pytest
from matched_images import matched_image, street

from trt_qat.evaluation import bootstrap
from trt_qat.evaluation.accuracy import mean_average_precision
from trt_qat.evaluation.bootstrap import draws, weighted_map


def test_every_image_once_is_what_ultralytics_counts() -> None:
    for moved in (0, 3, 30):
        images = street(30, moved)
        expected = mean_average_precision(images)[0]
        assert weighted_map(images, np.ones((1, 30), np.int32)) == pytest.approx([expected], abs=1e-9)


@pytest.mark.parametrize("at_once", [1, 8_000_000])
def test_a_draw_is_what_ultralytics_counts_on_its_images(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of an image have equal scores, but then they are right or wrong alike: their order does not matter."""
    monkeypatch.setattr(bootstrap, "_MOST_AT_ONCE", at_once)
    images = street(24, 4)
    weights = draws(24, 12)
    assert (weights[:, 0] == 0).any()  # the third class is in the first image alone
    expected = [
        mean_average_precision([image for image, times in zip(images, row, strict=True) for _ in range(times)])[0]
        for row in weights
    ]
    assert weighted_map(images, weights) == pytest.approx(expected, abs=1e-9)
    assert 0.1 < min(expected) < max(expected) < 0.9


def test_draws_depend_on_the_number_of_images_alone() -> None:
    weights = draws(7, 50)
    assert weights.shape == (50, 7)
    assert set(weights.sum(1)) == {7}
    assert (weights == draws(7, 50)).all()
    chosen = np.random.default_rng(0)
    for row in weights[:5]:  # one draw after the other gives the same
        assert (row == np.bincount(chosen.integers(0, 7, 7), minlength=7)).all()


def test_nothing_found_nothing_labelled_and_no_detection() -> None:
    label = (0, 0.0, 0.0, 50.0, 50.0)
    empty, missed = matched_image([], []), matched_image([label], [])
    found, false = matched_image([label], [(0.9, label)]), matched_image([], [(0.8, label)])
    assert weighted_map([empty, missed], np.array([[1, 1], [2, 0]], np.int32)).tolist() == [0, 0]
    weights = np.array([[1, 1, 0], [0, 2, 1], [0, 3, 0]], np.int32)
    # 0.995 is the highest that Ultralytics' interpolation gives
    assert weighted_map([found, false, missed], weights) == pytest.approx([0.995, 0, 0])
