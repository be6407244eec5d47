"""The layers of a network on any runtime, by one name each: read what each computes, or give each its input.

A layer is a module of the network: ``model.2.cv1.conv`` in PyTorch is the node ``/model.2/cv1/conv/Conv`` in ONNX and
in what OpenVINO makes of it. Its value is the output of the last node of that module which computes. What only moves
values (Concat, Split, MaxPool ...) and Q/DQ are part of the layer that reads them: the exporter moves Q/DQ past them,
so that their own outputs need not be equal in two right files.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import torch
from numpy.typing import NDArray

from trt_qat.errors import RunnerError
from trt_qat.evaluation.torch_runner import TorchRunner
from trt_qat.memory import check_memory
from trt_qat.model.loading import raw_output
from trt_qat.onnx_reading import read_onnx
from trt_qat.operators import ONNX_COPIES
from trt_qat.runtime.onnxruntime import open_session
from trt_qat.runtime.openvino import read_network
from trt_qat.runtime.packages import import_onnxruntime, import_openvino
from trt_qat.runtime.runner import Runner, image_size

Array = NDArray[np.float32]
Shape = tuple[int | None, ...] | None
"""Of one image's value; None where an axis may have any length, or nothing is known."""
OUTPUT: Final = "the output"
_NO_LAYER: Final = frozenset({"QuantizeLinear", "DequantizeLinear", *ONNX_COPIES})
_COUNTED = re.compile(r"_\d+$")


class Layers(Protocol):
    """A network whose layers can be read and given."""

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """The shape of each layer's value for one image, in an order in which they can be computed.

        The last is :data:`OUTPUT`, whose shape is not looked at.
        """
        ...

    @property
    def tensors(self) -> Mapping[str, str]:
        """The tensor that holds each layer's value, where the file names tensors."""
        ...

    def open(self, names: Sequence[str], *, given: bool) -> Probe:
        """Make it ready to be run.

        Args:
            names: the layers to read.
            given: what follows a layer reads what is given for it, not what it computes.

        Raises:
            RunnerError: the runtime cannot run it like that.
        """
        ...


class Probe(Protocol):
    """A network that tells what its layers compute."""

    def run(self, images: Array, given: Mapping[str, Array]) -> dict[str, Array]:
        """What each layer computes, by name.

        Args:
            images: shape (1, 3, *imgsz).
            given: the value of each layer for those that read it; empty where none were asked for.
        """
        ...


def layers_of(model: Path, runner: Runner) -> Layers:
    """The layers of what a runner runs.

    Raises:
        RunnerError: the runtime does not show them.
        ArtifactError: the file cannot be read.
    """
    if isinstance(runner, TorchRunner):
        return TorchLayers(runner)
    batch = runner.input_shape[0] or 1
    if runner.name == "onnxruntime":
        return OnnxLayers(model, batch)
    if runner.name == "openvino":
        return OpenVinoLayers(model, batch)
    raise RunnerError(
        f"'{model}' on {runner.name} does not show its layers: they are fused when the engine is built. Look for the "
        "first layer in the ONNX file that it was built from."
    )


@dataclass(frozen=True)
class _Node:
    """A node by its ONNX name, e.g. ``/model.2/cv1/conv/Conv``, the tensor that it makes, and its operator in ONNX."""

    name: str
    tensor: str
    operator: str

    @property
    def computes(self) -> bool:
        """Whether its output is a value of its own."""
        return self.operator not in _NO_LAYER

    @property
    def modules(self) -> list[str]:
        """The modules that it is in, outermost first: ``model.2``, ``model.2.cv1`` ...

        The exporter repeats a list's name before its entries': ``/model.22/cv2.0/cv2.0.1/conv`` is
        ``model.22.cv2.0.1.conv``.
        """
        found: list[str] = []
        outer, last = "", ""
        for part in self.name.strip("/").split("/")[:-1]:
            if not (last and part.startswith(f"{last}.")):
                outer = found[-1] if found else ""
            last = part
            found.append(f"{outer}.{part}".lstrip("."))
        return found


