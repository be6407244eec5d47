"""How far chance moves an mAP: a bootstrap over the images (Efron 1979), a thousand mAPs in seconds.

A draw is how often it takes each image. Detections are sorted once, for every draw; only the sums over them differ.
The draws depend on the number of images alone, so that what two models get on the same images is paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trt_qat.evaluation.accuracy import MatchedImage

RESAMPLES: Final = 1000
_RECALLS: Final = np.linspace(0, 1, 101)  # where Ultralytics reads precision, as COCO does
_MOST_AT_ONCE: Final = 8_000_000  # detections times draws: about 100 MB


def draws(images: int, resamples: int = RESAMPLES) -> NDArray[np.int32]:
    """How often each draw takes each image, shape (resamples, images); each takes as many images as there are."""
    chosen = np.random.default_rng(0).integers(0, images, (resamples, images))
    return np.stack([np.bincount(row, minlength=images) for row in chosen]).astype(np.int32)


def weighted_map(images: Sequence[MatchedImage], weights: NDArray[np.int32]) -> NDArray[np.float64]:
    """What :func:`~trt_qat.evaluation.accuracy.mean_average_precision` says of mAP50-95 where images count repeatedly.

    Equal to it but for detections with exactly the same score, which it takes in any order, and 0 instead of NaN where
    a draw has no label.

    Args:
        weights: how often each image counts, shape (draws, images).

    Returns:
        Shape (draws,), fractions.
    """
    counts = [len(image.scores) for image in images]
    image_ids = np.repeat(np.arange(len(images)), counts)
    order = np.argsort(-np.concatenate([image.scores for image in images]), kind="stable")
    class_ids = np.concatenate([image.class_ids for image in images])[order]
    right, image_ids = np.concatenate([image.right for image in images])[order], image_ids[order]
    total, classes = np.zeros(len(weights)), np.zeros(len(weights))
    for class_id in np.unique(np.concatenate([image.target_class_ids for image in images])):
        labels = weights @ np.array([np.count_nonzero(image.target_class_ids == class_id) for image in images])
        mine = class_ids == class_id
        total += _average_precision(right[mine], image_ids[mine], weights, labels)
        classes += labels > 0
    return np.asarray(total / np.maximum(classes, 1))


def _average_precision(
    right: NDArray[np.bool_], image_ids: NDArray[np.int64], weights: NDArray[np.int32], labels: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Of one class, the mean over the thresholds, shape (draws,).

    Args:
        right: of its detections, best first, shape (n, thresholds).
        image_ids: whose they are, shape (n,).
        labels: of the class in each draw, shape (draws,).
    """
    found = np.zeros(len(weights))
    at_once = max(1, _MOST_AT_ONCE // max(1, len(right)))
    for first in range(0, len(weights), at_once):
        part = slice(first, first + at_once)
        each = weights[part, image_ids]
        seen, most = each.cumsum(1, dtype=np.int32), np.maximum(labels[part, None], 1)
        for threshold in right.T:
            hits = np.flatnonzero(threshold)
            so_far = each[:, hits].cumsum(1, dtype=np.int32)
            found[part] += _area(so_far / most, so_far / np.maximum(seen[:, hits], 1))
    return np.asarray(found / right.shape[1])


def _area(recall: NDArray[np.float64], precision: NDArray[np.float64]) -> NDArray[np.float64]:
    """The area under the interpolated curve, as Ultralytics' ``compute_ap`` finds it, from the right detections alone.

    Its precision at a recall is the best of all detections with more recall. Between two right detections precision
    only falls, so that the others do not matter, nor does one that a draw takes no time or several times.

    Args:
        recall, precision: up to each right detection, shape (draws, right detections).
    """
    # the best by how many of the recalls are less; a recall of exactly _RECALLS[i] does not reach i
    best = np.zeros((len(recall), len(_RECALLS) + 1))
    reached = np.searchsorted(_RECALLS, recall, side="left")
    np.maximum.at(best, (np.arange(len(recall))[:, None], reached), precision)
    read = np.maximum.accumulate(best[:, :0:-1], axis=1)
    return np.asarray((read[:, 1:] + read[:, :-1]).sum(1) / 2 / (len(_RECALLS) - 1))
