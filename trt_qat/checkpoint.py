"""ONE way in for weights of any kind, and trt_qat's own checkpoint: safetensors + JSON, bit-equal when read back.

The file holds the folded weights, the ranges of the quantizers, and in its header the architecture dictionary, the
class names, the placement and the provenance.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from ultralytics.nn.tasks import DetectionModel

from trt_qat.artifacts import CheckpointArtifact, atomic_path, existing_file
from trt_qat.config import ToolkitName
from trt_qat.errors import ArtifactError, QuantizationError
from trt_qat.model.loading import (
    ARCHITECTURE_SUFFIXES,
    build_network,
    check_same_output,
    class_names,
    fold_batchnorm,
    load_weights_,
    network_from_architecture,
    read_ultralytics,
    rebuild,
)
from trt_qat.quantization.insert import QuantizedModel, insert_quantizers_
from trt_qat.quantization.placement import Placement
from trt_qat.quantization.toolkits.choose import toolkit_from_name

FORMAT = "trt_qat-checkpoint-1"
SUFFIX = ".safetensors"
DEFAULT_IMAGE_SIZE = 640
Stage = Literal["fp32", "ptq", "qat"]
_AMAX = "amax."


@dataclass(frozen=True)
class Model:
    """A detector: what every verb takes, and what loading and quantizing return.

    Args:
        network: float32, on the CPU, eval mode, BatchNorm folded; its convolutions are QuantConv2d once quantized.
        names: class id to name.
        imgsz: side of the square input in pixels.
        source: the file it came from.
        stage: how far it is on its way to INT8.
        quantized: the same network with its placement and toolkit; None while it is float.
        provenance: what it was made from, JSON values.
        with_batchnorm: see :meth:`unfolded`; None where the file holds folded weights.

    Example:
        >>> model = trt_qat.load("best.pt")
        >>> model.task, model.stage, model.quantized is None
        ('detect', 'fp32', True)
        >>> int8 = trt_qat.quantize(model, "data.yaml", calibrator="max")
        >>> int8.quantized.placement.groups[0].convs  # convolutions that read one tensor share a scale
        ('model.0.conv',)
    """

    network: DetectionModel
    names: Mapping[int, str]
    imgsz: int
    source: Path
    stage: Stage = "fp32"
    quantized: QuantizedModel | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    with_batchnorm: DetectionModel | None = field(default=None, repr=False)

    @property
    def task(self) -> str:
        """What the network predicts: ``detect``."""
        return "detect"

    def unfolded(self) -> DetectionModel:
        """A copy of the float network with its BatchNorm apart, as it was trained.

        Raises:
            ArtifactError: the file it came from holds folded weights.
        """
        if self.with_batchnorm is None:
            raise ArtifactError(
                f"'{self.source}' has its BatchNorm folded, which training from it and qat.bn=freeze need apart. "
                "Give the original .pt or .yaml."
            )
        return copy.deepcopy(self.with_batchnorm)

    def require_quantized(self) -> QuantizedModel:
        """The quantized network.

        Raises:
            QuantizationError: the model is float.
        """
        if self.quantized is None:
            raise QuantizationError(
                f"'{self.source}' is a float model; this needs a calibrated one. Quantize it first."
            )
        return self.quantized

    def with_quantized(self, quantized: QuantizedModel, stage: Stage, provenance: Mapping[str, Any]) -> Model:
        """The same detector with these quantizers and weights."""
        return replace(self, network=quantized.network, quantized=quantized, stage=stage, provenance=provenance)


def load(weights: str | Path, imgsz: int | None = None, toolkit: ToolkitName | None = None) -> Model:
    """Load a detector, float or quantized.

    Args:
        weights: Ultralytics ``*.pt``, architecture ``*.yaml`` (random weights, the same at every call) or trt_qat
            ``*.safetensors``.
        imgsz: side of the square input in pixels; None is the size the weights were trained or calibrated at, 640 if
            they do not say.
        toolkit: use this package's quantizers instead of those the checkpoint was made with.

    Raises:
        ArtifactError: missing, unreadable, not a detector, or rebuilding or folding changed its output.

    Example:
        >>> trt_qat.load("best.pt").stage
        'fp32'
        >>> model = trt_qat.load("yolov8n.yaml")  # random weights
        >>> len(model.names), model.imgsz
        (80, 640)
    """
    path = Path(weights)
    if path.suffix.lower() == SUFFIX:
        return _load_checkpoint(path, imgsz, toolkit)
    if path.suffix in ARCHITECTURE_SUFFIXES:
        network, trained_at = build_network(path), None
    else:
        network, trained_at = read_ultralytics(path)
    rebuilt = rebuild(network)
    folded = fold_batchnorm(copy.deepcopy(rebuilt))
    check_same_output(network, folded, f"'{path}' rebuilt from its architecture with BatchNorm folded")
    unfolded = None if network.is_fused() else rebuilt
    size = imgsz or trained_at or DEFAULT_IMAGE_SIZE
    return Model(folded, class_names(network), size, path, with_batchnorm=unfolded)


def save(path: str | Path, model: Model, *, half: bool = False) -> CheckpointArtifact:
    """Write a checkpoint, whole or not at all.

    Args:
        path: named ``*.safetensors``, by which :func:`load` knows it.
        half: store weights as FP16 (float models: half the size; loading returns float32).

    Raises:
        ArtifactError: it has another name, or cannot be written.

    Example:
        >>> trt_qat.save("ptq.safetensors", int8).path.name
        'ptq.safetensors'
        >>> trt_qat.load("ptq.safetensors").stage
        'ptq'
    """
    path = Path(path)
    if path.suffix.lower() != SUFFIX:
        raise ArtifactError(f"A checkpoint must be named *{SUFFIX}, found '{path}'.")
    weights = {k: v for k, v in model.network.state_dict().items() if "quantizer" not in k}
    tensors = {k: (v.half() if half and v.is_floating_point() else v) for k, v in weights.items()}
    header: dict[str, Any] = {
        "format": FORMAT,
        "stage": model.stage,
        "imgsz": model.imgsz,
        "architecture": model.network.yaml,
        "names": {str(k): v for k, v in model.names.items()},
        "provenance": dict(model.provenance),
    }
    if model.quantized is not None:
        tensors |= {f"{_AMAX}{name}": amax.float() for name, amax in model.quantized.amax().items()}
        header |= {"toolkit": model.quantized.toolkit.name, "placement": model.quantized.placement.as_dict()}
    contiguous = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    with atomic_path(path) as temporary:
        try:
            # one entry: several are written in any order, and two equal checkpoints would differ in their bytes
            save_file(contiguous, temporary, metadata={"header": json.dumps(header)})
        except SafetensorError as exc:
            raise ArtifactError(f"Cannot write '{path}': {exc}. Choose another place.") from exc
    return CheckpointArtifact(path)


def _load_checkpoint(path: Path, imgsz: int | None, toolkit: ToolkitName | None) -> Model:
    header, tensors = _read(path)
    names = {int(k): str(v) for k, v in header["names"].items()}
    network = fold_batchnorm(network_from_architecture(header["architecture"], names))
    load_weights_(network, {k: v.float() for k, v in tensors.items() if not k.startswith(_AMAX)})
    network.eval()
    size = imgsz or int(header["imgsz"])
    model = Model(network, names, size, path, header["stage"], provenance=header["provenance"])
    if "placement" not in header:
        return model
    adapter = toolkit_from_name(toolkit or header["toolkit"])
    placement = _placement(header["placement"], path)
    insert_quantizers_(network, placement, adapter)
    quantized = QuantizedModel(network, names, placement, adapter)
    quantized.load_amax_({k.removeprefix(_AMAX): v for k, v in tensors.items() if k.startswith(_AMAX)})
    return replace(model, quantized=quantized)


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
            header = json.loads(content.get("header", "{}"))
            if FORMAT not in (header.get("format"), content.get("format")):  # the second in files up to 0.1
                raise ArtifactError(f"'{path}' is a safetensors file, but not a trt_qat checkpoint ({FORMAT}).")
            return header, {key: stream.get_tensor(key) for key in list(stream.keys())}
    except (SafetensorError, json.JSONDecodeError, KeyError, OSError) as exc:
        raise ArtifactError(f"'{path}' is not a readable checkpoint ({exc}). Make it again.") from exc
