"""ONE way in for weights of any kind, and trt_qat's own checkpoint: safetensors + JSON, bit-equal when read back.

The file holds the folded weights, the ranges of the quantizers, and in its header the architecture dictionary, the
class names, the placement and the provenance.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field, JsonValue, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from ultralytics.nn.tasks import DetectionModel

from trt_qat.artifacts import CheckpointArtifact, atomic_path, existing_file, file_sha256
from trt_qat.config import ToolkitName, WeightScales
from trt_qat.errors import ArtifactError, ConfigError, QuantizationError
from trt_qat.limits import HEADER_MEGABYTES, PARAMETERS, WEIGHTS_MEGABYTES
from trt_qat.model.graph import convolutions
from trt_qat.model.loading import (
    ARCHITECTURE_SUFFIXES,
    IMAGE_SIZES,
    build_network,
    check_runs,
    check_same_output,
    checked_names,
    class_names,
    deployed_,
    fold_batchnorm,
    load_weights_,
    network_from_architecture,
    read_ultralytics,
)
from trt_qat.quantization.insert import QuantizedModel, insert_quantizers_
from trt_qat.quantization.placement import Placement
from trt_qat.quantization.toolkits.choose import toolkit_from_name
from trt_qat.reading import PICKLE_TRUSTED, FileModel, checked, parse_json, shortened
from trt_qat.vision.size import ImageSize, image_size_of

FORMAT = "trt_qat-checkpoint-1"
SUFFIX = ".safetensors"
DEFAULT_IMAGE_SIZE = 640
Stage = Literal["fp32", "ptq", "qat"]
_AMAX = "amax."
_ADVICE = "Make the checkpoint again."
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


_Side = Annotated[int, Field(ge=IMAGE_SIZES[0], le=IMAGE_SIZES[-1], multiple_of=32)]


def _pair(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    return (value, value) if isinstance(value, int) and not isinstance(value, bool) else value


class CheckpointHeader(FileModel):
    """What a checkpoint says beside its tensors; the architecture and the names have their own checks."""

    format: Literal["trt_qat-checkpoint-1"] = "trt_qat-checkpoint-1"  # files up to 0.1 say it beside the header
    stage: Stage
    imgsz: Annotated[tuple[_Side, _Side], BeforeValidator(_pair)]  # files up to 0.1 say one number: a square
    architecture: dict[str, JsonValue]
    names: dict[str, str]
    provenance: dict[str, JsonValue] = Field(default_factory=dict)
    toolkit: ToolkitName | None = None
    placement: dict[str, JsonValue] | None = None
    tensors_sha256: str | None = None  # files up to 0.1 do not say it

    @model_validator(mode="after")
    def _complete(self) -> CheckpointHeader:
        quantized = self.stage != "fp32"
        for key, value in (("toolkit", self.toolkit), ("placement", self.placement)):
            if quantized != (value is not None):
                raise ValueError(f"stage {self.stage} goes with{'' if quantized else 'out'} a {key}")
        return self


@dataclass(frozen=True)
class Model:
    """A detector: what every verb takes, and what loading and quantizing return.

    Args:
        network: float32, on the CPU, eval mode, BatchNorm folded; its convolutions are QuantConv2d once quantized.
        names: class id to name.
        imgsz: height and width of the input in pixels.
        source: the file it came from.
        stage: how far it is on its way to INT8.
        quantized: the same network with its placement and toolkit; None while it is float.
        provenance: what it was made from, JSON values.
        with_batchnorm: see :meth:`as_trained`; None where the file holds folded weights.

    Examples:
        >>> model = trt_qat.load("best.pt")
        >>> model.task, model.stage, model.quantized is None
        ('detect', 'fp32', True)
        >>> int8 = trt_qat.quantize(model, "data.yaml", calibrator="max")
        >>> int8.quantized.placement.groups[0].convs  # convolutions that read one tensor share a scale
        ('model.0.conv',)
    """

    network: DetectionModel
    names: Mapping[int, str]
    imgsz: ImageSize
    source: Path
    stage: Stage = "fp32"
    quantized: QuantizedModel | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    with_batchnorm: DetectionModel | None = field(default=None, repr=False)

    @property
    def task(self) -> str:
        """What the network predicts: ``detect``."""
        return "detect"

    @property
    def weights_sha256(self) -> str:
        """The hash of the float weights that it began with; empty if they are no file (random weights)."""
        known = str(self.provenance.get("weights_sha256", ""))
        return known or (file_sha256(self.source) if self.source.is_file() else "")

    def unfolded(self) -> DetectionModel:
        """A copy of the float network with its BatchNorm apart; of an end-to-end head only what is deployed.

        Raises:
            ArtifactError: the file it came from holds folded weights.
        """
        return deployed_(self.as_trained())

    def as_trained(self) -> DetectionModel:
        """A copy of the float network as it was trained: BatchNorm apart, both branches of an end-to-end head.

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


