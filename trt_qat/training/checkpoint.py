"""trt_qat's own checkpoint: safetensors + JSON. Loading one runs no code, and reloading gives bit-equal outputs.

The file holds the folded weights, the ranges of the quantizers, and in its header the architecture dictionary, the
class names, the placement and the provenance.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from ultralytics.nn.tasks import DetectionModel

from trt_qat.artifacts import CheckpointArtifact, atomic_path, existing_file
from trt_qat.config import ToolkitName
from trt_qat.errors import ArtifactError
from trt_qat.model.loading import LoadedModel, fold_batchnorm, load_weights_, network_from_architecture
from trt_qat.quantization.insert import QuantizedModel, insert_quantizers_
from trt_qat.quantization.placement import Placement
from trt_qat.quantization.toolkits.choose import toolkit_from_name

FORMAT = "trt_qat-checkpoint-1"
Stage = Literal["fp32", "ptq", "qat"]
_AMAX = "amax."


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: ``quantized`` is None for a float one."""

    network: DetectionModel
    names: Mapping[int, str]
    stage: Stage
    imgsz: int
    quantized: QuantizedModel | None
    provenance: Mapping[str, Any]


def save_checkpoint(
    path: Path,
    model: QuantizedModel | LoadedModel,
    stage: Stage,
    imgsz: int,
    provenance: Mapping[str, Any],
    half: bool = False,
) -> CheckpointArtifact:
    """Write a checkpoint, whole or not at all.

    Args:
        half: store weights as FP16 (the shipped demo base: half the size; loading returns float32).
    """
    weights = {k: v for k, v in model.network.state_dict().items() if "quantizer" not in k}
    tensors = {k: (v.half() if half and v.is_floating_point() else v) for k, v in weights.items()}
    header: dict[str, Any] = {
        "stage": stage,
        "imgsz": imgsz,
        "architecture": model.network.yaml,
        "names": {str(k): v for k, v in model.names.items()},
        "provenance": dict(provenance),
    }
    if isinstance(model, QuantizedModel):
        tensors |= {f"{_AMAX}{name}": amax.float() for name, amax in model.amax().items()}
        header |= {"toolkit": model.toolkit.name, "placement": model.placement.as_dict()}
    contiguous = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    with atomic_path(path) as temporary:
        try:
            save_file(contiguous, temporary, metadata={"format": FORMAT, "header": json.dumps(header)})
        except SafetensorError as exc:
            raise ArtifactError(f"Cannot write '{path}': {exc}. Choose another place.") from exc
    return CheckpointArtifact(path)


def load_checkpoint(path: Path, toolkit: ToolkitName | None = None) -> Checkpoint:
    """Read a checkpoint back.

    Args:
        toolkit: use this toolkit's quantizers instead of the one the checkpoint was made with.

    Raises:
        ArtifactError: missing, truncated, or not written by trt_qat.
    """
    header, tensors = _read(path)
    names = {int(k): str(v) for k, v in header["names"].items()}
    network = fold_batchnorm(network_from_architecture(header["architecture"], names))
    load_weights_(network, {k: v.float() for k, v in tensors.items() if not k.startswith(_AMAX)})
    network.eval()
    quantized = None
    if "placement" in header:
        adapter = toolkit_from_name(toolkit or header["toolkit"])
        placement = _placement(header["placement"], path)
        insert_quantizers_(network, placement, adapter)
        quantized = QuantizedModel(network, names, placement, adapter)
        quantized.load_amax_({k.removeprefix(_AMAX): v for k, v in tensors.items() if k.startswith(_AMAX)})
    return Checkpoint(network, names, header["stage"], int(header["imgsz"]), quantized, header["provenance"])


def _placement(content: Any, path: Path) -> Placement:
    try:
        return Placement.from_dict(content)
    except (KeyError, TypeError, ValueError) as exc:
        raise ArtifactError(f"'{path}' holds a placement of another trt_qat version ({exc!r}). Make it again.") from exc


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    existing_file(path, "Checkpoint")
    try:
        with safe_open(path, framework="pt") as stream:
            content = stream.metadata() or {}
            if content.get("format") != FORMAT:
                raise ArtifactError(f"'{path}' is a safetensors file, but not a trt_qat checkpoint ({FORMAT}).")
            return json.loads(content["header"]), {key: stream.get_tensor(key) for key in list(stream.keys())}
    except (SafetensorError, json.JSONDecodeError, KeyError, OSError) as exc:
        raise ArtifactError(f"'{path}' is not a readable checkpoint ({exc}). Make it again.") from exc


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide a result, for provenance."""
    versions = {"python": platform.python_version()}
    for name in ("trt_qat", "torch", "ultralytics", "nvidia-modelopt", "onnx", "onnxruntime", "openvino", "numpy"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
