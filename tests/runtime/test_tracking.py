from __future__ import annotations

import sys

import numpy as np
import pytest

from trt_qat.errors import ConfigError, MissingDependency
from trt_qat.runtime.counting import Counter
from trt_qat.runtime.frames import Frame
from trt_qat.runtime.tracking import Tracker, detector_conf
from trt_qat.vision.detections import Detections
from trt_qat.vision.regions import Region, parse_regions

SIZE_WH = (640, 360)
PICTURE = np.zeros((SIZE_WH[1], SIZE_WH[0], 3), np.uint8)


def _frame(number: int, seconds: float | None = None, source: str = "street") -> Frame:
    return Frame(PICTURE, source, number, number / 25 if seconds is None else seconds)


def _at(
    *centres: tuple[float, float], scores: float | list[float] = 0.9, class_ids: list[int] | None = None
) -> Detections:
    count = len(centres)
    xy = np.array(centres, np.float32).reshape(count, 2)
    return Detections(
        np.hstack([xy - 20, xy + 20]),
        np.broadcast_to(np.float32(scores), count),
        np.array(class_ids or [0] * count, np.int64),
    )


def _ids(found: Detections) -> list[int]:
    assert found.track_ids is not None
    return found.track_ids.tolist()


def test_objects_keep_their_ids_in_the_order_of_the_detections() -> None:
    tracker = Tracker(0.25)
    ids_of_left = set()
    for number in range(12):
        left, right = (100 + 5 * number, 100), (500 - 5 * number, 250)
        found = tracker.update(_frame(number), _at(*((left, right) if number % 2 else (right, left))))
        place = 0 if number % 2 else 1
        np.testing.assert_array_equal(found.boxes_xyxy[place], _at(left).boxes_xyxy[0])
        assert sorted(_ids(found)) == ([1, 2] if number else [-1, -1])
        ids_of_left.add(_ids(found)[place])
    assert len(ids_of_left - {-1}) == 1


def test_a_weak_box_continues_a_track_and_begins_none() -> None:
    """Half hidden, it scores low: without its weak boxes it would get another id."""
    assert (detector_conf(0.4), detector_conf(0.05)) == (0.1, 0.05)
    tracker = Tracker(0.4)
    for number, score in enumerate([0.9, 0.9, 0.3, 0.15, 0.3, 0.9]):
        found = tracker.update(_frame(number), _at((100 + 4 * number, 100), (400, 300), scores=[score, 0.2]))
        assert len(found) == 1  # the other one is weak from the first
        assert _ids(found) == ([1] if number else [-1])
        assert found.scores[0] == pytest.approx(score)


def test_an_id_outlives_a_short_absence_and_no_id_comes_twice_after_a_gap() -> None:
    tracker = Tracker(0.25)
    for number in range(5):
        tracker.update(_frame(number), _at((100, 100)))
    assert len(tracker.update(_frame(5), _at())) == 0
    assert _ids(tracker.update(_frame(8), _at((100, 100)))) == [1]
    for first, seconds in ((9, 60.0), (11, 5.0)):  # a stream that was gone; a file that begins anew
        assert _ids(tracker.update(_frame(first, seconds), _at((100, 100)))) == [-1]
        found = tracker.update(_frame(first + 1, seconds + 0.04), _at((100, 100)))
        assert _ids(found) == [2 if first == 9 else 3]


def test_each_source_has_its_own_tracks() -> None:
    tracker = Tracker(0.25, {"fast": 50.0, "slow": None})
    for number in range(3):
        for source, x in (("fast", 100), ("slow", 300)):
            found = tracker.update(_frame(number, number * 0.02, source), _at((x, 100)))
            assert _ids(found) == ([1] if number else [-1])


def test_images_are_tracked_in_their_order() -> None:
    tracker = Tracker(0.25)
    ids = [_ids(tracker.update(Frame(PICTURE, "photos", n), _at((100 + n, 100)))) for n in range(3)]
    assert ids == [[-1], [1], [1]]


def test_without_its_package_tracking_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackers", None)
    with pytest.raises(MissingDependency, match=r"pip install 'trt_qat\[track\]'"):
        Tracker(0.25)


def _tracked(detections: Detections, *ids: int) -> Detections:
    return Detections(detections.boxes_xyxy, detections.scores, detections.class_ids, np.array(ids, np.int64))


