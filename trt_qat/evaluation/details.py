"""What stands behind an mAP: per class, by object size, at single overlaps, curves, and how far chance moves it.

Object size follows COCO's rule (``cocoeval.py``): at each size the labels of other sizes are no mistakes to miss. A
detection first tries the labels of the size; one that gets none of them is ignored where it gets a label of another
size, or where it is of another size itself; otherwise it is wrong. Other than there, the area of a label is that of its
box, not of a polygon, a box of exactly 32^2 or 96^2 pixels belongs to the larger size alone, and the best
``evaluation.max_det`` detections of an image count (COCO: 100). Areas are in pixels of the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from ultralytics.utils.metrics import ap_per_class

from trt_qat.config import EvaluationSection
from trt_qat.data.dataset import Dataset
from trt_qat.evaluation.accuracy import (
    COCO_IOU,
    Accuracy,
    MatchedImage,
    counted,
    match_images,
    mean_average_precision,
    right_at,
)
from trt_qat.evaluation.bootstrap import RESAMPLES, draws, weighted_map
from trt_qat.progress import SILENT, Progress
from trt_qat.provenance import labelled_sha256
from trt_qat.results import CURVE_POINTS, AccuracyDetails, ClassAccuracy, Curves, SizeAccuracy
from trt_qat.runtime.runner import Runner, class_names

_Size = Literal["small", "medium", "large"]
_SIZES: Final[Mapping[_Size, tuple[float, float]]] = {
    "small": (0, 32**2),
    "medium": (32**2, 96**2),
    "large": (96**2, float("inf")),
}
_DIGITS: Final = 5  # as mAP itself is kept


def measure_details(
    runner: Runner,
    dataset: Dataset,
    section: EvaluationSection,
    progress: Progress = SILENT,
    label: str = "",
) -> tuple[Accuracy, AccuracyDetails]:
    """:func:`~trt_qat.evaluation.accuracy.measure_accuracy`, see there, and what stands behind it."""
    images, measured = match_images(runner, dataset, section, progress, label)
    names = class_names(runner.metadata) or dict(dataset.names)
    sha256 = labelled_sha256([image.image for image in measured.images])
    accuracy = Accuracy(*mean_average_precision(images), len(images), measured.left_out)
    return accuracy, accuracy_details(images, names, sha256)


def accuracy_details(
    images: Sequence[MatchedImage], names: Mapping[int, str], images_sha256: str, resamples: int = RESAMPLES
) -> AccuracyDetails:
    """What stands behind the mAP of these images; at least one of them has a label.

    Args:
        names: of the classes.
        images_sha256: of the images and labels, see :func:`~trt_qat.provenance.labelled_sha256`.
        resamples: draws of the bootstrap.
    """
    counts = counted(images)
    precisions, class_ids = counts[5], counts[6]
    overlaps = precisions.mean(0)
    return AccuracyDetails(
        per_class=tuple(_per_class(images, names, precisions, class_ids)),
        sizes=tuple(_of_size(images, size, *_SIZES[size]) for size in _SIZES),
        map75=_fraction(overlaps[5]),
        map95=_fraction(overlaps[9]),
        curves=_curves(counts),
        images_sha256=images_sha256,
        resampled=_fractions(weighted_map(images, draws(len(images), resamples))),
    )


def _per_class(
    images: Sequence[MatchedImage], names: Mapping[int, str], precisions: NDArray[np.float64], ids: NDArray[np.int64]
) -> Iterator[ClassAccuracy]:
    for class_id, precision in zip(ids.tolist(), precisions, strict=True):
        labels = [np.count_nonzero(image.target_class_ids == class_id) for image in images]
        yield ClassAccuracy(
            name=names[class_id],
            map50_95=_fraction(precision.mean()),
            map50=_fraction(precision[0]),
            labels=int(sum(labels)),
            images=int(np.count_nonzero(labels)),
        )


def _of_size(images: Sequence[MatchedImage], size: _Size, least: float, below: float) -> SizeAccuracy:
    inside = [_between(image.target_boxes_xyxy, least, below) for image in images]
    labels = int(sum(map(np.count_nonzero, inside)))
    if not labels:
        return SizeAccuracy(size, None, None, 0)
    pairs = [_matched_at_size(image, mine, least, below) for image, mine in zip(images, inside, strict=True)]
    right, counts = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    scores = np.concatenate([image.scores for image in images])
    class_ids = np.concatenate([image.class_ids for image in images])
    targets = np.concatenate([image.target_class_ids[mine] for image, mine in zip(images, inside, strict=True)])
    # what is ignored differs from threshold to threshold
    columns = zip(right.T, counts.T, strict=True)
    at = [ap_per_class(is_right[kept, None], scores[kept], class_ids[kept], targets)[5] for is_right, kept in columns]
    return SizeAccuracy(size, _fraction(np.mean(at)), _fraction(np.mean(at[0])), labels)


def _matched_at_size(
    image: MatchedImage, inside: NDArray[np.bool_], least: float, below: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether each detection is right at each threshold, and whether it counts at all, each of shape (n, 10).

    Args:
        inside: which labels are of the size, shape (m,).
    """
    ids, boxes = image.target_class_ids, image.target_boxes_xyxy
    right = right_at(COCO_IOU, (image.class_ids, image.boxes_xyxy), (ids[inside], boxes[inside]))
    ignored = np.repeat(~_between(image.boxes_xyxy, least, below)[:, None], len(COCO_IOU), axis=1)
    if not inside.all():
        others = ids[~inside], boxes[~inside]
        for column in range(len(COCO_IOU)):
            free = ~right[:, column]  # who has a label takes none from another
            got = right_at(COCO_IOU[column : column + 1], (image.class_ids[free], image.boxes_xyxy[free]), others)
            ignored[free, column] |= got[:, 0]
    return right, right | ~ignored


def _between(boxes_xyxy: NDArray[np.float32], least: float, below: float) -> NDArray[np.bool_]:
    areas = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(axis=1)
    return np.asarray((areas >= least) & (areas < below))


def _curves(counts: Sequence[NDArray[np.float64]]) -> Curves:
    """Of Ultralytics' curves, which have 1000 points of each class, the mean over the classes."""
    precision, recall, f1, thousand, precision_of_recall = counts[7:12]
    axis = np.linspace(0, 1, CURVE_POINTS)
    curves = (precision_of_recall, precision, recall, f1)
    return Curves(*(_fractions(np.interp(axis, thousand, curve.mean(0))) for curve in curves))


def _fraction(value: float) -> float:
    return round(float(value), _DIGITS)


def _fractions(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(map(_fraction, values))
