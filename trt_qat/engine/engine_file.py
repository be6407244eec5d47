"""What stands beside or before a plan: the JSON side-car of a ``*.plan``, Ultralytics' header of an ``*.engine``.

A plain plan is what trtexec, Polygraphy and DeepStream read; the header is what ``YOLO("x.engine")`` reads: the length
of a JSON text as a 4-byte little-endian number, the text, the plan. What trt_qat needs to know beyond the metadata
stands there under the one name ``trt_qat``: Ultralytics makes every other name an attribute of its own object.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, model_validator

from trt_qat.artifacts import existing_file, write_json
from trt_qat.config import Flavor, HardwareCompatible
from trt_qat.errors import ArtifactError, EngineError
from trt_qat.limits import ENGINE_MEGABYTES
from trt_qat.metadata import ClassNames, Side, read_metadata
from trt_qat.reading import FileModel, checked, parse_json, read_bytes, read_json

SUFFIXES = frozenset({".plan", ".engine"})
_LONGEST_HEADER = 8 << 20
_ADVICE = "Build the engine again."
_OWN_HASH: Final = "content_sha256"
_OWN_HEADER: Final = "trt_qat"
_IN_HEADER: Final = frozenset(
    {"tensorrt_version", "trt_qat_version", "onnx_version", "gpu", "profiles", "compute_capabilities"}
    | {"hardware_compatible", "version_compatible", "onnx", "onnx_sha256"}
)
PIXEL_SCALE: Final = 1 / 255
PAD_VALUE: Final = 114  # gray, as vision/letterbox.py pads (tested)

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Axis = Annotated[int, Field(ge=-1, lt=1 << 31)]
Shape = Annotated[tuple[Axis, ...], Field(max_length=8)]
Capability = Annotated[int, Field(ge=10, lt=1000)]  # 89 for 8.9


def _is_pixel_scale(value: float) -> float:
    if abs(value - PIXEL_SCALE) > 1e-9:
        raise ValueError("pixels are divided by 255, nothing else is done here")
    return value


class Tensor(FileModel):
    """An input or output of a plan; -1 is a free axis."""

    name: str
    dtype: str
    shape: Shape


class ProfileShapes(FileModel):
    """The shapes that one input may have."""

    min: Shape
    opt: Shape
    max: Shape

    @model_validator(mode="after")
    def _ascending(self) -> ProfileShapes:
        axes = zip(self.min, self.opt, self.max, strict=False)
        if not len(self.min) == len(self.opt) == len(self.max) or any(list(axis) != sorted(axis) for axis in axes):
            raise ValueError("min, opt and max must have as many axes, each in ascending order")
        return self


class Gpu(FileModel):
    """The GPU that a plan was built on."""

    name: Annotated[str, Field(min_length=1)]
    compute_capability: Capability | None = None


class Preprocessing(FileModel):
    """How an image becomes the input of the plan: what ``vision/letterbox.py`` does, and no other way is accepted.

    Args:
        size: height and width of the letterbox in pixels, the usual one where the plan takes several.
        pad_value: gray level of the border.
        scale: factor from a byte to the network's number.
    """

    size: tuple[Side, Side]
    resize: Literal["letterbox"] = "letterbox"
    pad_value: Annotated[int, Field(ge=PAD_VALUE, le=PAD_VALUE)] = PAD_VALUE
    scale: Annotated[float, AfterValidator(_is_pixel_scale)] = PIXEL_SCALE
    channels: Literal["RGB"] = "RGB"
    layout: Literal["NCHW"] = "NCHW"


class EngineDescription(FileModel):
    """The side-car of a plan, as :func:`~trt_qat.engine.build.build_engine` writes it.

    In the file stands ``content_sha256`` as well, of everything else, so that a change is noticed.
    Only the flavor has to be there: whoever built a plan by other means may write a side-car by hand.

    Args:
        trt_qat_version, onnx_version: of the packages that read the ONNX file and wrote this.
        gpu: of the machine that built it; None without one.
        compute_capabilities: that a plan of TensorRT-RTX was asked to hold; empty for its default set.
        plan_sha256: of the plan itself, so that another plan behind this side-car is noticed.
        profiles: by input; none where all axes are fixed.
        names: of the classes.
        metadata: what the ONNX file says about itself; ``imgsz`` is the usual size where the plan takes several.
    """

    onnx: str | None = None
    onnx_sha256: Sha256 | None = None
    flavor: Flavor
    tensorrt_version: str = "of unknown version"
    trt_qat_version: str | None = None
    onnx_version: str | None = None
    gpu: Gpu | None = None
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    profiles: tuple[dict[str, ProfileShapes], ...] = ()
    compute_capabilities: tuple[Capability, ...] = ()
    hardware_compatible: HardwareCompatible = "none"
    version_compatible: bool = False
    optimization_level: Annotated[int, Field(ge=0, le=5)] | None = None
    size_bytes: Annotated[int, Field(ge=1)] | None = None
    plan_sha256: Sha256 | None = None
    build_seconds: Annotated[float, Field(ge=0)] | None = None
    names: ClassNames | None = None
    preprocessing: Preprocessing | None = None
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
        ArtifactError: it is missing, not JSON, describes something else (the line names the field), or was changed
            after it was written.
    """
    path = sidecar_path(plan)
    if not path.exists():
        raise ArtifactError(f"Side-car '{path}' of the TensorRT plan does not exist. {_ADVICE}")
    try:
        content = read_json(path, "Side-car")
    except ArtifactError as exc:
        raise ArtifactError(f"{exc} {_ADVICE}") from exc
    said = content.pop(_OWN_HASH, None) if isinstance(content, dict) else None
    description = checked(EngineDescription, content, path, _ADVICE)
    if said not in (None, _content_sha256(content)):
        raise ArtifactError(
            f"Side-car '{path}' was changed after it was written: its {_OWN_HASH} is another. Restore it, or build the "
            "engine again."
        )
    read_metadata(description.metadata, f"'{path}'")
    return description


