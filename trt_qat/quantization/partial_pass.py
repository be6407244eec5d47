"""How far a calibration pass has come, so that an interrupted one goes on after its last batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Protocol

from trt_qat.quantization.histogram import ActivationHistogram, Histograms

EVERY_SECONDS = 5.0


class PassMemory(Protocol):
    """Told after each batch of a pass.

    Attributes:
        done: batches that an interrupted pass has counted; they are not run again.
        histograms: what it counted.
    """

    done: int
    histograms: Mapping[str, ActivationHistogram]

    def after_batch(self, histograms: Callable[[], Histograms]) -> None:
        """One more batch is counted; ``histograms`` gives all of them so far."""


class NothingKept:
    """The pass begins at its start and leaves nothing."""

    done = 0
    histograms: Mapping[str, ActivationHistogram] = MappingProxyType({})

    def after_batch(self, histograms: Callable[[], Histograms]) -> None:
        """See :class:`PassMemory`."""


class PartialPass:
    """Keeps the histograms every few seconds.

    Args:
        save: writes the number of batches and their histograms.
        done: batches that were kept before, and what they counted.
    """

    def __init__(self, save: Callable[[int, Histograms], object], done: int, histograms: Histograms) -> None:
        self._save = save
        self._saved_at = time.monotonic()
        self.done = done
        self.histograms: Mapping[str, ActivationHistogram] = histograms

    def after_batch(self, histograms: Callable[[], Histograms]) -> None:
        """See :class:`PassMemory`."""
        self.done += 1
        if time.monotonic() - self._saved_at >= EVERY_SECONDS:
            self._save(self.done, histograms())
            self._saved_at = time.monotonic()
