"""Which frames of a video are worth keeping, and which of them are held out.

Neighbours in a video say nearly the same, and a car at a red light says it a thousand times. A frame is kept if it
differs from the last kept one: mean absolute difference of two grey thumbnails of 32 x 18 pixels, in grey levels of
255, which is blind to noise and compression and sees what moves. The end of each video is held out, with a gap before
it: frames chosen by lot would have a neighbour among those that are trained on, and look better than they are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from trt_qat.progress import Progress
from trt_qat.runtime.frames import Frame
from trt_qat.runtime.sources import open_video

FEWEST = 5
"""Images or frames; of fewer none is held out."""

_THUMBNAIL_WH = (32, 18)
_GAP_SECONDS = 2.0
_GAP_SHARE = 0.1  # of the time from the first to the last frame, where that is less


@dataclass(frozen=True)
class Moment:
    """A frame of a video: its number and its time in seconds, both from the first frame."""

    number: int
    seconds: float


def differing(video: Path, difference: float, progress: Progress) -> list[Moment]:
    """The frames that differ from the last one before them in this list; the first is always there.

    Args:
        difference: mean of the thumbnails' absolute difference, grey levels; a frame with more is another one.

    Raises:
        DatasetError: the video cannot be read.
    """
    kept: list[Moment] = []
    last: NDArray[np.float32] | None = None
    for frame in _frames(video, f"looking at {video.name}", progress):
        seen = thumbnail(frame.image_bgr)
        if last is None or float(np.abs(seen - last).mean()) > difference:
            kept.append(Moment(frame.number, frame.seconds or 0.0))
            last = seen
    return kept


def thumbnail(image_bgr: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What is compared: grey, float32 of shape (18, 32), 0 to 255."""
    small = cv2.resize(image_bgr, _THUMBNAIL_WH, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.cvtColor(small, cv2.COLOR_BGR2GRAY), dtype=np.float32)


def numbered_frames(video: Path, numbers: Collection[int], progress: Progress) -> Iterator[Frame]:
    """The frames with these numbers, in order.

    Raises:
        DatasetError: the video cannot be read.
    """
    wanted = frozenset(numbers)
    last = max(wanted, default=-1)
    for frame in _frames(video, f"frames of {video.name}", progress):
        if frame.number in wanted:
            yield frame
        if frame.number >= last:
            return


def held_out_by_time(moments: Sequence[Moment], share: float) -> tuple[list[Moment], list[Moment]]:
    """What is trained on, and what is held out: the last ``share`` of the frames.

    Between them lie two seconds, or a tenth of the time of a shorter video, whose frames are in neither. Of fewer than
    :data:`FEWEST` frames none is held out.
    """
    count = held_out_count(len(moments), share)
    if not count:
        return list(moments), []
    held = list(moments[-count:])
    gap = min(_GAP_SECONDS, _GAP_SHARE * (moments[-1].seconds - moments[0].seconds))
    return [moment for moment in moments[:-count] if moment.seconds < held[0].seconds - gap], held


def held_out_count(images: int, share: float) -> int:
    """How many of so many images or frames are held out, at least one of :data:`FEWEST`."""
    return 0 if images < FEWEST else min(images - 1, max(1, round(share * images)))


def _frames(video: Path, description: str, progress: Progress) -> Iterator[Frame]:
    source = open_video(video)
    try:
        for frame in source.frames():
            progress.step(description, frame.number + 1, source.announced or 0)
            yield frame
    finally:
        source.close()
