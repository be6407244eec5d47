"""Ultralytics' detectors: read, build from an architecture, fold BatchNorm, prove that nothing changed on the way.

:func:`trt_qat.checkpoint.load` is the one way in for weights of any kind; this module is what it does with Ultralytics'
own files. Of a ``*.pt`` only tensors and plain values are taken; the network is built anew from its architecture.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.nn.tasks import DetectionModel, guess_model_scale, torch_safe_load
from ultralytics.utils import ROOT

from trt_qat.artifacts import existing_file
from trt_qat.errors import ArtifactError
from trt_qat.limits import CLASSES, NETWORK_MODULES
from trt_qat.memory import check_memory
from trt_qat.model.architecture import HEADS, building, checked_architecture, default_activation_kept, running_module
from trt_qat.model.torch_file import Instance, open_torch_file, plain
from trt_qat.reading import read_yaml, shortened

FOLD_TOLERANCE = 1e-4
ARCHITECTURE_SUFFIXES = frozenset({".yaml", ".yml"})
IMAGE_SIZES = range(32, 8192 + 1, 32)
_NETWORK_CLASSES = frozenset({"DetectionModel", "YOLOv10DetectionModel"})
_RENAMED = {"Silence": "Identity"}  # of old checkpoints
_SETTINGS = frozenset(  # attributes that decide what a layer computes
    {
        *("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode", "output_padding", "ceil_mode"),
        *("eps", "negative_slope", "alpha", "beta", "threshold", "approximate", "min_val", "max_val", "lambd"),
        *("scale_factor", "size", "mode", "align_corners", "f", "i", "d", "c", "add", "reg_max", "nl"),
        *("num_heads", "head_dim", "area"),
    }
)


_TAKEN = "trt_qat needs a detection model: YOLOv5u, v8 (p2 and p6 too), v9, v10, 11, 12 or 26"
_TEXTS = "its classes are embeddings of texts that no checkpoint of trt_qat holds"
_REFUSED = {  # why, by the head and by the network's class
    "RTDETRDecoder": "RT-DETR's queries are chosen inside it, so that INT8 and FP32 cannot be compared box by box",
    "WorldDetect": f"YOLO-World: {_TEXTS}",
    "YOLOEDetect": f"YOLOE: {_TEXTS}",
}
_REFUSED |= {
    "RTDETRDetectionModel": _REFUSED["RTDETRDecoder"],
    "WorldModel": _REFUSED["WorldDetect"],
    "YOLOEModel": _REFUSED["YOLOEDetect"],
}


def _not_taken(what: str, name: str) -> ArtifactError:
    """The error for a network of another kind: what was given, why it is refused where that is known, what is taken."""
    reason = f" ({_REFUSED[name]})" if name in _REFUSED else ""
    return ArtifactError(f"{what} {shortened(name)[1:-1]}{reason}; {_TAKEN}.")


def build_network(architecture: Path) -> DetectionModel:
    """A detector with random weights from an Ultralytics architecture YAML (a name such as ``yolov8n.yaml`` works).

    The weights are the same at every call, so that a repeated stage sees the same network.

    Raises:
        ArtifactError: not an architecture, or not a detector's for colour images.
    """
    content = _architecture(architecture)
    classes = content.get("nc", 80)
    if isinstance(classes, bool) or not isinstance(classes, int) or classes < 1:
        raise ArtifactError(f"'{architecture}': nc = {shortened(classes)}: the number of classes, 1 or more.")
    CLASSES.check(classes, f"'{architecture}' (nc)", ArtifactError)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = network_from_architecture(content, {i: str(i) for i in range(classes)}, architecture)
    return network


def _architecture(path: Path) -> dict[str, Any]:
    """The dictionary of a YAML file; a name without a folder may be one that Ultralytics brings."""
    content = read_yaml(_architecture_file(path), "Architecture")
    if not isinstance(content, dict) or not {"backbone", "head"} <= content.keys():
        raise ArtifactError(f"'{path}' is not an Ultralytics architecture YAML: it has no 'backbone' and 'head'.")
    return {**content, "scale": guess_model_scale(path), "yaml_file": os.fsencode(path).decode(errors="replace")}


def _architecture_file(path: Path) -> Path:
    """The file that a name stands for: ``yolov8n.yaml`` is scale n of Ultralytics' ``yolov8.yaml``.

    Raises:
        ArtifactError: there is none.
    """
    unscaled = re.sub(r"(\d+)([nslmx])(.+)?$", r"\1\3", path.name)
    for file in (path, path.with_name(unscaled)):
        if file.exists():
            return file
    for name in dict.fromkeys((path.name, unscaled)) if path.parent == Path() else ():
        for packaged in sorted(Path(ROOT, "cfg", "models").glob("*/*.yaml")):
            if packaged.name == name:
                return packaged
    raise ArtifactError(f"'{path}' is not an Ultralytics architecture YAML: no such file, and Ultralytics brings none.")


def _check_detector(architecture: Mapping[str, Any], source: Path) -> None:
    last = _last_kind(architecture)
    if isinstance(last, str) and last not in HEADS:
        raise _not_taken(f"'{source}' is a model that ends in", last)


def _last_kind(architecture: Mapping[str, Any]) -> Any:
    """What the last layer is; None where there is none, of which the schema says what is wrong."""
    try:
        return architecture["head"][-1][2]
    except (KeyError, IndexError, TypeError):
        return None


def is_end_to_end(network: DetectionModel) -> bool:
    """Whether the head was trained to name each object once (YOLOv10, YOLO26), so that nothing must be suppressed.

    The architecture says so: a network that :func:`deployed_` has changed has an ordinary head.
    """
    return _says_end_to_end(network.yaml)


def _says_end_to_end(architecture: Mapping[str, Any]) -> bool:
    return bool(architecture.get("end2end")) or _last_kind(architecture) == "v10Detect"


def deployed_(network: DetectionModel) -> DetectionModel:
    """Leave of an end-to-end head what is deployed, in place; another network stays as it is. Returns it for chaining.

    Such a head has its last layers twice: one-to-many, which teaches the network and needs NMS, and one-to-one, which
    needs none. The second takes the place and the names of the first: an ordinary head, whose gradients reach the
    network that Ultralytics' one-to-one branch is cut off from in training.
    """
    head = network.model[-1]
    for name in ("cv2", "cv3"):
        branch = getattr(head, f"one2one_{name}", None)
        if branch is not None:
            setattr(head, name, branch)
            delattr(head, f"one2one_{name}")
    return network


@dataclass(frozen=True)
class UltralyticsFile:
    """What a ``*.pt`` holds.

    Args:
        network: float32, in eval mode, built anew; BatchNorm apart if the file has it apart.
        names: class id to name.
        imgsz: the size it was trained at, if it says so.
    """

    network: DetectionModel
    names: Mapping[int, str]
    imgsz: int | None


def read_ultralytics(weights: Path, *, trust_pickle: bool = False) -> UltralyticsFile:
    """The detector of a ``*.pt``.

    Args:
        trust_pickle: unpickle it, which runs whatever code it names.

    Raises:
        ArtifactError: missing file, not a checkpoint, not a detector for colour images, not what its own architecture
            builds, or it names more than a detection checkpoint holds.
    """
    existing_file(weights, "Weights file")
    return _unpickled(weights) if trust_pickle else _read_as_data(weights)


def _read_as_data(weights: Path) -> UltralyticsFile:
    with open_torch_file(weights) as file:
        model = _network_of(file.content, weights)
        layers, stored = _walk(model, weights)
        architecture = plain(_attribute(model, "yaml"), f"'{weights}' (yaml)")
        names = plain(_attribute(model, "names"), f"'{weights}' (names)")
        if not isinstance(architecture, dict):
            raise ArtifactError(f"'{weights}' is not an Ultralytics checkpoint: it does not say its architecture.")
        _check_detector(architecture, weights)
        state = file.tensors(stored)
        size = _trained_size(file.content)
    folded = not any(layer.class_name == "BatchNorm2d" for layer in layers.values())
    if folded and _says_end_to_end(architecture):  # whichever is left: one of them needs NMS, and nothing says which
        raise ArtifactError(
            f"'{weights}' holds an end-to-end head after Ultralytics' fuse(), which drops one of its branches. Give "
            "the .pt as it was trained."
        )
    network = _with_weights(architecture, checked_names(names, weights), state, folded, weights)
    _check_same_layers(layers, network, weights)
    return UltralyticsFile(network, class_names(network), size)


def _network_of(content: Any, weights: Path) -> Instance:
    found = (content.get("ema") or content.get("model")) if isinstance(content, dict) else None
    if not isinstance(found, Instance):
        raise ArtifactError(f"'{weights}' is not an Ultralytics checkpoint: it holds no model.")
    if content.get("modelopt"):
        raise ArtifactError(f"'{weights}' holds Ultralytics' own quantizers. Give the float weights it was made from.")
    if found.class_name not in _NETWORK_CLASSES:
        raise _not_taken(f"'{weights}' holds a", found.class_name)
    return found


def _attribute(instance: Instance, name: str) -> Any:
    return instance.state.get(name) if isinstance(instance.state, dict) else None


def _walk(model: Instance, weights: Path) -> tuple[dict[str, Instance], dict[str, Any]]:
    """Every layer, and every stored tensor of its state dictionary, by dotted name."""
    layers: dict[str, Instance] = {}
    stored: dict[str, Any] = {}
    waiting = [("", model)]
    while waiting:
        prefix, layer = waiting.pop()
        layers[prefix.removesuffix(".")] = layer
        NETWORK_MODULES.check(len(layers) + len(waiting), f"'{weights}'", ArtifactError)
        for group in ("_parameters", "_buffers"):
            stored |= {f"{prefix}{k}": v for k, v in _members(layer, group).items() if v is not None}
        for name, child in _members(layer, "_modules").items():
            if isinstance(child, Instance):
                waiting.append((f"{prefix}{name}.", child))
            elif child is not None or len(prefix) > 1000:
                raise ArtifactError(f"'{weights}' is damaged: '{prefix[:100]}{name}' is no layer.")
    return layers, stored


def _members(layer: Instance, group: str) -> dict[Any, Any]:
    members = _attribute(layer, group)
    return members if isinstance(members, dict) else {}


def _check_same_layers(stored: Mapping[str, Instance], network: DetectionModel, weights: Path) -> None:
    """The file's layers are of the classes and have the settings that its architecture builds.

    Raises:
        ArtifactError: one differs; the network would compute something else than the one that was trained.
    """
    built = {name: module for name, module in network.named_modules(remove_duplicate=False) if name}
    for name in (stored.keys() ^ built.keys()) - {""}:
        where = "the file has a layer" if name in stored else "the architecture has a layer"
        raise ArtifactError(f"'{weights}' is not what its architecture builds: only {where} '{name[:100]}'.")
    for name, module in built.items():
        expected, found = type(module).__name__, stored[name].class_name
        if _RENAMED.get(found, found) != expected:
            raise ArtifactError(f"'{weights}': layer '{name}' is a {found}, its architecture builds a {expected}.")
        for key in sorted(_SETTINGS & vars(module).keys()):
            before, after = _setting(_attribute(stored[name], key)), _setting(vars(module)[key])
            if None not in (before, after) and before != after:
                raise ArtifactError(
                    f"'{weights}': layer '{name}' has {key} = {shortened(before)}, its architecture builds {after!r}."
                )


def _setting(value: Any) -> Any:
    """A value to compare, None where there is none or it is no plain one."""
    if isinstance(value, list | tuple):
        parts = [_setting(part) for part in value[:64] if not isinstance(part, list | tuple)]
        return None if None in parts else parts
    return value if isinstance(value, bool | int | float | str) else None


def _with_weights(
    architecture: Mapping[str, Any],
    names: Mapping[int, str],
    state: Mapping[str, Tensor],
    folded: bool,
    source: Path,
) -> DetectionModel:
    fresh = network_from_architecture(architecture, names, source)
    if folded:
        fold_batchnorm(fresh)  # saved after Ultralytics' fuse(): the weights fit the folded network
    load_weights_(fresh, state, source)
    channels = next(module.in_channels for module in fresh.modules() if isinstance(module, nn.Conv2d))
    if channels != 3:
        raise ArtifactError(_wrong_channels(channels, source))
    return fresh.float().eval()


def _unpickled(weights: Path) -> UltralyticsFile:
    """Ultralytics' own way of loading, for who trusts the file."""
    try:
        checkpoint, _ = torch_safe_load(str(weights), safe_only=False)
        network = (checkpoint.get("ema") or checkpoint.get("model")).float().eval()
    except Exception as exc:  # of any code that the file names
        check_memory(exc)
        reason = " ".join(str(exc).split())[:200]
        raise ArtifactError(f"'{weights}' is not an Ultralytics checkpoint: {reason}.") from exc
    if not isinstance(network, DetectionModel):
        raise _not_taken(f"'{weights}' holds a", type(network).__name__)
    _check_detector(network.yaml, weights)  # detectors of masks, keypoints and rotated boxes are subclasses
    rebuilt = rebuild(network, weights)
    check_same_output(network, rebuilt, f"'{weights}' rebuilt from its architecture")
    return UltralyticsFile(rebuilt, class_names(rebuilt), _trained_size(checkpoint))


