"""Settings that one flavor or version of TensorRT lacks."""

from __future__ import annotations

from inspect import signature
from types import SimpleNamespace
from typing import Any

import pytest

from trt_qat.config import EngineSection, Flavor
from trt_qat.engine.flags import check_flags, flag_options, mixes_turing
from trt_qat.errors import ConfigError

TENSORRT_ONLY = ({"optimization_level": 0}, {"hardware_compatible": "ampere_plus"}, {"version_compatible": True})


@pytest.mark.parametrize(
    ("values", "flavor", "other"),
    [
        *((values, "tensorrt", "tensorrt-rtx") for values in TENSORRT_ONLY),
        ({"compute_capabilities": (86, 89)}, "tensorrt-rtx", "tensorrt"),
    ],
)
def test_each_belongs_to_one_flavor(values: dict[str, Any], flavor: Flavor, other: Flavor) -> None:
    section = EngineSection(**values)
    check_flags(section, flavor)
    with pytest.raises(ConfigError, match=rf"^engine\.{next(iter(values))} works with --flavor {flavor} only\. "):
        check_flags(section, other)
    check_flags(EngineSection(), other)


def test_options_are_those_of_the_real_module() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    assert flag_options(EngineSection(), trt) == {}
    section = EngineSection(optimization_level=5, hardware_compatible="ampere_plus", version_compatible=True)
    assert flag_options(section, trt) == {
        "builder_optimization_level": 5,
        "hardware_compatibility_level": trt.HardwareCompatibilityLevel.AMPERE_PLUS,
        "version_compatible": True,
    }
    same = flag_options(EngineSection(hardware_compatible="same_compute_capability"), trt)
    assert same == {"hardware_compatibility_level": trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY}


@pytest.mark.parametrize(("wanted", "mixed"), [((), False), ((75,), False), ((86, 120), False), ((89, 75), True)])
def test_turing_beside_others(wanted: tuple[int, ...], mixed: bool) -> None:
    assert mixes_turing(EngineSection(compute_capabilities=wanted)) is mixed


def test_polygraphy_takes_the_options() -> None:
    config = pytest.importorskip("polygraphy.backend.trt.config", reason="polygraphy is not installed")
    taken = signature(config._CreateConfigCommon.__init__).parameters
    assert {"builder_optimization_level", "hardware_compatibility_level", "version_compatible"} <= taken.keys()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"optimization_level": 3}, "optimization_level"),
        ({"version_compatible": True}, "version_compatible"),
        ({"hardware_compatible": "same_compute_capability"}, "hardware_compatible=same_compute_capability"),
    ],
)
def test_an_older_tensorrt_lacks_them(values: dict[str, Any], said: str) -> None:
    levels = SimpleNamespace(AMPERE_PLUS=1)
    old = SimpleNamespace(__version__="10.0", HardwareCompatibilityLevel=levels)
    assert flag_options(EngineSection(hardware_compatible="ampere_plus"), old) == {"hardware_compatibility_level": 1}
    with pytest.raises(ConfigError, match=rf"^TensorRT 10\.0 has no engine\.{said}\. Install a newer TensorRT"):
        flag_options(EngineSection(**values), old)
