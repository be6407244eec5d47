"""What goes into an engine and comes out of it: names, types, and the shapes that its optimization profiles allow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trt_qat.errors import RunnerError

Shape = tuple[int, ...]

_AXES = {0: ("batches", "batch"), 2: ("heights", "size"), 3: ("widths", "size")}  # in words, and in settings


@dataclass(frozen=True)
class EngineTensors:
    """The tensors of an engine with one input.

    Attributes:
        input, outputs: their names, outputs in the engine's order.
        dtypes: by name.
        input_shape: None stands for a free axis.
        profiles: smallest and largest shape of the input in each optimization profile; none where no axis is free.
    """

    input: str
    outputs: tuple[str, ...]
    dtypes: Mapping[str, np.dtype[Any]]
    input_shape: tuple[int | None, ...]
    profiles: tuple[tuple[Shape, Shape], ...]

    @property
    def largest_batch(self) -> int | None:
        """Most images per call."""
        return max((largest[0] for _, largest in self.profiles), default=self.input_shape[0])

    def profile_for(self, shape: Shape) -> int:
        """The first optimization profile that holds a shape of the input.

        Raises:
            RunnerError: none does.
        """
        for index, (smallest, largest) in enumerate(self.profiles):
            if all(low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True)):
                return index
        if self.profiles:
            raise RunnerError(self._refusal(shape))
        return 0

    def _refusal(self, shape: Shape) -> str:
        if len(self.profiles) > 1:
            taken = ", ".join(f"{smallest} to {largest}" for smallest, largest in self.profiles)
            return f"None of the engine's {len(self.profiles)} profiles takes shape {shape}, they take {taken}."
        smallest, largest = self.profiles[0]
        axis = next(i for i, size in enumerate(shape) if not smallest[i] <= size <= largest[i])
        name, setting = _AXES.get(axis, ("channels", "size"))
        end = "min" if shape[axis] < smallest[axis] else "max"
        return (
            f"The engine takes {name} of {smallest[axis]} to {largest[axis]}, found {shape[axis]}. "
            f"Build it with another engine.{end}_{setting}."
        )


def read_tensors(engine: Any, trt: Any, plan: Path) -> EngineTensors:
    """Ask an engine for its tensors.

    Args:
        trt: the module that made it.
        plan: for messages.

    Raises:
        RunnerError: it has not exactly one input, or a type that NumPy lacks.
    """
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    if len(inputs) != 1:
        raise RunnerError(f"'{plan}' has {len(inputs)} inputs; a detector has one, the images.")
    shape = tuple(None if axis == -1 else int(axis) for axis in engine.get_tensor_shape(inputs[0]))
    count = engine.num_optimization_profiles if None in shape else 0
    bounds = [engine.get_tensor_profile_shape(inputs[0], index) for index in range(count)]
    return EngineTensors(
        input=inputs[0],
        outputs=tuple(name for name in names if name != inputs[0]),
        dtypes={name: _dtype(engine, trt, name) for name in names},
        input_shape=shape,
        profiles=tuple((tuple(map(int, smallest)), tuple(map(int, largest))) for smallest, _, largest in bounds),
    )


def _dtype(engine: Any, trt: Any, name: str) -> np.dtype[Any]:
    try:
        dtype: np.dtype[Any] = np.dtype(trt.nptype(engine.get_tensor_dtype(name)))
    except TypeError as exc:
        raise RunnerError(f"Tensor '{name}' has a type that NumPy lacks. Export it as float32.") from exc
    return dtype
