"""One planted defect per rule: that rule fires, names node and module, and no other rule does."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from lint_graphs import (
    IMAGE,
    SCALES,
    Net,
    detector,
    float_weight,
    insert_qdq,
    node,
    remove_qdq,
    rewire,
    set_constant,
)
from onnx import TensorProto, helper

from trt_qat.linter.finding import ERRORS, Finding
from trt_qat.linter.graph import QdqGraph
from trt_qat.linter.placement import avoidable_round_trips
from trt_qat.linter.report import count
from trt_qat.linter.rules import RULES
from trt_qat.registry import TARGETS

STEM = "/model.0/act/Mul_output_0"
CV1 = "/model.1/cv1/act/Mul_output_0"
HIDDEN = "/model.1/m.0/cv1/act/Mul_output_0"
HEAD = "/model.2/cv2/act/Mul_output_0"


def findings(model: onnx.ModelProto, target: str = "tensorrt") -> list[Finding]:
    graph = QdqGraph(model)
    return [finding for rule in RULES for finding in rule.findings(graph, target)]


def serious(model: onnx.ModelProto) -> list[Finding]:
    return [finding for finding in findings(model) if finding.severity != "info"]


def uint8(model: onnx.ModelProto) -> None:
    set_constant(model, f"{STEM}.zero", np.uint8(0))


def no_zero_point(model: onnx.ModelProto) -> None:
    for kind in ("Q", "DQ"):
        node(model, f"{STEM}/{kind}").input.pop()


def int32_bias(model: onnx.ModelProto) -> None:
    names = [
        set_constant(model, "bias", np.zeros(16, np.int32)),
        set_constant(model, "bias_scale", np.full(16, 1e-3, np.float32)),
    ]
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", names, ["bias_dq"], name="bias/DQ", axis=0))
    rewire(model, "/model.0/Conv", "model.0.bias", "bias_dq")


def asymmetric(model: onnx.ModelProto) -> None:
    set_constant(model, f"{STEM}.zero", np.int8(3))


def asymmetric_weight(model: onnx.ModelProto) -> None:
    set_constant(model, "model.1.cv1.weight.zero", np.full(32, 5, np.int8))


def dynamic_scale(model: onnx.ModelProto) -> None:
    set_constant(model, f"{STEM}.scale", np.float32(1))
    model.graph.initializer.pop()
    model.graph.input.append(helper.make_tensor_value_info(f"{STEM}.scale", TensorProto.FLOAT, []))


def negative_scale(model: onnx.ModelProto) -> None:
    set_constant(model, f"{STEM}.scale", np.float32(-0.1))


def empty_scale(model: onnx.ModelProto) -> None:
    set_constant(model, f"{STEM}.scale", np.zeros(0, np.float32))


def zero_weight_scale(model: onnx.ModelProto) -> None:
    set_constant(model, "model.1.cv1.weight.scale", np.zeros(32, np.float32))


def pair_mismatch(model: onnx.ModelProto) -> None:
    node(model, f"{HIDDEN}/DQ").input[1] = set_constant(model, "other", np.float32(0.5))


def half_scale(model: onnx.ModelProto) -> None:
    node(model, f"{STEM}/Q").input[1] = set_constant(model, "half", np.float16(SCALES["stem"]))


def mixed_operands(model: onnx.ModelProto) -> None:
    """A float16 constant in a float32 Mul."""
    set_constant(model, "stride", np.float16(8))


def per_channel_activation(model: onnx.ModelProto) -> None:
    set_constant(model, f"{STEM}.scale", np.full(16, 0.03, np.float32))
    set_constant(model, f"{STEM}.zero", np.zeros(16, np.int8))


def weight_axis(model: onnx.ModelProto) -> None:
    node(model, "model.1.m.0.cv1.weight/DQ").attribute[0].i = 1


def q_before_silu(model: onnx.ModelProto) -> None:
    insert_qdq(model, "/model.1/cv1/Conv_output_0", 0.1, ["/model.1/cv1/act/Sigmoid", "/model.1/cv1/act/Mul"])


def q_inside_silu(model: onnx.ModelProto) -> None:
    insert_qdq(model, "/model.1/cv1/act/Sigmoid_output_0", 0.01, ["/model.1/cv1/act/Mul"])


def two_scales(model: onnx.ModelProto) -> None:
    insert_qdq(model, HEAD, 0.09, [])
    rewire(model, "/model.3/cv3.0/Conv", f"{HEAD}/DQ_output_0", "planted_dq")


def unequal_concat(model: onnx.ModelProto) -> None:
    set_constant(model, "/model.1/m.0/Add_output_0.scale", np.float32(0.08))


def pool_changes_scale(model: onnx.ModelProto) -> None:
    """Both inputs of the concat behind the pool get the new scale, so that only the pool is wrong."""
    insert_qdq(model, "/model.2/MaxPool_output_0", 0.07, ["/model.2/Concat"])
    rewire(model, "/model.2/Concat", "/model.1/cv2/act/Mul_output_0/DQ_output_0", "planted_dq")


def requantized_split(model: onnx.ModelProto) -> None:
    insert_qdq(model, "/model.1/Split_output_1", 0.01, ["/model.1/m.0/cv1/Conv"])


def requantized_directly(model: onnx.ModelProto) -> None:
    insert_qdq(model, f"{STEM}/DQ_output_0", 0.01, ["/model.1/cv1/Conv"])


def float_split(model: onnx.ModelProto) -> None:
    """Q/DQ behind the split instead of before it."""
    remove_qdq(model, CV1)
    insert_qdq(model, "/model.1/Split_output_0", SCALES["c2f"], ["/model.1/Concat"], "left")
    insert_qdq(
        model,
        "/model.1/Split_output_1",
        SCALES["c2f"],
        ["/model.1/Concat", "/model.1/m.0/cv1/Conv", "/model.1/m.0/Add"],
        "right",
    )


def float_concat_input(model: onnx.ModelProto) -> None:
    """The residual's sum reaches the concat without Q/DQ."""
    remove_qdq(model, "/model.1/m.0/Add_output_0")


