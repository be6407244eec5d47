from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision  # noqa: F401  # where it is loaded, Ultralytics' NMS is its fast one
from numpy.typing import NDArray
from ultralytics.utils.nms import non_max_suppression

from trt_qat.vision.detections import Detections
from trt_qat.vision.postprocess import detections_from_output


def _random_output(seed: int, classes: int, anchors: int = 500) -> NDArray[np.float32]:
    """Crowded boxes in 320 px: many overlap."""
    rng = np.random.default_rng(seed)
    centres = rng.random((2, anchors)) * 320
    sides = 10 + rng.random((2, anchors)) * 90
    scores = rng.random((classes, anchors)) ** 4
    return np.concatenate([centres, sides, scores]).astype(np.float32)


@pytest.mark.parametrize(("conf", "iou"), [(0.25, 0.45), (0.001, 0.7), (0.9, 0.3)])
@pytest.mark.parametrize("classes", [1, 3, 80])
@pytest.mark.parametrize("seed", range(4))
def test_same_boxes_as_ultralytics(seed: int, classes: int, conf: float, iou: float) -> None:
    output = _random_output(seed, classes)
    (rows,) = non_max_suppression(torch.from_numpy(output.copy())[None], conf, iou, max_det=300)
    expected = rows.numpy()
    found = detections_from_output(output, conf, iou, max_det=300)
    assert 0 < len(expected) <= 300
    np.testing.assert_array_equal(found.scores, expected[:, 4])
    np.testing.assert_array_equal(found.class_ids, expected[:, 5])
    np.testing.assert_allclose(found.boxes_xyxy, expected[:, :4], atol=1e-3)


@pytest.mark.parametrize("iou", [0.45, 0.7])
@pytest.mark.parametrize(("classes", "anchors"), [(1, 500), (3, 500), (80, 100), (80, 1000)])
@pytest.mark.parametrize("seed", range(3))
def test_every_class_of_a_box_as_ultralytics_validates(seed: int, classes: int, anchors: int, iou: float) -> None:
    output = _random_output(seed, classes, anchors)
    (rows,) = non_max_suppression(torch.from_numpy(output.copy())[None], 0.001, iou, multi_label=True, max_det=300)
    found = detections_from_output(output, 0.001, iou, max_det=300, multi_label=True)
    assert 250 < len(found) <= 300
    np.testing.assert_array_equal(found.scores, rows[:, 4])
    np.testing.assert_array_equal(found.class_ids, rows[:, 5])
    np.testing.assert_allclose(found.boxes_xyxy, rows[:, :4], atol=1e-3)


def test_few_boxes_among_many_candidates() -> None:
    """Thousands of overlapping candidates before the ones that stand alone: those must be found too."""
    output = np.tile(np.array([[50], [50], [20], [20], [0.9]], np.float32), (1, 3000))
    alone = np.array([[200, 300], [200, 300], [20, 20], [20, 20], [0.6, 0.5]], np.float32)
    found = detections_from_output(np.concatenate([output, alone], axis=1), 0.25, 0.5, max_det=300)
    assert found.scores.tolist() == pytest.approx([0.9, 0.6, 0.5])


def test_one_box_of_two_classes() -> None:
    output = np.array([[10, 50], [10, 50], [4, 4], [4, 4], [0.9, 0.1], [0.7, 0.3]], np.float32)
    assert detections_from_output(output, 0.05, 0.5).class_ids.tolist() == [0, 1]
    found = detections_from_output(output, 0.05, 0.5, multi_label=True)
    assert found.class_ids.tolist() == [0, 1, 1, 0]
    assert found.scores.tolist() == pytest.approx([0.9, 0.7, 0.3, 0.1])


def test_best_first_and_at_most_max_det() -> None:
    output = _random_output(0, 3)
    everything = detections_from_output(output, 0.01, 0.5)
    few = detections_from_output(output, 0.01, 0.5, max_det=5)
    assert (np.diff(everything.scores) <= 0).all()
    assert len(everything) > 5
    assert few.scores.tolist() == everything.scores[:5].tolist()


