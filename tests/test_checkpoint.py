"""trt_qat's checkpoint: bit-equal after reloading, no code in it, whole or not there at all."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from ultralytics.nn.tasks import DetectionModel

from trt_qat.checkpoint import Model, load, save, with_weight_scales
from trt_qat.config import Residual
from trt_qat.errors import ArtifactError, QuantizationError
from trt_qat.model.loading import fold_batchnorm, raw_output, rebuild
from trt_qat.provenance import package_versions
from trt_qat.quantization.insert import QuantizedModel
from trt_qat.quantization.placement import Placement

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Calibrated

NAMES = {0: "a", 1: "b"}


@pytest.fixture
def ptq(calibrated: Calibrated, detector: Model) -> Model:
    return detector.with_quantized(calibrated(), "ptq", {})


def reloaded(model: QuantizedModel, detector: Model, path: Path) -> QuantizedModel:
    return load(save(path, detector.with_quantized(model, "ptq", {})).path).require_quantized()


@pytest.mark.parametrize("residual", ["none", "skip", "both"])
def test_reloading_is_bit_equal(
    calibrated: Calibrated, detector: Model, batches: tuple[Tensor, ...], tmp_path: Path, residual: Residual
) -> None:
    model = calibrated(residual=residual)
    again = reloaded(model, detector, tmp_path / "model.safetensors")
    assert again.placement == model.placement
    assert again.names == model.names
    assert again.amax().keys() == model.amax().keys()
    for name, amax in model.amax().items():
        assert torch.equal(again.amax()[name], amax)
    assert torch.equal(raw_output(again.network, batches[0]), raw_output(model.network, batches[0]))
    for group in again.placement.groups:
        assert len({id(again.network.get_submodule(conv).input_quantizer) for conv in group.convs}) == 1


def test_one_scale_per_weight_survives(
    calibrated: Calibrated, detector: Model, batches: tuple[Tensor, ...], tmp_path: Path
) -> None:
    model = calibrated(weights="tensor")
    again = reloaded(model, detector, tmp_path / "m.safetensors")
    assert again.placement.weights == "tensor"
    for name, amax in model.amax().items():
        assert torch.equal(again.amax()[name], amax)
        assert amax.numel() == 1
    assert torch.equal(raw_output(again.network, batches[0]), raw_output(model.network, batches[0]))
    assert not torch.equal(raw_output(again.network, batches[0]), raw_output(calibrated().network, batches[0]))


def test_a_placement_that_says_nothing_of_weights_has_scales_per_channel(calibrated: Calibrated) -> None:
    placement = calibrated().placement
    content = {key: value for key, value in placement.as_dict().items() if key != "weights"}
    assert Placement.from_dict(content) == placement
    with pytest.raises(ValueError, match="weights"):
        Placement.from_dict({**content, "weights": "row"})


def test_ranges_of_another_granularity_are_refused(calibrated: Calibrated, detector: Model, tmp_path: Path) -> None:
    model = calibrated(weights="tensor")
    wrong = replace(model, placement=replace(model.placement, weights="channel"))
    with pytest.raises(ArtifactError, match=r"has shape \[1, 1, 1, 1\], needs \[16, 1, 1, 1\]"):
        reloaded(wrong, detector, tmp_path / "m.safetensors")


def test_ranges_that_training_left_alone_survive(calibrated: Calibrated, detector: Model, tmp_path: Path) -> None:
    """The ranges of the file count, not the maxima of the weights it comes with."""
    model = copy.deepcopy(calibrated())
    with torch.no_grad():
        model.network.get_submodule("model.2.cv1.conv").weight *= 1.7
    before = model.amax()["weight.model.2.cv1.conv"].clone()
    assert torch.equal(reloaded(model, detector, tmp_path / "m.safetensors").amax()["weight.model.2.cv1.conv"], before)


def test_float_checkpoint(detector: Model, batches: tuple[Tensor, ...], tmp_path: Path) -> None:
    model = replace(detector, imgsz=(96, 96), provenance={"seed": 3, "data": "a"})
    loaded = load(save(tmp_path / "fp32.safetensors", model).path)
    assert (loaded.quantized, loaded.stage, loaded.imgsz) == (None, "fp32", (96, 96))
    assert loaded.provenance == {"seed": 3, "data": "a"}
    assert (loaded.names, loaded.task) == (detector.names, "detect")
    assert loaded.source == tmp_path / "fp32.safetensors"
    assert torch.equal(raw_output(loaded.network, batches[0]), raw_output(detector.network, batches[0]))


def test_half_is_half_the_size(detector: Model, batches: tuple[Tensor, ...], tmp_path: Path) -> None:
    full = save(tmp_path / "full.safetensors", detector).path
    half = save(tmp_path / "half.safetensors", detector, half=True).path
    assert half.stat().st_size < 0.52 * full.stat().st_size
    network = load(half).network
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    expected = raw_output(detector.network, batches[0])
    found = raw_output(network, batches[0])
    assert torch.nn.functional.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.9999
    assert not torch.equal(found, expected)


def test_wide_head_survives(detector: Model, batches: tuple[Tensor, ...], tmp_path: Path) -> None:
    """The head's width is in the weights, not in the architecture."""
    network = copy.deepcopy(detector.network)
    for branch in network.model[-1].cv3:
        branch[1].conv = nn.Conv2d(branch[1].conv.in_channels, 80, 3, padding=1)
        branch[2] = nn.Conv2d(80, len(detector.names), 1)
    loaded = load(save(tmp_path / "wide.safetensors", replace(detector, network=network.eval())).path)
    assert torch.equal(raw_output(loaded.network, batches[0]), raw_output(network, batches[0]))