def quantized_result(model: onnx.ModelProto) -> None:
    insert_qdq(model, "/model.3/Concat_output_0", 2.0, [])
    model.graph.output[0].name = "planted_dq"


def quantized_scores(model: onnx.ModelProto) -> None:
    insert_qdq(model, "/model.3/Sigmoid_output_0", 0.01, ["/model.3/Concat"])


def add_unequal(model: onnx.ModelProto) -> None:
    insert_qdq(model, "/model.1/m.0/cv2/act/Mul_output_0", 0.01, ["/model.1/m.0/Add"])


def float_conv(model: onnx.ModelProto) -> None:
    remove_qdq(model, HIDDEN)
    float_weight(model, "model.1.m.0.cv2", "/model.1/m.0/cv2/Conv")


def half_quantized_conv(model: onnx.ModelProto) -> None:
    float_weight(model, "model.1.m.0.cv2", "/model.1/m.0/cv2/Conv")


def idle(model: onnx.ModelProto) -> None:
    insert_qdq(model, "/model.3/dfl/Transpose_output_0", 0.1, ["/model.3/dfl/Softmax"])


PLANTED = [
    (uint8, "not-int8", f"{STEM}/Q", "model.0.act"),
    (no_zero_point, "not-int8", f"{STEM}/Q", "model.0.act"),
    (int32_bias, "not-int8", "bias/DQ", "model.0"),
    (asymmetric, "asymmetric", f"{STEM}/Q", "model.0.act"),
    (asymmetric_weight, "asymmetric", "model.1.cv1.weight/DQ", "model.1.cv1"),
    (dynamic_scale, "non-constant-scale", f"{STEM}/Q", "model.0.act"),
    (negative_scale, "bad-scale", f"{STEM}/Q", "model.0.act"),
    (empty_scale, "bad-scale", f"{STEM}/Q", "model.0.act"),
    (zero_weight_scale, "bad-scale", "model.1.cv1.weight/DQ", "model.1.cv1"),
    (pair_mismatch, "pair-mismatch", f"{HIDDEN}/DQ", "model.1.m.0.cv1.act"),
    (half_scale, "type-mismatch", f"{STEM}/Q", "model.0.act"),
    (mixed_operands, "type-mismatch", "/model.3/Mul", "model.3"),
    (per_channel_activation, "per-channel-activation", f"{STEM}/Q", "model.0.act"),
    (weight_axis, "weight-axis", "/model.1/m.0/cv1/Conv", "model.1.m.0.cv1"),
    (q_before_silu, "q-between-conv-and-activation", "/model.1/cv1/Conv", "model.1.cv1"),
    (q_inside_silu, "q-between-conv-and-activation", "/model.1/cv1/Conv", "model.1.cv1"),
    (two_scales, "two-scales-one-tensor", "planted/Q", "model.2.cv2.act"),
    (unequal_concat, "unequal-scales", "/model.1/Concat", "model.1"),
    (pool_changes_scale, "unequal-scales", "/model.2/MaxPool", "model.2"),
    (requantized_split, "float-round-trip", "/model.1/Split", "model.1"),
    (requantized_directly, "float-round-trip", "planted/Q", "model.0.act"),
    (float_split, "float-round-trip", "/model.1/Split", "model.1"),
    (float_concat_input, "float-round-trip", "/model.1/Concat", "model.1"),
    (quantized_result, "box-score-concat", "/model.3/Concat", "model.3"),
    (quantized_scores, "box-score-concat", "/model.3/Concat", "model.3"),
    (add_unequal, "add-unequal-scales", "/model.1/m.0/Add", "model.1.m.0"),
    (float_conv, "conv-not-int8", "/model.1/m.0/cv2/Conv", "model.1.m.0.cv2"),
    (half_quantized_conv, "conv-not-int8", "/model.1/m.0/cv2/Conv", "model.1.m.0.cv2"),
    (idle, "idle-qdq", "planted/Q", "model.3.dfl"),
]
BROKEN = {"not-int8", "asymmetric", "non-constant-scale", "bad-scale", "pair-mismatch", "type-mismatch"}
BROKEN |= {"box-score-concat"}
WARNINGS = {"add-unequal-scales", "conv-not-int8", "idle-qdq"}
TRIPS = {"unequal-scales", "float-round-trip"}