def test_threshold_itself_is_dropped() -> None:
    output = np.array([[10, 50], [10, 50], [4, 4], [4, 4], [0.5, 0.75]], np.float32)
    assert detections_from_output(output, 0.5, 0.5).scores.tolist() == [0.75]


def test_boxes_of_two_classes_may_overlap() -> None:
    output = np.array([[10, 10, 10], [10, 10, 10], [4, 4, 4], [4, 4, 4], [0.9, 0, 0.8], [0, 0.7, 0]], np.float32)
    found = detections_from_output(output, 0.25, 0.5)
    assert found.class_ids.tolist() == [0, 1]
    assert found.boxes_xyxy.tolist() == [[8, 8, 12, 12]] * 2


def test_nothing_found_is_an_empty_value() -> None:
    found = detections_from_output(np.zeros((7, 100), np.float32), 0.25, 0.5)
    assert len(found) == 0
    assert found.boxes_xyxy.shape == (0, 4)
    assert (found.boxes_xyxy.dtype, found.scores.dtype, found.class_ids.dtype) == (np.float32, np.float32, np.int64)


def test_input_is_left_alone() -> None:
    output = _random_output(0, 3)
    before = output.copy()
    detections_from_output(output, 0.25, 0.5)
    np.testing.assert_array_equal(output, before)


@pytest.mark.parametrize(
    "shapes", [((2, 4), (3,), (2,)), ((2, 5), (2,), (2,)), ((2, 4), (2,), (1,)), ((4,), (1,), (1,))]
)
def test_detections_refuse_shapes_that_disagree(shapes: tuple[tuple[int, ...], ...]) -> None:
    boxes, scores, class_ids = shapes
    with pytest.raises(ValueError, match=r"expected \(n, 4\), \(n,\), \(n,\)"):
        Detections(np.zeros(boxes, np.float32), np.zeros(scores, np.float32), np.zeros(class_ids, np.int64))


def test_boxes_at_the_end_of_float32_overflow_nowhere() -> None:
    output = np.full((5, 4), 3e38, dtype=np.float32)
    output[:4, 1] = -3e38
    output[:4, 2] = (3e38, 0, -3e38, 1)
    output[:4, 3] = (32, 32, 8, 8)
    output[4] = (0.9, 0.8, 0.7, 0.6)
    found = detections_from_output(output, 0.5, 0.5)  # a warning would be an error here
    assert np.isfinite(found.boxes_xyxy).all()
    assert len(found) > 0


def test_end_to_end_output_is_not_suppressed() -> None:
    """Two boxes on one place: one of them with NMS, both without; the best so many, best first."""
    output = np.array([[10, 10, 50], [10, 10, 50], [4, 4, 4], [4, 4, 4], [0.8, 0.9, 0.3]], np.float32)
    assert detections_from_output(output, 0.25, 0.5).scores.tolist() == pytest.approx([0.9, 0.3])
    found = detections_from_output(output, 0.25, 0.5, layout="nms_free")
    assert found.scores.tolist() == pytest.approx([0.9, 0.8, 0.3])
    assert found.boxes_xyxy.tolist() == [[8, 8, 12, 12]] * 2 + [[48, 48, 52, 52]]
    assert len(detections_from_output(output, 0.25, 0.5, max_det=2, layout="nms_free")) == 2


def test_rows_are_taken_as_they_are() -> None:
    rows = np.array([[1, 2, 3, 4, 0.2, 1], [5, 6, 7, 8, 0.9, 0], [1, 2, 3, 4, 0.6, 2], [0] * 6], np.float32)
    found = detections_from_output(rows, 0.1, 0.5, layout="rows")
    assert found.boxes_xyxy.tolist() == [[5, 6, 7, 8], [1, 2, 3, 4], [1, 2, 3, 4]]
    assert found.scores.tolist() == pytest.approx([0.9, 0.6, 0.2])
    assert found.class_ids.tolist() == [0, 2, 1]
    of_two = detections_from_output(rows, 0.1, 0.5, classes=np.array([1, 2]), max_det=1, layout="rows")
    assert of_two.class_ids.tolist() == [2]
    assert len(detections_from_output(rows, 0.95, 0.5, layout="rows")) == 0
