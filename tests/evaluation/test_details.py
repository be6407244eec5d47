"""What stands behind an mAP; the figures of each size are computed by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matched_images import matched_image, street

from trt_qat import api
from trt_qat.checkpoint import Model
from trt_qat.config import EvaluationSection
from trt_qat.data.dataset import label_path, load_dataset
from trt_qat.demo.generate import generate_demo_set
from trt_qat.evaluation.accuracy import counted, mean_average_precision
from trt_qat.evaluation.details import accuracy_details
from trt_qat.provenance import labelled_sha256
from trt_qat.results import CURVE_POINTS, SizeAccuracy, read_rows, write_rows

BEST = 0.995  # the highest that Ultralytics' interpolation gives
NAMES = {0: "car", 1: "sign", 2: "bus"}


def by_size(*images: object) -> dict[str, SizeAccuracy]:
    return {row.size: row for row in accuracy_details(images, NAMES, "", 1).sizes}  # type: ignore[arg-type]


def test_a_size_ignores_labels_and_detections_of_the_others() -> None:
    small, large, elsewhere = (0, 10, 10, 30, 30), (0, 100, 100, 300, 300), (0, 400, 10, 410, 20)
    found = by_size(matched_image([small, large], [(0.9, elsewhere), (0.8, small), (0.7, large), (0.6, large)]))
    # small: the one elsewhere is wrong, then the label is found: a precision of a half; both large ones are ignored,
    # one for its label, the other for its area
    assert found["small"] == SizeAccuracy("small", pytest.approx(BEST / 2), pytest.approx(BEST / 2), 1)
    # large: the small ones are ignored; the second large one is wrong, but after the label is found
    assert found["large"] == SizeAccuracy("large", pytest.approx(BEST), pytest.approx(BEST), 1)
    assert found["medium"] == SizeAccuracy("medium", None, None, 0)


def test_what_is_ignored_differs_with_the_overlap() -> None:
    """A medium detection of a large label overlaps it by 0.72: at 0.75 and more it is one of nothing."""
    large, flat, medium = (0, 0, 0, 100, 100), (0, 0, 0, 100, 72), (0, 200, 0, 250, 50)
    found = by_size(matched_image([large, medium], [(0.9, flat), (0.3, medium)]))
    assert found["large"].map50 == pytest.approx(BEST)
    assert found["large"].map50_95 == pytest.approx(BEST / 2)  # five overlaps of ten
    assert found["medium"].map50 == pytest.approx(BEST)  # ignored: its label is large
    assert found["medium"].map50_95 == pytest.approx((5 * BEST + 5 * BEST / 2) / 10, abs=1e-5)  # at the others wrong


def test_a_detection_tries_the_labels_of_the_size_first() -> None:
    """It overlaps the large label more; a large label counts, however, only for who has none of the size."""
    large, medium, between = (0, 0, 0, 100, 100), (0, 0, 0, 95, 80), (0, 0, 0, 100, 88)
    found = by_size(matched_image([large, medium], [(0.9, between)]))
    assert (found["large"].map50, found["medium"].map50) == (pytest.approx(BEST), pytest.approx(BEST))


def test_a_label_belongs_to_one_size() -> None:
    sides = (31.9, 32, 95.9, 96)
    boxes = [(0, 0, 200 * index, side, 200 * index + side) for index, side in enumerate(sides)]
    found = by_size(matched_image(boxes, [(0.5 + 0.1 * index, box) for index, box in enumerate(boxes)]))
    assert [row.labels for row in found.values()] == [1, 2, 1]
    assert [row.map50_95 for row in found.values()] == pytest.approx([BEST] * 3)


def test_classes_overlaps_and_curves_are_those_of_ultralytics() -> None:
    images = street(40, 4)
    found = accuracy_details(images, NAMES, "ab", 5)
    of_ultralytics = counted(images)
    assert [row.name for row in found.per_class] == ["car", "sign", "bus"]
    assert np.mean([row.map50_95 for row in found.per_class]) == pytest.approx(
        mean_average_precision(images)[0], abs=1e-5
    )
    assert [row.map50 for row in found.per_class] == pytest.approx(of_ultralytics[5][:, 0], abs=1e-5)
    assert (found.map75, found.map95) == pytest.approx(tuple(of_ultralytics[5][:, [5, 9]].mean(0)), abs=1e-5)
    assert found.map75 > found.map95
    assert sum(row.labels for row in found.per_class) == sum(len(image.target_class_ids) for image in images)
    assert (found.per_class[2].labels, found.per_class[2].images) == (1, 1)
    assert found.images_sha256 == "ab"
    assert len(found.resampled) == 5
    curves = found.curves
    for curve in (curves.precision_of_recall, curves.precision, curves.recall, curves.f1):
        assert len(curve) == CURVE_POINTS
    assert list(curves.recall) == sorted(curves.recall, reverse=True)
    assert curves.precision_of_recall[-1] == 0  # nothing finds everything
    # at half of the confidence, by hand
    shares = []
    for class_id in NAMES:
        right = sum(
            int(image.right[(image.class_ids == class_id) & (image.scores >= 0.5), 0].sum()) for image in images
        )
        shares.append(right / sum(int((image.target_class_ids == class_id).sum()) for image in images))
    assert curves.recall[50] == pytest.approx(np.mean(shares), abs=0.02)  # a curve of 1000 points between detections


def test_evaluate_keeps_them_where_they_are_asked_for(demo_detector: Model, tmp_path: Path) -> None:
    dataset = load_dataset(generate_demo_set(tmp_path / "set", 1, 6))
    label_path(dataset.val[2]).write_text("0 0.5 0.5 0.5 0.5 0.93\n")  # left out
    section = EvaluationSection(batch=4, latency_iterations=3, latency_warmup=0)
    (row,) = api.evaluate([demo_detector], dataset, section, details=True)
    (plain,) = api.evaluate([demo_detector], dataset, section)
    assert plain.details is None
    assert replace(plain, latency_ms=row.latency_ms) == replace(row, details=None)
    assert row.details is not None
    assert np.mean([entry.map50_95 for entry in row.details.per_class]) == pytest.approx(row.map50_95, abs=1e-4)
    assert {entry.name for entry in row.details.per_class} <= set(dataset.names.values())
    measured = [image for index, image in enumerate(dataset.val) if index != 2]
    assert row.details.images_sha256 == labelled_sha256(measured) != labelled_sha256(dataset.val)
    assert len(row.details.resampled) == 1000
    assert min(row.details.resampled) < row.map50_95 < max(row.details.resampled)
    write_rows(tmp_path / "r.json", [row])
    assert read_rows(tmp_path / "r.json") == (row,)