def _layer_tensors(nodes: Sequence[_Node]) -> dict[str, str]:
    """Layer to the tensor that holds its value, in the order of the nodes, which are those that read the images."""
    computing = [node for node in nodes if node.computes and node.name.startswith("/")]
    last = {module: node for node in computing for module in node.modules}
    scoped = {modules[-1]: node for node in computing if (modules := node.modules) and last[modules[-1]] is node}
    plain = {node.tensor: node for node in nodes if node.computes and not node.name.startswith("/")}
    order = {id(node): index for index, node in enumerate(nodes)}
    found = sorted({**scoped, **plain}.items(), key=lambda entry: order[id(entry[1])])
    return {layer: node.tensor for layer, node in found}


class TorchLayers:
    """The modules of a PyTorch network."""

    def __init__(self, runner: TorchRunner) -> None:
        self.tensors: Mapping[str, str] = {}
        self._network = runner.network
        imgsz = image_size(runner.metadata, runner.input_shape)
        found: list[tuple[str, Shape]] = []
        with ExitStack() as hooks, torch.no_grad():
            for name, module in self._modules().items():
                hooks.callback(module.register_forward_hook(_note(found, name)).remove)
            device = next(self._network.parameters()).device
            raw_output(self._network, torch.zeros(1, 3, *imgsz, device=device))
        runs = Counter(name for name, _ in found)  # one that runs again has several values
        self.shapes: Mapping[str, Shape] = {name: shape for name, shape in found if runs[name] == 1} | {OUTPUT: None}

    def open(self, names: Sequence[str], *, given: bool) -> Probe:
        """See :meth:`Layers.open`."""
        del given  # a hook without a value leaves what was computed
        modules = self._modules()
        return _TorchProbe(self._network, {name: modules[name] for name in names if name != OUTPUT})

    def _modules(self) -> dict[str, torch.nn.Module]:
        """Every module that is in the network once. Ultralytics' blocks share one activation: it ends its block."""
        named = dict(self._network.named_modules(remove_duplicate=False))
        ids = [id(module) for module in named.values()]
        found = {name: module for name, module in named.items() if name and ids.count(id(module)) == 1}
        for name, module in named.items():
            if hasattr(module, "act") and hasattr(module, "conv"):
                found.pop(name, None)
                found[f"{name}.act"] = module
        return found


@dataclass(frozen=True)
class _TorchProbe:
    network: Any
    modules: Mapping[str, torch.nn.Module]

    def run(self, images: Array, given: Mapping[str, Array]) -> dict[str, Array]:
        computed: dict[str, Array] = {}
        device = next(self.network.parameters()).device
        with ExitStack() as hooks, torch.no_grad():
            for name, module in self.modules.items():
                value = torch.from_numpy(given[name]).to(device) if name in given else None
                hooks.callback(module.register_forward_hook(_keep(computed, name, value)).remove)
            output = raw_output(self.network, torch.from_numpy(images).to(device))
        computed[OUTPUT] = output.cpu().numpy()
        return computed


