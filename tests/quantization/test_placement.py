"""Placement: one scale per tensor, shared along every copy, on every detector family."""

from __future__ import annotations

import copy
import json
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from torch import nn
from ultralytics.nn.tasks import DetectionModel

from trt_qat.config import QuantizationSection, Residual
from trt_qat.errors import QuantizationError
from trt_qat.model.graph import Operation, TensorGraph, convolutions, trace
from trt_qat.model.loading import build_network, fold_batchnorm
from trt_qat.quantization.insert import quantize_model
from trt_qat.quantization.placement import Placement, place

if TYPE_CHECKING:
    from conftest import Traced

FAMILIES = ["yolov8n", "yolov10n", "yolo11n", "yolo26n"]
SLOW = ("yolov5nu", "yolov8s", "yolov8m", "yolov8l", "yolov8x", "yolov9t", "yolo12n")
SLOW_FAMILIES = [pytest.param(name, marks=pytest.mark.slow) for name in SLOW]
RESIDUALS: tuple[Residual, ...] = ("none", "skip", "both")
# Written down here once more on purpose: what moves values without changing them.
MOVES = {"cat", "chunk", "split", "split_with_sizes", "getitem", "max_pool2d", "upsample_nearest2d", "view", "reshape"}
MOVES |= {"permute", "transpose", "slice", "select", "unsqueeze", "flatten", "contiguous", "clone", "expand", "stack"}


def int8_reads(graph: TensorGraph, placement: Placement) -> list[Operation]:
    quantized = {conv for group in placement.groups for conv in group.convs}
    return [op for op in graph if op.parameter_module in quantized]


def scale_of_tensors(graph: TensorGraph, placement: Placement) -> dict[str, int]:
    """Tensor to group index, spread from the tensors that convolutions read along every copy, both ways.

    Fails where two scales would meet.
    """
    index = {conv: i for i, group in enumerate(placement.groups) for conv in group.convs}
    scale: dict[str, int] = {}

    def assign(tensor: str, value: int) -> bool:
        assert scale.get(tensor, value) == value, f"'{tensor}' has two scales"
        changed = tensor not in scale
        scale[tensor] = value
        return changed

    for read in int8_reads(graph, placement):
        assign(read.inputs[0], index[read.parameter_module])
    moves = [op for op in graph if op.operator in MOVES]
    changed = True
    while changed:
        changed = False
        for move in moves:
            known = [scale[name] for name in (move.name, *move.inputs) if name in scale]
            for name in (move.name, *move.inputs) if known else ():
                changed |= assign(name, known[0])
    return scale


def check_placement(network: DetectionModel, graph: TensorGraph, section: QuantizationSection) -> Placement:
    placement = place(network, graph, section)
    places = Counter([*placement.float_convs, *(conv for group in placement.groups for conv in group.convs)])
    assert set(places) == set(convolutions(network))
    assert set(places.values()) == {1}
    scale = scale_of_tensors(graph, placement)  # one scale per tensor, equal along copies
    assert set(scale.values()) == set(range(len(placement.groups)))
    for cat in (op for op in graph if op.operator == "cat" and op.name in scale):
        assert {scale[name] for name in cat.inputs} == {scale[cat.name]}
    for group in placement.groups:
        assert group.observed
        assert set(group.observed) <= set(group.convs)
    assert Placement.from_dict(json.loads(json.dumps(placement.as_dict()))) == placement
    check_adds(graph, placement, scale, section.residual)
    return placement


