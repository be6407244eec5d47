"""Polygraphy's comparator over two of our runners, a few images at a time.

Polygraphy runs both sides on the same input, pairs their outputs by name and asks a function of each pair. The images
come in chunks, each a run of its own, so that memory does not grow with their number.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from polygraphy.backend.base import BaseRunner
from polygraphy.common import TensorMetadata
from polygraphy.comparator import Comparator
from polygraphy.exception import PolygraphyException
from polygraphy.logger import G_LOGGER

from trt_qat.errors import RunnerError
from trt_qat.evaluation.accuracy import infer_padded
from trt_qat.runtime.runner import Runner

Arrays = Mapping[str, NDArray[np.float32]]
_INPUT = "images"


class ComparedRunner(BaseRunner):  # type: ignore[misc]  # polygraphy has no types
    """One of our open runners, as Polygraphy runs it.

    Outputs are called ``output0``, ``output1`` ... by their place: PyTorch's have no name, and two exporters may choose
    different ones.

    Args:
        runner: stays the caller's; Polygraphy's activation opens and closes nothing.
        name: what Polygraphy calls it; two that are compared need different ones.
    """

    def __init__(self, runner: Runner, name: str) -> None:
        super().__init__(name=name)
        self._runner = runner

    def get_input_metadata_impl(self) -> TensorMetadata:
        """The images; any number of them, whatever the model's batch is."""
        return TensorMetadata().add(_INPUT, dtype=np.dtype(np.float32), shape=(None, *self._runner.input_shape[1:]))

    def infer_impl(self, feed_dict: Arrays) -> OrderedDict[str, NDArray[np.float32]]:
        """Every output of the images, each of shape (images, ...)."""
        start = time.perf_counter()
        outputs = infer_padded(self._runner, feed_dict[_INPUT])
        self.inference_time = time.perf_counter() - start
        return OrderedDict((f"output{index}", output) for index, output in enumerate(outputs))


def compare_chunk(
    first: ComparedRunner,
    second: ComparedRunner,
    images: NDArray[np.float32],
    compare: Callable[[Arrays, Arrays], Mapping[str, bool]],
) -> None:
    """Let Polygraphy run two sides on the same images and hand their outputs to ``compare``.

    Args:
        images: float32, shape (n, 3, *imgsz), in [0, 1].
        compare: told all outputs of both by name; what it returns is only for Polygraphy's own log.

    Raises:
        RunnerError: a side cannot run them.
    """
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):  # it prints every comparison; what counts is in our report
        try:
            results = Comparator.run([first, second], data_loader=[{_INPUT: images}])
            Comparator.compare_accuracy(results, compare_func=lambda a, b: compare(dict(a.items()), dict(b.items())))
        except PolygraphyException as exc:
            raise RunnerError(f"Polygraphy cannot compare the two: {' '.join(str(exc).split())[:300]}.") from exc
