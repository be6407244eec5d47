"""Which shapes an engine takes: the settings against the ONNX file's axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from trt_qat.config import Config, EngineSection
from trt_qat.engine.profiles import input_profile
from trt_qat.errors import ConfigError

FREE = (-1, 3, -1, -1)
SAID = {"imgsz": "[320, 640]", "stride": "32"}


def _profile(shape: Sequence[int], metadata: Mapping[str, str] = SAID, **values: Any) -> Any:
    found = input_profile(shape, EngineSection(**values), metadata, "x.onnx")
    return None if found is None else (found.min, found.opt, found.max)


def test_a_fixed_input_has_none() -> None:
    assert _profile((1, 3, 640, 640)) is None
    assert _profile((4, 3, 64, 96), min_batch=4, opt_batch=4, max_batch=4, opt_size=(64, 96)) is None


def test_the_batch_alone() -> None:
    shapes = (2, 3, 64, 96), (3, 3, 64, 96), (5, 3, 64, 96)
    assert _profile((-1, 3, 64, 96), min_batch=2, opt_batch=3, max_batch=5) == shapes
    assert _profile((-1, -1, 64, 96), {}) == ((1, 3, 64, 96), (1, 3, 64, 96), (8, 3, 64, 96))


@pytest.mark.parametrize(
    ("values", "sizes"),
    [
        ({}, ((320, 640), (320, 640), (320, 640))),
        ({"min_size": (32, 64), "max_size": (640, 1280)}, ((32, 64), (320, 640), (640, 1280))),
        ({"opt_size": (96, 96)}, ((96, 96), (96, 96), (96, 96))),
        ({"opt_size": (96, 96), "max_size": (128, 96)}, ((96, 96), (96, 96), (128, 96))),
        ({"min_size": (32, 32), "opt_size": (96, 96)}, ((32, 32), (96, 96), (96, 96))),
    ],
)
def test_height_and_width(values: dict[str, Any], sizes: tuple[tuple[int, int], ...]) -> None:
    assert _profile(FREE, **values) == tuple((b, 3, *size) for b, size in zip((1, 1, 8), sizes, strict=True))
    assert _profile((1, 3, -1, -1), **values) == tuple((1, 3, *size) for size in sizes)


def test_one_free_side() -> None:
    sizes = {"min_size": (64, 64), "opt_size": (64, 96), "max_size": (64, 128)}
    assert _profile((1, 3, 64, -1), **sizes) == ((1, 3, 64, 64), (1, 3, 64, 96), (1, 3, 64, 128))
    with pytest.raises(ConfigError, match=r"engine.min_size=\[32, 64\]: the height of 'x.onnx' is fixed at 64"):
        _profile((1, 3, 64, -1), min_size=(32, 64))


@pytest.mark.parametrize(
    ("shape", "metadata", "values", "said"),
    [
        ((1, 3, 64, 64), {}, {"max_size": (640, 640)}, r"max_size=\[640, 640\]: the height of 'x.onnx' is fixed at 64"),
        ((1, 3, 64, 64), {}, {"opt_size": (64, 96)}, r"the width of 'x.onnx' is fixed at 64"),
        ((1, 3, 64, 64), {}, {"max_batch": 4}, r"max_batch=4: the batch of 'x.onnx' is fixed at 1\. .*dynamic_batch"),
        ((2, 3, 64, 64), {}, {"opt_batch": 2}, r"is fixed at 2"),
        ((-1, 3, 64, 64), {}, {"min_batch": 3}, "ascending order"),
        (FREE, {}, {}, r"free and it names no imgsz.*engine.opt_size=640"),
        (FREE, {}, {"max_size": (64, 64)}, r"free and it names no imgsz"),
        (FREE, SAID, {"max_size": (320, 320)}, r"opt_size=\[320, 640\], max_size=\[320, 320\]: .*ascending order"),
        (FREE, SAID, {"min_size": (640, 32)}, "ascending order"),
        (FREE, {"stride": "64"}, {"opt_size": (96, 128)}, "96 pixels are not a multiple of 64, the stride of 'x.onnx'"),
    ],
)
def test_what_contradicts_is_one_line(
    shape: tuple[int, ...], metadata: dict[str, str], values: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        _profile(shape, metadata, **values)


@pytest.mark.parametrize(
    ("override", "size"),
    [("640", (640, 640)), ("[320, 640]", (320, 640)), ("", None), ("null", None)],
)
def test_a_size_is_a_square_or_two_sides(override: str, size: tuple[int, int] | None) -> None:
    assert Config.load(overrides=[f"engine.opt_size={override}"]).engine.opt_size == size


@pytest.mark.parametrize("nothing", ["", '""', "null"])
def test_nothing_is_no_timing_cache(nothing: str) -> None:
    assert Config.load(overrides=[f"engine.timing_cache={nothing}"]).engine.timing_cache == ""


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("max_size=100", "100 must be a multiple of 32, the nearest is 96"),
        ("max_size=[640, 0]", "0 must be a multiple of 32, the nearest is 32"),
        ("max_size=[640]", "engine.max_size"),
        ("max_size=true", "engine.max_size"),
        ("max_size=wide", "engine.max_size"),
        ("optimization_level=6", "less than or equal to 5"),
        ("optimization_level=-1", "greater than or equal to 0"),
        ("optimization_level=true", "must be a number"),
        ("hardware_compatible=all", "'ampere_plus'"),
        ("compute_capabilities=[86, 89, 86]", "each GPU generation must stand there once"),
    ],
)
def test_wrong_settings(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.load(overrides=[f"engine.{override}"])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
