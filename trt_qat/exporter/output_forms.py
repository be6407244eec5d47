"""Other outputs than raw YOLOv8's: a small tail of standard operators behind a finished graph.

Raw detection is (batch, 4 + classes, anchors): box centre and size, then a score per class. Two tails make rows of it,
x1, y1, x2, y2, score, class id, in network pixels:

*One row per anchor* (batch, anchors, 6), each with its best class: what DeepStream-Yolo's parser reads
(marcoslucianops/DeepStream-Yolo, utils/export_yoloV8.py and nvdsparsebbox_Yolo.cpp); it suppresses boxes itself.

*The best rows* (batch, max_det, 6) of an end-to-end head, which names each object once: sorted, none suppressed,
however low its score; Ultralytics calls such a file ``end2end``.

*NMS built in* (batch, max_det, 6): what :mod:`trt_qat.vision.postprocess` keeps, best first, then rows of zeros. Which
boxes are kept is known only when the graph runs, so they are marked in a tensor of fixed shape and sorted to the front.
The marks are NonMaxSuppression's. TensorRT-RTX 1.7 has no kernel for that operator; there a Loop does the same on the
best candidates: a box is kept if no better box that is kept suppresses it, again until nothing changes. The best box is
settled in the first round, the n-th best in the n-th at the latest, so it ends at the greedy answer (it is the "Cluster
NMS" of Zheng et al. 2020, "Enhancing Geometric Factors in Model Learning and Inference for Object Detection").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from trt_qat.config import InferSection
from trt_qat.errors import ExportError
from trt_qat.metadata import NMS_FREE_KEY, NMS_KEY, ROWS_KEY, output_layout

ROW: Final = 6  # x1, y1, x2, y2, score, class id
LARGEST_TOPK: Final = 3840  # of TensorRT (documentation of ITopKLayer)
_LEAST_CANDIDATES: Final = 1024  # that the loop looks at; its matrix has the square of it
_LEAST_OPSET: Final = 13  # Squeeze, Unsqueeze and Pad as they are written here
_AXES_AS_INPUT: Final = 18  # ReduceMax
_FLOAT: Final = onnx.TensorProto.FLOAT


def one_row_per_anchor(model: onnx.ModelProto, output_name: str = "output") -> onnx.ModelProto:
    """The model with the output (batch, anchors, 6).

    Args:
        model: a raw detector; it is not changed.

    Raises:
        ExportError: it is none.
    """
    return _with_tail(model, output_name, lambda ops, raw: _Raw.of(ops, raw).rows)


def with_nms(model: onnx.ModelProto, section: InferSection, by_loop: bool = False) -> onnx.ModelProto:
    """The model with NMS built in, output (batch, max_det, 6); its metadata say so.

    Of an end-to-end head the best rows, without NMS and without a threshold.

    Args:
        model: a raw detector; it is not changed.
        section: ``conf``, ``iou`` and ``max_det``, which are constants of the file from then on.
        by_loop: without the operator NonMaxSuppression; looks at the best ``loop_candidates(max_det)`` boxes only.

    Raises:
        ExportError: it is none, or ``max_det`` is more than TensorRT sorts.
    """
    if section.max_det > LARGEST_TOPK:
        raise ExportError(
            f"infer.max_det={section.max_det} is more than TensorRT sorts. With NMS in the file 1 to {LARGEST_TOPK} "
            "are allowed."
        )
    if output_layout({entry.key: entry.value for entry in model.metadata_props}) == "nms_free":
        return _with_best_rows(model, section)
    nms = _nms_by_loop if by_loop else _nms
    made = _with_tail(model, model.graph.output[0].name, lambda ops, raw: nms(ops, _Raw.of(ops, raw), section))
    said = {entry.key: entry.value for entry in made.metadata_props}
    thresholds = {"conf": section.conf, "iou": section.iou, "max_det": section.max_det}
    # Ultralytics knows a file with NMS by args['nms'], and takes its rows as they are
    args = said.get("args", "{'nms': False}").replace("'nms': False", "'nms': True")
    onnx.helper.set_model_props(made, said | {NMS_KEY: str(thresholds), "args": args})
    return made


def _with_best_rows(model: onnx.ModelProto, section: InferSection) -> onnx.ModelProto:
    made = _with_tail(model, model.graph.output[0].name, lambda ops, raw: _best_rows(ops, _Raw.of(ops, raw), section))
    said = {entry.key: entry.value for entry in made.metadata_props}
    onnx.helper.set_model_props(made, said | {ROWS_KEY: "True", NMS_FREE_KEY: "False"})
    return made


def loop_candidates(max_det: int) -> int:
    """How many boxes above ``conf``, best first, the loop looks at per image."""
    return min(LARGEST_TOPK, max(_LEAST_CANDIDATES, 4 * max_det))


def _with_tail(
    model: onnx.ModelProto, output_name: str, tail: Callable[[_Ops, gs.Tensor], gs.Variable]
) -> onnx.ModelProto:
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset < _LEAST_OPSET:
        raise ExportError(f"The model has opset {opset}, {_LEAST_OPSET} or later is needed. Export it again.")
    channels = _channels_of_raw(model)
    graph = gs.import_onnx(model)  # without the names that shape inference invents for axes: see onnx_export
    raw = graph.outputs[0]
    raw.shape = [*(raw.shape or [None, None, None])]
    raw.shape[1] = channels
    rows = tail(_Ops(graph, opset), raw)
    raw.name += "/raw"  # the name may be wanted for the rows
    rows.name, rows.dtype = output_name, np.float32
    graph.outputs = [rows]
    made: onnx.ModelProto = gs.export_onnx(graph.cleanup().toposort())
    made.metadata_props.extend(model.metadata_props)
    onnx.checker.check_model(made, full_check=True)
    return made


def _channels_of_raw(model: onnx.ModelProto) -> int:
    model = onnx.shape_inference.infer_shapes(model)
    tensor = model.graph.output[0].type.tensor_type
    sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
    fits = len(model.graph.output) == 1 and len(sizes) == 3 and tensor.elem_type == _FLOAT
    if not fits or sizes[1] is None or sizes[1] <= 4:
        shown = ", ".join("any" if size is None else str(size) for size in sizes)
        raise ExportError(
            f"The model's first output has shape ({shown}), raw YOLOv8 detection has one float32 output of (batch, "
            "4 + classes, anchors). Export a detection model without NMS."
        )
    return int(sizes[1])


class _Ops:
    """Adds nodes to a graph; each method returns the node's output."""

    def __init__(self, graph: gs.Graph, opset: int, prefix: str = "rows") -> None:
        self.graph = graph
        self.opset = opset
        self._prefix = prefix
        self._made = 0

    def __call__(self, op: str, *inputs: gs.Tensor, dtype: Any = np.float32, **attrs: Any) -> gs.Variable:
        name = self._name(op)
        output = gs.Variable(name, dtype=dtype)
        self.graph.nodes.append(gs.Node(op, name, attrs, list(inputs), [output]))
        return output

    def constant(self, values: Any, dtype: Any = np.int64) -> gs.Constant:
        return gs.Constant(self._name("constant"), np.array(values, dtype=dtype))

    def number(self, value: float) -> gs.Constant:
        return self.constant(value, np.float32)

    def part(self, tensor: gs.Tensor, start: int, end: int, axis: int) -> gs.Variable:
        bounds = (self.constant([value]) for value in (start, end, axis))
        return self("Slice", tensor, *bounds, dtype=tensor.dtype)

    def reduce_max(self, tensor: gs.Tensor, axes: Sequence[int], keepdims: bool = True) -> gs.Variable:
        if self.opset < _AXES_AS_INPUT:
            return self("ReduceMax", tensor, axes=list(axes), keepdims=int(keepdims))
        return self("ReduceMax", tensor, self.constant(list(axes)), keepdims=int(keepdims))

    def squeeze(self, tensor: gs.Tensor, axis: int) -> gs.Variable:
        return self("Squeeze", tensor, self.constant([axis]), dtype=tensor.dtype)

    def unsqueeze(self, tensor: gs.Tensor, axis: int) -> gs.Variable:
        return self("Unsqueeze", tensor, self.constant([axis]), dtype=tensor.dtype)

    def zeros_behind(self, tensor: gs.Tensor, count: int, rank: int) -> gs.Variable:
        """``count`` zeros more along axis 1."""
        pads = [0] * (2 * rank)
        pads[rank + 1] = count
        return self("Pad", tensor, self.constant(pads))

    def largest(self, scores: gs.Tensor, rows: gs.Tensor, count: int) -> tuple[gs.Variable, gs.Variable]:
        """The ``count`` largest scores of (batch, n), n any number, and their rows of (batch, n, 6); then zeros."""
        values, order = gs.Variable(self._name("best")), gs.Variable(self._name("order"))
        values.dtype, order.dtype = np.float32, np.int64
        padded = [self.zeros_behind(scores, count, 2), self.constant([count])]
        self.graph.nodes.append(gs.Node("TopK", self._name("TopK"), {"axis": 1}, padded, [values, order]))
        index = self.unsqueeze(order, 2)
        return values, self("GatherND", self.zeros_behind(rows, count, 3), index, batch_dims=1)

    def _name(self, op: str) -> str:
        self._made += 1
        return f"{self._prefix}/{op}_{self._made}"