def test_file_is_plain_safetensors(ptq: Model, tmp_path: Path) -> None:
    path = save(tmp_path / "m.safetensors", ptq).path
    with safe_open(path, framework="pt") as stream:
        assert json.loads(stream.metadata()["header"])["format"].startswith("trt_qat")
        assert "amax.weight.model.0.conv" in stream.keys()  # noqa: SIM118
        assert not any("quantizer" in name for name in stream.keys())  # noqa: SIM118


class Malicious:
    """Unpickling it writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.write_text, (self.target, "executed")


def test_loading_runs_no_pickle(tmp_path: Path) -> None:
    trap = tmp_path / "executed.txt"
    plain, zipped = tmp_path / "plain.safetensors", tmp_path / "zipped.safetensors"
    plain.write_bytes(pickle.dumps(Malicious(trap)))
    torch.save(Malicious(trap), zipped)
    for path in (plain, zipped):
        with pytest.raises(ArtifactError, match="not a readable checkpoint"):
            load(path)
        assert not trap.exists()
    pickle.loads(plain.read_bytes())  # the trap works
    assert trap.exists()


@pytest.mark.parametrize("kept", [4, 100, 5000, -1])
def test_truncated(detector: Model, tmp_path: Path, kept: int) -> None:
    path = save(tmp_path / "fp32.safetensors", detector).path
    path.write_bytes(path.read_bytes()[:kept])
    assert_refused(path, "not a readable checkpoint")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"format": "trt_qat-checkpoint-0"}])
def test_foreign_safetensors(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    save_file({"a": torch.zeros(3)}, tmp_path / "foreign.safetensors", metadata=metadata)
    assert_refused(tmp_path / "foreign.safetensors", "not a trt_qat checkpoint")


def test_missing_and_empty(tmp_path: Path) -> None:
    assert_refused(tmp_path / "missing.safetensors", "does not exist")
    (tmp_path / "empty.safetensors").touch()
    assert_refused(tmp_path / "empty.safetensors", "is empty")


def assert_refused(path: Path, message: str) -> None:
    with pytest.raises(ArtifactError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_failing_save_leaves_what_was_there(detector: Model, tmp_path: Path) -> None:
    for before in (None, b"the old file"):
        path = tmp_path / "model.safetensors"
        if before is not None:
            path.write_bytes(before)
        with pytest.raises(ArtifactError, match="JSON cannot say"):
            save(path, replace(detector, provenance={"unwritable": object()}))
        assert [entry.name for entry in tmp_path.iterdir()] == ([] if before is None else [path.name])
        assert before is None or path.read_bytes() == before


def test_saving_over_a_folder_is_a_clear_error(detector: Model, tmp_path: Path) -> None:
    (tmp_path / "taken.safetensors").mkdir()
    with pytest.raises(ArtifactError, match="Cannot write"):
        save(tmp_path / "taken.safetensors", detector)


def test_saving_under_a_name_that_load_would_not_know_is_refused(detector: Model, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"must be named \*\.safetensors, found '.*weights\.pt'"):
        save(str(tmp_path / "weights.pt"), detector)
    assert list(tmp_path.iterdir()) == []


def test_weights_of_another_network_are_refused(detector: Model, tmp_path: Path) -> None:
    network = copy.deepcopy(detector.network)
    network.extra = nn.Conv2d(1, 1, 1)
    assert_refused(save(tmp_path / "m.safetensors", replace(detector, network=network)).path, "do not fit")


def test_versions_are_recorded() -> None:
    versions = package_versions()
    assert versions["torch"] == torch.__version__.partition("+")[0] or versions["torch"] == torch.__version__
    assert {"python", "trt_qat", "ultralytics", "onnx", "openvino"} <= versions.keys()


def test_placement_of_another_version_is_refused(ptq: Model, tmp_path: Path) -> None:
    path = save(tmp_path / "old.safetensors", ptq).path
    with safe_open(path, framework="pt") as stream:
        content = dict(stream.metadata())
        tensors = {key: stream.get_tensor(key) for key in list(stream.keys())}
    header = json.loads(content["header"])
    del header["placement"]["groups"][0]["convs"]
    save_file(tensors, path, metadata={**content, "header": json.dumps(header)})
    with pytest.raises(ArtifactError, match="another trt_qat version"):
        load(path)


# Ultralytics' own files -------------------------------------------------------------------------------------------


def save_pt(path: Path, network: nn.Module) -> Path:
    """A checkpoint as Ultralytics' trainer writes one."""
    torch.save({"model": copy.deepcopy(network), "train_args": {"imgsz": 96}}, path)
    return path


