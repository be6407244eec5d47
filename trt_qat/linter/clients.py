"""Rules that hold in one client alone: what its importer, its optimizer or its reader of metadata does with a file.

Tried with OpenVINO 2026.4, ONNX Runtime 1.32, Ultralytics 8.4.190 and, read from its engines, TensorRT-RTX 1.7.
"""

from __future__ import annotations

from collections.abc import Iterator

from onnx import TensorProto

from trt_qat.errors import ArtifactError
from trt_qat.linter.finding import Place
from trt_qat.linter.graph import QdqGraph
from trt_qat.linter.view import DEQUANTIZE, QUANTIZE, Node
from trt_qat.metadata import read_metadata

# ONNX Runtime's QDQPropagationTransformer moves a DQ behind these, and writes a Q before it.
_ORT_MOVES_DQ_BEHIND = frozenset({"MaxPool", "Reshape", "Transpose", "Slice", "Squeeze", "Unsqueeze"})
_FAULTY_OPSET = 21  # from here on Q may have an output_dtype, which that Q gets beside a missing zero point


def rtx_channel_scales(graph: QdqGraph) -> Iterator[Place]:
    """INT8 convolutions whose weight has a scale per channel: TensorRT-RTX writes their sums to memory as FP32."""
    for conv in graph.convs:
        weight = graph.grid(conv.inputs[1])
        if weight is not None and weight.per_channel and graph.is_int8(conv) and _enlarged(conv, graph) is None:
            message = "weight with a scale per channel: its sums go to memory as FP32"
            advice = "Export with --target tensorrt-rtx: one scale, the channels' factors behind the convolution."
            yield Place(conv, message, advice)


def rtx_enlarged(graph: QdqGraph) -> Iterator[Place]:
    """INT8 convolutions behind a Resize without a Q/DQ pair between: TensorRT-RTX computes them in FP16."""
    for conv in graph.convs:
        enlargement = _enlarged(conv, graph)
        if enlargement is not None and graph.is_int8(conv):
            message = f"reads the Resize '{enlargement.name}' without a Q/DQ behind that: it runs in float"
            advice = "Export with --target tensorrt-rtx, which repeats the pair behind the Resize."
            yield Place(conv, message, advice)


def _enlarged(conv: Node, graph: QdqGraph) -> Node | None:
    """The Resize that a convolution reads through nothing but copies."""

    def through(node: Node) -> bool:
        return node.op != "Resize" and graph.is_copy(node)

    return next((node for node in graph.sources(conv.inputs[0], through) if node.op == "Resize"), None)


def openvino_signed_concat(graph: QdqGraph) -> Iterator[Place]:
    """INT8 convolutions behind a Concat of signed INT8: ``Core().read_model`` computes them wrongly.

    ``openvino.convert_model`` and trt_qat's own runner do not, nor does any of them with unsigned INT8. The fault goes
    through copies and ReLU, not through SiLU.
    """

    def through(node: Node) -> bool:
        return node.op != "Concat" and (graph.is_copy_or_qdq(node) or node.op == "Relu")

    for conv in graph.convs:
        grid = graph.grid(conv.inputs[0])
        if grid is None or grid.dtype != TensorProto.INT8 or not graph.is_int8(conv):
            continue
        joined = [node.name for node in graph.sources(conv.inputs[0], through) if node.op == "Concat"]
        if joined:
            message = f"reads signed INT8 behind the Concat '{joined[0]}': OpenVINO's read_model computes it wrongly"
            advice = "Export with --target openvino (unsigned INT8), or load the file with openvino.convert_model."
            yield Place(conv, message, advice)


def onnxruntime_opset(graph: QdqGraph) -> Iterator[Place]:
    """Signed INT8 that goes through a pool or a reshape without a Q behind, in opset 21 or later: not loaded.

    At its default level ONNX Runtime writes a Q there whose type and zero point do not fit.
    """
    if graph.opsets.get("", 0) < _FAULTY_OPSET:
        return
    for node in graph.nodes:
        source = graph.producer(node.inputs[0]) if node.op in _ORT_MOVES_DQ_BEHIND else None
        if source is None or source.op != DEQUANTIZE or graph.quantization(source).dtype != TensorProto.INT8:
            continue
        if any(reader.op != QUANTIZE for reader in graph.consumers(node.outputs[0])):
            message = f"{node.op} of signed INT8 without a Q behind it in opset {graph.opsets['']}"
            yield Place(node, message, "Export with opset 19 or 20, or as unsigned INT8.")


def onnxruntime_float_conv(graph: QdqGraph) -> Iterator[Place]:
    """Quantized convolutions that ONNX Runtime computes in float: it makes a QLinearConv only if a Q follows directly.

    A Q behind the SiLU, as TensorRT and OpenVINO want it, is too late. Even then it does so surely for unsigned INT8
    only.
    """
    for conv in graph.convs:
        readers = graph.consumers(conv.outputs[0])
        if graph.is_int8(conv) and [reader.op for reader in readers] != [QUANTIZE]:
            message = "quantized, but ONNX Runtime computes it in float: no Q directly on its output"
            advice = "Nothing for accuracy. For speed use OpenVINO, or unsigned Q/DQ round each Conv, Sigmoid and Mul."
            yield Place(conv, message, advice)


def ultralytics_dynamic(graph: QdqGraph) -> Iterator[Place]:
    """A free batch size with a fixed height and width: YOLO(...) sends non-square images as they are, which fails.

    It looks at the output's batch size alone, whatever the metadata say.
    """
    for name in graph.inputs[:1]:
        shape, predictions = graph.shape(name) or (), graph.shape(graph.outputs[0]) or ()
        if len(shape) == 4 and None not in shape[2:] and predictions[:1] == (None,):
            message = f"free batch size: Ultralytics sends images of any size, but '{name}' is {shape[2]}x{shape[3]}"
            yield Place(graph.consumers(name)[0], message, "Free height and width as well, or fix the batch size.")


def ultralytics_names(graph: QdqGraph) -> Iterator[Place]:
    """No class names in the metadata: YOLO(...) calls the classes class0, class1 ..."""
    text = graph.metadata.get("names", "")
    try:
        names = read_metadata({"names": text}).names if text.lstrip().startswith("{") else None
    except ArtifactError:  # what it does with such a text is not known
        names = None
    if not names:
        yield Place(graph.nodes[0], "no class names in the file's metadata", "Write 'names' into metadata_props.")