@dataclass(frozen=True)
class _Raw:
    """Raw detection taken apart.

    Args:
        rows: (batch, anchors, 6), each anchor with its best class.
        scores: (batch, classes, anchors).
        best: class id of each anchor, int64 (batch, 1, anchors).
    """

    rows: gs.Variable
    scores: gs.Variable
    best: gs.Variable
    classes: int

    @classmethod
    def of(cls, ops: _Ops, raw: gs.Tensor) -> _Raw:
        classes = int(raw.shape[1]) - 4
        scores = ops.part(raw, 4, 4 + classes, 1)
        centre, size = ops.part(raw, 0, 2, 1), ops.part(raw, 2, 4, 1)
        corner = ops("Sub", centre, ops("Mul", size, ops.number(0.5)))
        other = ops("Add", corner, size)  # as the post-processing computes it, which centre + half is not to the bit
        best = ops("ArgMax", scores, dtype=np.int64, axis=1, keepdims=1)
        entries = [corner, other, ops.reduce_max(scores, [1]), ops("Cast", best, to=_FLOAT)]
        rows = ops("Transpose", ops("Concat", *entries, axis=1), perm=[0, 2, 1])
        rows.shape = [raw.shape[0], raw.shape[2], ROW]
        return cls(rows, scores, best, classes)