def test_right_placement_has_no_findings_but_the_deliberate_ones() -> None:
    found = findings(detector())
    assert [finding for finding in found if finding.severity != "info"] == []
    assert {(finding.rule, finding.module) for finding in found} == {
        ("conv-not-int8", "model.3.cv2.1"),
        ("conv-not-int8", "model.3.cv3.1"),
        ("conv-not-int8", "model.3.dfl.conv"),
        ("channels-not-16", "model.0"),
        ("channels-not-16", "model.3.cv3.1"),
        ("channels-not-16", "model.3.dfl.conv"),
    }
    assert avoidable_round_trips(QdqGraph(detector())) == 0


def test_same_scale_copies_before_convolutions_are_no_finding() -> None:
    """The form our export writes for OpenVINO: every convolution has its own pair, of the same scale."""
    model = detector()
    insert_qdq(model, "/model.1/Split_output_1", SCALES["c2f"], ["/model.1/m.0/cv1/Conv"], "copy1")
    insert_qdq(model, "/model.2/Concat_output_0", SCALES["neck"], ["/model.2/cv2/Conv"], "copy2")
    assert serious(model) == []


@pytest.mark.parametrize(("plant", "rule", "where", "module"), PLANTED, ids=[case[0].__name__ for case in PLANTED])
def test_a_planted_defect_fires_its_rule_only(
    plant: Callable[[onnx.ModelProto], None], rule: str, where: str, module: str
) -> None:
    model = detector()
    plant(model)
    found = serious(model)
    assert {finding.rule for finding in found} == {rule}
    assert (where, module) in {(finding.node, finding.module) for finding in found}
    expected = "warning" if rule in WARNINGS else "broken" if rule in BROKEN else "slow"
    assert {finding.severity for finding in found} == {expected}
    assert all(finding.message and finding.advice for finding in found)
    assert avoidable_round_trips(QdqGraph(model)) == (len(found) if rule in TRIPS else 0)


def test_every_rule_has_a_planted_defect() -> None:
    covered = {rule for _, rule, _, _ in PLANTED} | {"no-qdq", "qoperator", "channels-not-16", "int8-head"}
    covered |= {"openvino-signed-concat", "onnxruntime-opset", "onnxruntime-float-conv"}  # in test_clients.py
    covered |= {"ultralytics-dynamic", "ultralytics-names"}
    covered |= {"rtx-channel-scales", "rtx-enlarged"}  # in tests/exporter/test_tensorrt_rtx.py
    assert covered == {rule.name for rule in RULES}
    assert len(covered) == len(RULES)


