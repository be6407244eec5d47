"""The float training of a network with another activation: taught by SiLU, resumable, no QAT setting in it."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_network import save_pt
from tiny_runs import Reports, weights
from torch import nn

from trt_qat import api, pipeline
from trt_qat.checkpoint import Model, load
from trt_qat.config import Config, QatSection
from trt_qat.data.dataset import Dataset
from trt_qat.errors import ArtifactError, ConfigError
from trt_qat.model.activation import has_silu
from trt_qat.model.loading import fold_batchnorm, rebuild
from trt_qat.training.activation import float_section
from trt_qat.training.features.base import Start
from trt_qat.training.features.distillation import Distillation

SECTION = QatSection(activation="hardswish", activation_epochs=2, batch=4)


@pytest.fixture(scope="module")
def tiny(tiny_int8: Model) -> Model:
    apart = tiny_int8.unfolded()
    return replace(tiny_int8, network=fold_batchnorm(rebuild(apart)), stage="fp32", quantized=None)


Trained = tuple[Path, Model, bool, Reports]


@pytest.fixture(scope="module")
def trained(tiny: Model, demo: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Two epochs; the third entry says whether the teacher is as it was."""
    out = tmp_path_factory.mktemp("activation") / "run"
    before = {name: value.clone() for name, value in tiny.network.state_dict().items()}
    reports = Reports()
    model = api.replace_activation(tiny, demo, out, SECTION, progress=reports)
    same = all(torch.equal(before[name], value) for name, value in tiny.network.state_dict().items())
    return out, model, same and has_silu(tiny.network), reports


def test_a_float_model_with_the_other_activation(trained: Trained, tiny: Model) -> None:
    out, best, teacher_is_untouched, reports = trained
    last = load(out / "last.safetensors")
    assert teacher_is_untouched
    for model in (best, last):
        assert (model.stage, model.quantized) == ("fp32", None)
        assert not has_silu(model.network)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in model.network.modules())
    assert last.provenance["training"]["epoch"] == 2
    start = weights(tiny)
    moved = {name for name, value in weights(last).items() if not torch.equal(value, start[name])}
    assert {name for name in start if name.endswith("conv.weight") and "dfl" not in name} <= moved
    assert reports.steps[-1] == ("activation epoch 2/2", 3, 3)


def test_it_follows_the_silu_network(trained: Trained) -> None:
    with (trained[0] / "results.csv").open() as stream:
        rows = [{key.strip(): value for key, value in row.items()} for row in csv.DictReader(stream)]
    terms = [sum(float(row[f"train/{name}"]) for name in ("score", "box_kl", "feature")) for row in rows]
    assert all(math.isfinite(term) and term > 0 for term in terms)
    assert terms[1] < terms[0]


def test_a_finished_run_is_not_done_again(trained: Trained, tiny: Model, demo: Dataset) -> None:
    again = Reports()
    model = api.replace_activation(tiny, demo, trained[0], SECTION, resume=True, progress=again)
    assert not again.steps
    assert all(torch.equal(value, weights(trained[1])[name]) for name, value in weights(model).items())
    with pytest.raises(ArtifactError, match="belongs to a run with other"):
        api.replace_activation(tiny, demo, trained[0], SECTION, resume=True, activation="relu")


def test_qat_of_it_is_taught_by_the_silu_network(trained: Trained, tiny: Model, demo: Dataset, tmp_path: Path) -> None:
    int8 = api.quantize(trained[1], list(demo.train), calibrator="max", images=2)
    taught = Distillation.configured(SECTION, Start(int8, tmp_path, teacher=tiny.network))
    assert taught is not None
    assert has_silu(taught.teacher)
    assert all(torch.equal(value, weights(tiny)[name]) for name, value in taught.teacher.state_dict().items())


def test_the_verb_trains_calibrates_and_fine_tunes(tiny: Model, demo_yaml: Path, tmp_path: Path) -> None:
    weights_file = save_pt(tiny.unfolded(), tmp_path / "tiny.pt")
    keys = ("activation=relu", "activation_epochs=1", "epochs=1", "batch=4", "monitor=false")
    more = ["model.imgsz=64", "quantization.calibrator=max", f"data.calibration_cache={tmp_path}"]
    config = Config.load(overrides=[*(f"qat.{key}" for key in keys), *more])
    reports = Reports()
    assert pipeline.qat(weights_file, demo_yaml, tmp_path / "out", config, reports) is None
    phases = list(dict.fromkeys(phase for phase, _, _ in reports.steps))
    assert phases == ["activation epoch 1/1", "QAT epoch 1/1"]
    float_network, tuned = (
        load(tmp_path / "out" / name) for name in ("activation/best.safetensors", "best.safetensors")
    )
    assert (float_network.stage, tuned.stage) == ("fp32", "qat")
    assert not has_silu(tuned.network)
    assert tuned.network.yaml["activation"] == "torch.nn.ReLU()"
    assert float_network.provenance["weights"] == tuned.provenance["weights"] == "tiny.pt"


def test_refused_in_one_line(tiny: Model, tiny_int8: Model, demo: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"quantized already \(ptq\).*needs the float weights"):
        api.replace_activation(tiny_int8, demo, tmp_path, SECTION)
    with pytest.raises(ConfigError, match=r"qat\.activation=keep.*Name hardswish or relu"):
        api.replace_activation(tiny, demo, tmp_path, activation="keep")
    with pytest.raises(ConfigError, match=r"qat\.activation=relu: 'tiny\.yaml' has SiLU"):
        api.finetune(tiny_int8, demo, tmp_path, activation="relu")
    with pytest.raises(ConfigError, match=r"qat\.bn=freeze needs qat\.activation=keep"):
        pipeline.check_qat_settings(Config().with_values("qat", bn="freeze", activation="relu"))


def test_settings_of_the_phase() -> None:
    user = QatSection(activation="relu", lr0=1e-5, epochs=2, lsq=True, dampening=0.1, progressive="depth", hsv=0.1)
    section = float_section(user, folded=False)
    assert (section.epochs, section.lr0, section.bn, section.bn_freeze_epochs) == (12, 1e-3, "freeze", 9)
    assert (section.lsq, section.dampening, section.progressive, section.monitor) == (False, 0.0, "none", False)
    assert (section.hsv, section.fliplr) == (0.3, 0.5)
    folded = float_section(user.replace(loss="both"), folded=True)
    assert (folded.lr0, folded.bn, folded.hsv, folded.fliplr) == (1e-4, "fold", 0.1, 0.0)
