"""What a result was made from: weights, data, versions, settings; JSON values that every checkpoint carries."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from trt_qat.artifacts import file_sha256
from trt_qat.data.dataset import Dataset, label_path
from trt_qat.errors import ArtifactError
from trt_qat.reading import printable, regular_file
from trt_qat.registry import packages_of_others

_PACKAGES = (
    *("trt_qat", "torch", "ultralytics", "nvidia-modelopt", "pytorch-quantization", "onnx", "onnx-graphsurgeon"),
    *("onnxruntime", "openvino", "tensorrt", "tensorrt-rtx", "numpy"),
)
_ENDING = 4096  # bytes of an image


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
        "data_fingerprint": data_fingerprint(dataset),
        "versions": package_versions(),
        "config": dict(settings),
    }


def data_fingerprint(dataset: Dataset) -> str:
    """Hex SHA-256 over what both splits hold: names, sizes and endings of the images, and the label files.

    An image is not read as a whole, so that a large data set takes seconds; in every compressed format another content
    has another ending. What cannot be read counts as empty: the stages say what they leave out. Who made the labels
    counts: it decides what figures are called.
    """
    digest = hashlib.sha256(json.dumps([dataset.names[index] for index in sorted(dataset.names)]).encode())
    if dataset.labelled_by != "people":
        digest.update(f"labelled_by:{dataset.labelled_by};".encode())
    for split in (dataset.train, dataset.val):
        _add_labelled(digest, split)
    return digest.hexdigest()


def labelled_sha256(images: Sequence[Path]) -> str:
    """The same of some images and their label files, in their order; class names are not in it."""
    digest = hashlib.sha256()
    _add_labelled(digest, images)
    return digest.hexdigest()


def files_sha256(files: Sequence[Path]) -> str:
    """The same of files without labels, e.g. videos: their names, sizes and endings, in their order."""
    digest = hashlib.sha256(f"{len(files)};".encode())
    for file in files:
        content = _content(file, _ENDING)
        digest.update(os.fsencode(file.name) + f":{len(content)}:".encode() + content)
    return digest.hexdigest()


def _add_labelled(digest: hashlib._Hash, images: Sequence[Path]) -> None:
    digest.update(f"{len(images)};".encode())
    for image in images:
        for file, last in ((image, _ENDING), (label_path(image), None)):
            content = _content(file, last)
            digest.update(os.fsencode(file.name) + f":{len(content)}:".encode() + content)


def _content(file: Path, last: int | None) -> bytes:
    """The size of a file and its last bytes, None is all of them."""
    try:
        with regular_file(file, "File").open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(0 if last is None else max(0, size - last))
            return f"{size};".encode() + stream.read()
    except (OSError, ArtifactError):
        return b""


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide a result, for provenance."""
    versions = {"python": platform.python_version()}
    for name in (*_PACKAGES, *packages_of_others()):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def machine() -> dict[str, Any]:
    """What decides a latency beside the software: processor and cores."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as stream:
            models = [line.partition(":")[2].strip() for line in stream if line.startswith(("model name", "Model"))]
    except OSError:
        models = []
    return {"cpu": next(iter(models), platform.processor()), "cores": os.cpu_count()}