def _note(found: list[tuple[str, Shape]], name: str) -> Any:
    def hook(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        del module, inputs
        if isinstance(output, torch.Tensor):
            found.append((name, tuple(output.shape[1:])))

    return hook


def _keep(computed: dict[str, Array], name: str, value: torch.Tensor | None) -> Any:
    def hook(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
        del module, inputs
        computed[name] = output.detach().cpu().numpy().copy()  # the next module may work in place
        return value

    return hook


class OnnxLayers:
    """The nodes of an ONNX file, on ONNX Runtime."""

    def __init__(self, path: Path, batch: int) -> None:
        self._path, self._batch = path, batch
        model = read_onnx(path, external_data=True)
        with _one_line(f"The layers of '{path}' cannot be told apart"):
            self._graph = gs.import_onnx(onnx.shape_inference.infer_shapes(model))
            self._graph.toposort()
        reached = {id(tensor) for tensor in self._graph.inputs}
        nodes: list[_Node] = []
        for node in self._graph.nodes:
            if node.op != "Shape" and any(id(tensor) in reached for tensor in node.inputs):  # reads no value
                reached |= {id(tensor) for tensor in node.outputs}
                if all(tensor is not node.outputs[0] for tensor in self._graph.outputs):  # that is OUTPUT
                    nodes.append(_Node(node.name, node.outputs[0].name, node.op))
        self.tensors, known = _layer_tensors(nodes), self._graph.tensors()
        shapes = {name: known[tensor].shape for name, tensor in self.tensors.items()}
        self.shapes = {name: _of_one_image(shape) for name, shape in shapes.items()} | {OUTPUT: None}

    def open(self, names: Sequence[str], *, given: bool) -> Probe:
        """See :meth:`Layers.open`."""
        graph = self._graph.copy()
        tensors = graph.tensors()
        wanted = {name: tensors[self.tensors[name]] for name in names if name != OUTPUT}
        last = graph.outputs[0]
        inputs: dict[str, str] = {}
        for name, tensor in wanted.items() if given else ():
            inputs[name] = f"{tensor.name}/given"
            value = gs.Variable(inputs[name], tensor.dtype, tensor.shape)
            for reader in list(tensor.outputs):
                reader.inputs = [value if entry is tensor else entry for entry in reader.inputs]
            graph.inputs.append(value)
        graph.outputs = [*(tensor for tensor in wanted.values() if tensor is not last), last]
        content = gs.export_onnx(graph).SerializeToString()
        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # failures arrive as exceptions
        with _one_line(f"ONNX Runtime cannot show the layers of '{self._path}'"):
            session = open_session(onnxruntime, content, options)
        values = {name: tensor.name for name, tensor in wanted.items()} | {OUTPUT: last.name}
        return _OnnxProbe(session, graph.inputs[0].name, inputs, values, self._batch)


@dataclass(frozen=True)
class _OnnxProbe:
    session: Any
    images: str
    inputs: Mapping[str, str]
    values: Mapping[str, str]
    batch: int

    def run(self, images: Array, given: Mapping[str, Array]) -> dict[str, Array]:
        types = {entry.name: entry.type for entry in self.session.get_inputs()}
        feed = {self.images: images, **{self.inputs[name]: given[name] for name in self.inputs}}
        typed = {
            name: _repeated(value, self.batch).astype(np.float16 if types[name] == "tensor(float16)" else np.float32)
            for name, value in feed.items()
            if name in types
        }
        with _one_line("ONNX Runtime failed to run layer by layer"):
            found = dict(zip(self.values.values(), self.session.run([*self.values.values()], typed), strict=True))
        return {name: np.asarray(found[tensor][:1], np.float32) for name, tensor in self.values.items()}


class OpenVinoLayers:
    """The operators of an ONNX file or an IR, on OpenVINO."""

    def __init__(self, model: Path, batch: int) -> None:
        self._model, self._batch = model, batch
        reached: set[str] = set()
        nodes: list[_Node] = []
        shapes: dict[str, Shape] = {}
        for operator in self._read().get_ordered_ops():
            own = operator.get_name()
            sources = [value.get_source_output().get_node().get_name() for value in operator.inputs()]
            if operator.get_type_name() == "ShapeOf":  # reads no value, and what follows from it is no layer
                continue
            if operator.get_type_name() != "Parameter" and not any(source in reached for source in sources):
                continue
            reached.add(own)
            names = sorted(operator.output(0).get_names()) if operator.outputs() else []
            if names and operator.get_type_name() not in ("Parameter", "Result") and not _is_output(operator.output(0)):
                name = operator.get_friendly_name()  # /model.0/act/Mul_1, of which OpenVINO made a Multiply
                nodes.append(_Node(name, names[0], _COUNTED.sub("", name.rpartition("/")[2])))
                shapes[names[0]] = _shape_of(operator.output(0).get_partial_shape())
        self.tensors = _layer_tensors(nodes)
        self.shapes = {name: shapes[tensor] for name, tensor in self.tensors.items()} | {OUTPUT: None}

    def open(self, names: Sequence[str], *, given: bool) -> Probe:
        """See :meth:`Layers.open`."""
        openvino = import_openvino()
        from openvino import opset13 as operators

        network = self._read()
        values = {name: value for value in _values(network) for name in value.get_names()}
        wanted = {name: values[self.tensors[name]] for name in names if name != OUTPUT}
        parameters: dict[str, Any] = {}
        for name, value in wanted.items() if given else ():
            readers = [target for target in value.get_target_inputs() if target.get_node().get_type_name() != "Result"]
            parameters[name] = operators.parameter(value.get_partial_shape(), value.get_element_type())
            for target in readers:
                target.replace_source_output(parameters[name].output(0))
        network.add_parameters([*parameters.values()])
        added = dict(zip(wanted, network.add_outputs([*wanted.values()]), strict=True)) if wanted else {}
        order = [network.get_result_index(output) for output in added.values()]
        with _one_line(f"OpenVINO cannot show the layers of '{self._model}'"):
            compiled = openvino.Core().compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return _OpenVinoProbe(
            compiled, [*parameters], dict(zip([*added, OUTPUT], [*order, 0], strict=True)), self._batch
        )

    def _read(self) -> Any:
        return read_network(self._model)


@dataclass(frozen=True)
class _OpenVinoProbe:
    compiled: Any
    parameters: Sequence[str]
    results: Mapping[str, int]
    batch: int

    def run(self, images: Array, given: Mapping[str, Array]) -> dict[str, Array]:
        feed = [images, *(given[name] for name in self.parameters)]
        typed = [
            _repeated(value, self.batch).astype(port.get_element_type().to_dtype())
            for value, port in zip(feed, self.compiled.inputs, strict=True)
        ]
        with _one_line("OpenVINO failed to run layer by layer"):
            found = self.compiled(typed)
        return {name: np.array(found[index][:1], np.float32) for name, index in self.results.items()}


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    """A library's failure as a RunnerError; theirs share no base class below Exception."""
    try:
        yield
    except Exception as exc:
        check_memory(exc)
        raise RunnerError(
            f"{what}: {' '.join(str(exc).split())[:300].rstrip('.')}. Compare the outputs alone."
        ) from exc


def _values(network: Any) -> Iterator[Any]:
    for operator in network.get_ordered_ops():
        yield from operator.outputs()


def _repeated(value: Array, batch: int) -> Array:
    return np.repeat(value, batch, axis=0) if batch > 1 else value


def _is_output(value: Any) -> bool:
    return any(target.get_node().get_type_name() == "Result" for target in value.get_target_inputs())


def _of_one_image(shape: Sequence[Any] | None) -> Shape:
    return tuple(axis if isinstance(axis, int) else None for axis in shape[1:]) if shape else None


def _shape_of(partial: Any) -> Shape:
    if partial.rank.is_dynamic:
        return None
    return tuple(None if axis.is_dynamic else axis.get_length() for axis in list(partial)[1:])


def common_layers(first: Layers, second: Layers) -> list[str]:
    """The layers that both have, in the order of the first.

    Of one shape and one tensor as far as these are known: the head ends in boxes and in scores, and which of the two a
    file lists last is chance.
    """
    ours, theirs = first.shapes, second.shapes
    both = [name for name in ours if name in theirs]
    both = [name for name in both if _may_be_one(ours[name], theirs[name])]
    named = first.tensors.keys() & second.tensors.keys()
    return [name for name in both if name not in named or first.tensors[name] == second.tensors[name]]


def _may_be_one(first: Shape, second: Shape) -> bool:
    if first is None or second is None:
        return True
    return len(first) == len(second) and all(a == b or None in (a, b) for a, b in zip(first, second, strict=True))
