from __future__ import annotations

import numpy as np
import pytest

from trt_qat.vision.detections import Detections
from trt_qat.vision.draw import Painter, annotate
from trt_qat.vision.glyphs import text_mask
from trt_qat.vision.regions import parse_regions

NAMES = {0: "no_entry", 1: "speed_limit"}


def _detections(*boxes: tuple[float, float, float, float], class_id: int = 0) -> Detections:
    count = len(boxes)
    return Detections(
        np.array(boxes, np.float32).reshape(count, 4),
        np.full(count, 0.9, np.float32),
        np.full(count, class_id, np.int64),
    )


@pytest.mark.parametrize("size_wh", [(320, 240), (40, 20), (8, 8), (1200, 900)])
@pytest.mark.parametrize(
    "box",
    [
        (0.2, 0.3, 0.6, 0.7),
        (0.0, 0.0, 1.0, 1.0),
        (-0.5, -0.5, 1.5, 1.5),
        (0.95, 0.95, 1.0, 1.0),
        (2.0, 2.0, 3.0, 3.0),
        (0.5, 0.5, 0.5, 0.5),
    ],
)
def test_a_copy_of_the_same_size_is_drawn_on(size_wh: tuple[int, int], box: tuple[float, float, float, float]) -> None:
    width, height = size_wh
    image = np.full((height, width, 3), 128, np.uint8)
    left, top, right, bottom = box
    found = annotate(image, _detections((left * width, top * height, right * width, bottom * height)), NAMES)
    assert found.shape == image.shape
    assert found.dtype == np.uint8
    assert (image == 128).all()


def test_the_label_stays_inside_the_image() -> None:
    """A label that would leave at the right or the top is moved, not cut: as many pixels are drawn as elsewhere."""
    image = np.full((300, 300, 3), 128, np.uint8)
    free = annotate(image, _detections((100, 100, 120, 120)), NAMES)
    for box in ((275, 100, 295, 120), (100, 2, 120, 22), (275, 2, 295, 22)):
        moved = annotate(image, _detections(box), NAMES)
        assert abs(int((moved != 128).any(axis=2).sum()) - int((free != 128).any(axis=2).sum())) < 250
        assert _white(moved) == pytest.approx(_white(free), rel=0.1)


def _white(image: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> int:
    return int((image > 240).all(axis=2).sum())


def test_the_box_is_where_it_was_found() -> None:
    image = np.full((300, 300, 3), 128, np.uint8)
    drawn = (annotate(image, _detections((50, 100, 150, 250)), NAMES) != 128).any(axis=2)
    assert drawn[100:251, 50].all()
    assert drawn[100:251, 150].all()
    assert drawn[250, 50:151].all()
    assert not drawn[110:240, 60:140].any()


def test_no_detection_draws_nothing() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    found = annotate(image, _detections(), NAMES)
    assert (found == image).all()
    assert found is not image


def test_classes_have_colours_and_unknown_ones_are_drawn_as_numbers() -> None:
    image = np.full((100, 200, 3), 128, np.uint8)
    box = (50, 40, 150, 90)
    drawings = [annotate(image, _detections(box, class_id=class_id), NAMES) for class_id in (0, 1, 7)]
    colours = {tuple(drawing[90, 100].tolist()) for drawing in drawings}
    assert len(colours) == 3
    numbered = annotate(image, _detections(box, class_id=7), {7: "7"})
    assert (drawings[2] == numbered).all()


def test_boxes_that_are_none_are_drawn_without_a_word() -> None:
    extremes = [[-3e38, -3e38, 3e38, 3e38], [np.nan] * 4, [-np.inf, 0, np.inf, 1]]
    boxes = np.array(extremes, dtype=np.float32)
    found = Detections(boxes, np.ones(3, np.float32), np.array([0, 10**18, -5]))
    assert annotate(np.zeros((20, 30, 3), np.uint8), found, {}).shape == (20, 30, 3)


def test_names_show_in_their_own_letters() -> None:
    """A font without a letter draws the same box for each that it lacks."""
    letters = [text_mask(letter, 16).tobytes() for letter in "ẤấỀềữặđĐ\U0010ffff"]
    assert len(set(letters)) == len(letters)
    image = np.full((100, 300, 3), 128, np.uint8)
    box = (20, 40, 60, 90)
    assert (
        annotate(image, _detections(box), {0: "Cấm đi ngược chiều"})
        != annotate(image, _detections(box), {0: "Cam di nguoc chieu"})
    ).any()


def _tracked(*boxes: tuple[float, float, float, float], ids: list[int]) -> Detections:
    found = _detections(*boxes)
    return Detections(found.boxes_xyxy, found.scores, found.class_ids, np.array(ids, np.int64))


def test_an_object_keeps_its_colour_and_leaves_its_way_behind() -> None:
    painter = Painter(NAMES)
    image = np.full((300, 300, 3), 128, np.uint8)
    drawn = [
        painter.draw(image, _tracked((x, 100, x + 20, 120), (x, 200, x + 20, 220), ids=[7, -1]), source="a")
        for x in (50, 90, 130)
    ]
    colours = {tuple(picture[120, x + 10].tolist()) for picture, x in zip(drawn, (50, 90, 130), strict=True)}
    assert len(colours) == 1
    assert (drawn[2][110, 62:128] == drawn[2][120, 140]).all()  # from the centre of the first box to the third
    assert (drawn[2][210, 62:128] == 128).all()  # what is not yet tracked has none
    painter.draw(image, _tracked((130, 100, 150, 120), ids=[-1]), source="a")
    painter.draw(image, _tracked(ids=[]), source="a")
    other = painter.draw(image, _tracked((130, 100, 150, 120), ids=[7]), source="b")
    assert (other[110, 62:128] == 128).all()


def test_lines_and_zones_are_drawn_with_their_counts() -> None:
    image = np.full((200, 300, 3), 128, np.uint8)
    painter = Painter(NAMES, parse_regions(["gate:0.5,0.2,0.5,0.9"], ["kerb:10,100,100,100,100,190,10,190"]))
    counts = {"gate": {"in": 1, "out": 0}, "kerb": {"inside": 3}}
    drawn = painter.draw(image, _detections(), counts)
    assert (drawn[60:170, 150] != 128).any(axis=1).all()
    assert (drawn[150, [10, 100]] != 128).any(axis=1).all()
    counted = painter.draw(image, _detections(), {**counts, "gate": {"in": 2, "out": 0}})
    rows, columns = np.nonzero((counted != drawn).any(axis=2))
    assert rows.max() < 40  # the digit alone, above the line's upper end
    assert columns.min() > 150
    assert (image == 128).all()


@pytest.mark.parametrize(
    "name", ["", "a\nb", "\0", "\ud800", "\x1b[31m", "标志", "شارة", "🚦", "x" * 10_000, "\u202eabc"]
)
def test_any_name_is_drawn(name: str) -> None:
    image = np.full((60, 80, 3), 128, np.uint8)
    assert (annotate(image, _detections((10, 30, 40, 50)), {0: name}) != image).any()
    assert (
        Painter({}, parse_regions(["0,0.5,1,0.5"])).draw(image, _detections(), {"line 1": {name: 1}}) != image
    ).any()
