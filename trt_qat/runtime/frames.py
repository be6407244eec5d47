"""What travels from the sources through the detector to the sinks: a frame, then the same frame with its detections."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from trt_qat.vision.detections import Detections


@dataclass(frozen=True)
class Frame:
    """One picture of a source.

    Attributes:
        image_bgr: uint8, shape (h, w, 3), upright.
        source: the source as it was given, without passwords.
        number: from 0 within its source; frames that are left out (``--every``, broken, dropped) are counted.
        seconds: presentation time since the first frame of the source; None for an image.
        path: the image file; None for a frame of a video or a stream.
    """

    image_bgr: NDArray[np.uint8]
    source: str
    number: int
    seconds: float | None = None
    path: Path | None = None


@dataclass(frozen=True)
class Result:
    """A frame with what was found on it.

    Attributes:
        frame: as the source gave it.
        detections: in pixels of the frame, with track ids where they are tracked.
        counts: what has crossed each line so far, by the name of the line: {"in": n, "out": n}.
        annotated_bgr: the frame with everything drawn on it; None where no sink wants it.
    """

    frame: Frame
    detections: Detections
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    annotated_bgr: NDArray[np.uint8] | None = None


class Source(Protocol):
    """Something that frames come from.

    Attributes:
        text: as it was given, without passwords.
        live: whether frames are lost if nobody takes them in time (camera, network stream); a file waits.
        announced: how many frames it promises; None if it does not say, or never ends.
        fps: usual frames per second; None for images.
        size_wh: of its first frame; None if that is known only when it comes, or changes (a folder).
        broken: frames so far that could not be decoded, and were skipped.
        dropped: frames so far of a live source that nobody took in time.
        reconnects: how often the stream was opened again so far.
        errors: name of each image of a folder that cannot be read, and why.
    """

    text: str
    live: bool
    announced: int | None
    fps: float | None
    size_wh: tuple[int, int] | None
    broken: int
    dropped: int
    reconnects: int
    errors: list[tuple[str, str]]

    def frames(self) -> Iterator[Frame]:
        """The frames, in order, once.

        Raises:
            DatasetError: it cannot be read at all.
        """
        ...

    def close(self) -> None:
        """End :meth:`frames` soon, from any thread, and release the file or the connection."""
        ...
