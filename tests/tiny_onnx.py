"""A detector small enough to reason about: one anchor per 8x8 cell of a 64x64 image, one class per colour.

A cell that is pure red (green, blue) scores 1 for class 0 (1, 2) with a box that is exactly the cell;
gray scores 0. Same output layout as YOLOv8: (batch, 4 + classes, anchors).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZE, CELL = 64, 8
CELLS = SIZE // CELL
NAMES = {0: "red", 1: "green", 2: "blue"}
CHANNELS = 4 + len(NAMES)


def write_tiny_detector(path: Path, batch: int | None = 1, names: bool = True) -> Path:
    """Write the detector; ``batch`` None makes the batch axis dynamic."""
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
