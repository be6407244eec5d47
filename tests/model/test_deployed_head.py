"""End-to-end heads: what of them is deployed is what Ultralytics computes without NMS; others are refused by name."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_network import NAMES, save_pt, tiny_architecture
from ultralytics.nn.tasks import DetectionModel

from trt_qat.checkpoint import load, save
from trt_qat.errors import ArtifactError, ConfigError
from trt_qat.model.loading import build_network, deployed_, is_end_to_end, network_from_architecture, raw_output
from trt_qat.model.output_error import output_error, raw_predictions
from trt_qat.training.fp32 import trainable_network
from trt_qat.vision.postprocess import detections_from_output

HEADS: dict[str, dict[str, Any]] = {"YOLOv10": {}, "YOLO26": {"end2end": True, "reg_max": 1}}


def two_branched(kind: str) -> DetectionModel:
    """Both branches of the head with weights of their own."""
    architecture = {**tiny_architecture(), **HEADS[kind]}
    if kind == "YOLOv10":
        architecture["head"][-1][2:] = ["v10Detect", ["nc"]]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = network_from_architecture(architecture, NAMES)
        for branch in (*network.model[-1].one2one_cv2, *network.model[-1].one2one_cv3):
            torch.nn.init.normal_(branch[-1].weight, std=0.3)
    return network


@pytest.fixture(params=HEADS)
def network(request: pytest.FixtureRequest) -> DetectionModel:
    return two_branched(request.param)


def test_deployed_is_what_ultralytics_computes_without_nms(network: DetectionModel, tmp_path: Path) -> None:
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    raw = raw_output(load(save_pt(network, tmp_path / "x.pt")).network, images)[0].numpy()
    network.end2end = True
    with torch.no_grad():
        rows = network.eval()(images)[0][0].numpy()  # x1, y1, x2, y2, score, class; best first
    found = detections_from_output(raw, 0.0, 0.7, max_det=len(rows), multi_label=True, layout="nms_free")
    assert raw.shape == (4 + len(NAMES), 256)
    ours = np.column_stack([found.boxes_xyxy, found.scores, found.class_ids])
    assert ours.shape == rows.shape == (256, 6)
    close = (np.abs(ours[:, None] - rows[None]) < (*[1e-2] * 4, 1e-5, 0.5)).all(axis=2)  # equal scores in any order
    assert close.any(axis=0).mean() > 0.95  # and at the end any of those with the last score
    np.testing.assert_allclose(found.scores, rows[:, 4], atol=1e-5)


def test_a_checkpoint_keeps_what_is_deployed(network: DetectionModel, tmp_path: Path) -> None:
    model = load(save_pt(network, tmp_path / "x.pt"))
    save(tmp_path / "x.safetensors", model)
    again = load(tmp_path / "x.safetensors").network
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(raw_output(again, images), raw_output(model.network, images))
    assert is_end_to_end(again)
    assert not any("one2one" in name for name, _ in again.named_modules())


def test_training_goes_on_from_both_branches(network: DetectionModel, tmp_path: Path) -> None:
    model = load(save_pt(network, tmp_path / "x.pt"))
    trainable, before = trainable_network(model, NAMES).state_dict(), network.state_dict()
    assert any("one2one_cv3" in name for name in trainable)
    assert all(torch.equal(value, trainable[name]) for name, value in before.items())
    assert not any("one2one" in name for name, _ in model.unfolded().named_modules())


def test_gradients_reach_the_whole_network(network: DetectionModel) -> None:
    """Ultralytics cuts its one-to-one branch off from the rest, which QAT must train through it."""
    student = deployed_(copy.deepcopy(network))
    taught = raw_predictions(network_of(student), torch.rand(1, 3, 64, 64))
    error = output_error(raw_predictions(student, torch.rand(1, 3, 64, 64)), taught)
    error.backward()  # type: ignore[no-untyped-call]
    gradient = student.model[0].conv.weight.grad
    assert error.item() > 0
    assert gradient.abs().max() > 0


def network_of(student: DetectionModel) -> DetectionModel:
    """A teacher that is a little different."""
    teacher = copy.deepcopy(student)
    with torch.no_grad():
        for branch in (*teacher.model[-1].cv2, *teacher.model[-1].cv3):
            branch[-1].bias.add_(0.5)
    return teacher


def test_distances_of_one_bin_have_an_error_too() -> None:
    """YOLO26 has no distribution over bins; 0.5 cells off on each of four sides of the only confident box."""
    scores = torch.tensor([[[30.0, -30.0]]])
    boxes = torch.ones(1, 4, 2)
    off = {"scores": scores, "boxes": boxes + 0.5}
    assert output_error(off, {"scores": scores, "boxes": boxes}).item() == pytest.approx(4 * 0.5 * 0.5**2)


@pytest.mark.parametrize("kept", ["one-to-one", "one-to-many"])
def test_a_fused_end_to_end_head_is_refused(network: DetectionModel, tmp_path: Path, kept: str) -> None:
    network.end2end = kept == "one-to-one"
    network.fuse(verbose=False)
    with pytest.raises(ArtifactError, match=r"end-to-end head after Ultralytics' fuse.*Give the .pt as it was trained"):
        load(save_pt(network, tmp_path / "fused.pt"))


REFUSED = {
    "rtdetr-l": r"ends in RTDETRDecoder \(RT-DETR's queries are chosen inside it",
    "yolov8s-world": r"ends in WorldDetect \(YOLO-World: its classes are embeddings of texts",
    "yolov8s-worldv2": r"ends in WorldDetect \(YOLO-World: its classes are embeddings of texts",
    "yoloe-11n": r"ends in YOLOEDetect \(YOLOE: its classes are embeddings of texts",
    "yoloe-26n": r"ends in YOLOEDetect \(YOLOE: its classes are embeddings of texts",
    "yolo26n-seg": "ends in Segment26;",
    "yolo11n-pose": "ends in Pose;",
    "yolo11n-obb": "ends in OBB;",
    "yolo11n-cls": "ends in Classify;",
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_kinds_are_refused_by_name(name: str) -> None:
    with pytest.raises(ArtifactError, match=REFUSED[name]) as caught:
        build_network(Path(f"{name}.yaml"))
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("a detection model: YOLOv5u, v8 (p2 and p6 too), v9, v10, 11, 12 or 26.")


def test_a_size_that_is_no_multiple_of_the_stride_is_refused(tmp_path: Path) -> None:
    """The tiny detector's cells have 4 pixels; with three more halvings 64, as in a P6 network."""
    architecture = tiny_architecture()
    architecture["backbone"] += [[-1, 1, "Conv", [16, 3, 2]]] * 4
    architecture["head"] = [[-1, 1, "SPPF", [16, 5]], [[-1], 1, "Detect", ["nc"]]]
    network = network_from_architecture(architecture, NAMES)
    save_pt(network, tmp_path / "p6.pt")
    assert load(tmp_path / "p6.pt", 64).imgsz == (64, 64)
    with pytest.raises(ConfigError, match=r"imgsz=\[96, 64\] does not fit .* must be multiples of 64"):
        load(tmp_path / "p6.pt", (96, 64))
