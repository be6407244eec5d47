"""Model to ONNX: Q/DQ at every INT8 tensor's source, int8 weights, Ultralytics metadata."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import torch
from onnx_graphsurgeon.logger import G_LOGGER
from ultralytics.nn.tasks import DetectionModel

from trt_qat.artifacts import OnnxArtifact, atomic_path
from trt_qat.checkpoint import Model
from trt_qat.config import ExportSection
from trt_qat.errors import ConsistencyError, ExportError
from trt_qat.exporter.fp16 import SMALLEST_SCALE, round_scales_, to_float16_
from trt_qat.exporter.qdq_passes import (
    clean_,
    drop_idle_casts_,
    flatten_scales_,
    fold_weights_,
    merge_equal_quantizers_,
    quantize_at_source_,
)
from trt_qat.exporter.tensorrt_rtx import to_tensorrt_rtx_
from trt_qat.exporter.unsigned import OFFSET, to_unsigned_
from trt_qat.metadata import NMS_FREE_KEY, ROWS_KEY
from trt_qat.model.loading import export_mode, is_end_to_end, raw_output
from trt_qat.quantization.insert import QuantizedModel
from trt_qat.vision.size import ImageSize

_SCALE_ROUNDING = 2e-3  # twice that of an FP16 number

G_LOGGER.severity = G_LOGGER.ERROR  # it warns on stdout about an optional package for coloured text


def export_onnx(
    model: Model, out: Path, section: ExportSection, *, unsigned: bool = False, tensorrt_rtx: bool = False
) -> OnnxArtifact:
    """Write one ONNX file; input ``images`` (batch, 3, *imgsz) float32 in [0, 1], output ``output0``.

    Args:
        unsigned: activations as uint8 with zero points 128 higher, instead of int8; the same numbers.
        tensorrt_rtx: in the form of :mod:`trt_qat.exporter.tensorrt_rtx`; the same numbers.

    Raises:
        ExportError: INT8 was asked of a float checkpoint, or the exported graph fails ONNX's own checks.
    """
    precision = section.precision or "int8+fp16"
    int8 = precision.startswith("int8")
    if int8 and model.quantized is None:
        raise ExportError(
            f"--precision {precision} needs a calibrated checkpoint, this one is float. "
            "Run `trt-qat calibrate` first, or use --precision fp32 or fp16."
        )
    quantized = model.quantized
    with quantized.quantizers_off() if quantized and not int8 else contextlib.nullcontext():
        raw = _raw_onnx(model.network, quantized if int8 else None, section, model.imgsz)
    graph = gs.import_onnx(onnx.shape_inference.infer_shapes(raw))
    clean_(graph)
    drop_idle_casts_(graph)
    if int8:
        flatten_scales_(graph)
        if precision.endswith("fp16"):
            round_scales_(graph)  # before the weights are divided by them
        fold_weights_(graph)
        merge_equal_quantizers_(graph)
        quantize_at_source_(graph)
    if tensorrt_rtx:
        to_tensorrt_rtx_(graph)
    if precision.endswith("fp16"):
        to_float16_(graph)
    if unsigned:
        to_unsigned_(graph)
    if section.dynamic_size:
        batch = "batch" if section.dynamic_batch else section.batch
        graph.outputs[0].shape = [batch, 4 + len(model.names), "anchors"]
    elif section.dynamic_batch:
        _unname_axes_(graph, model)
    finished = gs.export_onnx(graph)
    onnx.helper.set_model_props(finished, {k: str(v) for k, v in file_metadata(model, section).items()})
    _check(finished)
    if quantized and int8:
        _check_scales(finished, quantized, least=SMALLEST_SCALE if precision.endswith("fp16") else 0.0)
    with atomic_path(out) as temporary:
        onnx.save(finished, str(temporary))
    return OnnxArtifact(out, precision)


def _raw_onnx(
    network: DetectionModel, quantized: QuantizedModel | None, section: ExportSection, imgsz: ImageSize
) -> onnx.ModelProto:
    """The exporter's own graph. The TorchScript exporter is used: it knows the toolkits' Q/DQ symbolics."""
    device = next(network.parameters()).device
    images = torch.zeros(section.batch, 3, *imgsz, device=device)
    exporting = quantized.toolkit.exporting() if quantized else contextlib.nullcontext()
    folder = tempfile.TemporaryDirectory()
    with (
        exporting,
        export_mode(network, any_size=section.dynamic_size),
        _split_once(network),
        warnings.catch_warnings(),
        folder as scratch,
    ):
        warnings.simplefilter("ignore")  # tracer notes about shapes that are constant here
        torch.onnx.export(
            network,
            (images,),
            Path(scratch) / "raw.onnx",
            dynamo=False,
            opset_version=section.opset or 19,
            input_names=["images"],
            output_names=["output0"],
            dynamic_axes=_free_axes(section),
        )
        return onnx.load(Path(scratch) / "raw.onnx")


def _free_axes(section: ExportSection) -> dict[str, dict[int, str]]:
    batch = {0: "batch"} if section.dynamic_batch else {}
    size = section.dynamic_size
    return {
        "images": batch | ({2: "height", 3: "width"} if size else {}),
        "output0": batch | ({2: "anchors"} if size else {}),
    }


@contextlib.contextmanager
def _split_once(network: DetectionModel) -> Iterator[None]:
    """Within: blocks that can, split by constant sizes instead of computing them in the graph."""
    patched = [m for m in network.modules() if hasattr(m, "forward_split") and not hasattr(m, "residual_quantizers")]
    for module in patched:
        module.forward = module.forward_split
    try:
        yield
    finally:
        for module in patched:
            del module.forward


def _unname_axes_(graph: gs.Graph, model: Model) -> None:
    """Give the output its numbers, (any, 4 + classes, anchors), for which the exporter invents names; name no axis.

    Ultralytics takes an output whose batch has a name for one of any height and width too, and then hands it images
    that are not letterboxed to it (nn/backends/onnx.py, ``dynamic``). ONNX Runtime would infer the name from
    any other tensor that has it.
    """
    for tensor in graph.tensors().values():
        if isinstance(tensor, gs.Variable) and tensor.shape is not None:
            tensor.shape = [axis if isinstance(axis, int) else None for axis in tensor.shape]
    image = torch.zeros(1, 3, *model.imgsz, device=next(model.network.parameters()).device)
    graph.outputs[0].shape = [None, *raw_output(model.network, image).shape[1:]]


def file_metadata(model: Model, section: ExportSection) -> dict[str, Any]:
    """What Ultralytics reads from an exported file (names, imgsz, stride ...), and our target and precision.

    Values are Python's own, as Ultralytics writes them to ``metadata.yaml``; an ONNX file holds their text.
    """
    # To Ultralytics args["dynamic"] True is any batch, height and width, False is batches cut to size "batch" at one
    # height and width; None is what a dynamic batch at a fixed height and width needs: neither.
    dynamic = (True if section.dynamic_size else None) if section.dynamic_batch else False
    return {
        "description": "trt_qat export",
        "task": model.task,
        "stride": int(model.network.stride.max()),
        "batch": section.batch,
        "imgsz": list(model.imgsz),
        "names": {int(k): str(v) for k, v in model.names.items()},
        "channels": 3,
        ROWS_KEY: False,
        NMS_FREE_KEY: is_end_to_end(model.network),
        "args": {"batch": section.batch, "dynamic": dynamic, "nms": False},
        "dynamic": section.dynamic_batch or section.dynamic_size,
        "precision": section.precision or "int8+fp16",
        "target": section.target,
    }


def _check(model: onnx.ModelProto) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
        onnx.shape_inference.infer_shapes(model, strict_mode=True, check_type=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        raise ExportError(f"The exported graph fails ONNX's check: {' '.join(str(exc).split())[:300]}") from exc


def _check_scales(model: onnx.ModelProto, quantized: QuantizedModel, least: float) -> None:
    """Each activation's scale in the file is a range of the checkpoint over 127, with its zero point.

    FP16 rounding apart.

    Args:
        least: what a smaller scale was raised to.

    Raises:
        ConsistencyError: one is not, so that the file computes something else.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    grids = quantized.grids().values()
    steps, codes = np.array([max(grid.step, least) for grid in grids]), np.array([grid.zero_point for grid in grids])
    for node in model.graph.node:
        if node.op_type != "QuantizeLinear" or node.input[1] not in constants:
            continue
        found = float(onnx.numpy_helper.to_array(constants[node.input[1]]).max())
        zero_point = onnx.numpy_helper.to_array(constants[node.input[2]])
        code = int(zero_point.max()) + (OFFSET if zero_point.dtype == np.int8 else 0)
        if not (np.isclose(found, steps, rtol=_SCALE_ROUNDING) & (codes == code)).any():
            raise ConsistencyError(
                f"'{node.name}' of the exported graph quantizes with scale {found:.4g} and zero point {code}, which no "
                "range of the checkpoint gives. Nothing was written."
            )