def write_sidecar(path: Path, content: Mapping[str, Any]) -> None:
    """Write a description; ``path`` appears whole or not at all.

    Raises:
        ArtifactError: it is not what :func:`read_sidecar` would take.
    """
    description = checked(EngineDescription, dict(content), path, "This is a fault of trt_qat.")
    written = json.loads(description.model_dump_json())  # as a reader will get it
    write_json(path, {**written, _OWN_HASH: _content_sha256(written)})


def _content_sha256(content: Mapping[str, Any]) -> str:
    """Of a side-car's values in one spelling, so that line breaks and order do not count."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


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
    own = header.get(_OWN_HEADER, {})
    if not isinstance(own, dict) or not own.keys() <= _IN_HEADER:
        raise ArtifactError(f"'{path}': its header's '{_OWN_HEADER}' is not what trt_qat writes. {_ADVICE}")
    metadata.pop(_OWN_HEADER, None)
    # Ultralytics writes no flavor and builds with TensorRT
    described = {**own, "flavor": metadata.get("flavor", "tensorrt"), "metadata": metadata}
    description = checked(EngineDescription, described, path, _ADVICE)
    read_metadata(metadata, f"'{path}'")
    return description, content[4 + length :]


def prepend_header(plan: Path, content: Mapping[str, Any]) -> None:
    """Turn a plain plan into an Ultralytics engine, in place.

    Args:
        content: what a side-car would say.

    Raises:
        ArtifactError: it is not what :func:`read_engine` would take.
    """
    description = checked(EngineDescription, dict(content), plan, "This is a fault of trt_qat.")
    own = description.model_dump(mode="json", include=set(_IN_HEADER))
    texts = {**description.metadata, "flavor": description.flavor, _OWN_HEADER: own}
    header = json.dumps(texts).encode("utf-8")
    plan.write_bytes(struct.pack("<i", len(header)) + header + plan.read_bytes())
