"""trt_qat's checkpoint: bit-equal after reloading, no code in it, whole or not there at all."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from trt_qat.checkpoint import load_checkpoint, package_versions, save_checkpoint
from trt_qat.config import Residual
from trt_qat.errors import ArtifactError
from trt_qat.model.loading import LoadedModel, raw_output
from trt_qat.quantization.insert import QuantizedModel

if TYPE_CHECKING:
    from conftest import Calibrated


def reloaded(model: QuantizedModel, path: Path) -> QuantizedModel:
    loaded = load_checkpoint(save_checkpoint(path, model, "ptq", 64, {}).path).quantized
    assert loaded is not None
    return loaded


@pytest.mark.parametrize("residual", ["none", "skip", "both"])
def test_reloading_is_bit_equal(
    calibrated: Calibrated, batches: tuple[Tensor, ...], tmp_path: Path, residual: Residual
) -> None:
    model = calibrated(residual=residual)
    again = reloaded(model, tmp_path / "model.safetensors")
    assert again.placement == model.placement
    assert again.names == model.names
    assert again.amax().keys() == model.amax().keys()
    for name, amax in model.amax().items():
        assert torch.equal(again.amax()[name], amax)
    assert torch.equal(raw_output(again.network, batches[0]), raw_output(model.network, batches[0]))
    for group in again.placement.groups:
        assert len({id(again.network.get_submodule(conv).input_quantizer) for conv in group.convs}) == 1


def test_ranges_that_training_left_alone_survive(calibrated: Calibrated, tmp_path: Path) -> None:
    """The ranges of the file count, not the maxima of the weights it comes with."""
    model = copy.deepcopy(calibrated())
    with torch.no_grad():
        model.network.get_submodule("model.2.cv1.conv").weight *= 1.7
    before = model.amax()["weight.model.2.cv1.conv"].clone()
    assert torch.equal(reloaded(model, tmp_path / "m.safetensors").amax()["weight.model.2.cv1.conv"], before)


def test_float_checkpoint(detector: LoadedModel, batches: tuple[Tensor, ...], tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "fp32.safetensors", detector, "fp32", 96, {"seed": 3, "data": "a"}).path
    loaded = load_checkpoint(path)
    assert (loaded.quantized, loaded.stage, loaded.imgsz) == (None, "fp32", 96)
    assert loaded.provenance == {"seed": 3, "data": "a"}
    assert loaded.names == detector.names
    assert torch.equal(raw_output(loaded.network, batches[0]), raw_output(detector.network, batches[0]))


def test_half_is_half_the_size(detector: LoadedModel, batches: tuple[Tensor, ...], tmp_path: Path) -> None:
    full = save_checkpoint(tmp_path / "full.safetensors", detector, "fp32", 64, {}).path
    half = save_checkpoint(tmp_path / "half.safetensors", detector, "fp32", 64, {}, half=True).path
    assert half.stat().st_size < 0.52 * full.stat().st_size
    network = load_checkpoint(half).network
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    expected = raw_output(detector.network, batches[0])
    found = raw_output(network, batches[0])
    assert torch.nn.functional.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.9999
    assert not torch.equal(found, expected)


def test_wide_head_survives(detector: LoadedModel, batches: tuple[Tensor, ...], tmp_path: Path) -> None:
    """The head's width is in the weights, not in the architecture."""
    network = copy.deepcopy(detector.network)
    for branch in network.model[-1].cv3:
        branch[1].conv = nn.Conv2d(branch[1].conv.in_channels, 80, 3, padding=1)
        branch[2] = nn.Conv2d(80, len(detector.names), 1)
    model = LoadedModel(network.eval(), detector.names, detector.source)
    loaded = load_checkpoint(save_checkpoint(tmp_path / "wide.safetensors", model, "fp32", 64, {}).path)
    assert torch.equal(raw_output(loaded.network, batches[0]), raw_output(network, batches[0]))


def test_file_is_plain_safetensors(calibrated: Calibrated, tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "m.safetensors", calibrated(), "ptq", 64, {}).path
    with safe_open(path, framework="pt") as stream:
        assert stream.metadata()["format"].startswith("trt_qat")
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
            load_checkpoint(path)
        assert not trap.exists()
    pickle.loads(plain.read_bytes())  # the trap works
    assert trap.exists()


@pytest.mark.parametrize("kept", [4, 100, 5000, -1])
def test_truncated(detector: LoadedModel, tmp_path: Path, kept: int) -> None:
    path = save_checkpoint(tmp_path / "fp32.safetensors", detector, "fp32", 64, {}).path
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
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_failing_save_leaves_what_was_there(detector: LoadedModel, tmp_path: Path) -> None:
    for before in (None, b"the old file"):
        path = tmp_path / "model.safetensors"
        if before is not None:
            path.write_bytes(before)
        with pytest.raises(TypeError):
            save_checkpoint(path, detector, "fp32", 64, {"unwritable": object()})
        assert [entry.name for entry in tmp_path.iterdir()] == ([] if before is None else [path.name])
        assert before is None or path.read_bytes() == before


def test_saving_over_a_folder_is_a_clear_error(detector: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "taken.safetensors").mkdir()
    with pytest.raises(ArtifactError, match="Cannot write"):
        save_checkpoint(tmp_path / "taken.safetensors", detector, "fp32", 64, {})


def test_weights_of_another_network_are_refused(detector: LoadedModel, tmp_path: Path) -> None:
    network = copy.deepcopy(detector.network)
    network.extra = nn.Conv2d(1, 1, 1)
    model = LoadedModel(network, detector.names, detector.source)
    path = save_checkpoint(tmp_path / "m.safetensors", model, "fp32", 64, {}).path
    assert_refused(path, "do not fit")


def test_versions_are_recorded() -> None:
    versions = package_versions()
    assert versions["torch"] == torch.__version__.partition("+")[0] or versions["torch"] == torch.__version__
    assert {"python", "trt_qat", "ultralytics", "onnx", "openvino"} <= versions.keys()


def test_placement_of_another_version_is_refused(calibrated: Calibrated, tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "old.safetensors", calibrated(), "ptq", 64, {}).path
    with safe_open(path, framework="pt") as stream:
        content = dict(stream.metadata())
        tensors = {key: stream.get_tensor(key) for key in list(stream.keys())}
    header = json.loads(content["header"])
    del header["placement"]["groups"][0]["convs"]
    save_file(tensors, path, metadata={**content, "header": json.dumps(header)})
    with pytest.raises(ArtifactError, match="another trt_qat version"):
        load_checkpoint(path)