@pytest.mark.parametrize(
    "architecture", ["yolov8n.yaml", pytest.param("yolov9t.yaml", marks=pytest.mark.slow), "yolo11n.yaml"]
)
def test_a_checkpoint_saved_after_fusing_is_the_same_model(
    make_unfolded: Callable[..., DetectionModel], tmp_path: Path, architecture: str
) -> None:
    """Ultralytics folds BatchNorm before it predicts, and ``YOLO.save`` then writes the folded network."""
    network = make_unfolded(architecture, NAMES)
    apart = load(save_pt(tmp_path / "apart.pt", network))
    network.fuse(verbose=False)
    assert network.is_fused()
    fused = load(save_pt(tmp_path / "fused.pt", network))
    said = NAMES, (96, 96), "fp32"
    assert (fused.names, fused.imgsz, fused.stage) == (apart.names, apart.imgsz, apart.stage) == said
    assert fused.network.state_dict().keys() == apart.network.state_dict().keys()
    images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    expected, found = raw_output(apart.network, images), raw_output(fused.network, images)
    assert (expected[0] - expected[1]).abs().max() > 1  # depends on the image
    assert torch.equal(found, expected)
    again = load(save(tmp_path / "again.safetensors", fused).path)
    assert torch.equal(raw_output(again.network, images), found)


def test_batchnorm_apart_is_there_where_the_file_has_it(unfolded: DetectionModel, tmp_path: Path) -> None:
    model = load(save_pt(tmp_path / "apart.pt", unfolded))
    first, second = model.unfolded(), model.unfolded()
    assert sum(isinstance(module, nn.BatchNorm2d) for module in first.modules()) > 50
    assert first is not second  # a copy each time, so that training one leaves the model as it is
    images = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    expected = raw_output(model.network, images)
    assert torch.allclose(raw_output(first, images), expected, atol=1e-4 * float(expected.abs().max()))


