"""Which settings of a build each flavor and version of TensorRT has; one it lacks is refused before the build.

TensorRT-RTX has the same attributes in its Python module and does nothing with some of them: it warns that hardware
compatibility is unsupported, looks for a library that it does not ship (``libnvinfer_lean``) for version compatibility,
and builds the same plan, bit for bit, at every optimization level (measured with 1.7.1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trt_qat.config import EngineSection, Flavor
from trt_qat.errors import ConfigError

_TURING = 75


@dataclass(frozen=True)
class _Flag:
    key: str
    flavor: Flavor
    is_set: Callable[[EngineSection], bool]
    instead: str


_FLAGS = (
    _Flag(
        "compute_capabilities",
        "tensorrt-rtx",
        lambda section: bool(section.compute_capabilities),
        "TensorRT builds for the GPU of this machine; engine.hardware_compatible adds others.",
    ),
    _Flag(
        "optimization_level",
        "tensorrt",
        lambda section: section.optimization_level is not None,
        "TensorRT-RTX builds the same plan at every level. Leave it empty.",
    ),
    _Flag(
        "hardware_compatible",
        "tensorrt",
        lambda section: section.hardware_compatible != "none",
        "A plan of TensorRT-RTX runs on every GPU generation in engine.compute_capabilities.",
    ),
    _Flag(
        "version_compatible",
        "tensorrt",
        lambda section: section.version_compatible,
        "A plan of TensorRT-RTX runs with the release that built it. Set it to false.",
    ),
)


def check_flags(section: EngineSection, flavor: Flavor) -> None:
    """Refuse a setting of the other flavor.

    Raises:
        ConfigError: see above.
    """
    for flag in _FLAGS:
        if flag.is_set(section) and flag.flavor != flavor:
            raise ConfigError(f"engine.{flag.key} works with --flavor {flag.flavor} only. {flag.instead}")


def mixes_turing(section: EngineSection) -> bool:
    """One plan shall serve Turing and later GPUs.

    Measured with TensorRT-RTX 1.7.1 (docs/engines.md): every generation in the list gets the kernels of the oldest, and
    Turing's are many more. NVIDIA's support matrix advises a plan of its own, too.
    """
    wanted = section.compute_capabilities
    return _TURING in wanted and len(wanted) > 1


def flag_options(section: EngineSection, trt: Any) -> dict[str, Any]:
    """The set flags as Polygraphy's configuration takes them.

    Raises:
        ConfigError: the installed version of TensorRT does not have one; the line says which.
    """
    options: dict[str, Any] = {}
    if section.optimization_level is not None:
        _existing(trt, "optimization_level", lambda: trt.IBuilderConfig.builder_optimization_level)
        options["builder_optimization_level"] = section.optimization_level
    if section.version_compatible:
        _existing(trt, "version_compatible", lambda: trt.BuilderFlag.VERSION_COMPATIBLE)
        options["version_compatible"] = True
    if section.hardware_compatible != "none":
        levels = {
            "ampere_plus": lambda: trt.HardwareCompatibilityLevel.AMPERE_PLUS,
            "same_compute_capability": lambda: trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY,
        }
        level = section.hardware_compatible
        options["hardware_compatibility_level"] = _existing(trt, f"hardware_compatible={level}", levels[level])
    return options


def _existing(trt: Any, setting: str, look_up: Callable[[], Any]) -> Any:
    """What ``look_up`` finds. A function and no name, so that the tests see which attributes of TensorRT are used."""
    try:
        return look_up()
    except AttributeError as exc:
        raise ConfigError(
            f"TensorRT {trt.__version__} has no engine.{setting}. Install a newer TensorRT, or leave the setting out."
        ) from exc