def check_adds(graph: TensorGraph, placement: Placement, scale: dict[str, int], residual: Residual) -> None:
    """Which operand of which add is quantized, recomputed from the graph."""
    placed = {(add.module, add.call, add.operand): i for i, group in enumerate(placement.groups) for add in group.adds}
    calls: Counter[str] = Counter()
    expected: dict[tuple[str, int, int], int | None] = {}
    for add in (op for op in graph if op.operator == "add"):
        call, calls[add.module] = calls[add.module], calls[add.module] + 1
        known = [scale[name] for name in add.inputs if name in scale]
        if len(add.inputs) != 2 or not known or residual == "none":
            continue
        for operand, name in enumerate(add.inputs):
            if residual == "both":
                assert len(set(known)) == 1, "the operands of a residual add must share their scale"
                expected[add.module, call, operand] = known[0]
            elif name in scale:
                expected[add.module, call, operand] = scale[name]
    assert placed == expected


@pytest.mark.parametrize("name", [*FAMILIES, *SLOW_FAMILIES])
def test_every_family(traced: Traced, name: str) -> None:
    for residual in RESIDUALS:
        check_placement(*traced(f"{name}.yaml"), QuantizationSection(residual=residual))


@pytest.mark.parametrize("task", ["seg", "pose", "obb"])
def test_other_heads(traced: Traced, task: str) -> None:
    placement = check_placement(*traced(f"yolov8n-{task}.yaml"), QuantizationSection(residual="both"))
    assert placement.float_convs["model.22.cv4.0.2"] == "role head_last"


@pytest.mark.slow
def test_largest_network_is_placed_in_seconds() -> None:
    network = fold_batchnorm(build_network(Path("yolov8x.yaml")))
    start = time.process_time()
    place(network, trace(network), QuantizationSection())
    assert time.process_time() - start < 10


@pytest.mark.parametrize(("residual", "operands"), [("none", 0), ("skip", 6), ("both", 12)])
def test_residual_operands_of_yolov8n(traced: Traced, residual: Residual, operands: int) -> None:
    """Six bottlenecks of the backbone add; their left operand is read by a convolution, their right one by the add."""
    placement = place(*traced("yolov8n.yaml"), QuantizationSection(residual=residual))
    adds = [add for group in placement.groups for add in group.adds]
    assert len(adds) == operands
    assert {add.module for add in adds} <= {
        f"model.{i}.m.{j}" for i, j in ((2, 0), (4, 0), (4, 1), (6, 0), (6, 1), (8, 0))
    }
    if residual == "skip":
        assert {(add.call, add.operand) for add in adds} == {(0, 0)}


def test_c2f_reads_one_scale(traced: Traced) -> None:
    """Split, first bottleneck and concat of a C2f: the reading convolutions share a group."""
    placement = place(*traced("yolov8n.yaml"), QuantizationSection())
    group = next(group for group in placement.groups if "model.4.cv2.conv" in group.convs)
    assert {"model.4.m.0.cv1.conv", "model.4.m.1.cv1.conv"} <= set(group.convs)
    assert group.observed == ("model.4.cv2.conv",)  # the concat shows every member


def test_float_roles(traced: Traced) -> None:
    network, graph = traced("yolov8n.yaml")
    default = place(network, graph, QuantizationSection())
    assert Counter(default.float_convs.values()) == {"role head_last": 6, "role dfl": 1}
    strict = place(network, graph, QuantizationSection(float_roles=("first_conv", "head_last", "dfl")))
    assert strict.float_convs["model.0.conv"] == "role first_conv"
    none = place(network, graph, QuantizationSection(float_roles=()))
    assert none.float_convs == {}


def test_branch_that_is_not_deployed_stays_float(traced: Traced) -> None:
    """A network with its one-to-many head still in it runs the other head only."""
    network = build_network(Path("yolov8n.yaml"))
    network = fold_batchnorm(network)
    network.unused = copy.deepcopy(network.model[0].conv)
    placement = place(network, traced("yolov8n.yaml")[1], QuantizationSection())
    assert placement.float_convs["unused"] == "not part of the deployed graph"


