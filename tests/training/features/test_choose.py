"""A new idea of QAT is one class and one row: the trainer calls its hooks, each at its time."""

from __future__ import annotations

import copy
import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from tiny_runs import finetune, weights
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from trt_qat.checkpoint import Model, load
from trt_qat.config import QatSection
from trt_qat.data.dataset import Dataset
from trt_qat.errors import ConfigError
from trt_qat.model.output_error import Predictions
from trt_qat.quantization.insert import QuantizedModel
from trt_qat.training.features import choose
from trt_qat.training.features.base import Epoch, Feature, ParamGroup, Start, Step
from trt_qat.training.features.choose import FEATURES, features_from_section
from trt_qat.training.qat import train_qat

FIRST = "model.0.conv"


class NewIdea(Feature):
    """Notes every call; pulls the first bias to 100 with a rate of its own, and doubles it in what is saved."""

    name: ClassVar[str] = "new_idea"
    terms: ClassVar[tuple[str, ...]] = ("pull",)
    made: ClassVar[list[NewIdea]] = []

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.steps: list[Step] = []
        self.rates: set[float] = set()
        self.stop_after = 99
        self.loaded: dict[str, Any] = {}

    @classmethod
    @override
    def configured(cls, section: QatSection, start: Start) -> NewIdea | None:
        if section.seed != 77:
            return None
        cls.made.append(cls())
        return cls.made[-1]

    @override
    def as_trained(self, model: QuantizedModel, source: Model) -> QuantizedModel:
        self.calls.append("as_trained")
        assert model.network is not source.network
        return model

    @override
    def ultralytics_arguments(self) -> Mapping[str, Any]:
        self.calls.append("ultralytics_arguments")
        return {"momentum": 0.5}

    @override
    def prepare_(self, model: QuantizedModel, device: torch.device) -> None:
        self.calls.append("prepare_")
        self.bias: nn.Parameter = model.network.get_submodule(FIRST).bias  # type: ignore[assignment]

    @override
    def param_groups(self, model: QuantizedModel) -> Sequence[ParamGroup]:
        self.calls.append("param_groups")
        return [ParamGroup([self.bias], lr=0.5)]

    @override
    def load_state(self, state: Mapping[str, Any], epochs: int) -> None:
        self.loaded = {**state, "epochs": epochs}

    @override
    def begin(self, model: QuantizedModel, images: Iterator[Tensor]) -> None:
        self.calls.append("begin")
        batch = next(images)
        assert batch.shape[1:] == (3, 64, 64)
        assert 0 <= float(batch.min()) < float(batch.max()) <= 1
        assert model.network.get_submodule(FIRST).bias is not self.bias  # the averaged copy

    @override
    def train_mode_(self, model: QuantizedModel, epoch: int) -> None:
        self.calls.append(f"train_mode_ {epoch}")
        assert model.network.training

    @override
    def before_step(self, step: Step, optimizer: Optimizer) -> None:
        self.calls.append("before_step")
        self.steps.append(step)
        (group,) = (group for group in optimizer.param_groups if any(p is self.bias for p in group["params"]))
        self.rates.add(group["initial_lr"])
        assert len(group["params"]) == 1
        assert all(group["betas"][0] == 0.5 for group in optimizer.param_groups[:3])

    @override
    def loss(self, predictions: Predictions, images: Tensor) -> dict[str, Tensor]:
        self.calls.append("loss")
        assert predictions["scores"].requires_grad
        return {"pull": (self.bias - 100).square().mean()}

    @override
    def after_step(self, model: QuantizedModel) -> None:
        self.calls.append("after_step")

    @override
    def as_saved(self, model: QuantizedModel) -> QuantizedModel:
        self.calls.append("as_saved")
        saved = replace(model, network=copy.deepcopy(model.network))
        with torch.no_grad():
            saved.network.get_submodule(FIRST).bias.mul_(2)  # type: ignore[operator, union-attr]
        return saved

    @override
    def after_epoch(self, epoch: Epoch) -> bool:
        self.calls.append(f"after_epoch {epoch.number}")
        self.averaged = epoch.model.network.get_submodule(FIRST).bias.detach().clone()  # type: ignore[operator, union-attr]
        assert epoch.best_fitness >= epoch.fitness >= 0
        return epoch.number >= self.stop_after

    @override
    def state(self) -> Mapping[str, Any]:
        self.calls.append("state")
        return {"steps": len(self.steps)}

    @override
    def end(self) -> None:
        self.calls.append("end")


@pytest.fixture(autouse=True)
def row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "FEATURES", (*FEATURES, NewIdea))
    monkeypatch.setattr(NewIdea, "made", [])


