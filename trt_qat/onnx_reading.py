"""An ONNX file from outside, proved to be sound before anything native sees it.

ONNX Runtime, OpenVINO, TensorRT and onnx's own C++ take a file at its word: sizes that are negative or larger than
the data, nodes in a circle, nesting without end or data outside of the folder end in a crash or worse.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Final

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import AttributeProto, TensorProto, external_data_helper, helper, numpy_helper, shape_inference

from trt_qat.artifacts import existing_file
from trt_qat.errors import ArtifactError
from trt_qat.limits import ONNX_MEGABYTES, ONNX_NODES, ONNX_ROW, ONNX_VALUES
from trt_qat.metadata import LARGEST_SIDE, SMALLEST_SIDE, read_metadata
from trt_qat.reading import read_bytes, regular_file, shortened

_DEEPEST: Final = 8  # graphs inside of a node's attribute, inside of another one's
_SMALL: Final = 256  # values of a tensor that may be a shape
_BREAKS_ROWS: Final = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})
_LONGEST_AXIS: Final = 1 << 31
_ADVICE: Final = "Export or copy it again."
_ATTRIBUTE_FIELDS: Final = frozenset(AttributeProto.AttributeType.values()) - {AttributeProto.UNDEFINED}
_SMALLEST: Final = {"kernel_shape": 1, "strides": 1, "dilations": 1, "group": 1, "pads": 0}
_INPUT_TYPES: Final = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16})
_OUTPUT_TYPES: Final = _INPUT_TYPES | {
    TensorProto.DOUBLE,
    TensorProto.BFLOAT16,
    TensorProto.INT64,
    TensorProto.INT32,
    TensorProto.INT8,
    TensorProto.UINT8,
    TensorProto.BOOL,
}


def read_onnx(path: Path, *, external_data: bool = False) -> onnx.ModelProto:
    """Read an ONNX file and prove that its graph is sound.

    Args:
        external_data: load the weights that stand in files beside it, too; they are checked in any case.

    Raises:
        ArtifactError: missing, no regular file, too large, truncated, not ONNX, or not sound; the line says where.
    """
    existing_file(path, "ONNX file")
    content = read_bytes(path, "ONNX file", ONNX_MEGABYTES)
    try:
        model = onnx.load_model_from_string(content)
    except (DecodeError, ValueError, RecursionError) as exc:  # the first: bytes that are no protobuf message
        raise ArtifactError(f"'{path}' is not an ONNX file, or it is truncated. {_ADVICE}") from exc
    if not model.graph.node:  # some other bytes decode as a message without a graph
        raise ArtifactError(f"'{path}' is not an ONNX file: it holds no graph (0 nodes). {_ADVICE}")
    try:
        _check_model(model, path)
    except ValueError as exc:
        raise ArtifactError(f"'{path}' is not a sound ONNX file: {exc}. {_ADVICE}") from exc
    if external_data:
        for tensor in _tensors(model):
            if external_data_helper.uses_external_data(tensor):
                external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
    return model


def read_detector(path: Path) -> onnx.ModelProto:
    """Read an ONNX file that a runtime shall open: sound, one image input, metadata that can be read.

    The weights in files beside it are not loaded.

    Raises:
        ArtifactError: see :func:`read_onnx`; or the input or the metadata are not a detector's.
    """
    model = read_onnx(path)
    _check_input(model.graph, path)
    try:
        _check_rows(model.graph, path)
        _check_shapes(model)
        for tensor in _tensors(model):
            _check_finite(tensor, path.parent)
    except ValueError as exc:
        raise ArtifactError(f"'{path}' is not a sound ONNX file: {exc}. {_ADVICE}") from exc
    read_metadata(metadata_texts(model), f"'{path}'")
    return model


def metadata_texts(model: onnx.ModelProto) -> dict[str, str]:
    """``metadata_props`` as a dict."""
    return {entry.key: entry.value for entry in model.metadata_props}


def _check_input(graph: onnx.GraphProto, path: Path) -> None:
    stored = {tensor.name for tensor in graph.initializer}
    inputs = [info for info in graph.input if info.name not in stored]
    found = ", ".join(f"{info.name}: {_type_name(info)}" for info in inputs[:5])
    if len(inputs) != 1:
        raise ArtifactError(
            f"'{path}' has {len(inputs)} inputs; a detector has one, the images. Found {found or 'none'}."
        )
    tensor = inputs[0].type.tensor_type
    if tensor.elem_type not in _INPUT_TYPES:
        raise ArtifactError(f"'{path}' must have one float input, the images in [0, 1]; found {found}.")
    for info in graph.output:
        if info.type.WhichOneof("value") != "tensor_type" or info.type.tensor_type.elem_type not in _OUTPUT_TYPES:
            raise ArtifactError(f"'{path}' must have numbers as output; found {info.name}: {_type_name(info)}.")
    sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
    if len(sizes) != 4 or sizes[0] == 0 or sizes[1] not in (1, 2, 3, 4, None):
        shown = ", ".join("any" if size is None else str(size) for size in sizes[:8])
        raise ArtifactError(f"'{path}': the model's input must be (batch, 3, height, width), found ({shown}).")
    if sizes[1] not in (3, None):
        raise ArtifactError(
            f"'{path}': the model's input must have 3 channels, red, green and blue; it has {sizes[1]} "
            f"channel{'' if sizes[1] == 1 else 's'}. Use a model for colour images."
        )
    for size in sizes[2:]:
        if size is not None and not SMALLEST_SIDE <= size <= LARGEST_SIDE:
            raise ArtifactError(
                f"'{path}': the model's input is {sizes[2]} x {sizes[3]} pixels, "
                f"{SMALLEST_SIDE} to {LARGEST_SIDE} are allowed. Export it at another size."
            )


def _type_name(info: onnx.ValueInfoProto) -> str:
    kind = info.type.WhichOneof("value")
    if kind != "tensor_type":
        return str(kind)
    return _data_type_name(info.type.tensor_type.elem_type)


def _data_type_name(number: int) -> str:
    known: Mapping[int, str] = {value: name.lower() for name, value in TensorProto.DataType.items()}
    return known.get(number, f"type {number}")


def _check_model(model: onnx.ModelProto, path: Path) -> None:
    """Everything that holds for the whole file.

    Raises:
        ValueError: without the file's name.
    """
    if not model.opset_import or not all(0 < entry.version < 1000 for entry in model.opset_import):
        raise ValueError("it names no operator set, or one that cannot be")
    for text in _texts(model):
        if not isinstance(text, str):  # protobuf gives bytes where a text is not UTF-8
            raise ValueError(f"the name {shortened(text)} is not UTF-8")
    if not 1 <= model.ir_version < 1000:
        raise ValueError(f"its IR version is {model.ir_version}")
    versions = {entry.domain: entry.version for entry in model.opset_import}
    graphs = list(_graphs(model))
    nodes = sum(len(graph.node) for graph, _ in graphs)
    ONNX_NODES.check(nodes, f"'{path}'", ArtifactError)
    ONNX_NODES.check(_inlined(model), f"'{path}' with its functions written out", ArtifactError)
    for graph, depth in graphs:
        if depth > _DEEPEST:
            raise ValueError(f"graphs are nested more than {_DEEPEST} deep")
        for node in graph.node:
            _check_node(node, versions)
    _check_order(model.graph)
    for function in model.functions:
        _check_names(function.node, set(function.input), f"function {shortened(function.name)}")
    for info in (*model.graph.input, *model.graph.output):
        for dim in info.type.tensor_type.shape.dim:
            if not 0 <= dim.dim_value < _LONGEST_AXIS:
                raise ValueError(f"'{info.name}' has an axis of {dim.dim_value}")
    if not model.graph.output:
        raise ValueError("the graph has no output")
    for tensor in _tensors(model):
        _check_tensor(tensor, path.parent)
    for graph, _ in graphs:
        if isinstance(graph, onnx.GraphProto) and graph.sparse_initializer:
            raise ValueError("it holds sparse weights, which no runtime here takes")


def _check_rows(graph: onnx.GraphProto, path: Path) -> None:
    """OpenVINO's time grows with the cube of how many operators follow each other without a convolution between."""
    behind: dict[str, int] = {}
    longest = 0
    for node in graph.node:
        length = 0 if node.op_type in _BREAKS_ROWS else 1 + max((behind.get(name, 0) for name in node.input), default=0)
        longest = max(longest, length)
        behind |= dict.fromkeys(node.output, length)
    ONNX_ROW.check(longest, f"'{path}'", ArtifactError)


