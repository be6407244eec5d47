"""The one schema of an Ultralytics architecture dictionary, checked before anything builds it, wherever it comes from.

Ultralytics' ``parse_model`` looks a row's module up by name in everything that it imports, evaluates ``activation``,
looks argument strings up among its own variables, and allocates whatever the numbers say. So here names come from lists
that are written out, arguments are plain values, and the network is built on the meta device first, where it takes
neither memory nor time, to see how large it is.
"""

from __future__ import annotations

import ast
import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from typing_extensions import override
from ultralytics.nn.modules import Conv
from ultralytics.nn.tasks import parse_model

from trt_qat.errors import ArtifactError
from trt_qat.limits import (
    CLASSES,
    NETWORK_GIGAMACS,
    NETWORK_MEGABYTES,
    NETWORK_MODULES,
    NETWORK_OPERATIONS,
    PARAMETERS,
)
from trt_qat.memory import check_memory
from trt_qat.reading import FileModel, checked, shortened

LAYERS = frozenset(
    # Ultralytics' layers of convolutions, as in its detection YAMLs
    {
        *("AConv", "ADown", "A2C2f", "Bottleneck", "BottleneckCSP", "C1", "C2", "C2PSA", "C2f", "C2fCIB", "C2fPSA"),
        *("C3", "C3Ghost", "C3k2", "C3x", "CBFuse", "CBLinear", "Concat", "Conv", "ConvTranspose", "DWConv"),
        *("DWConvTranspose2d", "ELAN1", "Focus", "GhostBottleneck", "GhostConv", "HGBlock", "HGStem", "PSA", "RepC3"),
        *("RepNCSPELAN4", "SCDown", "SPP", "SPPELAN", "SPPF"),
    }
    | {
        *("nn.AvgPool2d", "nn.BatchNorm2d", "nn.ConvTranspose2d", "nn.Identity", "nn.MaxPool2d", "nn.Upsample"),
        "nn.ZeroPad2d",
    }
)
HEADS = frozenset({"Detect", "v10Detect"})
ACTIVATIONS = frozenset(
    {
        *("CELU", "ELU", "GELU", "Hardsigmoid", "Hardswish", "Hardtanh", "Identity", "LeakyReLU", "Mish", "ReLU"),
        *("ReLU6", "SELU", "SiLU", "Sigmoid", "Softplus", "Tanh"),
    }
)
ARGUMENT_WORDS = frozenset({"nc", "None", "True", "False", "nearest", "bilinear", "bicubic"})

_MOST_ROWS = 500
_MOST_REPEATS = 1000  # of one row, and of all rows together once depth has scaled them
_LARGEST = 65536  # channels, kernel sizes and any other number of a row
_PROBE = 256  # side of the image with which Ultralytics finds the strides of a detector


def _module(name: str) -> str:
    if name not in LAYERS | HEADS:
        raise ValueError("not a layer that trt_qat builds; docs/security.md lists them")
    return name


def _argument(value: Any, depth: int = 0) -> Any:
    if isinstance(value, list):
        if depth == 2 or len(value) > 64:
            raise ValueError("arguments are plain values or short lists of them")
        return [_argument(part, depth + 1) for part in value]
    if isinstance(value, str):
        if value not in ARGUMENT_WORDS:
            raise ValueError(f"{shortened(value)} is not a word for an argument ({', '.join(sorted(ARGUMENT_WORDS))})")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if not -_LARGEST <= value <= _LARGEST:  # neither is NaN
            raise ValueError(f"{shortened(value)} is not a number between -{_LARGEST} and {_LARGEST}")
    elif value is not None and not isinstance(value, bool):
        raise ValueError(f"{type(value).__name__} is no argument; plain values are")
    return value


def _arguments(values: list[Any]) -> list[Any]:
    if len(values) > 16:
        raise ValueError(f"{len(values)} arguments, 16 at most")
    return [_argument(value) for value in values]


def _source(value: Any) -> Any:
    """Where a row reads: which rows exist is checked once all of them are known."""
    indices = value if isinstance(value, list) else [value]
    if not indices or len(indices) > 64 or any(isinstance(i, bool) or not isinstance(i, int) for i in indices):
        raise ValueError("the row it reads as a whole number, or a list of them")
    return value


