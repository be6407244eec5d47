"""Which input shapes an engine accepts: one optimization profile over the free axes of the ONNX file's input.

TensorRT needs the smallest, the usual and the largest size of every axis that the file leaves open. The batch has
defaults; height and width are those that the file names (``imgsz``), unless the settings say more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trt_qat.config import EngineSection
from trt_qat.engine.engine_file import ProfileShapes
from trt_qat.errors import ConfigError
from trt_qat.metadata import read_metadata

_BATCH, _HEIGHT, _WIDTH = 0, 2, 3
_CHANNELS = 3
_FREE = -1
_DEFAULT = EngineSection()


def input_profile(
    shape: Sequence[int], section: EngineSection, metadata: Mapping[str, str], onnx: str
) -> ProfileShapes | None:
    """The profile of the one input, or None where all of its axes are fixed.

    Args:
        shape: (batch, 3, height, width), -1 for a free axis.
        metadata: of the ONNX file; ``imgsz`` is the size where none is set, sizes are multiples of ``stride``.
        onnx: the file's name, for messages.

    Raises:
        ConfigError: the settings contradict a fixed axis or each other, or nobody says how large the images are.
    """
    check_batches(section)
    batches = section.min_batch, section.opt_batch, section.max_batch
    if shape[_BATCH] != _FREE:
        _check_fixed_batch(int(shape[_BATCH]), batches, onnx)
        batches = (int(shape[_BATCH]),) * 3
    sizes = _sizes(int(shape[_HEIGHT]), int(shape[_WIDTH]), section, metadata, onnx)
    if _FREE not in shape:
        return None
    smallest, usual, largest = ((batch, _CHANNELS, *size) for batch, size in zip(batches, sizes, strict=True))
    return ProfileShapes(min=smallest, opt=usual, max=largest)


def check_batches(section: EngineSection) -> None:
    """What can be told of the batches without the ONNX file.

    Raises:
        ConfigError: they are not in ascending order.
    """
    if not section.min_batch <= section.opt_batch <= section.max_batch:
        raise ConfigError(
            f"engine.min_batch={section.min_batch}, opt_batch={section.opt_batch}, max_batch={section.max_batch}: "
            "they must be in ascending order."
        )


def _check_fixed_batch(fixed: int, batches: tuple[int, int, int], onnx: str) -> None:
    defaults = _DEFAULT.min_batch, _DEFAULT.opt_batch, _DEFAULT.max_batch
    if batches not in (defaults, (fixed,) * 3):
        raise ConfigError(
            f"engine.min_batch={batches[0]}, opt_batch={batches[1]}, max_batch={batches[2]}: the batch of '{onnx}' is "
            f"fixed at {fixed}. Export it with export.dynamic_batch=true, or leave them as they are."
        )


def _sizes(
    height: int, width: int, section: EngineSection, metadata: Mapping[str, str], onnx: str
) -> tuple[tuple[int, int], ...]:
    """Smallest, usual and largest (height, width) in pixels."""
    given = {"min_size": section.min_size, "opt_size": section.opt_size, "max_size": section.max_size}
    for key, size in given.items():
        for name, fixed, wanted in zip(("height", "width"), (height, width), size or (), strict=False):
            if fixed not in (_FREE, wanted):
                raise ConfigError(
                    f"engine.{key}={list(size or ())}: the {name} of '{onnx}' is fixed at {fixed}. Export it with "
                    "export.dynamic_size=true, or leave engine.min_size, opt_size and max_size empty."
                )
    said = read_metadata(metadata, f"'{onnx}'")
    usual = section.opt_size or said.imgsz
    if _FREE in (height, width) and usual is None:
        raise ConfigError(
            f"The height and width of '{onnx}' are free and it names no imgsz. Give the usual size in pixels, "
            "e.g. --set engine.opt_size=640."
        )
    sizes = [_with_fixed(size or usual or (height, width), height, width) for size in given.values()]
    _check_sizes(sizes, said.stride or 1, onnx)
    return tuple(sizes)


def _with_fixed(size: tuple[int, int], height: int, width: int) -> tuple[int, int]:
    return size[0] if height == _FREE else height, size[1] if width == _FREE else width


def _check_sizes(sizes: Sequence[tuple[int, int]], stride: int, onnx: str) -> None:
    for sides in zip(*sizes, strict=True):
        if list(sides) != sorted(sides):
            smallest, usual, largest = (list(size) for size in sizes)
            raise ConfigError(
                f"engine.min_size={smallest}, opt_size={usual}, max_size={largest}: height and width must be in "
                "ascending order."
            )
        for side in sides:
            if side % stride:
                raise ConfigError(f"{side} pixels are not a multiple of {stride}, the stride of '{onnx}'.")