def _trained_size(checkpoint: Mapping[str, Any]) -> int | None:
    arguments: Any = checkpoint.get("train_args")
    if isinstance(arguments, Instance):
        arguments = arguments.state
    size = arguments.get("imgsz") if isinstance(arguments, Mapping) else None
    if isinstance(size, bool) or not isinstance(size, int) or not IMAGE_SIZES[0] <= size <= IMAGE_SIZES[-1]:
        return None
    return -(-size // 32) * 32


def rebuild(network: DetectionModel, source: Path = Path("network"), activation: str | None = None) -> DetectionModel:
    """The same detector built anew from its architecture dictionary, with the weights copied over.

    A checkpoint that trt_qat writes is later built the same way, so a difference shows here and not after training.

    Args:
        activation: what the dictionary is to say under that key, e.g. "torch.nn.ReLU()"; None leaves it.
    """
    architecture = network.yaml if activation is None else {**network.yaml, "activation": activation}
    return _with_weights(architecture, class_names(network), network.state_dict(), network.is_fused(), source)


def network_from_architecture(
    architecture: Mapping[str, Any], names: Mapping[int, str], source: Path = Path("architecture")
) -> DetectionModel:
    """An unfolded detector with random weights from an architecture dictionary and its class names.

    Args:
        architecture: checked here, whoever wrote it.
        source: the file it came from, for messages.

    Raises:
        ArtifactError: it is none of a detector of colour images, or too large.
    """
    _check_detector(architecture, source)
    content = checked_architecture({**architecture, "nc": len(names)}, source)
    if content.get("channels", content.get("ch", 3)) != 3:
        raise ArtifactError(_wrong_channels(content.get("channels", content.get("ch")), source))
    with building(source), default_activation_kept():
        fresh = DetectionModel(content, verbose=False)  # runs once, to find its strides
    fresh.names = dict(names)
    return fresh.float().eval()


def _wrong_channels(channels: Any, source: Path) -> str:
    return (
        f"'{source}' takes images with {channels} channel{'s' * (channels != 1)}; trt_qat needs 3 (colour). "
        "Train it on colour images."
    )


def checked_names(names: Any, source: Path) -> dict[int, str]:
    """Class id to name.

    Args:
        names: a list, or a mapping whose keys are 0, 1, 2, ... in any order, as numbers or text.

    Raises:
        ArtifactError: a number is missing, a name is empty or cannot be printed, or there are too many.
    """
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, Mapping) or not names:
        raise ArtifactError(f"'{source}': names = {shortened(names)}: class numbers from 0, with a name each.")
    CLASSES.check(len(names), f"'{source}' (names)", ArtifactError)
    given = {str(key): name for key, name in names.items()}
    for number in range(len(names)):
        name = given.get(str(number))
        if not isinstance(name, str) or not name.strip() or not name.isprintable() or len(name) > 1000:
            raise ArtifactError(
                f"'{source}': names.{number} = {shortened(name)}: a name of printable characters for each class from 0."
            )
    return {number: given[str(number)] for number in range(len(names))}