def test_its_hooks_are_called(int8: Model, demo: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "run"
    last = finetune(int8, demo, out, epochs=2, seed=77, monitor=False)
    (idea,) = NewIdea.made
    step = ["before_step", "loss", "after_step"]
    assert idea.calls == [
        *("as_trained", "ultralytics_arguments", "prepare_", "param_groups", "as_saved", "begin"),
        *("train_mode_ 0", *step * 3, "as_saved", "after_epoch 1", "state"),
        *("train_mode_ 1", *step * 3, "as_saved", "after_epoch 2"),  # no state: it is finished
        "end",
    ]
    assert [step.number for step in idea.steps] == list(range(6))
    assert {(step.per_epoch, step.epochs, step.total) for step in idea.steps} == {(3, 2, 6)}
    assert [step.share for step in idea.steps] == [number / 6 for number in range(6)]
    assert idea.rates == {0.5}
    # Adam's steps are as long as the rate: 6 of them, warmed up and decayed, move the bias by more than one
    start = weights(int8)[f"{FIRST}.bias"]
    assert float((idea.bias.detach() - start).min()) > 1
    assert torch.equal(weights(last)[f"{FIRST}.bias"], 2 * idea.averaged)
    with (out / "results.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert all(float(row["train/pull"]) > 1000 for row in rows)
    assert all(row["val/pull"] == "nan" for row in rows)


def test_it_may_end_the_run_and_its_state_comes_back(
    int8: Model, demo: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = QatSection(epochs=3, batch=4, lr0=1e-4, seed=77, monitor=False)

    class Killed(Exception):
        """Stands for the signal that ends the process."""

    def kill(self: NewIdea, model: QuantizedModel, epoch: int) -> None:
        if epoch == 1 and not self.loaded:
            raise Killed

    monkeypatch.setattr(NewIdea, "train_mode_", kill)
    with pytest.raises(Killed):
        train_qat(int8, demo, tmp_path, section, {})
    assert NewIdea.made[0].calls[-2:] == ["state", "end"]  # also after a failure
    original = NewIdea.__init__

    def two_epochs(self: NewIdea) -> None:
        original(self)
        self.stop_after = 2

    monkeypatch.setattr(NewIdea, "__init__", two_epochs)
    train_qat(int8, demo, tmp_path, section, {}, resume=True)
    resumed = NewIdea.made[1]
    assert resumed.loaded == {"steps": 3, "epochs": 1}
    assert [step.number for step in resumed.steps] == [3, 4, 5]
    assert load(tmp_path / "last.safetensors").provenance["training"]["epoch"] == 2


def test_it_can_be_switched_off(int8: Model, demo: Dataset, tmp_path: Path) -> None:
    finetune(int8, demo, tmp_path / "run", fraction=0.34)
    assert not NewIdea.made
    assert "pull" not in (tmp_path / "run" / "results.csv").read_text()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ["learning_rate", "distillation", "monitor"]),
        ({"loss": "detection", "scheduler": "ultralytics", "monitor": False}, []),
        (
            {"dampening": 0.1, "lsq": True, "progressive": "depth", "bn": "freeze"},
            ["learning_rate", "distillation", "dampening", "lsq", "progressive", "batchnorm", "monitor"],
        ),
        ({"loss": "both"}, ["learning_rate", "distillation", "monitor"]),
    ],
)
def test_each_key_switches_its_own_feature(
    int8_with_batchnorm: Model, tmp_path: Path, settings: dict[str, Any], expected: list[str]
) -> None:
    made = features_from_section(QatSection(**settings), Start(int8_with_batchnorm, tmp_path))
    assert [feature.name for feature in made] == expected


def test_names_and_loss_terms_are_unique() -> None:
    names = [kind.name for kind in FEATURES]
    terms = [term for kind in FEATURES for term in kind.terms]
    assert len(set(names)) == len(names)
    assert len(set(terms)) == len(terms)


def test_a_feature_that_nobody_filled_changes_nothing(int8: Model, tmp_path: Path) -> None:
    """What a subclass does not override does nothing; forgetting when it is configured is an error at once."""
    feature, quantized = Feature(), int8.require_quantized()
    before = {name: value.clone() for name, value in quantized.network.state_dict().items()}
    assert feature.as_trained(quantized, int8) is feature.as_saved(quantized) is quantized
    feature.prepare_(quantized, torch.device("cpu"))
    feature.train_mode_(quantized, 0)
    feature.after_step(quantized)
    assert not feature.after_epoch(Epoch(1, quantized, 0.5, 0.5))
    assert not (*feature.param_groups(quantized), *feature.state(), *feature.ultralytics_arguments(), *feature.terms)
    assert all(torch.equal(value, before[name]) for name, value in quantized.network.state_dict().items())
    with pytest.raises(NotImplementedError, match="Feature does not say when it is configured"):
        Feature.configured(QatSection(), Start(int8, tmp_path))


@pytest.mark.parametrize(("old", "new"), [("penalty", "dampening"), ("learned_scales", "lsq"), ("scale_lr", "lsq_lr")])
def test_an_old_key_names_the_new_one(old: str, new: str) -> None:
    with pytest.raises(ConfigError, match=rf"'qat.{old}' has a new name: qat.{new}\.$"):
        QatSection().replace(**{old: 1})
    assert new in QatSection.model_fields