def load(
    weights: str | Path,
    imgsz: int | Sequence[int] | None = None,
    toolkit: ToolkitName | None = None,
    *,
    trust_pickle: bool = False,
) -> Model:
    """Load a detector, float or quantized.

    Args:
        weights: Ultralytics ``*.pt``, architecture ``*.yaml`` (random weights, the same at every call) or trt_qat
            ``*.safetensors``.
        imgsz: side of a square input in pixels, or (height, width); None is the size the weights were trained or
            calibrated at, 640 if they do not say.
        toolkit: use this package's quantizers instead of those the checkpoint was made with.
        trust_pickle: unpickle a ``*.pt``, which runs whatever code it names. Without it a ``*.pt`` is read as data,
            and one that needs more is refused; see docs/security.md.

    Raises:
        ArtifactError: missing, unreadable, not a detector, or rebuilding or folding changed its output.
        ConfigError: ``imgsz`` is none that a detector takes.

    Examples:
        >>> trt_qat.load("best.pt").stage
        'fp32'
        >>> model = trt_qat.load("yolov8n.yaml")  # random weights
        >>> len(model.names), model.imgsz
        (80, (640, 640))
    """
    path = Path(weights)
    wanted = None if imgsz is None else _checked_size(imgsz)
    if path.suffix.lower() == SUFFIX:
        return _load_checkpoint(path, wanted, toolkit)
    if path.suffix in ARCHITECTURE_SUFFIXES:
        network, trained_at = build_network(path), None
    else:
        file = read_ultralytics(path, trust_pickle=trust_pickle or PICKLE_TRUSTED.get())
        network, trained_at = file.network, file.imgsz
    check_runs(network, path)
    deployed = deployed_(copy.deepcopy(network))
    folded = fold_batchnorm(copy.deepcopy(deployed))
    check_same_output(deployed, folded, f"'{path}' with BatchNorm folded")
    unfolded = None if network.is_fused() else network
    size = wanted or image_size_of(trained_at or DEFAULT_IMAGE_SIZE)
    _check_strides(network, size, path)
    return Model(folded, class_names(network), size, path, with_batchnorm=unfolded)


def _checked_size(imgsz: int | Sequence[int]) -> ImageSize:
    try:
        size = image_size_of(imgsz)
    except (TypeError, ValueError):
        size = 0, 0
    if not all(type(side) is int and side in IMAGE_SIZES for side in size):
        raise ConfigError(
            f"imgsz={shortened(imgsz)} must be a multiple of 32 from 32 to {IMAGE_SIZES[-1]}, or two: height and width."
        )
    return size


def _check_strides(network: DetectionModel, size: ImageSize, path: Path) -> None:
    """Refuse a size that does not divide into the cells of the coarsest level: 64 pixels in a P6 network.

    Raises:
        ConfigError: see above.
    """
    stride = int(network.stride.max())
    if any(side % stride for side in size):
        raise ConfigError(
            f"imgsz={list(size)} does not fit '{path}': its coarsest cells have {stride} pixels, so height and width "
            f"must be multiples of {stride}."
        )


