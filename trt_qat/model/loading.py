"""Ultralytics' detectors: read, build from an architecture, fold BatchNorm, prove that nothing changed on the way.

:func:`trt_qat.checkpoint.load` is the one way in for weights of any kind; this module is what it does with Ultralytics'
own files.
"""

from __future__ import annotations

import contextlib
import copy
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.nn.tasks import DetectionModel, guess_model_task, load_checkpoint, yaml_model_load
from yaml import YAMLError

from trt_qat.artifacts import existing_file
from trt_qat.errors import ArtifactError

FOLD_TOLERANCE = 1e-4
ARCHITECTURE_SUFFIXES = frozenset({".yaml", ".yml"})


def build_network(architecture: Path) -> DetectionModel:
    """A detector with random weights from an Ultralytics architecture YAML (a name such as ``yolov8n.yaml`` works).

    The weights are the same at every call, so that a repeated stage sees the same network.

    Raises:
        ArtifactError: not an architecture, or not a detector's for colour images.
    """
    content = _architecture(architecture)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = network_from_architecture(content, {i: str(i) for i in range(int(content.get("nc", 80)))})
    _check_channels(network, architecture)
    return network


def _architecture(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = yaml_model_load(str(path))
    except (FileNotFoundError, KeyError, TypeError, ValueError, AttributeError, YAMLError) as exc:
        raise ArtifactError(f"'{path}' is not an Ultralytics architecture YAML: {' '.join(str(exc).split())}.") from exc
    if not {"backbone", "head"} <= content.keys():
        raise ArtifactError(f"'{path}' is not an Ultralytics architecture YAML: it has no 'backbone' and 'head'.")
    _check_detector(content, path)
    return content


def _check_detector(architecture: Mapping[str, Any], source: Path) -> None:
    task = guess_model_task(dict(architecture))
    if task != "detect":
        raise ArtifactError(
            f"'{source}' is a model for task '{task}', it ends in {architecture['head'][-1][2]}; "
            "trt_qat needs a detection model (YOLOv8 n, s, m, l or x)."
        )


def _check_channels(network: DetectionModel, source: Path) -> None:
    channels = next(module.in_channels for module in network.modules() if isinstance(module, nn.Conv2d))
    if channels != 3:
        raise ArtifactError(
            f"'{source}' takes images with {channels} channel{'s' * (channels > 1)}; trt_qat needs 3 (colour). "
            "Train it on colour images."
        )


def read_ultralytics(weights: Path) -> tuple[DetectionModel, int | None]:
    """The detector of a ``*.pt`` in float32, as it was saved, and the image size it was trained at, if it says so.

    Raises:
        ArtifactError: missing file, not a checkpoint, not a detector for colour images.
    """
    existing_file(weights, "Weights file")
    if not zipfile.is_zipfile(weights):
        raise ArtifactError(
            f"'{weights}' is not a PyTorch checkpoint (or it is truncated). "
            "Give an Ultralytics .pt, an architecture .yaml or a trt_qat .safetensors."
        )
    try:
        network, checkpoint = load_checkpoint(str(weights))
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, AttributeError, TypeError, OSError) as exc:
        reason = " ".join(str(exc).split())[:200]
        raise ArtifactError(f"'{weights}' is not an Ultralytics checkpoint: {reason}.") from exc
    if not isinstance(network, DetectionModel):
        raise ArtifactError(
            f"'{weights}' holds a {type(network).__name__}; trt_qat needs a detection model (YOLOv8 n, s, m, l or x)."
        )
    _check_detector(network.yaml, weights)  # detectors of masks, keypoints and rotated boxes are subclasses
    _check_channels(network, weights)
    return network.float().eval(), _trained_size(checkpoint)


