"""What a result was made from: weights, data, versions, settings; JSON values that every checkpoint carries."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from trt_qat.artifacts import file_sha256
from trt_qat.data.dataset import Dataset, dataset_fingerprint
from trt_qat.reading import printable


def provenance_of(weights: Path, dataset: Dataset, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Provenance of a stage.

    Args:
        weights: the file it started from; its hash is left out if there is no such file (random weights).
        settings: sections of the configuration as JSON values; those of training decide whether it may be resumed.
    """
    return {
        "weights": printable(weights.name),
        "weights_sha256": file_sha256(weights) if weights.is_file() else "",
        "data": printable(dataset.source.name),
        "data_fingerprint": dataset_fingerprint(dataset.train),
        "versions": package_versions(),
        "config": dict(settings),
    }


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide a result, for provenance."""
    versions = {"python": platform.python_version()}
    for name in ("trt_qat", "torch", "ultralytics", "nvidia-modelopt", "onnx", "onnxruntime", "openvino", "numpy"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