def _activation(text: str) -> str:
    """``nn.<Class>(literals)`` or ``torch.nn.<Class>(literals)``, and nothing else."""
    allowed = "allowed is torch.nn.<name>(numbers) with a name of " + ", ".join(sorted(ACTIVATIONS))
    if len(text) > 100:
        raise ValueError(allowed)
    try:
        call = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as exc:
        raise ValueError(allowed) from exc
    if not isinstance(call, ast.Call):
        raise ValueError(allowed)
    prefix, _, name = ast.unparse(call.func).rpartition(".")
    values = [*call.args, *(keyword.value for keyword in call.keywords)]
    literal = all(isinstance(value, ast.Constant | ast.UnaryOp) for value in values) and None not in [
        keyword.arg for keyword in call.keywords
    ]
    if prefix not in ("nn", "torch.nn") or name not in ACTIVATIONS or not literal:
        raise ValueError(allowed)
    for value in values:
        _number(value, allowed)
    return text


def _number(node: ast.expr, allowed: str) -> None:
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError) as exc:
        raise ValueError(allowed) from exc
    if not isinstance(value, int | float) or not -1000 <= value <= 1000:
        raise ValueError(allowed)


_Multiple = Annotated[float, Field(gt=0, le=16)]
_Channels = Annotated[int, Field(ge=1, le=64)]
Row = tuple[
    Annotated[Any, AfterValidator(_source)],
    Annotated[int, Field(ge=1, le=_MOST_REPEATS)],
    Annotated[str, AfterValidator(_module)],
    Annotated[list[Any], AfterValidator(_arguments)],
]
_Rows = Annotated[list[Row], Field(min_length=1, max_length=_MOST_ROWS)]


class Architecture(FileModel):
    """What an architecture dictionary may say; the names are Ultralytics'."""

    backbone: _Rows
    head: _Rows
    nc: Annotated[int, Field(ge=1)] = 80
    scales: Annotated[
        dict[str, tuple[_Multiple, _Multiple, Annotated[float, Field(ge=1, le=_LARGEST)]]], Field(max_length=32)
    ] = Field(default_factory=dict)
    scale: Annotated[str, Field(max_length=16)] | None = None
    depth_multiple: _Multiple = 1.0
    width_multiple: _Multiple = 1.0
    activation: Annotated[str, AfterValidator(_activation)] | None = None
    end2end: bool | None = None
    reg_max: Annotated[int, Field(ge=1, le=256)] = 16
    ch: _Channels = 3
    channels: _Channels = 3
    inplace: bool = True
    yaml_file: Annotated[str, Field(max_length=4096)] = ""

    def depth(self) -> float:
        """By what the repeats are multiplied, as ``parse_model`` decides it."""
        if not self.scales:
            return self.depth_multiple
        return self.scales[self.scale or next(iter(self.scales))][0]


def checked_architecture(content: Any, source: Path) -> dict[str, Any]:
    """An architecture as plain values that are safe to build, small enough and a detector's by its last row.

    Args:
        content: of a ``*.yaml``, a checkpoint's header or a ``*.pt``.
        source: the file it came from, for messages.

    Raises:
        ArtifactError: in one line what is wrong with which field.
    """
    advice = "Give an unchanged Ultralytics detection architecture."
    architecture = checked(Architecture, content, source, advice)
    CLASSES.check(architecture.nc, f"'{source}' (nc)", ArtifactError)
    for what, wrong in _contradictions(architecture):
        raise ArtifactError(f"'{source}': {what}: {wrong}. {advice}")
    plain: dict[str, Any] = json.loads(json.dumps(content))  # nothing of the caller's is shared, and no class of his
    _check_size(plain, source)
    return plain


def _contradictions(architecture: Architecture) -> Iterator[tuple[str, str]]:
    """What no single field shows."""
    if architecture.scales and architecture.scale and architecture.scale not in architecture.scales:
        names = ", ".join(sorted(architecture.scales))
        yield f"scale = {shortened(architecture.scale)}", f"scales has {shortened(names)}"
        return
    rows = [*architecture.backbone, *architecture.head]
    depth = architecture.depth()
    repeats = sum(max(round(row[1] * depth), 1) if row[1] > 1 else 1 for row in rows)
    if repeats > _MOST_REPEATS:
        yield "backbone + head", f"{repeats} repeats in all, {_MOST_REPEATS} at most"
    for index, (sources, _, module, _) in enumerate(rows):
        where = (
            f"backbone.{index}" if index < len(architecture.backbone) else f"head.{index - len(architecture.backbone)}"
        )
        for read in sources if isinstance(sources, list) else [sources]:
            known = read == -1 if index == 0 else -index <= read < index
            if not known:
                yield f"{where}.0 = {read}", f"row {index} can read only rows before it"
        if (module in HEADS) != (index == len(rows) - 1):
            yield f"{where}.2 = '{module}'", f"the last row, and no other, is one of {', '.join(sorted(HEADS))}"


