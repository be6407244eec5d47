"""Whether the head's last convolutions are INT8 is measured, said, and kept in the checkpoint."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trt_qat import api, pipeline
from trt_qat.checkpoint import Model, load, save
from trt_qat.config import Config, EvaluationSection, QuantizationSection
from trt_qat.data.dataset import load_dataset
from trt_qat.evaluation.head import HeadDecision, decide_head
from trt_qat.model.loading import raw_output
from trt_qat.progress import SILENT, Noting
from trt_qat.quantization.head import HeadPlan, plan_head

LAST = {f"model.22.{branch}.{level}.2" for branch in ("cv2", "cv3") for level in range(3)}


@pytest.fixture(scope="module")
def plan(demo_detector: Model) -> HeadPlan:
    found = plan_head(copy.deepcopy(demo_detector.network), QuantizationSection())
    assert found is not None
    return found


@pytest.fixture(scope="module")
def with_head(demo_detector: Model, demo_set: Path, plan: HeadPlan) -> Model:
    return api.quantize(demo_detector, demo_set, calibrator="max", images=4, placement=plan.placement)


def test_plan_is_the_default_placement_and_the_last_convolutions(demo_int8: Model, plan: HeadPlan) -> None:
    default = demo_int8.require_quantized().placement
    added = [group for group in plan.placement.groups if group.name in plan.groups]
    assert {conv for group in added for conv in group.convs} == LAST
    assert tuple(group for group in plan.placement.groups if group not in added) == default.groups
    assert plan.placement.float_convs == {"model.22.dfl.conv": "role dfl"}


def test_nothing_to_plan_where_they_are_int8_anyway(demo_detector: Model) -> None:
    section = QuantizationSection(float_roles=("dfl",))
    assert plan_head(copy.deepcopy(demo_detector.network), section) is None


@pytest.mark.parametrize("limit", [1.0, -1.0])
def test_decided_by_map(with_head: Model, plan: HeadPlan, demo_set: Path, limit: float, tmp_path: Path) -> None:
    dataset, progress = load_dataset(demo_set), Noting(SILENT)
    image = torch.rand(1, 3, *with_head.imgsz, generator=torch.Generator().manual_seed(0))
    before = raw_output(with_head.network, image)
    decided = decide_head(with_head, plan.groups, dataset, 8, EvaluationSection(), progress, limit)
    assert torch.equal(raw_output(with_head.network, image), before)
    found = decided.provenance["head_last"]
    assert (found["int8"], found["images"], found["measure"]) == (limit > 0, 8, "mAP")
    assert found["float_map50_95"] > 0.5
    assert abs(found["float_map50_95"] - found["int8_map50_95"]) < 0.1
    again = load(save(tmp_path / "head.safetensors", decided).path)
    placement = again.require_quantized().placement
    assert set(placement.float_convs) == ({"model.22.dfl.conv"} if limit > 0 else {"model.22.dfl.conv", *LAST})
    assert torch.equal(raw_output(again.network, image), raw_output(decided.network, image))
    assert torch.equal(raw_output(again.network, image), before) == (limit > 0)
    (line,) = progress.lines
    assert f"the head's last convolutions are {'INT8' if limit > 0 else 'float'}: mAP50-95 on 8 training" in line


def test_float_without_labels(with_head: Model, plan: HeadPlan, demo_set: Path, tmp_path: Path) -> None:
    dataset = load_dataset(demo_set)
    image = tmp_path / "images" / dataset.train[0].name
    image.parent.mkdir()
    image.write_bytes(dataset.train[0].read_bytes())
    progress = Noting(SILENT)
    bare = replace(dataset, train=(image,))
    decided = decide_head(with_head, plan.groups, bare, 8, EvaluationSection(), progress)
    assert set(decided.require_quantized().placement.float_convs) == {"model.22.dfl.conv", *LAST}
    assert "stay float" in progress.lines[0]


def test_limit_is_on_the_drop() -> None:
    assert HeadDecision(0.4, 0.3981, 128, "mAP").int8
    assert not HeadDecision(0.4, 0.3979, 128, "mAP").int8
    assert HeadDecision(0.4, 0.5, 128, "mAP").int8


def test_asked_for_openvino_alone() -> None:
    config = Config()
    assert not pipeline.asks_about_head(config)
    openvino = config.with_values("export", target="openvino")
    assert pipeline.asks_about_head(openvino)
    assert not pipeline.asks_about_head(openvino.with_values("quantization", head_int8="never"))
