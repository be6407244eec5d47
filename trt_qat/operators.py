"""One vocabulary for three readers of a graph: placement (aten), the exporter's passes and the lint (ONNX).

What Q/DQ needs to know of an operator is whether it *copies*: every value of its output is a value of its input. A
copy commutes with a quantizer, ``copy(dequantize(q)) == dequantize(copy(q))``, so INT8 data passes through it without
arithmetic, and the tensors around it must share one scale. Each reader asks :data:`COPIES`; a reader that knew a copy
which another does not would place a quantizer that the other calls wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

Tensor = TypeVar("Tensor")


@dataclass(frozen=True)
class Copy:
    """An operator that moves values without changing them.

    Args:
        onnx: its name in ONNX.
        aten: the PyTorch operators that mean the same, by name without overload, as far as the exporter writes them
            as copies; it may write several for one (``stack`` is Unsqueeze and Concat).
        does: what it does with values, and on what condition it is a copy.
        moves: it reads and writes every byte, so it matters in which type it runs. The others only rename positions.
        drops: its output may lack values of its input.
        joins: every input carries data. Of the others only the first does; the rest are sizes, indices, paddings.
    """

    onnx: str
    aten: tuple[str, ...]
    does: str
    moves: bool = False
    drops: bool = False
    joins: bool = False

    def carried(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Those of its inputs whose values it copies."""
        return inputs if self.joins else inputs[:1]


# fmt: off
COPIES: Final = (
    Copy("Concat", ("cat", "concat", "stack"), "places side by side; on one grid only if all inputs share it",
         moves=True, joins=True),
    Copy("Split", ("chunk", "split", "split_with_sizes", "unbind", "getitem"), "cuts",
         moves=True, drops=True),
    Copy("Slice", ("slice", "narrow"), "cuts", moves=True, drops=True),
    Copy("Gather", ("select", "index_select"), "picks", moves=True, drops=True),
    Copy("MaxPool", ("max_pool2d", "max_pool2d_with_indices"), "picks the largest; rounding keeps the order",
         moves=True, drops=True),
    Copy("Resize", ("upsample_nearest2d",),
         "repeats, in mode 'nearest' (enlarging, as detectors do); other modes average", moves=True),
    Copy("Upsample", (), "repeats, in mode 'nearest'; what Resize was called before opset 10", moves=True),
    Copy("Pad", ("pad",),
         "adds zeros, which lie on every grid, or repeats; any other constant leaves the grid", moves=True),
    Copy("Tile", ("repeat", "tile"), "repeats", moves=True),
    Copy("Expand", ("expand", "expand_as"), "repeats", moves=True),
    Copy("Transpose", ("permute", "transpose", "swapaxes", "movedim"), "reorders", moves=True),
    Copy("DepthToSpace", ("pixel_shuffle",), "reorders", moves=True),
    Copy("SpaceToDepth", ("pixel_unshuffle",), "reorders", moves=True),
    Copy("Reshape", ("reshape", "view", "view_as", "reshape_as", "unflatten"), "renames positions"),
    Copy("Flatten", ("flatten",), "renames positions"),
    Copy("Squeeze", ("squeeze",), "renames positions"),
    Copy("Unsqueeze", ("unsqueeze",), "renames positions"),
    Copy("Identity", ("alias", "clone", "contiguous", "detach", "dropout"), "does nothing (dropout, when deployed)"),
    Copy("Cast", ("to", "type_as"), "does nothing, between float types; some exporters leave one behind"),
)
# fmt: on
ONNX_COPIES: Final = {copy.onnx: copy for copy in COPIES}
ATEN_COPIES: Final = {name: copy for copy in COPIES for name in copy.aten}


def onnx_copy(op: str, attributes: Mapping[str, Any], filling: Callable[[], NDArray[Any] | None]) -> Copy | None:
    """The row of an ONNX node that is a copy; None for one that computes.

    Args:
        op: the node's type. Of a Cast the caller has to look at the types.
        attributes: the node's attributes, strings as ``str``.
        filling: asked for a Pad with a constant only: what it writes (its third input; zero if it has none), None if
            that is not known.
    """
    copy = ONNX_COPIES.get(op)
    if copy is None:
        return None
    if op in ("Resize", "Upsample") and attributes.get("mode", "nearest") != "nearest":
        return None
    if op == "Pad" and attributes.get("mode", "constant") == "constant":
        written = filling()
        if written is None or np.any(written) or attributes.get("value", 0.0) != 0.0:  # attribute: before opset 11
            return None
    return copy


def pads_with_copies(mode: str, value: float | None) -> bool:
    """Whether a padding of ``torch.nn.functional.pad`` copies: it adds zeros (``value`` None or 0) or repeats."""
    return mode != "constant" or not value


def is_dfl_weight(weight: NDArray[Any]) -> bool:
    """Whether a convolution's weight is that of YOLOv8's DFL, which takes an expectation and has learned nothing.

    One output, 1x1, weights 0, 1, 2, ... times any factor; also when they were rounded to INT8, which moves each by
    0.4 % of the largest at most.
    """
    if weight.ndim != 4 or weight.shape[0] != 1 or weight.shape[2:] != (1, 1) or weight.size < 3:
        return False
    values = weight.astype(np.float64).ravel()
    ramp = np.linspace(0, 1, values.size)
    return bool(values[-1] > 0 and np.allclose(values / values[-1], ramp, rtol=0, atol=0.01))