@contextlib.contextmanager
def building(source: Path) -> Iterator[None]:
    """Within: Ultralytics builds a network.

    Raises:
        ArtifactError: a layer's code failed; the message names the layer.
    """
    try:
        yield
    except ArtifactError:
        raise
    except Exception as exc:  # of any layer's code
        check_memory(exc)
        reason = " ".join(str(exc).split())[:200]
        raise ArtifactError(
            f"'{source}': this architecture cannot be built as a detector of images: it fails in "
            f"{running_module(exc)}. {type(exc).__name__}: {reason}"
        ) from exc


def _check_size(content: Mapping[str, Any], source: Path) -> None:
    """Build it on the meta device and run it there.

    Raises:
        ArtifactError: it exceeds a limit, or cannot be built.
    """
    what = f"'{source}' describes a network that"
    size = _Size(what)
    with (
        building(source),
        torch.device("meta"),
        default_activation_kept(),
        _built_modules(what),
        torch.no_grad(),
    ):
        layers, kept = parse_model(json.loads(json.dumps(content)), ch=3, verbose=False)
        PARAMETERS.check(sum(parameter.numel() for parameter in layers.parameters()), what, ArtifactError)
        layers.eval()
        layers[-1].training = True  # raw predictions: decoding needs the strides, which are not known yet
        with size:
            _run(layers, kept, torch.zeros(1, 3, _PROBE, _PROBE))


def _run(layers: Any, kept: list[int], images: Tensor) -> None:
    """Ultralytics' ``BaseModel._predict_once`` without a model around it."""
    value: Any = images
    outputs: list[Any] = []
    for layer in layers:
        if layer.f != -1:
            value = (
                outputs[layer.f] if isinstance(layer.f, int) else [value if j == -1 else outputs[j] for j in layer.f]
            )
        value = layer(value)
        outputs.append(value if layer.i in kept else None)


class _Size(TorchFunctionMode):
    """Counts what a forward pass takes, and stops it at the limits."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self._what = what
        self._operations = self._elements = self._macs = 0

    @override
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        outputs = [
            part for part in (result if isinstance(result, tuple | list) else [result]) if isinstance(part, Tensor)
        ]
        self._operations += 1
        self._elements += sum(part.numel() for part in outputs)
        self._macs += _multiplications(getattr(func, "__name__", ""), args, outputs)
        NETWORK_OPERATIONS.check(self._operations, self._what, ArtifactError)
        NETWORK_MEGABYTES.check(self._elements * 4e-6, self._what, ArtifactError)
        NETWORK_GIGAMACS.check(self._macs * 1e-9, self._what, ArtifactError)
        return result


def _multiplications(operator: str, args: Any, outputs: list[Tensor]) -> int:
    count: int = 0
    if operator == "conv2d":
        count = outputs[0].numel() * math.prod(args[1].shape[1:])
    elif operator == "conv_transpose2d":
        count = args[0].numel() * math.prod(args[1].shape[1:])
    elif operator in ("matmul", "__matmul__", "bmm", "linear"):
        count = outputs[0].numel() * args[0].shape[-1]
    return count


@contextlib.contextmanager
def _built_modules(what: str) -> Iterator[None]:
    """Within: building is stopped where it exceeds the limits of modules or parameters."""
    modules = parameters = 0

    def count_module(*_: Any) -> None:
        nonlocal modules
        modules += 1
        NETWORK_MODULES.check(modules, what, ArtifactError)

    def count_parameters(_: nn.Module, __: str, parameter: nn.Parameter | None) -> None:
        nonlocal parameters
        parameters += parameter.numel() if parameter is not None else 0
        PARAMETERS.check(parameters, what, ArtifactError)

    hooks = [
        nn.modules.module.register_module_module_registration_hook(count_module),
        nn.modules.module.register_module_parameter_registration_hook(count_parameters),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def default_activation_kept() -> Iterator[None]:
    """Within: ``parse_model`` may fail, which else leaves its activation to every network of the process."""
    before = Conv.default_act
    try:
        yield
    finally:
        Conv.default_act = before


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