def test_batchnorm_that_is_gone_is_said(unfolded: DetectionModel, detector: Model, tmp_path: Path) -> None:
    fused = save_pt(tmp_path / "fused.pt", fold_batchnorm(rebuild(unfolded)))
    for path in (fused, save(tmp_path / "ours.safetensors", detector).path):
        with pytest.raises(ArtifactError, match=rf"'{path}' has its BatchNorm folded.*Give the original \.pt"):
            load(path).unfolded()


@pytest.mark.parametrize("channels", [1, 4])
def test_models_for_grey_or_four_channel_images_are_refused(
    unfolded: DetectionModel, tmp_path: Path, channels: int
) -> None:
    odd = save_pt(tmp_path / "odd.pt", DetectionModel(dict(unfolded.yaml), ch=channels, nc=2, verbose=False).half())
    assert_refused(odd, rf"odd\.pt' takes images with {channels} channels?; trt_qat needs 3 \(colour\)")


# the value --------------------------------------------------------------------------------------------------------


def test_a_float_model_is_not_a_quantized_one(detector: Model, ptq: Model) -> None:
    assert ptq.require_quantized() is ptq.quantized
    with pytest.raises(QuantizationError, match=r"'yolov8n\.yaml' is a float model.*Quantize it first"):
        detector.require_quantized()


def test_size_is_the_one_asked_for_else_what_the_file_says(unfolded: DetectionModel, tmp_path: Path) -> None:
    path = save_pt(tmp_path / "apart.pt", unfolded)
    found = load(path), load(str(path), 320), load(path, (320, 64)), load("yolov8n.yaml")
    assert [model.imgsz for model in found] == [(96, 96), (320, 320), (320, 64), (640, 640)]


def test_zero_points_survive(tiny_asymmetric: Model, batches: tuple[Tensor, ...], tmp_path: Path) -> None:
    loaded = load(save(tmp_path / "a.safetensors", tiny_asymmetric).path)
    quantized, before = loaded.require_quantized(), tiny_asymmetric.require_quantized()
    assert quantized.placement == before.placement
    assert quantized.placement.scheme == "asymmetric"
    assert quantized.grids() == before.grids()
    assert torch.equal(raw_output(loaded.network, batches[0]), raw_output(before.network, batches[0]))
    assert save(tmp_path / "b.safetensors", loaded).path.stat().st_size > 0
    assert load(tmp_path / "b.safetensors").require_quantized().grids() == before.grids()
    per_tensor = with_weight_scales(loaded, "tensor").require_quantized()
    assert per_tensor.grids() == before.grids()


@pytest.mark.parametrize(
    ("value", "said"), [(256.0, r"= 256: a zero point is a code, 0 to 255"), (2.5, "= 2.5: a zero point is a code")]
)
def test_what_is_no_zero_point_is_refused(value: float, said: str, tiny_asymmetric: Model, tmp_path: Path) -> None:
    file = save(tmp_path / "a.safetensors", tiny_asymmetric).path
    with safe_open(file, framework="pt") as stream:
        metadata, tensors = stream.metadata(), {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118
    name = next(key for key in tensors if key.startswith("amax.zero_point."))
    save_file({**tensors, name: torch.tensor(value)}, file, metadata=metadata)
    with pytest.raises(ArtifactError, match=said):
        load(file)
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, file, metadata=metadata)
    with pytest.raises(ArtifactError, match="is missing"):
        load(file)


def test_a_placement_that_says_nothing_of_a_scheme_is_symmetric(tiny_asymmetric: Model) -> None:
    placement = replace(tiny_asymmetric.require_quantized().placement, scheme="symmetric")
    content = {key: value for key, value in placement.as_dict().items() if key != "scheme"}
    assert Placement.from_dict(content) == placement
