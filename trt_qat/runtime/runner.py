"""The one interface behind which TensorRT, OpenVINO and ONNX Runtime are the same thing.

A runner is open from construction to the end of its ``with`` block; use after that is an error.
Every runner takes and returns float32, whatever the file computes in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from trt_qat.errors import RunnerError
from trt_qat.metadata import LARGEST_SIDE, SMALLEST_SIDE, Layout, read_metadata
from trt_qat.vision.size import ImageSize

DEFAULT_IMAGE_SIZE = 640
ROW = 6  # x1, y1, x2, y2, score, class id

Mode = Literal["latency", "throughput"]
"""What a runner is opened for: each image as soon as possible, or as many images per second as possible."""


@runtime_checkable
class Runner(Protocol):
    """A model that is loaded and ready.

    Attributes:
        name: "openvino", "onnxruntime" or "tensorrt".
        input_shape: (batch, 3, height, width); None stands for an axis that may be any size.
        metadata: what the exporter wrote into the file (names, imgsz, ...).
        device: what it runs on, for reports.
        parallel: how many threads should call :meth:`infer` at once to keep the device busy; any number may.
        largest_batch: most images per call; None where any number goes.
    """

    name: str
    input_shape: tuple[int | None, ...]
    metadata: Mapping[str, str]
    device: str
    parallel: int
    largest_batch: int | None

    def infer(self, batch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Run one batch.

        Args:
            batch: float32, shape as ``input_shape``, values in [0, 1].

        Returns:
            All outputs in the file's order, float32.

        Raises:
            RunnerError: wrong shape or dtype, the runner is closed, or the library failed.
        """
        ...

    def __enter__(self) -> Runner: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def check_batch(batch: NDArray[np.float32], input_shape: Sequence[int | None], name: str) -> None:
    """Refuse an array that does not fit.

    Raises:
        RunnerError: not float32, or a shape other than ``input_shape``.
    """
    if not isinstance(batch, np.ndarray) or batch.dtype != np.float32:
        found = getattr(batch, "dtype", type(batch).__name__)
        raise RunnerError(f"{name}: the batch must be a float32 array, found {found}.")
    fits = batch.ndim == len(input_shape) and all(
        wanted is None or wanted == found for wanted, found in zip(input_shape, batch.shape, strict=True)
    )
    if not fits or 0 in batch.shape:
        wanted_text = ", ".join("any" if axis is None else str(axis) for axis in input_shape)
        raise RunnerError(f"{name}: the model takes shape ({wanted_text}), found {batch.shape}.")


def check_output(
    output: NDArray[np.float32],
    names: Mapping[int, str],
    source: str = "the model",
    batch: int = 1,
    layout: Layout = "raw",
) -> None:
    """Refuse an output that is not what its layout says for ``batch`` images: decoding it would give wrong boxes.

    Args:
        output: the first output; raw detection is (batch, 4 + classes, anchors), scores in [0, 1].
        names: the model's class names; empty if nobody knows them.
        source: what the message calls the model.
        layout: what the model's metadata say, see :func:`trt_qat.metadata.output_layout`.

    Raises:
        RunnerError: another shape (built-in NMS, another number of classes, another task), NaN or infinity.
    """
    if layout == "rows":
        _check_rows(output, names, source, batch)
    else:
        _check_raw(output, names, source, batch)
    if not np.isfinite(output).all():
        raise RunnerError(
            f"The output of {source} holds NaN or infinity: its ranges or weights are broken. Export it again."
        )


def _check_rows(output: NDArray[np.float32], names: Mapping[int, str], source: str, batch: int) -> None:
    if output.ndim != 3 or output.shape[0] != batch or output.shape[2] != ROW:
        raise RunnerError(
            f"The output of {source} has shape {output.shape}, rows of an end-to-end detector have "
            f"({batch}, n, {ROW}). Export a detection model."
        )
    ids = output[..., 5]
    if names and output.size and not (ids.min() > -0.5 and ids.max() < len(names) - 0.5):
        raise RunnerError(
            f"The output of {source} has class ids from {ids.min():g} to {ids.max():g}, its names go from 0 to "
            f"{len(names) - 1}. Export it again."
        )


def _check_raw(output: NDArray[np.float32], names: Mapping[int, str], source: str, batch: int) -> None:
    wanted = f"({batch}, {4 + len(names) if names else '4 + classes'}, anchors)"
    fits = output.ndim == 3 and output.shape[0] == batch and output.shape[1] > 4
    if not fits or (names and output.shape[1] != 4 + len(names)):
        raise RunnerError(
            f"The output of {source} has shape {output.shape}, raw YOLOv8 detection has {wanted}. "
            "Export a detection model without built-in NMS."
        )


def check_cpu(device: str, name: str) -> None:
    """Refuse a GPU for a runtime that computes on the CPU.

    Raises:
        RunnerError: ``device`` is neither "auto" nor "cpu".
    """
    if device not in ("auto", "cpu"):
        raise RunnerError(
            f"Runtime '{name}' computes on the CPU, not on '{device}'. Use --device cpu, or a TensorRT plan."
        )


def closed_error(name: str) -> RunnerError:
    """The error for a runner that is used after its ``with`` block."""
    return RunnerError(f"{name}: the runner is closed. Use it inside its 'with' block, or open it again.")


def class_names(metadata: Mapping[str, str]) -> dict[int, str]:
    """Class id to name from the metadata; empty if there are none.

    Ultralytics writes the text of a Python dict (``{0: 'car', 1: 'bus'}``) or list.

    Raises:
        RunnerError: ``names`` is there but is neither.
    """
    return read_metadata(metadata, error=RunnerError).names or {}


def image_size(metadata: Mapping[str, str], input_shape: Sequence[int | None]) -> ImageSize:
    """Height and width of the network input in pixels: the input shape decides, then ``imgsz``, then 640.

    Raises:
        RunnerError: the input is not an image of 3 channels.
    """
    if len(input_shape) != 4 or input_shape[1] not in (1, 2, 3, 4, None):
        raise RunnerError(f"The model's input must be (batch, 3, height, width), found {tuple(input_shape)}.")
    channels = input_shape[1]
    if channels not in (3, None):
        raise RunnerError(
            f"The model's input must have 3 channels, red, green and blue; it has {channels} "
            f"channel{'s' if channels > 1 else ''}. Use a model for colour images."
        )
    height, width = input_shape[2:]
    if height is None or width is None:
        usual = read_metadata(metadata, error=RunnerError).imgsz or (DEFAULT_IMAGE_SIZE,) * 2
        height, width = height or usual[0], width or usual[1]
    for side in (height, width):
        if not SMALLEST_SIDE <= side <= LARGEST_SIDE:
            raise RunnerError(
                f"The model's input has a side of {side} pixels, {SMALLEST_SIDE} to {LARGEST_SIDE} are allowed. "
                "Export it at another size."
            )
    return height, width