def save(path: str | Path, model: Model, *, half: bool = False) -> CheckpointArtifact:
    """Write a checkpoint, whole or not at all.

    Args:
        path: named ``*.safetensors``, by which :func:`load` knows it.
        half: store weights as FP16 (float models: half the size; loading returns float32).

    Raises:
        ArtifactError: it has another name, cannot be written, or :func:`load` would refuse it.

    Examples:
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
        ranges = {name: amax.float() for name, amax in model.quantized.amax().items()}
        _check_ranges(ranges, _range_shapes(model.quantized.placement, model.network), path)
        tensors |= {f"{_AMAX}{name}": amax for name, amax in ranges.items()}
        header |= {"toolkit": model.quantized.toolkit.name, "placement": model.quantized.placement.as_dict()}
    contiguous = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    header["tensors_sha256"] = _sha256(contiguous)
    checked(CheckpointHeader, header, path, _ADVICE)
    checked_names(header["names"], path)
    text = json.dumps(header)
    parse_json(text, f"'{path}': the header")  # a NaN among the provenance
    _check_values(contiguous, path)
    with atomic_path(path) as temporary:
        try:
            # one entry: several are written in any order, and two equal checkpoints would differ in their bytes
            save_file(contiguous, temporary, metadata={"header": text})
        except SafetensorError as exc:
            raise ArtifactError(f"Cannot write '{path}': {exc}. Choose another place.") from exc
    return CheckpointArtifact(path)


def with_weight_scales(model: Model, scales: WeightScales) -> Model:
    """A calibrated model with its weights quantized per channel or per tensor; activation ranges stay.

    Weight ranges are those of its weights, see :func:`~trt_qat.quantization.weight_range.weight_range`.

    Raises:
        QuantizationError: the model is float.
    """
    before = model.require_quantized()
    network = fold_batchnorm(network_from_architecture(model.network.yaml, model.names, model.source))
    weights = {name: value for name, value in model.network.state_dict().items() if "quantizer" not in name}
    load_weights_(network, weights, model.source)
    placement = replace(before.placement, weights=scales)
    insert_quantizers_(network.eval(), placement, before.toolkit)
    quantized = replace(before, network=network, placement=placement)
    quantized.load_amax_(before.activation_ranges())
    return model.with_quantized(quantized, model.stage, model.provenance)


def _load_checkpoint(path: Path, imgsz: ImageSize | None, toolkit: ToolkitName | None) -> Model:
    header, tensors = _read(path)
    _check_values(tensors, path)
    names = checked_names(header.names, path)
    if header.architecture.get("nc", len(names)) != len(names):
        classes = shortened(header.architecture["nc"])
        raise ArtifactError(f"'{path}': names has {len(names)} entries, architecture.nc is {classes}. {_ADVICE}")
    network = fold_batchnorm(network_from_architecture(header.architecture, names, path))
    load_weights_(network, {k: v.float() for k, v in tensors.items() if not k.startswith(_AMAX)}, path)
    network.eval()
    check_runs(network, path)
    amax = {k.removeprefix(_AMAX): v.float() for k, v in tensors.items() if k.startswith(_AMAX)}
    model = Model(network, names, imgsz or header.imgsz, path, header.stage, provenance=header.provenance)
    _check_strides(network, model.imgsz, path)
    if header.placement is None:
        _check_ranges(amax, {}, path)
        _check_saved(header, tensors, path)
        return model
    adapter = toolkit_from_name(toolkit or header.toolkit or "modelopt")
    placement = _placement(header.placement, network, path)
    _check_ranges(amax, _range_shapes(placement, network), path)
    _check_saved(header, tensors, path)
    insert_quantizers_(network, placement, adapter)
    quantized = QuantizedModel(network, names, placement, adapter)
    quantized.load_amax_(amax)
    return replace(model, quantized=quantized)


def _placement(content: Any, network: DetectionModel, path: Path) -> Placement:
    """The header's placement, checked against the network that it is for.

    Raises:
        ArtifactError: it is none, or names a layer that is not there.
    """
    try:
        placement = Placement.from_dict(content)
    except (KeyError, TypeError, ValueError) as exc:
        reason = " ".join(str(exc).split())[:200]
        raise ArtifactError(
            f"'{path}' holds a placement of another trt_qat version ({type(exc).__name__}: {reason}). {_ADVICE}"
        ) from exc
    convs = convolutions(network)
    modules = {name for name, _ in network.named_modules()}
    for index, group in enumerate(placement.groups):
        where = f"'{path}': placement.groups.{index}"
        for conv in group.convs:
            if conv not in convs:
                raise ArtifactError(f"{where} = {shortened(conv)}: the network has no such convolution. {_ADVICE}")
        for add in group.adds:
            if add.module not in modules:
                raise ArtifactError(f"{where}.adds = {shortened(add.module)}: the network has no such add. {_ADVICE}")
    for conv in placement.float_convs:
        if conv not in convs:
            raise ArtifactError(f"'{path}': placement.float_convs = {shortened(conv)}: not a float layer. {_ADVICE}")
    return placement


def _range_shapes(placement: Placement, network: DetectionModel) -> dict[str, list[int]]:
    convs = convolutions(network)
    activations: dict[str, list[int]] = {f"activation.{group.name}": [] for group in placement.groups}
    per_channel = placement.weights == "channel"
    weights = {
        f"weight.{conv}": [convs[conv].out_channels if per_channel else 1, 1, 1, 1]
        for group in placement.groups
        for conv in group.convs
    }
    zero_points: dict[str, list[int]] = {}
    if placement.scheme == "asymmetric":
        zero_points = {f"zero_point.{group.name}": [] for group in placement.groups}
    return activations | weights | zero_points


def _check_ranges(amax: Mapping[str, Tensor], shapes: Mapping[str, list[int]], path: Path) -> None:
    """Ranges are there for every quantizer and for no other, of its shape, finite and positive; zero points are codes.

    Raises:
        ArtifactError: one is not.
    """
    for name in sorted(amax.keys() | shapes.keys()):
        where = f"'{path}': {_AMAX}{name}"
        if name not in amax:
            raise ArtifactError(f"{where} is missing: the placement has a quantizer there. {_ADVICE}")
        if name not in shapes:
            raise ArtifactError(f"{where} is left over: the placement has no quantizer there. {_ADVICE}")
        found = list(amax[name].shape)
        if found != shapes[name] and not (name.startswith("activation.") and found == [1]):
            raise ArtifactError(f"{where} has shape {found}, needs {shapes[name]}. {_ADVICE}")
        if name.startswith("zero_point."):
            if float(amax[name]) not in range(256):
                raise ArtifactError(f"{where} = {float(amax[name]):g}: a zero point is a code, 0 to 255. {_ADVICE}")
        elif not (torch.isfinite(amax[name]) & (amax[name] > 0)).all():
            raise ArtifactError(f"{where} = {float(amax[name].min()):g}: a range is finite and above 0. {_ADVICE}")


def _check_values(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Tensors of numbers, finite, and no more of them than a network may have.

    Raises:
        ArtifactError: one is not.
    """
    PARAMETERS.check(sum(tensor.numel() for tensor in tensors.values()), f"'{path}'", ArtifactError)
    for name, tensor in tensors.items():
        where = f"'{path}': {shortened(name)}"
        if tensor.dtype not in _FLOATS and not (tensor.dtype == torch.int64 and tensor.dim() == 0):  # BatchNorm's count
            raise ArtifactError(f"{where} holds values of type {tensor.dtype}, needs floating point. {_ADVICE}")
        if not torch.isfinite(tensor).all():
            raise ArtifactError(f"{where} holds NaN or infinite values. {_ADVICE}")


