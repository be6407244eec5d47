"""What stands beside or before a plan: the JSON side-car of a ``*.plan``, Ultralytics' header of an ``*.engine``.

A plain plan is what trtexec, Polygraphy and DeepStream read; the header is what ``YOLO("x.engine")`` reads: the length
of a JSON text as a 4-byte little-endian number, the text, the plan.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trt_qat.artifacts import existing_file
from trt_qat.engine.flavor import MODULES
from trt_qat.errors import ArtifactError, EngineError

SUFFIXES = frozenset({".plan", ".engine"})
_LONGEST_HEADER = 1 << 20


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


def read_sidecar(plan: Path) -> dict[str, Any]:
    """The description of a plan: the keys that :func:`~trt_qat.engine.build.build_engine` writes.

    Raises:
        ArtifactError: it is missing, not JSON, or describes something else.
    """
    path = sidecar_path(plan)
    if not path.is_file():
        raise ArtifactError(f"Side-car '{path}' of the TensorRT plan does not exist. Build the engine again.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise ArtifactError(f"Side-car '{path}' cannot be read: {exc}. Build the engine again.") from exc
    if not isinstance(content, dict) or content.get("flavor") not in MODULES:
        raise ArtifactError(f"'{path}' does not describe a TensorRT plan. Build the engine again.")
    return content


def read_engine(path: Path) -> tuple[dict[str, Any], bytes]:
    """The description and the plan of a ``*.plan`` with its side-car or of an ``*.engine``.

    Raises:
        ArtifactError: missing, or not what its name says.
    """
    existing_file(path, "Engine")
    if path.suffix != ".engine":
        return read_sidecar(path), path.read_bytes()
    content = path.read_bytes()
    length = struct.unpack("<i", content[:4])[0] if len(content) > 4 else -1
    try:
        if not 0 < length <= min(_LONGEST_HEADER, len(content) - 4):
            raise ValueError("no header")
        metadata = json.loads(content[4 : 4 + length].decode("utf-8"))
        flavor = metadata.get("flavor", "tensorrt")  # Ultralytics writes none and builds with TensorRT
    except (ValueError, AttributeError) as exc:
        raise ArtifactError(f"'{path}' is not an Ultralytics engine ({exc}). Build it again.") from exc
    return {"flavor": flavor, "metadata": {k: str(v) for k, v in metadata.items()}}, content[4 + length :]


def prepend_header(plan: Path, metadata: Mapping[str, str], flavor: str) -> None:
    """Turn a plain plan into an Ultralytics engine, in place."""
    header = json.dumps({**metadata, "flavor": flavor}).encode("utf-8")
    plan.write_bytes(struct.pack("<i", len(header)) + header + plan.read_bytes())