def _check_shapes(model: onnx.ModelProto) -> None:
    """Operators and the shapes that they get fit each other, and no tensor is larger than memory.

    Raises:
        ValueError: they do not; runtimes crash on some such files.
    """
    try:
        inferred = shape_inference.infer_shapes(_without_weights(model), strict_mode=True, data_prop=True)
    except (shape_inference.InferenceError, RuntimeError) as exc:
        raise ValueError(f"its shapes do not fit: {' '.join(str(exc).split())[:300]}") from exc
    infos = (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output)
    counts = {info.name: _count(info) for info in infos}
    for name, count in counts.items():
        ONNX_VALUES.check(count or 0, f"Tensor {shortened(name)} of the model", ArtifactError)
    for info in inferred.graph.output:
        if counts[info.name] == 0:
            raise ValueError(f"its output {shortened(info.name)} is empty")
    for node in inferred.graph.node:
        if node.op_type == "Reshape":
            given, made = counts.get(node.input[0]), counts.get(node.output[0])
            if given is not None and made is not None and given != made:
                raise ValueError(f"node {shortened(node.name)} reshapes {given} values to {made}")


def _count(info: onnx.ValueInfoProto) -> int | None:
    """How many values a tensor has; None if a size is not known."""
    tensor = info.type.tensor_type
    if not tensor.HasField("shape") or not all(dim.HasField("dim_value") for dim in tensor.shape.dim):
        return None
    return math.prod(int(dim.dim_value) for dim in tensor.shape.dim)


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with small tensors only, the others as inputs of the same shape; shapes inside it are left out."""
    bare = onnx.ModelProto(ir_version=model.ir_version)
    bare.opset_import.extend(model.opset_import)
    bare.functions.extend(model.functions)
    bare.graph.name = "graph"
    bare.graph.node.extend(model.graph.node)
    stored = {tensor.name for tensor in model.graph.initializer}
    bare.graph.input.extend(info for info in model.graph.input if info.name not in stored)
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= _SMALL and not external_data_helper.uses_external_data(tensor):
            bare.graph.initializer.append(tensor)
        else:
            bare.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    for info in model.graph.output:
        bare.graph.output.append(onnx.ValueInfoProto(name=info.name))
        bare.graph.output[-1].type.tensor_type.elem_type = info.type.tensor_type.elem_type
    return bare


def _texts(model: onnx.ModelProto) -> Iterator[Any]:
    for entry in (*model.metadata_props, *(prop for graph, _ in _graphs(model) for prop in _node_metadata(graph))):
        yield from (entry.key, entry.value)
    for opset in model.opset_import:
        yield opset.domain
    for function in model.functions:
        yield from (function.name, function.domain, *function.input, *function.output, *function.attribute)
    for graph, _ in _graphs(model):
        for node in graph.node:
            yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
            for attribute in node.attribute:
                yield from (attribute.name, attribute.ref_attr_name)
        if isinstance(graph, onnx.GraphProto):
            for info in (*graph.input, *graph.output, *graph.value_info):
                yield from (info.name, *(dim.dim_param for dim in info.type.tensor_type.shape.dim))
    for tensor in _tensors(model):
        yield tensor.name
        for entry in tensor.external_data:
            yield from (entry.key, entry.value)


def _node_metadata(graph: _Graph) -> Iterator[Any]:
    for node in graph.node:
        yield from node.metadata_props


_Graph = Any  # GraphProto or FunctionProto: both have nodes


def _graphs(model: onnx.ModelProto) -> Iterator[tuple[_Graph, int]]:
    """The graph, the functions, and the graphs inside of their nodes, with how deep they lie."""
    left: list[tuple[_Graph, int]] = [(model.graph, 0), *((function, 0) for function in model.functions)]
    while left:
        graph, depth = left.pop()
        yield graph, depth
        for node in graph.node:
            left += [(inner, depth + 1) for inner in _inner_graphs(node)]


def _inner_graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH or attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    for graph, _ in _graphs(model):
        if isinstance(graph, onnx.GraphProto):
            yield from graph.initializer
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                    raise ValueError(f"node {shortened(node.name)} holds a sparse tensor, which no runtime here takes")


def _inlined(model: onnx.ModelProto) -> float:
    """How many nodes there are once every call of a function is replaced by its body.

    Raises:
        ValueError: a function calls itself.
    """
    functions = {(function.domain, function.name): function for function in model.functions}
    sizes: dict[tuple[str, str], float] = {}
    left, open_calls = list(functions), set[tuple[str, str]]()
    while left:
        key = left[-1]
        calls = [inner for node in functions[key].node if (inner := (node.domain, node.op_type)) in functions]
        missing = [inner for inner in calls if inner not in sizes]
        if not missing or key in sizes:
            sizes[key] = len(functions[key].node) + sum(sizes[inner] for inner in calls)
            open_calls.discard(key)
            left.pop()
        elif key in open_calls and any(inner in open_calls for inner in missing):
            raise ValueError(f"function {shortened(key[1])} calls itself")
        else:
            open_calls.add(key)
            left += missing
    return len(model.graph.node) + sum(sizes.get((node.domain, node.op_type), 0) for node in model.graph.node)


def _check_node(node: onnx.NodeProto, versions: Mapping[str, int]) -> None:
    """Inputs, outputs and attributes are those of the operator, where it is one of ONNX's own.

    An operator of another domain that has the name of one of ONNX's (ONNX Runtime's QuantizeLinear) is held to it, too.
    """
    what = f"node {shortened(node.name or node.op_type)}"
    if not node.op_type or not node.output:
        raise ValueError(f"{what} has no operator or no output")
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            continue  # a function's own argument
        if attribute.type not in _ATTRIBUTE_FIELDS:
            raise ValueError(f"{what} has the attribute {shortened(attribute.name)} of unknown type {attribute.type}")
    version = versions.get("", versions.get("ai.onnx", 0)) or onnx.defs.onnx_opset_version()
    try:
        schema = onnx.defs.get_schema(node.op_type, min(version, onnx.defs.onnx_opset_version()))
    except onnx.defs.SchemaError:
        return  # unknown: the runtime says what it thinks of it
    for kind, found, least, most in (
        ("inputs", len(node.input), schema.min_input, schema.max_input),
        ("outputs", len(node.output), schema.min_output, schema.max_output),
    ):
        if not least <= found <= most:
            raise ValueError(f"{what} is a {node.op_type} with {found} {kind}, it takes {least} to {most}")
    if node.domain in ("", "ai.onnx"):
        _check_attributes(node, schema, what)


def _check_attributes(node: onnx.NodeProto, schema: onnx.defs.OpSchema, what: str) -> None:
    given = {attribute.name: attribute for attribute in node.attribute}
    for name, wanted in schema.attributes.items():
        found = given.get(name)
        if found is None and wanted.required:
            raise ValueError(f"{what} is a {node.op_type} without {name}")
        if found is not None and not found.ref_attr_name and found.type != int(wanted.type):  # type: ignore[call-overload]
            raise ValueError(f"{what} is a {node.op_type} whose {name} has the wrong type")
        if found is not None and name in _SMALLEST:
            numbers, least = list(_numbers(found)), _SMALLEST[name]
            if not all(least <= number < _LONGEST_AXIS for number in numbers):
                raise ValueError(f"{what} is a {node.op_type} with {name} = {shortened(numbers)}")


def _numbers(attribute: AttributeProto) -> Iterable[int]:
    return (attribute.i,) if attribute.type == AttributeProto.INT else attribute.ints


def _check_order(graph: onnx.GraphProto) -> None:
    """Every node reads what stands before it, as ONNX wants it: no circles. Inner graphs see what is around them."""
    known = {info.name for info in graph.input} | {tensor.name for tensor in graph.initializer}
    _check_names(graph.node, known, "the graph")
    for info in graph.output:
        if info.name not in known:
            raise ValueError(f"no node makes the output {shortened(info.name)}")


def _check_names(nodes: Iterable[onnx.NodeProto], known: set[str], where: str) -> None:
    """Add what the nodes make to ``known``."""
    for node in nodes:
        for name in node.input:
            if name and name not in known:
                raise ValueError(
                    f"node {shortened(node.name or node.op_type)} reads {shortened(name)}, which nothing before it "
                    f"in {where} makes"
                )
        for name in node.output:
            if name in known:
                raise ValueError(f"{shortened(name)} is made twice in {where}")
            if name:
                known.add(name)


def _check_tensor(tensor: TensorProto, folder: Path) -> None:
    """Type, sizes and data of a stored tensor fit each other; data in another file are inside of that file."""
    name = shortened(tensor.name)
    if tensor.data_type == TensorProto.STRING:
        raise ValueError(f"tensor {name} holds strings, which no detector needs")
    if tensor.data_type not in _BITS:
        raise ValueError(f"tensor {name} has the unknown type {tensor.data_type}")
    if not all(0 <= size < _LONGEST_AXIS for size in tensor.dims):
        raise ValueError(f"tensor {name} has sizes {shortened(list(tensor.dims))}")
    if tensor.HasField("segment"):
        raise ValueError(f"tensor {name} is stored in segments")
    count = math.prod(tensor.dims)
    size = -(-count * _BITS[tensor.data_type] // 8)
    if external_data_helper.uses_external_data(tensor):
        _check_external(tensor, size, folder)
        return
    if tensor.HasField("raw_data"):
        if len(tensor.raw_data) != size:
            raise ValueError(f"tensor {name} takes {size} bytes, {len(tensor.raw_data)} are there")
        return
    field = helper.tensor_dtype_to_field(tensor.data_type)
    found = len(getattr(tensor, field))
    wanted = count if _BITS[tensor.data_type] >= 8 else -(-count * _BITS[tensor.data_type] // 8)
    if found != wanted * (2 if tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128) else 1):
        raise ValueError(f"tensor {name} takes {wanted} numbers, {found} are there")


def _check_external(tensor: TensorProto, size: int, folder: Path) -> None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location, name = entries.get("location", ""), shortened(tensor.name)
    parts = PurePosixPath(location).parts
    outside = PurePosixPath(location).is_absolute() or PureWindowsPath(location).anchor or ".." in parts
    if not parts or outside or "\\" in location or "\0" in location:
        raise ValueError(f"tensor {name} wants its data from {shortened(location)}, outside of the file's folder")
    file = folder / location
    if not Path(os.path.realpath(file)).is_relative_to(os.path.realpath(folder)):  # unlike resolve(), it knows loops
        raise ValueError(f"tensor {name} wants its data from {shortened(location)}, a link out of the file's folder")
    regular_file(file, f"The data of tensor {name}")
    numbers = [entries.get(key, default) for key, default in (("offset", "0"), ("length", str(size)))]
    if not all(number.isascii() and number.isdigit() and len(number) < 16 for number in numbers):
        raise ValueError(f"tensor {name} has offset {shortened(numbers[0])}, length {shortened(numbers[1])}")
    offset, length = map(int, numbers)
    if length != size or offset + length > file.stat().st_size:
        raise ValueError(f"tensor {name} takes {size} bytes at {offset}; '{location}' has {file.stat().st_size}")


def _check_finite(tensor: TensorProto, folder: Path) -> None:
    """No weight is NaN, and none of several is infinite (the single edge of a Clip may be)."""
    if tensor.data_type not in _NUMPY_FLOATS:
        return
    if external_data_helper.uses_external_data(tensor):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        dtype, count = _NUMPY_FLOATS[tensor.data_type], math.prod(tensor.dims)
        offset = int(entries.get("offset", "0"))
        values = np.fromfile(folder / entries["location"], dtype, count, offset=offset)
    else:
        values = numpy_helper.to_array(tensor)
    if np.isnan(values).any() or (values.size > 1 and not np.isfinite(values).all()):
        raise ValueError(f"tensor {shortened(tensor.name)} holds NaN or infinity, its weights are broken")


def _bits() -> dict[int, int]:
    """Bits of one value by type; those of less than a byte are packed."""
    known: dict[int, int] = {}
    for name, number in TensorProto.DataType.items():
        if name.endswith("INT2"):
            known[number] = 2
        elif name.endswith(("INT4", "FLOAT4E2M1")):
            known[number] = 4
        elif name.startswith("FLOAT8"):
            known[number] = 8
        elif name not in ("UNDEFINED", "STRING"):
            known[number] = helper.tensor_dtype_to_np_dtype(number).itemsize * 8
    return known


_BITS: Final = _bits()
_NUMPY_FLOATS: Final[dict[int, str]] = {TensorProto.FLOAT: "<f4", TensorProto.FLOAT16: "<f2", TensorProto.DOUBLE: "<f8"}