@pytest.mark.parametrize(
    ("pattern", "excluded"),
    [
        ("model.0.conv", {"model.0.conv"}),
        ("model.9", {"model.9.cv1.conv", "model.9.cv2.conv"}),
        ("model.2.m.0.cv?.conv", {"model.2.m.0.cv1.conv", "model.2.m.0.cv2.conv"}),
    ],
)
def test_exclude(traced: Traced, pattern: str, excluded: set[str]) -> None:
    placement = check_placement(*traced("yolov8n.yaml"), QuantizationSection(exclude=(pattern,)))
    reasons = {conv for conv, reason in placement.float_convs.items() if reason == f"excluded by '{pattern}'"}
    assert reasons == excluded


@pytest.mark.parametrize("pattern", ["model.99.*", "model.9.cv1.con", "9"])
def test_exclude_that_matches_nothing(traced: Traced, pattern: str) -> None:
    with pytest.raises(QuantizationError, match="matches no convolution"):
        place(*traced("yolov8n.yaml"), QuantizationSection(exclude=(pattern,)))


def test_nothing_left(traced: Traced) -> None:
    with pytest.raises(QuantizationError, match="No convolution is left"):
        place(*traced("yolov8n.yaml"), QuantizationSection(exclude=("*",)))


def chain(*operations: Operation) -> tuple[nn.Module, TensorGraph]:
    """A graph by hand, and a module with its convolutions."""
    names = [op.parameter_module for op in operations if op.parameter_module]
    return nn.ModuleDict({name: nn.Conv2d(2, 2, 1) for name in names}), TensorGraph(operations)


def conv(name: str, tensor: str) -> Operation:
    return Operation(f"out_{name}", "conv2d", (tensor,), "", name)


@pytest.mark.parametrize(
    ("operation", "observed"),
    [("cat", ("second",)), ("upsample_nearest2d", ("second",)), ("max_pool2d", ("first", "second"))],
)
def test_a_tensor_is_observed_unless_all_of_it_is_seen_later(operation: str, observed: tuple[str, ...]) -> None:
    """A concat or upsampling shows every value of its input again; pooling drops some, so its input is watched too."""
    network, graph = chain(
        Operation("images", "input", (), ""),
        conv("first", "images"),
        Operation("moved", operation, ("images",), ""),
        conv("second", "moved"),
    )
    (group,) = place(network, graph, QuantizationSection(float_roles=())).groups
    assert set(group.convs) == {"first", "second"}
    assert set(group.observed) == set(observed)


def test_average_pooling_separates_groups() -> None:
    """It computes new values: the tensors around it have scales of their own."""
    network, graph = chain(
        Operation("images", "input", (), ""),
        conv("first", "images"),
        Operation("mean", "avg_pool2d", ("images",), ""),
        conv("second", "mean"),
    )
    assert len(place(network, graph, QuantizationSection(float_roles=())).groups) == 2


def test_a_module_that_runs_twice_has_one_scale() -> None:
    network, graph = chain(
        Operation("images", "input", (), ""),
        Operation("other", "sigmoid", ("images",), ""),
        conv("shared", "images"),
        Operation("again", "conv2d", ("other",), "", "shared"),
    )
    (group,) = place(network, graph, QuantizationSection(float_roles=())).groups
    assert group.convs == ("shared",)


def test_inserted_quantizers_are_those_of_the_placement(traced: Traced) -> None:
    network, _ = traced("yolov8n.yaml")
    model = quantize_model(copy.deepcopy(network), network.names, QuantizationSection(residual="both"))
    quantizers = model.activation_quantizers()
    assert len({id(q) for q in quantizers.values()}) == len(model.placement.groups)
    for group in model.placement.groups:
        for conv in group.convs:
            assert model.network.get_submodule(conv).input_quantizer is quantizers[group.name]
        for add in group.adds:
            by_call = model.network.get_submodule(add.module).residual_quantizers.by_call
            assert by_call[f"{add.call}_{add.operand}"] is quantizers[group.name]
    assert set(model.weight_quantizers()) == {conv for group in model.placement.groups for conv in group.convs}
    assert not any(hasattr(network.get_submodule(conv), "input_quantizer") for conv in model.weight_quantizers())
