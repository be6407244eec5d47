from __future__ import annotations

from itertools import islice, pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import supervision as sv
from click.testing import CliRunner
from numpy.typing import NDArray

from trt_qat.cli import cli
from trt_qat.demo.clip import CLIP_FPS, SeenSign, street_clip
from trt_qat.demo.signs import DEMO_NAMES
from trt_qat.errors import DatasetError
from trt_qat.runtime.counting import Counter
from trt_qat.runtime.detector import Detector
from trt_qat.runtime.frames import Frame
from trt_qat.runtime.tracking import Tracker, detector_conf
from trt_qat.vision.detections import Detections
from trt_qat.vision.regions import parse_regions

Clip = list[tuple[NDArray[np.uint8], list[SeenSign]]]


@pytest.fixture(scope="module")
def clip() -> Clip:
    return list(street_clip(120))


def test_a_longer_clip_begins_with_the_shorter_one_and_a_seed_is_a_street(clip: Clip) -> None:
    for (image, signs), (again, signs_again) in zip(clip, street_clip(3), strict=False):
        assert image.shape == (360, 640, 3)
        assert (image == again).all()
        assert signs == signs_again
    assert (next(street_clip(1, seed=1))[0] != clip[0][0]).any()
    assert next(street_clip(1, size_wh=(320, 256)))[0].shape == (256, 320, 3)


def test_signs_come_nearer_and_leave_at_the_edge(clip: Clip) -> None:
    seen: dict[int, list[SeenSign]] = {}
    for _, signs in clip:
        for sign in signs:
            seen.setdefault(sign.number, []).append(sign)
    for number in (2, 3, 4):
        widths = [sign.box_xyxy[2] - sign.box_xyxy[0] for sign in seen[number]]
        assert widths[-1] > 50
        assert all(later >= earlier - 2 for earlier, later in pairwise(widths))
        last = seen[number][-1].box_xyxy
        assert last[0] < 0 or last[2] > 640
        assert {sign.class_id for sign in seen[number]} == {seen[number][0].class_id}
    assert len({sign.class_id for signs in seen.values() for sign in signs}) == len(DEMO_NAMES) - 1


def test_a_box_is_where_its_sign_is_drawn(clip: Clip) -> None:
    """A no-entry sign is red, what is around it is not."""
    image, signs = clip[0]
    (box,) = (sign.box_xyxy for sign in signs if DEMO_NAMES[sign.class_id] == "no_entry")
    blue, green, red = image.astype(int).transpose(2, 0, 1)
    is_red = (red > 150) & (green < 100) & (blue < 110)
    is_red[:, :400] = False  # other signs
    rows, columns = np.nonzero(is_red)
    assert (columns.min(), rows.min()) == pytest.approx(box[:2], abs=3)
    assert (columns.max(), rows.max()) == pytest.approx(box[2:], abs=3)


def test_signs_are_tracked_and_counted(clip: Clip) -> None:
    """As a detector would see them that misses none above 14 pixels: an id for each, once across a line."""
    tracker, counter = (
        Tracker(0.25, {"street": CLIP_FPS}),
        Counter(parse_regions(["left:0.2,1,0.2,0", "right:0.8,0,0.8,1"])),
    )
    ids: dict[int, set[int]] = {}
    for number, (image, signs) in enumerate(clip):
        large = [sign for sign in signs if sign.box_xyxy[2] - sign.box_xyxy[0] > 14]
        found = Detections(
            np.array([sign.box_xyxy for sign in large], np.float32).reshape(-1, 4),
            np.full(len(large), 0.8, np.float32),
            np.array([sign.class_id for sign in large], np.int64),
        )
        frame = Frame(image, "street", number, number / CLIP_FPS)
        tracked = tracker.update(frame, found)
        assert tracked.track_ids is not None
        for sign, track_id in zip(large, tracked.track_ids.tolist(), strict=True):
            ids.setdefault(sign.number, set()).add(track_id)
        counts = counter.update(frame, tracked)
    assert len(ids) > 5
    assert all(len(given - {-1}) == 1 for given in ids.values())
    assert len(set.union(*ids.values()) - {-1}) == len(ids)
    assert counts == {"left": {"in": 2, "out": 0}, "right": {"in": 1, "out": 0}}


@pytest.mark.slow
def test_the_shipped_detector_follows_the_signs(tmp_path: Path) -> None:
    """What docs/images/tracked.gif shows: an id for each sign, right from the second frame on."""
    from trt_qat.demo.model import export_demo_model  # loads torch

    model = export_demo_model(tmp_path / "demo.onnx").path
    ids: dict[int, set[int]] = {}
    tracker, wrong, boxes = Tracker(0.25, {"street": CLIP_FPS}), 0, 0
    with Detector(model, conf=detector_conf(0.25)) as detect:
        for number, (image, signs) in enumerate(street_clip(144)):
            found = tracker.update(Frame(image, "street", number, number / CLIP_FPS), detect(image))
            assert found.track_ids is not None
            for sign in signs:
                on_it = sv.box_iou_batch(np.array([sign.box_xyxy], np.float32), found.boxes_xyxy)[0] > 0.5
                ids.setdefault(sign.number, set()).update(found.track_ids[on_it].tolist())
                boxes += int(on_it.sum())
                wrong += int((found.class_ids[on_it] != sign.class_id).sum())
    followed = [given - {-1} for given in ids.values() if given - {-1}]
    assert [len(given) for given in followed] == [1] * 6
    assert boxes > 200
    assert wrong < 0.1 * boxes


def test_the_command_writes_a_video(tmp_path: Path) -> None:
    out = tmp_path / "street.mp4"
    done = CliRunner().invoke(cli, ["data", "demo-clip", "--out", str(out), "--frames", "6"])
    assert (done.exit_code, done.output) == (0, f"Generated: {out}\n")
    with av.open(str(out)) as container:
        frames = [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == CLIP_FPS
    assert len(frames) == 6
    first = next(islice(street_clip(1), 1))[0]
    assert np.abs(frames[0].astype(int) - first).mean() < 4


def test_a_clip_of_nothing_is_refused() -> None:
    with pytest.raises(DatasetError, match="0 frames"):
        next(street_clip(0))
