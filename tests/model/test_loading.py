"""Loading, rebuilding and folding: the numbers stay, and every bad file is one clear line."""

from __future__ import annotations

import copy
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from tiny_network import ARCHITECTURE
from torch import nn
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel

from trt_qat.checkpoint import load
from trt_qat.errors import ArtifactError
from trt_qat.model.loading import (
    FOLD_TOLERANCE,
    build_network,
    check_same_output,
    fold_batchnorm,
    raw_output,
    rebuild,
)
from trt_qat.training.fp32 import trainable_network


def save_pt(network: DetectionModel, path: Path) -> Path:
    """An Ultralytics checkpoint, as its trainer writes one."""
    torch.save({"model": copy.deepcopy(network), "train_args": {"task": "detect"}, "version": "8.4"}, path)
    return path


@pytest.fixture
def pt(unfolded: DetectionModel, tmp_path: Path) -> Path:
    return save_pt(unfolded, tmp_path / "detector.pt")


def test_rebuilt_and_folded_is_the_same_network(unfolded: DetectionModel) -> None:
    rebuilt = rebuild(unfolded)
    assert check_same_output(unfolded, rebuilt, "rebuilt") == 0.0
    folded = fold_batchnorm(rebuilt)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert 0.0 < check_same_output(unfolded, folded, "folded") <= FOLD_TOLERANCE


