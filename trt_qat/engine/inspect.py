"""Look into a built engine on a GPU: the same report as a build's log gives without one.

The source is TensorRT's IEngineInspector. Its JSON changed from 10.x (``Bindings``, a list of names) to 11.x
(``I/O Tensors``, a list of objects), and TensorRT-RTX lists types by themselves where TensorRT puts them into a
sentence ("Thirty-two wide channel vectorized row major Int8 format"); all are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from trt_qat.artifacts import existing_file
from trt_qat.engine.compiled import CompiledEngine, CompiledTensor, Kernel
from trt_qat.engine.engine_file import read_engine
from trt_qat.engine.flavor import import_tensorrt, tensorrt_logger
from trt_qat.engine.gpu import gpu_names
from trt_qat.engine.kernel_work import make_kernel
from trt_qat.errors import EngineError
from trt_qat.reading import parse_json

_TYPES: Final[Mapping[str, str]] = {
    "fp32": "Float", "float": "Float", "fp16": "Half", "half": "Half", "bf16": "BFloat16", "bfloat16": "BFloat16",
    "fp8": "FP8", "int8": "Int8", "uint8": "UInt8", "int32": "Int32", "int64": "Int64", "bool": "Bool",
}  # fmt: skip
_TYPE: Final = re.compile(rf"\b({'|'.join(_TYPES)})\b", re.IGNORECASE)
_NODE: Final = re.compile(r"\[ONNX Layer: ([^\x1e\x1f]*)\]")


def inspect_engine(plan: Path, flavor: str | None = None, batch: int = 1) -> CompiledEngine:
    """The kernels of a ``*.plan`` or ``*.engine``. Needs a GPU that can run it.

    Args:
        flavor: "tensorrt" or "tensorrt-rtx"; by default what the side-car or header says.
        batch: images per inference, for an engine with a free batch axis.

    Raises:
        ArtifactError: the plan or its side-car is missing or not what it should be.
        MissingDependency: the TensorRT package is missing.
        EngineError: no GPU, or the plan cannot be loaded or read.
    """
    existing_file(plan, "Plan")
    if not gpu_names():
        raise EngineError(
            "No NVIDIA GPU found: an engine can be inspected only on a GPU that can run it. "
            "Inspect the *.onnx instead: that needs none."
        )
    described, content = read_engine(plan)
    flavor = flavor or described.flavor
    trt: Any = import_tensorrt(flavor)
    logger, errors = tensorrt_logger(trt)
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        reason = f": {errors[-1]}" if errors else ""
        raise EngineError(f"TensorRT {trt.__version__} cannot load '{plan}'{reason}. Build the engine again.")
    inspector = engine.create_engine_inspector()
    context = engine.create_execution_context()
    _set_batch(engine, context, batch, trt)
    inspector.execution_context = context  # else a free axis is shown as -1
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    return engine_from_json(text, source=str(plan), flavor=flavor, version=trt.__version__, plan_bytes=len(content))


def _set_batch(engine: Any, context: Any, batch: int, trt: Any) -> None:
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        shape = tuple(engine.get_tensor_shape(name))
        if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT and -1 in shape:
            context.set_input_shape(name, (batch, *shape[1:]))


def engine_from_json(
    text: str, *, source: str = "engine", flavor: str = "tensorrt", version: str = "?", plan_bytes: int = 0
) -> CompiledEngine:
    """Parse IEngineInspector's JSON, 10.x or 11.x.

    Raises:
        EngineError: it is not that JSON, or names a type or a convolution that cannot be counted.
    """
    content = parse_json(text, "The engine inspector's JSON is not understood: it", EngineError)
    try:
        kernels = tuple(_kernel(entry) for entry in content["Layers"])
        inputs, outputs = _bindings(content, kernels)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as exc:
        raise EngineError(f"The engine inspector's JSON is not understood ({type(exc).__name__}: {exc}).") from exc
    launched = tuple(kernel for kernel in kernels if kernel.kind not in ("signal", "wait"))
    return CompiledEngine(source, flavor, version, None, launched, plan_bytes, inputs, outputs)


def _kernel(entry: str | Mapping[str, Any]) -> Kernel:
    if isinstance(entry, str):  # the engine was built with LAYER_NAMES_ONLY
        return Kernel(entry, "", (), (), (), (), 0)
    inputs, outputs, constants = (_tensors(entry.get(what, ())) for what in ("Inputs", "Outputs", "Constants"))
    constants += tuple(_weights(entry))
    nodes = tuple(_NODE.findall(entry.get("Metadata", "")))
    name, kind = entry["Name"], entry.get("LayerType", "")
    kernel = make_kernel(name, kind, nodes, inputs, outputs, constants, None)
    activation = entry.get("Activation", "NONE")
    if activation != "NONE":
        kernel = replace(kernel, onnx_ops=(*kernel.onnx_ops, activation.capitalize()))
    return kernel


def _weights(entry: Mapping[str, Any]) -> Iterable[CompiledTensor]:
    """TensorRT says of a convolution's constants only how many numbers they are."""
    for what in ("Weights", "Bias"):
        listed = entry.get(what, {})
        if listed.get("Count", 0):
            yield CompiledTensor(what.lower(), _dtype(listed["Type"]), (_whole(listed["Count"]),))


def _tensors(entries: Iterable[Mapping[str, Any]]) -> tuple[CompiledTensor, ...]:
    return tuple(_tensor(entry) for entry in entries)


def _tensor(entry: Mapping[str, Any]) -> CompiledTensor:
    parts = [entry.get(key, "") for key in ("Format/Datatype", "Format", "Datatype", "DataType")]
    text = " ".join(part for part in parts if part)
    shape = tuple(_whole(size) for size in entry["Dimensions"])
    if any(size < 0 for size in shape):
        raise EngineError(f"Tensor '{entry['Name']}' has the free shape {shape}: its bytes cannot be counted.")
    return CompiledTensor(entry["Name"], _dtype(text), shape, text)


def _whole(number: Any) -> int:
    if type(number) is not int:  # True is one of Python's ints
        raise ValueError(f"{number!r} is no whole number")
    return number


def _dtype(text: str) -> str:
    """The one data type that a description names."""
    found = {_TYPES[word.lower()] for word in _TYPE.findall(text)}
    if len(found) != 1:
        raise EngineError(f"The engine inspector names no data type that is known: '{text[:80]}'.")
    return found.pop()


def _bindings(
    content: Mapping[str, Any], kernels: tuple[Kernel, ...]
) -> tuple[tuple[CompiledTensor, ...], tuple[CompiledTensor, ...]]:
    """Inputs and outputs of the engine, with the shapes that its layers give them."""
    if "I/O Tensors" in content:
        names = [entry["Name"] for entry in content["I/O Tensors"]]
    else:
        names = list(content.get("Bindings", ()))
    read = {tensor.name: tensor for kernel in kernels for tensor in kernel.inputs}
    written = {tensor.name: tensor for kernel in kernels for tensor in kernel.outputs}
    inputs = tuple(read[name] for name in names if name in read and name not in written)
    return inputs, tuple(written[name] for name in names if name in written)