def _best_rows(ops: _Ops, raw: _Raw, section: InferSection) -> gs.Variable:
    scores = ops.squeeze(ops.part(raw.rows, 4, 5, 2), 2)
    return _kept_rows(ops, scores, raw.rows, section)


def _nms(ops: _Ops, raw: _Raw, section: InferSection) -> gs.Variable:
    ids = ops.constant(np.arange(raw.classes).reshape(1, -1, 1))
    is_best = ops("Equal", raw.best, ids, dtype=bool)  # a box counts for its best class alone
    of_best = ops("Where", is_best, raw.scores, ops.number(0))
    boxes = ops.part(raw.rows, 0, 4, 2)
    limits = [ops.constant([section.max_det]), *(ops.constant([x], np.float32) for x in (section.iou, section.conf))]
    found = ops("NonMaxSuppression", boxes, of_best, *limits, dtype=np.int64)  # (kept, 3): image, class, anchor
    place = ops("Gather", found, ops.constant([0, 2]), dtype=np.int64, axis=1)
    scores = ops.squeeze(ops.part(raw.rows, 4, 5, 2), 2)
    nothing = ops("Mul", scores, ops.number(0))
    kept = ops("ScatterND", nothing, place, ops("GatherND", scores, place))
    return _kept_rows(ops, kept, raw.rows, section)


