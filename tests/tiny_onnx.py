"""A detector small enough to reason about: one anchor per 8x8 cell of a 64x64 image, one class per colour.

A cell that is pure red (green, blue) scores 1 for class 0 (1, 2) with a box that is exactly the cell;
gray scores 0. Same output layout as YOLOv8: (batch, 4 + classes, anchors).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trt_qat.progress import Silent

SIZE, CELL = 64, 8
CELLS = SIZE // CELL
NAMES = {0: "red", 1: "green", 2: "blue"}
CHANNELS = 4 + len(NAMES)


def write_tiny_detector(path: Path, batch: int | None = 1, names: bool = True) -> Path:
    """Write the detector; ``batch`` None makes the batch axis dynamic, ``names`` False leaves all metadata out."""
    axis = "batch" if batch is None else batch
    weights = np.zeros((CHANNELS, 3, 1, 1), np.float32)
    weights[4:, :, 0, 0] = np.full((3, 3), -0.5) + 1.5 * np.eye(3)
    grid = np.zeros((1, CHANNELS, CELLS, CELLS), np.float32)
    centres = (np.arange(CELLS) + 0.5) * CELL
    grid[0, 0], grid[0, 1] = np.meshgrid(centres, centres)
    grid[0, 2:4] = CELL
    nodes = [
        helper.make_node("AveragePool", ["images"], ["cells"], "pool", kernel_shape=[CELL] * 2, strides=[CELL] * 2),
        helper.make_node("Conv", ["cells", "weights"], ["colours"], "conv"),
        helper.make_node("Relu", ["colours"], ["scores"], "relu"),
        helper.make_node("Add", ["scores", "grid"], ["maps"], "add"),
        helper.make_node("Reshape", ["maps", "shape"], ["output0"], "reshape"),
    ]
    constants = {"weights": weights, "grid": grid, "shape": np.array([0, CHANNELS, CELLS * CELLS], np.int64)}
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [axis, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [axis, CHANNELS, CELLS * CELLS])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    if names:
        helper.set_model_props(model, {"names": str(NAMES), "imgsz": f"[{SIZE}, {SIZE}]"})
    onnx.save(model, path)
    return path


def write_free_size(
    path: Path, axes: Sequence[int | None] = (None, None, None), props: dict[str, str] | None = None
) -> Path:
    """Colour scores per cell for images of any size; ``axes`` are batch, height and width, None for a free one."""
    batch, height, width = (name if axis is None else axis for name, axis in zip("bhw", axes, strict=True))
    weights = np.zeros((CHANNELS, 3, 1, 1), np.float32)
    weights[4:, :, 0, 0] = np.eye(3)
    nodes = [
        helper.make_node("AveragePool", ["images"], ["cells"], "pool", kernel_shape=[CELL] * 2, strides=[CELL] * 2),
        helper.make_node("Conv", ["cells", "weights"], ["maps"], "conv"),
        helper.make_node("Reshape", ["maps", "shape"], ["output0"], "reshape"),
    ]
    constants = {"weights": weights, "shape": np.array([0, CHANNELS, -1], np.int64)}
    graph = helper.make_graph(
        nodes,
        "free",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, height, width])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [batch, CHANNELS, None])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    helper.set_model_props(model, {"names": str(NAMES)} if props is None else props)
    onnx.save(model, path)
    return path


def write_unknown_operator(path: Path) -> Path:
    """An ONNX file with a node that no runtime knows."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, SIZE, SIZE]) for name in ("images", "out")]
    node = helper.make_node("Mystery", ["images"], ["out"], "strange_node")
    graph = helper.make_graph([node], "unknown", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), path)
    return path


def colour_image(height: int, width: int) -> np.ndarray:
    """A gray image, BGR uint8."""
    return np.full((height, width, 3), 114, np.uint8)


class Recorded(Silent):
    """A progress that remembers its steps and notes."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, int, int]] = []
        self.notes: list[str] = []

    def over(self, items: Sequence[Any], description: str) -> Iterator[Any]:
        """Iterate, one step per item."""
        for done, item in enumerate(items, start=1):
            yield item
            self.steps.append((description, done, len(items)))

    def step(self, description: str, done: int, total: int, detail: str = "") -> None:
        """Remember it."""
        self.steps.append((description, done, total))

    def note(self, line: str) -> None:
        """Remember it."""
        self.notes.append(line)


def write_colour_set(folder: Path, count: int = 3) -> Path:
    """A dataset for the tiny detector, which finds all of it: coloured squares that fill a cell. Returns data.yaml."""
    for name in ("images/val", "labels/val"):
        (folder / name).mkdir(parents=True)
    for index in range(count):
        image, labels = colour_image(SIZE, SIZE), []
        for class_id, bgr in enumerate(((0, 0, 255), (0, 255, 0), (255, 0, 0))):
            row, column = (index + 2 * class_id) % CELLS, (3 * index + class_id) % CELLS
            image[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = bgr
            labels.append(f"{class_id} {(column + 0.5) / CELLS} {(row + 0.5) / CELLS} {1 / CELLS} {1 / CELLS}\n")
        cv2.imwrite(str(folder / f"images/val/{index}.png"), image)
        (folder / f"labels/val/{index}.txt").write_text("".join(labels))
    (folder / "data.yaml").write_text("train: images/val\nval: images/val\nnames: [red, green, blue]\n")
    return folder / "data.yaml"
