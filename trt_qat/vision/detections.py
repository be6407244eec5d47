"""The one detection type that every stage speaks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Detections:
    """Detections of one image.

    Args:
        boxes_xyxy: float32, shape (n, 4), pixels of the image the boxes belong to.
        scores: float32, shape (n,), in [0, 1].
        class_ids: int64, shape (n,).
        track_ids: int64, shape (n,): which object of the video each is, -1 while that is open; None if not tracked.

    Raises:
        ValueError: shapes disagree.
    """

    boxes_xyxy: NDArray[np.float32]
    scores: NDArray[np.float32]
    class_ids: NDArray[np.int64]
    track_ids: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        count = len(self.scores)
        if self.boxes_xyxy.shape != (count, 4) or self.class_ids.shape != (count,) or self.scores.shape != (count,):
            raise ValueError(
                f"boxes_xyxy {self.boxes_xyxy.shape}, scores {self.scores.shape}, class_ids {self.class_ids.shape}: "
                "expected (n, 4), (n,), (n,)"
            )
        if self.track_ids is not None and self.track_ids.shape != (count,):
            raise ValueError(f"track_ids {self.track_ids.shape}: expected ({count},)")

    def __len__(self) -> int:
        return len(self.scores)
