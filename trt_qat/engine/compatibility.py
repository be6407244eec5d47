"""Whether a plan can run here, asked of its description before TensorRT answers with a riddle.

TensorRT's rules: a plan runs with the version that built it, or a later one if it was built for that
(``version_compatible``); on GPUs of the compute capability that it was built on, or on those that
``hardware_compatible`` adds. A plan of TensorRT-RTX runs with the release that built it, on the capabilities that were
asked for. Another card of the same capability is left to TensorRT, which loads it with a warning.
"""

from __future__ import annotations

import re

from trt_qat.engine.engine_file import EngineDescription

_AMPERE = 80
_COMPARED = 3  # numbers of a version; the fourth counts builds of the same release
_AGAIN = "Build the engine again on this machine."


def refusal(description: EngineDescription, version: str, gpu: str, capability: int | None) -> str | None:
    """Why the plan cannot run here, without the plan's name and with what to do; None if nothing is known against it.

    Args:
        version: of the installed package of the plan's flavor.
        gpu: name of the GPU that would run it.
        capability: its compute capability, 89 for 8.9; None if unknown.
    """
    return _other_version(description, version) or _other_gpu(description, gpu, capability)


def capability_text(capability: int) -> str:
    """89 as NVIDIA writes it: 8.9."""
    return f"{capability // 10}.{capability % 10}"


def _other_version(description: EngineDescription, version: str) -> str | None:
    built, here = _numbers(description.tensorrt_version), _numbers(version)
    compared = min(len(built), len(here))
    built, here = built[:compared], here[:compared]
    name = "TensorRT-RTX" if description.flavor == "tensorrt-rtx" else "TensorRT"
    said = f"it was built with {name} {description.tensorrt_version}, here is {version}"
    if description.version_compatible:
        return f"{said}, which is older. Install a newer {name}, or build the engine again." if here < built else None
    return f"{said}, and a plan runs with the version that built it. {_AGAIN}" if here != built else None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d{1,9}", version)[:_COMPARED])


def _other_gpu(description: EngineDescription, gpu: str, capability: int | None) -> str | None:
    if capability is None:
        return None
    here = f"{gpu} has {capability_text(capability)}"
    if description.flavor == "tensorrt-rtx":
        wanted = description.compute_capabilities
        if not wanted or capability in wanted:
            return None
        listed = ", ".join(map(capability_text, wanted))
        more = [*wanted, capability]
        return (
            f"it was built for compute capability {listed}, {here}. "
            f"Build it with --set engine.compute_capabilities={more}."
        )
    if description.hardware_compatible == "ampere_plus":
        needed = f"it was built for compute capability {capability_text(_AMPERE)} and later"
        return f"{needed}, {here}. {_AGAIN}" if capability < _AMPERE else None
    built = description.gpu
    if built is None or built.compute_capability in (None, capability):
        return None
    return (
        f"it was built on {built.name} of compute capability {capability_text(built.compute_capability)}, "
        f"{here}. {_AGAIN}"
    )
