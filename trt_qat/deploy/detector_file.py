"""What a deployment must know of an exported file: names, shapes, precision, and whether TensorRT takes its INT8."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import onnx
from onnx import TensorProto

from trt_qat.artifacts import file_sha256
from trt_qat.config import EngineSection
from trt_qat.engine.engine_file import EngineDescription, read_engine
from trt_qat.engine.onnx_file import graph_precision
from trt_qat.errors import ArtifactError, ConfigError
from trt_qat.metadata import NMS_KEY, Layout, output_layout, read_metadata
from trt_qat.onnx_reading import metadata_texts, read_detector
from trt_qat.vision.size import ImageSize

Kind = Literal["onnx", "plan"]
ROW: Final = 6
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FIXED: Final = "Export it with trt-qat, or give a file of fixed height and width."


@dataclass(frozen=True)
class DetectorFile:
    """An exported detector.

    Args:
        path: the file.
        kind: "onnx" or "plan".
        name: what it is called where it is deployed: letters, digits, ".", "_", "-".
        class_names: by class id.
        size: height and width of its input, pixels.
        batches: smallest, usual and largest number of images at once; equal where it is fixed.
        dynamic: whether the batch may differ from call to call.
        input_name: of its one input, float32 (batch, 3, height, width).
        output_name: of its one output, float32.
        output: shape of the output without the batch: (4 + classes, anchors), or (max_det, 6) of rows.
        precision: such as "int8+fp16".
        nms: whether NMS is built in.
        layout: of the output of a file without it.
        signed: whether its INT8, if any, is signed, the only one that TensorRT takes.
        sha256: of the file's content.
    """

    path: Path
    kind: Kind
    name: str
    class_names: tuple[str, ...]
    size: ImageSize
    batches: tuple[int, int, int]
    dynamic: bool
    input_name: str
    output_name: str
    output: tuple[int, int]
    precision: str
    nms: bool
    layout: Layout
    signed: bool
    sha256: str

    @property
    def has_rows(self) -> bool:
        """Whether its output is rows of detections rather than raw."""
        return self.nms or self.layout == "rows"

    def require_raw(self, system: str) -> None:
        """Refuse rows of detections.

        Raises:
            ConfigError: NMS is built in, or it is an end-to-end detector's best rows.
        """
        self.require_no_nms(system)
        if self.layout == "rows":
            raise ConfigError(
                f"'{self.path}' puts out rows of detections, and {system} reads raw output. Export it without --nms."
            )

    def require_no_nms(self, system: str) -> None:
        """Refuse a file with NMS built in.

        Raises:
            ConfigError: it has.
        """
        if self.nms:
            raise ConfigError(
                f"'{self.path}' has NMS built in, and {system} suppresses boxes itself. Export it without --nms."
            )

    def require_signed(self, system: str) -> None:
        """Refuse INT8 that TensorRT does not take.

        Raises:
            ConfigError: it is unsigned.
        """
        if not self.signed:
            raise ConfigError(
                f"'{self.path}' holds unsigned INT8, which TensorRT refuses, and {system} runs on TensorRT. Export it "
                "with --target tensorrt."
            )


def read_detector_file(path: Path, engine: EngineSection, name: str | None = None) -> DetectorFile:
    """Read and check a ``*.onnx`` or a ``*.plan`` with its side-car.

    Args:
        engine: the batches of a file with a dynamic batch.
        name: what it is called where it is deployed; the file's own name without one.

    Raises:
        ArtifactError: it cannot be read, is no detector, or does not say what its classes are called.
        ConfigError: another kind of file, a free height or width, or a name that not every system takes.
    """
    called = path.stem if name is None else name
    if not _NAME.fullmatch(called):
        origin = "--name" if name is not None else "the name of the file, which --name replaces,"
        raise ConfigError(
            f"The deployed model cannot be called '{called}': {origin} must be 1 to 64 letters, digits, '.', '_' or "
            "'-', the first a letter or digit."
        )
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        return _of_onnx(path, called, engine)
    if suffix == ".plan":
        return _of_plan(path, called)
    raise ConfigError(f"A model to deploy must be a *.onnx or a *.plan, found '{path}'. See `trt-qat export`.")


def _of_onnx(path: Path, name: str, engine: EngineSection) -> DetectorFile:
    model = read_detector(path)
    inferred = onnx.shape_inference.infer_shapes(model)
    stored = {tensor.name for tensor in model.graph.initializer}
    image = next(info for info in model.graph.input if info.name not in stored)
    for info in (image, *model.graph.output):
        if info.type.tensor_type.elem_type != TensorProto.FLOAT:
            raise ConfigError(f"'{path}': '{info.name}' is not float32, which every system here wants. {_FIXED}")
    texts = metadata_texts(model)
    shape = _sizes(image)
    outputs = [(info.name, _sizes(info)) for info in inferred.graph.output]
    batch = shape[0]
    batches = (engine.min_batch, engine.opt_batch, engine.max_batch) if batch is None else (batch,) * 3
    return _checked(
        path,
        "onnx",
        name,
        texts,
        (image.name, shape),
        outputs,
        batches,
        precision=texts.get("precision") or graph_precision(model),
        signed=not _has_unsigned(model),
    )


def _of_plan(path: Path, name: str) -> DetectorFile:
    description, _ = read_engine(path)
    if description.flavor != "tensorrt":
        raise ConfigError(
            f"'{path}' was built by TensorRT-RTX, which none of these systems runs. Build it with `trt-qat engine "
            "--flavor tensorrt`, or give the *.onnx."
        )
    if len(description.inputs) != 1:
        raise ArtifactError(f"The side-car of '{path}' does not say what its one input is. Build the engine again.")
    image = description.inputs[0]
    texts = dict(description.metadata)
    if description.names:
        texts["names"] = str(description.names)
    outputs = [(tensor.name, _free(tensor.shape)) for tensor in description.outputs]
    return _checked(
        path,
        "plan",
        name,
        texts,
        (image.name, _free(image.shape)),
        outputs,
        _plan_batches(description),
        precision=texts.get("precision", "unknown"),
        signed=True,  # TensorRT has built it
    )


def _checked(
    path: Path,
    kind: Kind,
    name: str,
    texts: dict[str, str],
    image: tuple[str, Sequence[int | None]],
    outputs: Sequence[tuple[str, Sequence[int | None]]],
    batches: tuple[int, int, int],
    *,
    precision: str,
    signed: bool,
) -> DetectorFile:
    names = read_metadata(texts, f"'{path}'").names
    if not names:
        raise ArtifactError(
            f"'{path}' does not say what its classes are called (metadata 'names'). Export it with trt-qat or "
            "Ultralytics, which write them."
        )
    batch, _, height, width = image[1] if len(image[1]) == 4 else (None,) * 4
    if height is None or width is None:
        raise ConfigError(f"'{path}' takes images of any size. {_FIXED}")
    nms = NMS_KEY in texts
    found = outputs[0][1] if len(outputs) == 1 else ()
    rows, columns = found[1:] if len(found) == 3 else (None, None)
    layout = output_layout(texts)
    fits = columns == ROW if nms or layout == "rows" else rows == 4 + len(names)
    if rows is None or columns is None or not fits:
        shown = "; ".join(", ".join("any" if size is None else str(size) for size in sizes) for _, sizes in outputs)
        raise ArtifactError(
            f"'{path}' is no YOLOv8 detector: its output must be one of (batch, {4 + len(names)}, anchors) for "
            f"{len(names)} classes, or rows of 6 with NMS of trt-qat; found ({shown})."
        )
    return DetectorFile(
        path=path,
        kind=kind,
        name=name,
        class_names=tuple(names.values()),
        size=(height, width),
        batches=batches,
        dynamic=batch is None,
        input_name=image[0],
        output_name=outputs[0][0],
        output=(rows, columns),
        precision=precision,
        nms=nms,
        layout=layout,
        signed=signed,
        sha256=file_sha256(path),
    )


def _sizes(info: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in info.type.tensor_type.shape.dim)


def _free(shape: Sequence[int]) -> tuple[int | None, ...]:
    return tuple(None if size < 0 else size for size in shape)


def _plan_batches(description: EngineDescription) -> tuple[int, int, int]:
    image = description.inputs[0]
    for profile in description.profiles[:1]:
        if image.name in profile:
            shapes = profile[image.name]
            return shapes.min[0], shapes.opt[0], shapes.max[0]
    return (max(image.shape[0], 1),) * 3


def _has_unsigned(model: onnx.ModelProto) -> bool:
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    points = [node.input[2] for node in model.graph.node if node.op_type == "QuantizeLinear" and len(node.input) > 2]
    return any(types.get(point) == TensorProto.UINT8 for point in points)