def load_weights_(network: DetectionModel, state: Mapping[str, Tensor], source: Path = Path("network")) -> None:
    """Copy ``state`` into the network in place, resizing layers whose width differs from the architecture's.

    A detector fine-tuned for other classes keeps the head width of its old class count, and a pruned one is narrower;
    the architecture dictionary says neither.

    Raises:
        ArtifactError: a tensor is missing, left over, of another shape, or not finite.
    """
    for name, tensor in state.items():
        if not torch.isfinite(tensor.float()).all():
            raise ArtifactError(f"'{source}': weights '{name}' hold NaN or infinite values. Train or export it again.")
    for name, module in list(network.named_modules()):
        weight = state.get(f"{name}.weight")
        if weight is None or weight.shape == getattr(module, "weight", weight).shape:
            continue
        parent, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(parent), leaf, _resized(module, weight, f"'{source}': layer '{name}'"))
    try:
        network.load_state_dict(state)
    except RuntimeError as exc:
        reason = " ".join(str(exc).split())[:200]
        raise ArtifactError(f"'{source}': the weights do not fit the architecture they came with: {reason}.") from exc


def _resized(module: nn.Module, weight: Tensor, what: str) -> nn.Module:
    """A layer of the same kind with the width of ``weight``, which must have some."""
    if weight.numel() == 0 or weight.dim() != getattr(module, "weight", weight).dim():
        raise ArtifactError(f"{what} has weights of shape {list(weight.shape)}.")
    if isinstance(module, nn.Conv2d) and weight.shape[2:] == module.weight.shape[2:]:
        depthwise = module.groups > 1 and module.groups == module.in_channels
        groups = weight.shape[0] if depthwise else module.groups
        return nn.Conv2d(
            weight.shape[1] * groups,
            weight.shape[0],
            (weight.shape[2], weight.shape[3]),
            stride=_pair(module.stride),
            padding=module.padding if isinstance(module.padding, str) else _pair(module.padding),
            dilation=_pair(module.dilation),
            groups=groups,
            bias=module.bias is not None,
        )
    if isinstance(module, nn.BatchNorm2d):
        return nn.BatchNorm2d(weight.shape[0], eps=module.eps, momentum=module.momentum)
    raise ArtifactError(f"{what} ({type(module).__name__}) has another size than its architecture says.")


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    return values[0], values[1]


