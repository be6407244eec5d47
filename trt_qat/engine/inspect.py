"""Look into a built engine: which layers are there, and which of them compute in INT8.

The source is TensorRT's IEngineInspector. Its JSON changed from 10.x (``Bindings``, a list of names)
to 11.x (``I/O Tensors``, a list of objects); both are read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trt_qat.artifacts import existing_file
from trt_qat.engine.flavor import import_tensorrt, tensorrt_logger
from trt_qat.engine.gpu import gpu_names
from trt_qat.errors import EngineError


@dataclass(frozen=True)
class EngineTensor:
    """A tensor between two engine layers; ``format`` names memory layout and type, e.g. "Int8 NC/32HW32"."""

    name: str
    shape: tuple[int, ...]
    format: str

    @property
    def is_int8(self) -> bool:
        """The tensor is stored in 8 bits."""
        return "int8" in self.format.lower()


@dataclass(frozen=True)
class EngineLayer:
    """One layer of the engine, after fusion.

    Attributes:
        kind: TensorRT's layer type; empty if the engine was not built with detailed verbosity.
        touches_io: it reads an input or writes an output of the engine.
    """

    name: str
    kind: str
    inputs: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]
    touches_io: bool

    @property
    def is_int8(self) -> bool:
        """It reads INT8 data, so that it computes in INT8 (a reformat or a copy only moves it)."""
        return any(tensor.is_int8 for tensor in self.inputs)


def inspect_engine(plan: Path, flavor: str) -> list[EngineLayer]:
    """The layers of a plan. Needs a GPU that can run it.

    Raises:
        ArtifactError: the plan is missing.
        MissingDependency: the TensorRT package is missing.
        EngineError: no GPU, or the plan cannot be loaded.
    """
    existing_file(plan, "Plan")
    if not gpu_names():
        raise EngineError("No NVIDIA GPU found: an engine can be inspected only on a GPU that can run it.")
    trt: Any = import_tensorrt(flavor)
    logger, errors = tensorrt_logger(trt)
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(plan.read_bytes())
    if engine is None:
        reason = f": {errors[-1]}" if errors else ""
        raise EngineError(f"TensorRT {trt.__version__} cannot load '{plan}'{reason}. Build the engine again.")
    inspector = engine.create_engine_inspector()
    return layers_from_json(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def layers_from_json(text: str) -> list[EngineLayer]:
    """Parse IEngineInspector's JSON, 10.x or 11.x.

    Raises:
        EngineError: it is not that JSON.
    """
    try:
        content = json.loads(text)
        io_names = _io_names(content)
        return [_layer(entry, io_names) for entry in content["Layers"]]
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise EngineError(f"The engine inspector's JSON is not understood ({type(exc).__name__}: {exc}).") from exc


def _io_names(content: Mapping[str, Any]) -> frozenset[str]:
    if "I/O Tensors" in content:
        return frozenset(entry["Name"] for entry in content["I/O Tensors"])
    return frozenset(content.get("Bindings", ()))


def _layer(entry: str | Mapping[str, Any], io_names: frozenset[str]) -> EngineLayer:
    if isinstance(entry, str):  # the engine was built with LAYER_NAMES_ONLY
        return EngineLayer(entry, "", (), (), touches_io=False)
    inputs = tuple(_tensor(tensor) for tensor in entry.get("Inputs", ()))
    outputs = tuple(_tensor(tensor) for tensor in entry.get("Outputs", ()))
    touches_io = any(tensor.name in io_names for tensor in inputs + outputs)
    return EngineLayer(entry["Name"], entry.get("LayerType", ""), inputs, outputs, touches_io)


def _tensor(entry: Mapping[str, Any]) -> EngineTensor:
    parts = [entry.get(key, "") for key in ("Format/Datatype", "Format", "Datatype", "DataType")]
    return EngineTensor(entry["Name"], tuple(entry.get("Dimensions", ())), " ".join(part for part in parts if part))
