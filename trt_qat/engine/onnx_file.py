"""What an ONNX file says about itself, and one clear message when it is not an ONNX file."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from trt_qat.artifacts import existing_file
from trt_qat.errors import ArtifactError


def onnx_metadata(path: Path) -> dict[str, str]:
    """The file's ``metadata_props`` (Ultralytics: names, imgsz, stride, task ...).

    Raises:
        ArtifactError: the file is missing, empty, truncated or not ONNX.
    """
    existing_file(path, "ONNX file")
    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, OSError, ValueError) as exc:
        raise ArtifactError(f"'{path}' is not an ONNX file, or it is truncated. Export it again.") from exc
    if not model.graph.node:  # some other bytes decode as a message without a graph
        raise ArtifactError(f"'{path}' is not an ONNX file: it holds no graph. Export it again.")
    return {entry.key: entry.value for entry in model.metadata_props}