def test_the_documented_table_is_the_rule_table() -> None:
    document = (Path(__file__).resolve().parents[2] / "docs" / "placement.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in document.splitlines() if re.match(r"\| `[a-z0-9-]+` \|", line)]
    targets = ("tensorrt", "tensorrt-rtx", "openvino", "onnxruntime", "ultralytics")
    expected = [[f"`{r.name}`", r.summary, *(r.severity_for(t) or "-" for t in targets)] for r in RULES]
    assert rows == expected
    apart = {rule.name for rule in RULES if rule.severity_for("tensorrt-rtx") != rule.severity}
    assert apart == {"q-between-conv-and-activation", "rtx-channel-scales", "rtx-enlarged"}


def test_rules_name_targets_that_there_are() -> None:
    assert {name for rule in RULES for name in rule.elsewhere} <= TARGETS.rows.keys()


def test_odd_width_is_a_warning_in_the_body() -> None:
    found = serious(detector(hidden=12))
    assert {(finding.rule, finding.module) for finding in found} == {
        ("channels-not-16", "model.1.m.0.cv1"),
        ("channels-not-16", "model.1.m.0.cv2"),
    }


def test_int8_predictions_are_named() -> None:
    model = detector()
    module, conv = "model.3.cv3.1", "/model.3/cv3.1/Conv"
    insert_qdq(model, "/model.3/cv3.0/act/Mul_output_0", 0.1, [conv])
    weights = [
        set_constant(model, "w", np.ones((20, 32, 1, 1), np.int8)),
        set_constant(model, "ws", np.ones(20, np.float32)),
    ]
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", weights, ["wdq"], name="w/DQ", axis=0))
    rewire(model, conv, f"{module}.weight", "wdq")
    found = findings(model)
    assert ("int8-head", "info", module) in {(finding.rule, finding.severity, finding.module) for finding in found}
    assert serious(model) == []


def test_float_model_has_one_error() -> None:
    found = findings(detector(quantized=False))
    assert [finding.rule for finding in found if finding.severity in ERRORS] == ["no-qdq"]


def test_qoperator_file_has_one_error() -> None:
    net = Net()
    names = [net.constant(f"c{number}", value) for number, value in enumerate([np.float32(1), np.uint8(0)] * 2)]
    weight = net.constant("w", np.ones((16, 3, 1, 1), np.int8))
    q = net.op("QuantizeLinear", "q", [IMAGE, "c0", "c1"])
    inputs = [q, *names[:2], weight, "c0", net.constant("z", np.int8(0)), *names[2:]]
    y = net.op("QLinearConv", "/model.0/QLinearConv", inputs)
    model = net.model(net.op("DequantizeLinear", "dq", [y, *names[2:]]), [1, 16, 16, 16])
    found = [finding for finding in findings(model) if finding.rule in ("qoperator", "no-qdq")]
    assert [(finding.rule, finding.node, finding.module) for finding in found] == [
        ("qoperator", "/model.0/QLinearConv", "model.0")
    ]


def copied(op: str, **attributes: object) -> QdqGraph:
    """A quantized image, an operator with the inputs given, and what reads its output."""
    net = Net()
    inputs = [net.constant(name, value) for name, value in attributes.pop("inputs", {}).items()]  # type: ignore[attr-defined]
    return QdqGraph(net.model(net.op(op, "op", [net.qdq(IMAGE, 0.1), *inputs], **attributes), [None] * 4))


@pytest.mark.parametrize(
    ("graph", "kept"),
    [
        (copied("Resize", inputs={"roi": np.zeros(0, np.float32), "s": np.ones(4, np.float32)}, mode="nearest"), True),
        (copied("Resize", inputs={"roi": np.zeros(0, np.float32), "s": np.ones(4, np.float32)}, mode="linear"), False),
        (copied("Pad", inputs={"pads": np.ones(8, np.int64)}), True),
        (copied("Pad", inputs={"pads": np.ones(8, np.int64), "value": np.float32(0)}), True),
        (copied("Pad", inputs={"pads": np.ones(8, np.int64), "value": np.float32(1)}), False),
        (copied("Pad", inputs={"pads": np.ones(8, np.int64)}, mode="reflect"), True),
        (copied("Cast", to=TensorProto.FLOAT16), True),
        (copied("Cast", to=TensorProto.INT64), False),
        (copied("AveragePool", kernel_shape=[1, 1]), False),
    ],
)
def test_what_keeps_a_grid(graph: QdqGraph, kept: bool) -> None:
    assert (graph.grid("op_output_0") is not None) == kept


def test_scale_behind_a_constant_expression_is_constant() -> None:
    """Exporters write scales as Constant -> Cast or Mul; TensorRT folds them, and so does the lint."""
    model = detector()
    model.graph.node.insert(0, helper.make_node("Mul", ["s0", "s0"], ["folded"], name="fold"))
    set_constant(model, "s0", np.float32(SCALES["stem"] ** 0.5))
    for kind in ("Q", "DQ"):
        node(model, f"{STEM}/{kind}").input[1] = "folded"
    assert serious(model) == []


def test_raw_exporter_weights_count_as_int8() -> None:
    """float initializer -> Q -> DQ -> Conv, as torch.onnx writes it."""
    model = detector()
    float_weight(model, "model.1.m.0.cv2", "/model.1/m.0/cv2/Conv")
    pair = [
        set_constant(model, "ws", np.full(16, 0.01, np.float32)),
        set_constant(model, "wz", np.zeros(16, np.int8)),
    ]
    weight = "model.1.m.0.cv2.weight"
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", ["wq", *pair], ["wdq"], name="w/DQ", axis=0))
    model.graph.node.insert(0, helper.make_node("QuantizeLinear", [weight, *pair], ["wq"], name="w/Q", axis=0))
    rewire(model, "/model.1/m.0/cv2/Conv", weight, "wdq")
    assert serious(model) == []


def test_raw_box_and_score_maps_under_one_scale() -> None:
    """Older exports join box and score maps per level, along the channels."""
    net = Net()
    x = net.qdq(IMAGE, 0.01)
    box, score = net.conv("model.0.cv2", x, 3, 64), net.conv("model.0.cv3", x, 3, 80)
    joined = net.op("Concat", "/model.0/Concat", [box, score], axis=1)
    found = serious(net.model(net.qdq(joined, 0.1), [1, 144, 16, 16]))
    assert {(finding.rule, finding.node) for finding in found} == {("box-score-concat", "/model.0/Concat")}


def test_counts() -> None:
    counts = count(QdqGraph(detector()))
    assert (counts.convs, counts.int8_convs) == (11, 8)
    assert counts.scales == counts.scale_groups == len(SCALES)
    assert counts.quantized_weights == 8
    assert counts.qdq_pairs == 8  # image, stem, cv1, hidden, add, concat, neck, head
    assert counts.avoidable_round_trips == 0


def test_a_pair_is_counted_once_and_needs_both_halves() -> None:
    """Two DQs of one Q are one pair, also behind copies of the INT8 tensor; a Q that ends in an output is none."""
    net = Net()
    pair = [net.constant("s", np.float32(0.1)), net.constant("z", np.int8(0))]
    q = net.op("QuantizeLinear", "q", [IMAGE, *pair])
    pooled = net.op("MaxPool", "pool", [q], kernel_shape=[1, 1])
    left = net.op("DequantizeLinear", "left", [pooled, *pair])
    right = net.op("DequantizeLinear", "right", [q, *pair])
    net.op("QuantizeLinear", "last", [net.op("Add", "add", [left, right]), *pair])
    model = net.model("last_output_0", [1, 3, 16, 16])
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT8
    assert count(QdqGraph(model)).qdq_pairs == 1


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("/model.2/m.0/cv1/conv/Conv", "model.2.m.0.cv1.conv"),
        ("/model.22/cv2.0/cv2.0.2/Conv", "model.22.cv2.0.2"),
        ("node_conv2d_3", "model.7.conv"),
    ],
)
def test_module_of(name: str, module: str) -> None:
    net = Net()
    weight = net.constant("model.7.conv.weight", np.ones((16, 3, 1, 1), np.float32))
    model = net.model(net.op("Conv", name, [IMAGE, weight]), [1, 16, 16, 16])
    graph = QdqGraph(model)
    assert graph.module_of(graph.nodes[0]) == module


def test_module_from_torch_export_metadata() -> None:
    net = Net()
    net.op("Add", "node_add_1", [IMAGE, net.constant("one", np.float32(1))])
    net.nodes[0].metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'model.4', 'model.4.m.0', 'add_1']")
    graph = QdqGraph(net.model("node_add_1_output_0", [1, 3, 16, 16]))
    assert graph.module_of(graph.nodes[0]) == "model.4.m.0"


def test_second_call_of_a_module_is_that_module() -> None:
    net = Net()
    x = net.op("MaxPool", "/model.9/m/MaxPool", [IMAGE], kernel_shape=[1, 1])
    graph = QdqGraph(net.model(net.op("MaxPool", "/model.9/m_1/MaxPool", [x], kernel_shape=[1, 1]), [1, 3, 16, 16]))
    assert [graph.module_of(node) for node in graph.nodes] == ["model.9.m", "model.9.m"]