def fold_batchnorm(network: DetectionModel) -> DetectionModel:
    """Fold every BatchNorm into its convolution, in place; returns the network for chaining.

    Of an end-to-end head only what is deployed is left, see :func:`deployed_`.
    """
    deployed_(network).fuse(verbose=False)
    left = [name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)]
    if left:
        raise ArtifactError(f"BatchNorm '{left[0]}' does not follow a convolution and cannot be folded.")
    return network


def class_names(network: DetectionModel) -> dict[int, str]:
    """Class id to name, as the network carries them."""
    names = network.names
    return {int(k): str(v) for k, v in (names.items() if isinstance(names, Mapping) else enumerate(names))}


@contextlib.contextmanager
def export_mode(network: DetectionModel, *, any_size: bool = False) -> Iterator[None]:
    """Within: the head decodes into one tensor, shape (batch, 4 + classes, anchors), as deployed.

    Args:
        any_size: compute the anchors from the feature maps' sizes at every call, which a traced graph then does too.
    """
    head = network.model[-1]
    before = {key: getattr(head, key) for key in ("export", "format", "dynamic", "shape", "anchors", "strides")}
    head.export, head.format, head.dynamic, head.shape = True, "onnx", any_size, None
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)
        for key, value in before.items():
            setattr(head, key, value)


