"""What stands beside or before a plan: the JSON side-car of a ``*.plan``, Ultralytics' header of an ``*.engine``.

A plain plan is what trtexec, Polygraphy and DeepStream read; the header is what ``YOLO("x.engine")`` reads: the length
of a JSON text as a 4-byte little-endian number, the text, the plan.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from trt_qat.artifacts import existing_file, write_json
from trt_qat.config import Flavor
from trt_qat.errors import ArtifactError, EngineError
from trt_qat.limits import ENGINE_MEGABYTES
from trt_qat.metadata import read_metadata
from trt_qat.reading import FileModel, checked, parse_json, read_bytes, read_json

SUFFIXES = frozenset({".plan", ".engine"})
_LONGEST_HEADER = 8 << 20
_ADVICE = "Build the engine again."

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Axis = Annotated[int, Field(ge=-1, lt=1 << 31)]
Shape = Annotated[tuple[Axis, ...], Field(max_length=8)]


class Tensor(FileModel):
    """An input or output of a plan; -1 is the free batch axis."""

    name: str
    dtype: str
    shape: Shape


class ProfileShapes(FileModel):
    """The shapes that one input may have."""

    min: Shape
    opt: Shape
    max: Shape


class EngineDescription(FileModel):
    """The side-car of a plan, as :func:`~trt_qat.engine.build.build_engine` writes it.

    Only the flavor has to be there: whoever built a plan by other means may write a side-car by hand.

    Args:
        plan_sha256: of the plan itself, so that another plan behind this side-car is noticed.
        profiles: by input.
        metadata: what the ONNX file says about itself.
    """

    onnx: str | None = None
    onnx_sha256: Sha256 | None = None
    flavor: Flavor
    tensorrt_version: str = "of unknown version"
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    profiles: tuple[dict[str, ProfileShapes], ...] = ()
    compute_capabilities: tuple[Annotated[int, Field(ge=10, lt=1000)], ...] = ()
    size_bytes: Annotated[int, Field(ge=1)] | None = None
    plan_sha256: Sha256 | None = None
    build_seconds: Annotated[float, Field(ge=0)] | None = None
    metadata: dict[str, str] = Field(default_factory=dict)


def check_engine_name(out: Path) -> None:
    """Refuse another name than ``*.plan`` or ``*.engine``.

    Raises:
        EngineError: it is another.
    """
    if out.suffix not in SUFFIXES:
        raise EngineError(f"An engine file must be named *.plan, or *.engine for Ultralytics, found '{out}'.")


def sidecar_path(plan: Path) -> Path:
    """The JSON file that describes a plan."""
    return plan.with_suffix(".json")


def read_sidecar(plan: Path) -> EngineDescription:
    """The description of a plan.

    Raises:
        ArtifactError: it is missing, not JSON, or describes something else; the line names the field.
    """
    path = sidecar_path(plan)
    if not path.exists():
        raise ArtifactError(f"Side-car '{path}' of the TensorRT plan does not exist. {_ADVICE}")
    try:
        content = read_json(path, "Side-car")
    except ArtifactError as exc:
        raise ArtifactError(f"{exc} {_ADVICE}") from exc
    description = checked(EngineDescription, content, path, _ADVICE)
    read_metadata(description.metadata, f"'{path}'")
    return description


def write_sidecar(path: Path, content: Mapping[str, Any]) -> None:
    """Write a description; ``path`` appears whole or not at all.

    Raises:
        ArtifactError: it is not what :func:`read_sidecar` would take.
    """
    description = checked(EngineDescription, dict(content), path, "This is a fault of trt_qat.")
    write_json(path, description.model_dump(mode="json"))


def read_engine(path: Path) -> tuple[EngineDescription, bytes]:
    """The description and the plan of a ``*.plan`` with its side-car or of an ``*.engine``.

    Raises:
        ArtifactError: missing, not what its name says, or the side-car describes another plan.
    """
    existing_file(path, "Engine")
    content = read_bytes(path, "Engine", ENGINE_MEGABYTES)
    if path.suffix == ".engine":
        return _without_header(content, path)
    description = read_sidecar(path)
    wanted = description.plan_sha256
    if wanted is not None and wanted != hashlib.sha256(content).hexdigest():
        raise ArtifactError(
            f"'{path}' is not the plan that '{sidecar_path(path)}' describes: its SHA-256 is another. {_ADVICE}"
        )
    return description, content


def _without_header(content: bytes, path: Path) -> tuple[EngineDescription, bytes]:
    length = struct.unpack("<i", content[:4])[0] if len(content) > 4 else -1
    if not 0 < length <= min(_LONGEST_HEADER, len(content) - 4):
        raise ArtifactError(f"'{path}' is not an Ultralytics engine: it has no header. {_ADVICE}")
    header = parse_json(content[4 : 4 + length], f"The header of '{path}'")
    if not isinstance(header, dict):
        raise ArtifactError(f"'{path}' is not an Ultralytics engine: its header is no JSON object. {_ADVICE}")
    try:
        metadata = {key: value if isinstance(value, str) else repr(value) for key, value in header.items()}
    except RecursionError as exc:
        raise ArtifactError(f"The header of '{path}' is nested too deeply. {_ADVICE}") from exc
    # Ultralytics writes no flavor and builds with TensorRT
    described = {"flavor": metadata.get("flavor", "tensorrt"), "metadata": metadata}
    description = checked(EngineDescription, described, path, _ADVICE)
    read_metadata(metadata, f"'{path}'")
    return description, content[4 + length :]


def prepend_header(plan: Path, metadata: Mapping[str, str], flavor: str) -> None:
    """Turn a plain plan into an Ultralytics engine, in place."""
    header = json.dumps({**metadata, "flavor": flavor}).encode("utf-8")
    plan.write_bytes(struct.pack("<i", len(header)) + header + plan.read_bytes())
