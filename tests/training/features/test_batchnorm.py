"""Quantizing before folding, and folding afterwards: the same function, the same INT8 levels."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from tiny_network import NAMES, save_pt, tiny_architecture
from tiny_runs import Reports, finetune, statistics, weights
from torch import Tensor, nn
from ultralytics.nn.tasks import DetectionModel

from trt_qat import api, pipeline
from trt_qat.checkpoint import Model, load, save
from trt_qat.config import Config, QatSection
from trt_qat.data.dataset import Dataset
from trt_qat.errors import ArtifactError, ConfigError
from trt_qat.evaluation.parity import cosine
from trt_qat.model.loading import network_from_architecture, raw_output
from trt_qat.pipeline import check_qat_settings
from trt_qat.quantization.insert import QuantizedModel
from trt_qat.run import run
from trt_qat.training.features.batchnorm import FrozenBatchNorm, folded, freeze_statistics_, unfolded

if TYPE_CHECKING:
    from conftest import Calibrated


@pytest.fixture(scope="module")
def model(calibrated: Calibrated, unfolded_network: DetectionModel) -> QuantizedModel:
    return unfolded(calibrated(residual="both"), unfolded_network)


@pytest.fixture(scope="module")
def unfolded_network(unfolded: DetectionModel) -> DetectionModel:
    network = copy.deepcopy(unfolded)
    with torch.no_grad():  # a negative factor turns a channel's weights round
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight[::7] *= -1
    return network


@torch.no_grad()
def test_folding_keeps_levels_and_output(model: QuantizedModel, batches: tuple[Tensor, ...]) -> None:
    after = folded(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in after.network.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.network.modules())
    for name, quantizer in model.weight_quantizers().items():
        levels = [
            (fq(m.network.get_submodule(name).weight) / (m.toolkit.amax(fq) / 127)).round()  # type: ignore[operator]
            for m, fq in ((model, quantizer), (after, after.weight_quantizers()[name]))
        ]
        norm = model.network.get_submodule(name.removesuffix(".conv")).bn
        sign = norm.weight.sign().reshape(-1, 1, 1, 1)  # type: ignore[operator, union-attr]
        assert float((levels[0] * sign - levels[1]).abs().max()) <= 1  # a tie may round either way
        assert float((levels[0] * sign != levels[1]).float().mean()) < 1e-3
    before_output, after_output = (raw_output(m.network, batches[0]).numpy() for m in (model, after))
    assert cosine(before_output, after_output) > 0.9999


@torch.no_grad()
def test_folding_equals_ultralytics_in_float(
    calibrated: Calibrated, unfolded: DetectionModel, batches: tuple[Tensor, ...]
) -> None:
    reference = calibrated()
    after = folded(unfolded_of(reference, unfolded))
    with reference.quantizers_off(), after.quantizers_off():
        expected, found = raw_output(reference.network, batches[0]), raw_output(after.network, batches[0])
    assert torch.allclose(expected, found, atol=1e-3, rtol=1e-4)
    ranges = after.amax()
    for name, amax in reference.amax().items():
        assert torch.allclose(amax, ranges[name], rtol=1e-4), name


def unfolded_of(reference: QuantizedModel, network: DetectionModel) -> QuantizedModel:
    return unfolded(reference, copy.deepcopy(network))


def test_frozen_statistics_do_not_move(unfolded: DetectionModel, batches: tuple[Tensor, ...]) -> None:
    for freeze in (True, False):
        network = copy.deepcopy(unfolded).train()
        if freeze:
            freeze_statistics_(network)
        before = {k: v.clone() for k, v in network.state_dict().items() if "running" in k}
        with torch.no_grad():
            network(batches[0])
        after = network.state_dict()
        assert all(torch.equal(value, after[name]) for name, value in before.items()) == freeze


@pytest.mark.slow
def test_statistics_move_in_the_first_epoch_and_stand_still_in_the_second(
    int8_with_batchnorm: Model, demo: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[int, list[dict[str, Tensor]]] = {0: [], 1: []}
    epochs: list[int] = []
    original = FrozenBatchNorm.train_mode_

    def before_an_epoch(self: FrozenBatchNorm, model: QuantizedModel, epoch: int) -> None:
        epochs.append(epoch)
        original(self, model, epoch)

    def after_a_step(self: FrozenBatchNorm, model: QuantizedModel) -> None:
        seen[epochs[-1]].append(statistics(model.network))

    monkeypatch.setattr(FrozenBatchNorm, "train_mode_", before_an_epoch)
    monkeypatch.setattr(FrozenBatchNorm, "after_step", after_a_step)
    start = statistics(int8_with_batchnorm.unfolded())
    finetune(int8_with_batchnorm, demo, tmp_path / "run", "detection", epochs=2, bn="freeze", bn_freeze_epochs=1)
    assert [len(seen[epoch]) for epoch in (0, 1)] == [3, 3]
    states = [start, *seen[0]]
    for before, after in itertools.pairwise(states):
        assert before.keys() == after.keys() != set()
        assert all(not torch.equal(value, after[name]) for name, value in before.items())
    for state in seen[1]:
        assert all(torch.equal(value, state[name]) for name, value in seen[0][-1].items())
    assert all(torch.equal(value, statistics(int8_with_batchnorm.unfolded())[name]) for name, value in start.items())


@pytest.mark.slow
def test_from_an_ultralytics_checkpoint(unfolded_pt: Path, demo_yaml: Path, tmp_path: Path) -> None:
    """load, quantize, finetune: the unfolded network travels with the model, and what is saved is folded."""
    int8 = api.quantize(load(unfolded_pt), demo_yaml, calibrator="mse")
    best = api.finetune(int8, demo_yaml, tmp_path / "run", bn="freeze", epochs=1, batch=4, lr0=1e-4)
    last = load(tmp_path / "run" / "last.safetensors")
    assert best.stage == last.stage == "qat"
    assert not any(isinstance(module, nn.BatchNorm2d) for module in last.network.modules())
    assert last.require_quantized().placement == int8.require_quantized().placement
    before, after = weights(int8), weights(last)
    assert before.keys() == after.keys()
    assert all(torch.isfinite(value).all() for value in after.values())
    # one gentle epoch away from where it started: the right network was unfolded, and folded with its own statistics
    changes = {name: float((after[name] - value).norm() / value.norm()) for name, value in before.items()}
    assert 0 < changes["model.0.conv.weight"] < 0.2
    for name, amax in int8.require_quantized().amax().items():
        if name.startswith("activation."):
            assert torch.equal(last.require_quantized().amax()[name], amax)


@pytest.mark.slow
def test_a_float_checkpoint_through_the_pipeline(unfolded_pt: Path, demo_yaml: Path, tmp_path: Path) -> None:
    settings = ["qat.bn=freeze", "qat.epochs=1", "qat.batch=4", "qat.lr0=1e-4", "quantization.calibrator=max"]
    config = Config.load(overrides=[*settings, f"data.calibration_cache={tmp_path / 'calib'}"])
    pipeline.qat(unfolded_pt, demo_yaml, tmp_path / "run", config)
    last = load(tmp_path / "run" / "last.safetensors")
    assert last.provenance["training"]["epoch"] == 1
    assert last.provenance["config"]["qat"]["bn"] == "freeze"


def test_one_scale_per_weight_is_refused_before_the_work(demo: Dataset, demo_int8: Model, tmp_path: Path) -> None:
    tensor = replace(demo_int8.require_quantized().placement, weights="tensor")
    model = replace(demo_int8, quantized=replace(demo_int8.require_quantized(), placement=tensor))
    with pytest.raises(ConfigError, match=r"needs quantization\.weights=channel.* Keep qat\.bn=fold\.$"):
        api.finetune(model, demo, tmp_path / "run", bn="freeze")
    both = Config.load(overrides=["qat.bn=freeze", "quantization.weights=tensor"])
    with pytest.raises(ConfigError, match=r"needs quantization\.weights=channel"):
        check_qat_settings(both)


def test_branches_that_folding_joins_are_refused(tmp_path: Path) -> None:
    """RepConv, as in YOLOv9: two convolutions with a BatchNorm each become one."""
    architecture = tiny_architecture()
    architecture["backbone"].append([-1, 1, "RepC3", [16]])
    architecture["head"] = [[-1, 1, "SPPF", [16, 5]], [[3], 1, "Detect", ["nc"]]]
    model = load(save_pt(network_from_architecture(architecture, NAMES), tmp_path / "rep.pt"), 64)
    with pytest.raises(ConfigError, match=r"^qat\.bn=freeze: folding makes 'model\.3\.m\.0\.conv' of several branches"):
        FrozenBatchNorm.check(QatSection(bn="freeze"), model)


ONE_LINE = r"^'[^\n]*' has its BatchNorm folded, which [^\n]*qat.bn=freeze need apart. Give the original .pt or .yaml.$"


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("verb", ["qat", "run"])
def test_folded_weights_are_refused_before_any_long_work(
    detector: Model, int8: Model, demo_yaml: Path, tmp_path: Path, reports: Reports, verb: str, quantized: bool
) -> None:
    source = save(tmp_path / "folded.safetensors", int8 if quantized else detector).path
    calib = tmp_path / "calib"
    config = Config.load(overrides=["qat.bn=freeze", f"data.calibration_cache={calib}"])
    with pytest.raises(ArtifactError, match=ONE_LINE):
        {"qat": pipeline.qat, "run": run}[verb](source, demo_yaml, tmp_path / "run", config, reports)
    assert not reports.loops
    assert not reports.steps
    assert not calib.exists()
    assert not list(tmp_path.glob("run/*"))


def test_a_folded_model_is_refused_before_its_groups_are_ranked(
    int8: Model, demo: Dataset, tmp_path: Path, reports: Reports
) -> None:
    with pytest.raises(ArtifactError, match=ONE_LINE):
        api.finetune(int8, demo, tmp_path / "run", bn="freeze", progressive="sensitivity", progress=reports)
    assert not reports.loops
    assert not (tmp_path / "run").exists()


def test_a_fine_tuned_model_does_not_pass_for_the_one_it_came_from(
    int8_with_batchnorm: Model, demo: Dataset, tmp_path: Path
) -> None:
    """Its weights are others than those of the unfolded network: to train that one would undo the fine-tuning."""
    tuned = api.finetune(int8_with_batchnorm, demo, tmp_path / "run", epochs=1, batch=4, lr0=1e-4)
    with pytest.raises(ArtifactError, match=ONE_LINE):
        api.finetune(tuned, demo, tmp_path / "again", bn="freeze")
