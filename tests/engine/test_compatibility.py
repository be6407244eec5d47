"""Whether a plan runs here, by its description alone."""

from __future__ import annotations

from typing import Any

import pytest

from trt_qat.engine.compatibility import refusal
from trt_qat.engine.engine_file import EngineDescription, Gpu

ADA = {"gpu": Gpu(name="NVIDIA RTX 4090", compute_capability=89)}


def _refusal(version: str = "10.9.0.34", capability: int | None = 89, flavor: str = "tensorrt", **said: Any) -> Any:
    described = EngineDescription(**{"flavor": flavor, "tensorrt_version": "10.9.0.34", **said})
    return refusal(described, version, "NVIDIA Here", capability)


@pytest.mark.parametrize(
    ("built", "here", "compatible", "runs"),
    [
        ("10.9.0.34", "10.9.0.34", False, True),
        ("10.9.0.34", "10.9.0.40", False, True),  # another build of the same release is TensorRT's to judge
        ("10.9", "10.9.0", False, True),
        ("of unknown version", "11.0", False, True),
        ("10.9.0", "10.9.1", False, False),
        ("10.9", "11.0", False, False),
        ("11.0", "10.9", False, False),
        ("10.9", "11.0", True, True),
        ("10.9", "10.9", True, True),
        ("11.0", "10.9", True, False),
        ("10.10", "10.9", True, False),
    ],
)
def test_versions(built: str, here: str, compatible: bool, runs: bool) -> None:
    why = _refusal(here, tensorrt_version=built, version_compatible=compatible)
    assert (why is None) == runs
    if why:
        assert why.startswith(f"it was built with TensorRT {built}, here is {here}, ")
        assert why.endswith(("Build the engine again on this machine.", "or build the engine again."))


@pytest.mark.parametrize(
    ("said", "capability", "why"),
    [
        (ADA, 89, None),
        (ADA, None, None),
        ({}, 75, None),
        ({"gpu": Gpu(name="NVIDIA X")}, 75, None),
        (ADA, 86, "built on NVIDIA RTX 4090 of compute capability 8.9, NVIDIA Here has 8.6. Build the engine again"),
        (ADA, 120, "NVIDIA Here has 12.0"),
        ({**ADA, "hardware_compatible": "same_compute_capability"}, 89, None),
        ({**ADA, "hardware_compatible": "same_compute_capability"}, 86, "has 8.6"),
        ({**ADA, "hardware_compatible": "ampere_plus"}, 80, None),
        ({**ADA, "hardware_compatible": "ampere_plus"}, 120, None),
        ({**ADA, "hardware_compatible": "ampere_plus"}, 75, "compute capability 8.0 and later, NVIDIA Here has 7.5"),
        ({"flavor": "tensorrt-rtx", "compute_capabilities": (86, 120)}, 120, None),
        ({"flavor": "tensorrt-rtx", "compute_capabilities": (86, 120)}, None, None),
        ({"flavor": "tensorrt-rtx"}, 75, None),  # TensorRT-RTX knows its default set, not we
        (
            {"flavor": "tensorrt-rtx", "compute_capabilities": (86, 120)},
            89,
            "capability 8.6, 12.0, NVIDIA Here has 8.9. Build it with --set engine.compute_capabilities=[86, 120, 89].",
        ),
    ],
)
def test_gpus(said: dict[str, Any], capability: int | None, why: str | None) -> None:
    found = _refusal(capability=capability, **said)
    assert (found is None) if why is None else (why in found)


def test_the_version_comes_first_and_the_flavor_has_its_name() -> None:
    why = _refusal("1.8.0", 75, "tensorrt-rtx", tensorrt_version="1.7.1.116", compute_capabilities=(89,))
    assert why.startswith("it was built with TensorRT-RTX 1.7.1.116, here is 1.8.0, and a plan runs with the version")