def test_output_depends_on_the_image(unfolded: DetectionModel) -> None:
    """Otherwise the comparisons above would compare biases."""
    noise = raw_output(unfolded, torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
    assert noise.shape == (2, 4 + len(unfolded.names), 84)
    assert (noise[0] - noise[1]).abs().max() > 0.05 * noise.abs().max()


def test_pt_is_loaded_folded_with_its_names(pt: Path, unfolded: DetectionModel) -> None:
    model = load(pt)
    assert model.names == unfolded.names
    assert not model.network.training
    assert model.network.is_fused()
    images = torch.rand(1, 3, 64, 96)
    expected = raw_output(unfolded, images)
    assert torch.allclose(raw_output(model.network, images), expected, atol=1e-4 * float(expected.abs().max()))


def test_half_precision_pt(unfolded: DetectionModel, tmp_path: Path) -> None:
    path = save_pt(copy.deepcopy(unfolded).half(), tmp_path / "half.pt")
    assert {p.dtype for p in load(path).network.parameters()} == {torch.float32}


def test_head_wider_than_its_architecture(unfolded: DetectionModel, tmp_path: Path) -> None:
    """A detector fine-tuned from 80 classes keeps the hidden width of the 80-class head."""
    wide = copy.deepcopy(unfolded)
    head = wide.model[-1]
    for level, branch in enumerate(head.cv3):
        incoming = branch[0].conv.in_channels
        narrow = branch[0].conv.out_channels
        assert narrow != 80
        fresh = build_network(Path("yolov8n.yaml")).model[-1].cv3[level]  # 80 classes
        assert fresh[0].conv.in_channels == incoming
        fresh[2] = nn.Conv2d(80, len(wide.names), 1)
        head.cv3[level] = fresh
    model = load(save_pt(wide.eval(), tmp_path / "wide.pt"))
    assert model.network.model[-1].cv3[0][0].conv.out_channels == 80
    images = torch.rand(1, 3, 64, 64)
    expected = raw_output(wide, images)
    assert torch.allclose(raw_output(model.network, images), expected, atol=1e-4 * float(expected.abs().max()))


def test_real_checkpoint_with_a_wide_head(shared_data: Path) -> None:
    model = load(shared_data / "weights" / "yolov8n_vnsigns.pt")
    assert len(model.names) == 7
    assert model.network.model[-1].cv3[0][1].conv.out_channels == 80


def test_architecture_name() -> None:
    model = load(Path("yolov8n.yaml"))
    assert len(model.names) == 80
    assert sum(parameter.numel() for parameter in model.network.parameters()) == pytest.approx(3.15e6, rel=0.01)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.pt", None, "does not exist"),
        ("empty.pt", b"", "is empty"),
        ("text.pt", b"not weights at all\n" * 9, "not a PyTorch checkpoint"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert_refused(tmp_path / name, message)


def test_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.pt").mkdir()
    assert_refused(tmp_path / "folder.pt", "is a folder, not a file")


def test_torch_file_that_is_no_checkpoint(tmp_path: Path) -> None:
    torch.save({"a": 1}, tmp_path / "foreign.pt")
    assert_refused(tmp_path / "foreign.pt", "not an Ultralytics checkpoint")


def test_zip_file_that_is_no_checkpoint(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "plain.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert_refused(tmp_path / "plain.pt", "not an Ultralytics checkpoint")


@pytest.mark.parametrize("kept", [0.5, 0.999])
def test_truncated_checkpoint(pt: Path, kept: float) -> None:
    content = pt.read_bytes()
    pt.write_bytes(content[: int(len(content) * kept)])
    assert_refused(pt, "truncated")


@pytest.mark.parametrize("task", ["seg", "pose", "obb"])
def test_other_tasks_are_refused(tmp_path: Path, task: str) -> None:
    YOLO(f"yolov8n-{task}.yaml").save(tmp_path / "other.pt")
    assert_refused(tmp_path / "other.pt", "needs a detection model")
    assert_refused(Path(f"yolov8n-{task}.yaml"), "needs a detection model")


@pytest.mark.parametrize("content", ["a: 1\n", "- 1\n- 2\n", "just text\n", ""])
def test_yaml_that_is_no_architecture(tmp_path: Path, content: str) -> None:
    (tmp_path / "other.yaml").write_text(content)
    assert_refused(tmp_path / "other.yaml", "not an Ultralytics architecture")


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("yolov8n-world.yaml", "WorldDetect"),
        ("yoloe-11n.yaml", "YOLOEDetect"),
        ("rtdetr-l.yaml", "RTDETRDecoder"),
    ],
)
def test_networks_that_are_no_plain_detectors_are_named(name: str, module: str) -> None:
    """They read text, or predict another way."""
    with pytest.raises(ArtifactError, match=module) as caught:
        load(Path(name))
    assert "\n" not in str(caught.value)


def test_names_that_are_not_utf8(tmp_path: Path, unfolded: DetectionModel) -> None:
    architecture = tmp_path / os.fsdecode(b"n\xff.yaml")
    architecture.write_text(yaml.safe_dump(ARCHITECTURE))
    assert len(load(architecture).names) == 2
    assert load(save_pt(unfolded, tmp_path / os.fsdecode(b"n\xff.pt"))).names == unfolded.names


def test_missing_yaml() -> None:
    assert_refused(Path("no_such_network.yaml"), "not an Ultralytics architecture")


def assert_refused(path: Path, message: str) -> None:
    with pytest.raises(ArtifactError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)


def test_changed_weight_is_noticed(detector: object, unfolded: DetectionModel) -> None:
    changed = rebuild(unfolded)
    with torch.no_grad():
        changed.get_submodule("model.4.cv1.conv").weight[0] *= 1.05
    with pytest.raises(ArtifactError, match="twice: output differs"):
        check_same_output(unfolded, changed, "twice")


def test_not_a_number_is_noticed(unfolded: DetectionModel) -> None:
    changed = rebuild(unfolded)
    with torch.no_grad():
        changed.get_submodule("model.0.conv").weight[0] = float("nan")
    with pytest.raises(ArtifactError, match="differs by nan"):
        check_same_output(unfolded, changed, "broken")


def test_activation_lost_on_rebuild_is_noticed(unfolded: DetectionModel) -> None:
    changed = rebuild(unfolded)
    changed.get_submodule("model.9.cv1").act = nn.Identity()
    with pytest.raises(ArtifactError, match="differs"):
        check_same_output(unfolded, changed, "SPPF")


def test_batchnorm_without_convolution_is_refused(
    make_unfolded: Callable[..., DetectionModel],
) -> None:
    network = make_unfolded("yolov8n.yaml", {0: "sign"})
    network.model[3] = nn.Sequential(nn.BatchNorm2d(32))
    with pytest.raises(ArtifactError, match=r"model\.3\.0"):
        fold_batchnorm(network)


def test_raw_output_restores_the_head(unfolded: DetectionModel) -> None:
    network = rebuild(unfolded).train()
    head = network.model[-1]
    before = (head.export, head.format, head.dynamic)
    raw_output(network, torch.rand(1, 3, 64, 64))
    assert network.training
    assert (head.export, head.format, head.dynamic) == before
    assert isinstance(network(torch.rand(1, 3, 64, 64)), dict)  # raw predictions, for the loss


def test_trainable_network_keeps_what_fits(pt: Path, unfolded: DetectionModel) -> None:
    network = trainable_network(load(pt), {0: "one", 1: "two"})
    assert dict(network.names) == {0: "one", 1: "two"}
    assert not network.is_fused()
    name = "model.4.cv1.conv.weight"
    assert torch.equal(network.state_dict()[name], unfolded.state_dict()[name])
    assert network.model[-1].cv3[0][2].out_channels == 2


def test_folded_checkpoint_is_loaded_but_cannot_be_trained(unfolded: DetectionModel, tmp_path: Path) -> None:
    """As Ultralytics' fuse() leaves one."""
    path = save_pt(fold_batchnorm(rebuild(unfolded)), tmp_path / "folded.pt")
    model = load(path)
    images = torch.rand(1, 3, 64, 96)
    expected = raw_output(unfolded, images)
    assert torch.allclose(raw_output(model.network, images), expected, atol=1e-4 * float(expected.abs().max()))
    with pytest.raises(ArtifactError, match=r"folded\.pt' has its BatchNorm folded.*Give the original"):
        trainable_network(model, unfolded.names)