def _trained_size(checkpoint: Mapping[str, Any]) -> int | None:
    arguments = checkpoint.get("train_args")
    size = arguments.get("imgsz") if isinstance(arguments, Mapping) else None
    if isinstance(size, bool) or not isinstance(size, int) or not 32 <= size <= 8192:
        return None
    return -(-size // 32) * 32


def rebuild(network: DetectionModel) -> DetectionModel:
    """The same detector built anew from its architecture dictionary, with the weights copied over.

    A checkpoint that trt_qat writes is later built the same way, so a difference shows here and not after training.
    """
    fresh = network_from_architecture(network.yaml, class_names(network))
    if network.is_fused():
        fold_batchnorm(fresh)  # saved after Ultralytics' fuse(): the weights fit the folded network
    load_weights_(fresh, network.state_dict())
    return fresh.float().eval()


def network_from_architecture(architecture: Mapping[str, Any], names: Mapping[int, str]) -> DetectionModel:
    """An unfolded detector with random weights from an architecture dictionary and its class names.

    Raises:
        ArtifactError: it is none, or a module of it takes more than images (text, prompts).
    """
    content = {**copy.deepcopy(dict(architecture)), "nc": len(names)}
    try:
        fresh = DetectionModel(content, verbose=False)  # runs once, to find its strides
    except Exception as exc:  # of any module's code
        reason = " ".join(str(exc).split())[:300]
        raise ArtifactError(
            f"This architecture cannot be built as a detector of images: it fails in {running_module(exc)}. "
            f"{type(exc).__name__}: {reason}"
        ) from exc
    fresh.names = dict(names)
    return fresh.float().eval()


def running_module(error: Exception, network: nn.Module | None = None) -> str:
    """The innermost module in whose code an error was raised: its class, and its dotted name in ``network``."""
    names = {id(module): name for name, module in network.named_modules() if name} if network else {}
    found, trace = "the network", error.__traceback__
    while trace is not None:
        module = trace.tb_frame.f_locals.get("self")
        if id(module) in names:
            found = f"module '{names[id(module)]}' ({type(module).__name__})"
        elif network is None and isinstance(module, nn.Module):
            found = f"module {type(module).__name__}"
        trace = trace.tb_next
    return found


def load_weights_(network: DetectionModel, state: Mapping[str, Tensor]) -> None:
    """Copy ``state`` into the network in place, resizing layers whose width differs from the architecture's.

    A detector fine-tuned for other classes keeps the head width of its old class count, and a pruned one is narrower;
    the architecture dictionary says neither.

    Raises:
        ArtifactError: a tensor is missing or left over.
    """
    for name, module in list(network.named_modules()):
        weight = state.get(f"{name}.weight")
        if weight is None or weight.shape == getattr(module, "weight", weight).shape:
            continue
        parent, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(parent), leaf, _resized(module, weight, name))
    try:
        network.load_state_dict(state)
    except RuntimeError as exc:
        reason = " ".join(str(exc).split())[:200]
        raise ArtifactError(f"The weights do not fit the architecture they came with: {reason}.") from exc


def _resized(module: nn.Module, weight: Tensor, name: str) -> nn.Module:
    if isinstance(module, nn.Conv2d):
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
    raise ArtifactError(f"Layer '{name}' ({type(module).__name__}) has another size than its architecture says.")


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    return values[0], values[1]


def fold_batchnorm(network: DetectionModel) -> DetectionModel:
    """Fold every BatchNorm into its convolution, in place; returns the network for chaining."""
    network.fuse(verbose=False)
    left = [name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)]
    if left:
        raise ArtifactError(f"BatchNorm '{left[0]}' does not follow a convolution and cannot be folded.")
    return network


def class_names(network: DetectionModel) -> dict[int, str]:
    """Class id to name, as the network carries them."""
    names = network.names
    return {int(k): str(v) for k, v in (names.items() if isinstance(names, Mapping) else enumerate(names))}


@contextlib.contextmanager
def export_mode(network: DetectionModel) -> Iterator[None]:
    """Within: the head decodes into one tensor, shape (batch, 4 + classes, anchors), as deployed."""
    head = network.model[-1]
    before = {key: getattr(head, key) for key in ("export", "format", "dynamic", "shape", "anchors", "strides")}
    head.export, head.format, head.dynamic, head.shape = True, "onnx", False, None
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