def _check_saved(header: CheckpointHeader, tensors: Mapping[str, Tensor], path: Path) -> None:
    """What every other check lets through may still be another model's, or changed."""
    if header.tensors_sha256 not in (None, _sha256(tensors)):
        raise ArtifactError(f"'{path}': weights or ranges are not those that were saved with its header. {_ADVICE}")


def _sha256(tensors: Mapping[str, Tensor]) -> str:
    """Hex SHA-256 over names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path) -> tuple[CheckpointHeader, dict[str, Tensor]]:
    existing_file(path, "Checkpoint")
    WEIGHTS_MEGABYTES.check(path.stat().st_size / 1e6, f"Checkpoint '{path}'", ArtifactError)
    try:
        with safe_open(path, framework="pt") as stream:
            metadata = stream.metadata() or {}
            text = metadata.get("header", "{}")
            HEADER_MEGABYTES.check(len(text) / 1e6, f"'{path}'", ArtifactError)
            content = parse_json(text, f"'{path}': the header")
            said = content.get("format") if isinstance(content, dict) else None
            if FORMAT not in (said, metadata.get("format")):  # the second in files up to 0.1
                raise ArtifactError(f"'{path}' is a safetensors file, but not a trt_qat checkpoint ({FORMAT}).")
            header = checked(CheckpointHeader, content, path, _ADVICE)
            return header, {key: stream.get_tensor(key) for key in list(stream.keys())}
    except (SafetensorError, KeyError, OSError, RuntimeError) as exc:
        reason = " ".join(str(exc).split())[:200]
        raise ArtifactError(f"'{path}' is not a readable checkpoint ({reason}). {_ADVICE}") from exc