def _nms_by_loop(ops: _Ops, raw: _Raw, section: InferSection) -> gs.Variable:
    count = loop_candidates(section.max_det)
    scores = ops.squeeze(ops.part(raw.rows, 4, 5, 2), 2)
    above = ops("Greater", scores, ops.number(section.conf), dtype=bool)
    values, rows = ops.largest(ops("Where", above, scores, ops.number(0)), raw.rows, count)
    is_candidate = ops("Cast", ops("Greater", values, ops.number(0), dtype=bool), to=_FLOAT)
    start = ops.unsqueeze(is_candidate, 1)  # (batch, 1, count)
    kept = _until_settled(ops, start, _suppression(ops, rows, section.iou, count), count)
    return _kept_rows(ops, ops("Mul", values, ops.squeeze(kept, 1)), rows, section)


def _suppression(ops: _Ops, rows: gs.Tensor, iou: float, count: int) -> gs.Variable:
    """1 where box i, if it is kept, suppresses the worse box j of its class: (batch, i, j)."""
    columns = [ops.part(rows, index, index + 1, 2) for index in (0, 1, 2, 3, 5)]  # (batch, count, 1)
    lines = [ops("Transpose", column, perm=[0, 2, 1]) for column in columns]  # (batch, 1, count)
    sides = []
    for axis in (0, 1):
        end, begin = ops("Min", columns[axis + 2], lines[axis + 2]), ops("Max", columns[axis], lines[axis])
        sides.append(ops("Relu", ops("Sub", end, begin)))
    common = ops("Mul", *sides)
    areas = [
        ops("Mul", ops("Sub", of[2], of[0]), ops("Sub", of[3], of[1]))
        for of in (columns, lines)
    ]  # fmt: skip
    union = ops("Sub", ops("Add", *areas), common)
    overlap = ops("Greater", common, ops("Mul", union, ops.number(iou)), dtype=bool)
    same = ops("Equal", columns[4], lines[4], dtype=bool)
    order = np.arange(count)
    worse = ops("Less", ops.constant(order.reshape(-1, 1)), ops.constant(order.reshape(1, -1)), dtype=bool)
    return ops("Cast", ops("And", ops("And", overlap, same, dtype=bool), worse, dtype=bool), to=_FLOAT)


def _until_settled(ops: _Ops, start: gs.Variable, suppresses: gs.Variable, count: int) -> gs.Variable:
    """1 for each candidate that no kept one suppresses: (batch, 1, count)."""
    number, going = gs.Variable("round/number", np.int64, []), gs.Variable("round/going", np.dtype(bool), [])
    before = gs.Variable("round/before", np.float32, [None, 1, count])
    body = _Ops(gs.Graph(inputs=[number, going, before], name="round", opset=ops.opset), ops.opset, "round")
    hit = body("Greater", body("MatMul", before, suppresses), body.number(0.5), dtype=bool)
    after = body("Mul", start, body("Cast", body("Not", hit, dtype=bool), to=_FLOAT))
    after.shape = [None, 1, count]
    change = body.reduce_max(body("Abs", body("Sub", after, before)), [0, 1, 2], keepdims=False)
    changed = body("Greater", change, body.number(0.5), dtype=bool)
    changed.shape, changed.dtype = [], np.dtype(bool)
    body.graph.outputs = [changed, after]
    return ops("Loop", ops.constant(count), ops.constant(True, bool), start, body=body.graph)


def _kept_rows(ops: _Ops, kept: gs.Tensor, rows: gs.Tensor, section: InferSection) -> gs.Variable:
    """The first ``max_det`` kept rows, best first, then zeros. ``kept`` has the score of a kept box and 0 else."""
    values, chosen = ops.largest(kept, rows, section.max_det)
    is_kept = ops.unsqueeze(ops("Greater", values, ops.number(0), dtype=bool), 2)
    result = ops("Where", is_kept, chosen, ops.number(0))
    result.shape = [rows.shape[0] if rows.shape else None, section.max_det, ROW]
    return result