@torch.no_grad()
def raw_output(network: DetectionModel, images: Tensor) -> Tensor:
    """The deployed output for images (batch, 3, h, w) in [0, 1]: float32, shape (batch, 4 + classes, anchors)."""
    with export_mode(network):
        output = network(images)
    tensor = output[0] if isinstance(output, (tuple, list)) else output
    if not isinstance(tensor, Tensor):
        raise ArtifactError(f"The network returned a {type(tensor).__name__} instead of one tensor.")
    return tensor


def check_runs(network: DetectionModel, source: Path) -> None:
    """Run a network once; weights may give layers a width that the next one does not take.

    Raises:
        ArtifactError: it cannot run, or what it finds is not finite.
    """
    try:
        output = raw_output(network, torch.full((1, 3, 64, 64), 0.5))
    except Exception as exc:  # of any layer's code
        check_memory(exc)
        reason = " ".join(str(exc).split())[:200]
        raise ArtifactError(
            f"'{source}': the network cannot run: it fails in {running_module(exc, network)}. {reason}"
        ) from exc
    if not torch.isfinite(output).all():
        raise ArtifactError(f"'{source}': the network finds NaN or infinite values in a grey image.")


def check_same_output(before: DetectionModel, after: DetectionModel, what: str, imgsz: int = 64) -> float:
    """Compare two networks on fixed noise; return the largest difference relative to the output's range.

    Raises:
        ArtifactError: it exceeds 1e-4.
    """
    images = torch.rand(2, 3, imgsz, imgsz, generator=torch.Generator().manual_seed(0))
    expected, found = raw_output(before, images), raw_output(after, images)
    difference = float((expected - found).abs().max() / expected.abs().max().clamp(min=1e-12))
    if not difference <= FOLD_TOLERANCE:
        raise ArtifactError(f"{what}: output differs by {difference:.2e}, allowed {FOLD_TOLERANCE:.0e}.")
    return difference