def test_a_line_counts_by_direction_and_class() -> None:
    """From its first point to its second it goes to the right: up is to its left, which is in."""
    counter = Counter(parse_regions(["gate:0,0.5,1,0.5"]))
    assert counter.needs_tracks
    for number in range(10):
        up, down = (100, 270 - 20 * number), (300, 90 + 20 * number)
        found = _tracked(_at(up, down, (500, 90 + 20 * number), class_ids=[4, 5, 5]), 1, 2, -1)
        counts = counter.update(_frame(number), found)
    assert counts == {"gate": {"in": 1, "out": 1}}  # what is not yet tracked does not count
    assert counter.per_class("street") == {"gate": {4: {"in": 1, "out": 0}, 5: {"in": 0, "out": 1}}}
    assert counter.per_class("elsewhere") == {}


def test_a_box_that_trembles_on_the_line_does_not_count() -> None:
    counter = Counter(parse_regions(["320,0,320,360"]))
    for number in range(20):
        counts = counter.update(_frame(number), _tracked(_at((321 if number % 2 else 319, 100)), 1))
    assert counts == {"line 1": {"in": 0, "out": 0}}


def test_what_passes_beside_the_line_does_not_count() -> None:
    counter = Counter(parse_regions(["0.25,0.5,0.5,0.5"]))
    for number in range(10):
        counts = counter.update(_frame(number), _tracked(_at((500, 270 - 20 * number)), 1))
    assert counts == {"line 1": {"in": 0, "out": 0}}


def test_a_zone_counts_what_is_inside_now_tracked_or_not() -> None:
    counter = Counter(parse_regions(zones=["kerb:0,0,0.5,0,0.5,1,0,1"]))
    assert not counter.needs_tracks
    assert counter.update(_frame(0), _at((100, 100), (310, 300), (400, 100))) == {"kerb": {"inside": 2}}
    assert counter.update(_frame(1), _at()) == {"kerb": {"inside": 0}}
    assert counter.update(_frame(2), _tracked(_at((100, 100)), -1)) == {"kerb": {"inside": 1}}


def test_counts_outlive_another_size_and_are_each_sources_own() -> None:
    counter = Counter(parse_regions(["gate:0,0.5,1,0.5"]))
    small = np.zeros((180, 320, 3), np.uint8)
    for number in range(20):
        picture, scale = (PICTURE, 1.0) if number < 10 else (small, 0.5)
        y = (270 - 20 * (number % 10)) * scale
        counts = counter.update(Frame(picture, "a", number), _tracked(_at((100 * scale, y)), 1 + number // 10))
    assert counts == {"gate": {"in": 2, "out": 0}}
    assert counter.update(_frame(0, source="b"), _tracked(_at())) == {"gate": {"in": 0, "out": 0}}


def test_what_cannot_be_counted() -> None:
    with pytest.raises(ConfigError, match=r"leaves the picture of 640 x 360 pixels"):
        Counter(parse_regions(["0,100,700,100"])).update(_frame(0), _tracked(_at()))
    with pytest.raises(ConfigError, match="Add --track"):
        Counter(parse_regions(["0,100,600,100"])).update(_frame(0), _at((1, 1)))


def test_regions_are_parsed() -> None:
    assert parse_regions(["0,0.5,1,0.5", " cửa vào : 10, 20,30,40", "a:b:0,0,5,5"], ["0,0,9,0,9,9"]) == (
        Region("line 1", ((0, 0.5), (1, 0.5))),
        Region("cửa vào", ((10, 20), (30, 40))),
        Region("a:b", ((0, 0), (5, 5))),
        Region("zone 1", ((0, 0), (9, 0), (9, 9)), is_zone=True),
    )
    assert parse_regions(["0,0.5,1,0.5"])[0].pixels(SIZE_WH).tolist() == [[0, 180], [640, 180]]
    assert parse_regions(["0,0.5,2,0.5"])[0].pixels(SIZE_WH).tolist() == [[0, 0.5], [2, 0.5]]


@pytest.mark.parametrize(
    "text",
    ["", "x", "gate:", "1,2,3", "1,2,3,4,5,6", "1,2,1,2", "1,2,nan,4", "-1,0,5,5", "1,2,3,1e9", ":1,2,3,4", "1;2;3;4"],
)
def test_a_line_that_is_none_is_one_clear_line(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--count-line '.*' is not NAME:x1,y1,x2,y2 or x1,y1,x2,y2: two different"):
        parse_regions([text])


@pytest.mark.parametrize("text", ["1,2,3,4", "0,0,5,5,9,9", "1,2,3,4,5", "zone:" + "1,2," * 200 + "5,5"])
def test_a_zone_that_is_none_is_one_clear_line(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--count-zone '.* is not NAME:x1,y1,x2,y2,x3,y3 or .* around an area"):
        parse_regions(zones=[text])


def test_two_of_one_name() -> None:
    with pytest.raises(ConfigError, match="Two counting lines or zones are named 'gate'"):
        parse_regions(["gate:0,0,5,5"], ["gate:0,0,9,0,9,9"])
