"""Tracing and roles, on every Ultralytics detector family: found by what a layer does, not by its name."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from ultralytics.nn.modules import Conv, Detect
from ultralytics.nn.tasks import DetectionModel, OBBModel, PoseModel, SegmentationModel

from trt_qat.checkpoint import Model
from trt_qat.errors import QuantizationError
from trt_qat.model.graph import convolutions, trace
from trt_qat.model.loading import build_network, fold_batchnorm, raw_output
from trt_qat.model.roles import roles

if TYPE_CHECKING:
    from conftest import Traced

SLOW_FAMILIES = [pytest.param(name, marks=pytest.mark.slow) for name in ("yolov5nu", "yolov9t", "yolo12n")]
FAMILIES = ["yolov8n", "yolov10n", "yolo11n", "yolo26n", *SLOW_FAMILIES]
TASKS = {"seg": SegmentationModel, "pose": PoseModel, "obb": OBBModel}


def test_roles_of_yolov8n(traced: Traced) -> None:
    network, graph = traced("yolov8n.yaml")
    expected = {"model.0.conv": "first_conv", "model.22.dfl.conv": "dfl"}
    expected |= {f"model.22.{branch}.{level}.2": "head_last" for branch in ("cv2", "cv3") for level in range(3)}
    assert roles(network, graph) == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_roles_of_every_family(traced: Traced, name: str) -> None:
    network, graph = traced(f"{name}.yaml")
    head = network.model[-1]
    assert isinstance(head, Detect)
    found = roles(network, graph)
    last = {f"model.{head.i}.{branch}.{level}.2" for branch in ("cv2", "cv3") for level in range(3)}
    assert {conv for conv, role in found.items() if role == "head_last"} == last
    assert [conv for conv, role in found.items() if role == "first_conv"] == ["model.0.conv"]
    has_dfl = not isinstance(head.dfl, nn.Identity)
    assert [conv for conv, role in found.items() if role == "dfl"] == [f"model.{head.i}.dfl.conv"] * has_dfl


@pytest.mark.parametrize("task", TASKS)
def test_other_heads_can_be_traced(traced: Traced, task: str) -> None:
    network, graph = traced(f"yolov8n-{task}.yaml")
    assert type(network) is TASKS[task]
    last = {conv for conv, role in roles(network, graph).items() if role == "head_last"}
    assert {f"model.22.{branch}.{level}.2" for branch in ("cv2", "cv3", "cv4") for level in range(3)} <= last
    assert len(last) == 9 + (task == "seg")  # the mask prototypes end in a convolution too


def test_a_learned_convolution_with_one_output_is_not_dfl(traced: Traced) -> None:
    network, graph = traced("yolov8n.yaml")
    changed = copy.deepcopy(network)
    with torch.no_grad():
        changed.get_submodule("model.22.dfl.conv").weight[0, 3] += 0.5
    assert "dfl" not in roles(changed, graph).values()


@pytest.mark.parametrize("name", FAMILIES)
def test_every_running_convolution_is_an_operation(traced: Traced, name: str) -> None:
    """The graph's convolutions are those that really run."""
    network, graph = traced(f"{name}.yaml")
    run: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_, conv=conv: run.append(conv))
        for conv, module in convolutions(network).items()
    ]
    raw_output(network, torch.rand(1, 3, 64, 64))
    for handle in handles:
        handle.remove()
    assert [op.parameter_module for op in graph if op.operator == "conv2d"] == run


def test_operations_are_in_order_and_know_their_module(traced: Traced) -> None:
    _, graph = traced("yolov8n.yaml")
    seen: set[str] = set()
    for operation in graph:
        assert seen.issuperset(operation.inputs)
        assert operation.name not in seen
        seen.add(operation.name)
    adds = [op.module for op in graph if op.operator == "add" and op.module.startswith("model.2.")]
    assert adds == ["model.2.m.0"]
    cats = [op for op in graph if op.operator == "cat" and op.module == "model.2"]
    assert [len(op.inputs) for op in cats] == [3]


def test_tracing_leaves_the_network_untouched(detector: Model) -> None:
    network = copy.deepcopy(detector.network)
    images = torch.rand(1, 3, 96, 64)
    before = raw_output(network, images)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    gradients = [parameter.requires_grad for parameter in network.parameters()]
    trace(network)
    assert torch.equal(raw_output(network, images), before)
    assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())
    assert [parameter.requires_grad for parameter in network.parameters()] == gradients
    values = [value for module in network.modules() for value in vars(module).values()]
    assert not any(isinstance(value, FakeTensor) for value in values if isinstance(value, Tensor))


def test_image_size_does_not_matter(traced: Traced) -> None:
    network, graph = traced("yolov8n.yaml")
    assert [(op.operator, op.module) for op in trace(network, imgsz=96)] == [(op.operator, op.module) for op in graph]


def test_data_dependent_network_is_a_clear_error() -> None:
    class Undecided(Conv):
        def forward_fuse(self, x: Tensor) -> Tensor:
            y: Tensor = super().forward_fuse(x)
            return y if y.sum() > 0 else -y

    network: DetectionModel = fold_batchnorm(build_network(Path("yolov8n.yaml")))
    network.model[1].__class__ = Undecided
    network.model[1].forward = network.model[1].forward_fuse
    with pytest.raises(QuantizationError, match=r"cannot trace module 'model\.1' \(Undecided\), so") as caught:
        trace(network)
    assert "\n" not in str(caught.value)


def test_the_innermost_module_is_named_when_it_fails() -> None:
    """An error of the forward pass itself, four modules deep."""
    network: DetectionModel = fold_batchnorm(build_network(Path("yolov8n.yaml")))
    network.get_submodule("model.4.m.1.cv2").conv = nn.Conv2d(7, 32, 3)
    expected = r"cannot trace module 'model\.4\.m\.1\.cv2\.conv' \(Conv2d\).*RuntimeError"
    with pytest.raises(QuantizationError, match=expected) as caught:
        trace(network)
    assert "\n" not in str(caught.value)
