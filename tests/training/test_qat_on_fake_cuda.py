"""A step of QAT on a CUDA device that is not there: every idea switched on, no CPU tensor may meet a CUDA one.

The trainer is Ultralytics' own, told that its device is ``cuda:0`` after it has read the data. Not passed: its data
loader's pinned memory, the validation's figures (NumPy, tested on the CPU) and the files.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from fake_cuda import CUDA, backward, devices, fake_cuda
from torch.utils._pytree import tree_map_only

from trt_qat.config import QatSection
from trt_qat.training import qat
from trt_qat.training.detection_trainer import quiet_ultralytics
from trt_qat.training.features.base import Epoch, Feature, Start
from trt_qat.training.features.choose import FEATURES, features_from_section
from trt_qat.training.features.distillation import Distillation
from trt_qat.training.precision import Precision
from trt_qat.training.qat import QATTrainer

if TYPE_CHECKING:
    from trt_qat.checkpoint import Model
    from trt_qat.data.dataset import Dataset

MIXED = "Expected all tensors to be on the same device"
EVERYTHING: dict[str, Any] = {
    "epochs": 2,
    "batch": 4,
    "loss": "both",
    "dampening": 0.1,
    "progressive": "depth",
    "progressive_end": 0.3,  # of 6 steps: in the first some groups are float, in the second none
    "lsq": True,
    "bn": "freeze",
    "bn_freeze_epochs": 0,
}


def _trainer(model: Model, demo: Dataset, out: Path, keys: dict[str, Any]) -> tuple[QATTrainer, list[Feature]]:
    """As ``train_qat`` makes it, ready for ``_setup_train``; its batches are on the CPU."""
    section = QatSection(**keys)
    features = features_from_section(section, Start(model, out))
    quantized = model.require_quantized()
    trained = replace(quantized, network=copy.deepcopy(quantized.network))
    for feature in features:
        trained = feature.as_trained(trained, model)
    detector = replace(model, network=trained.network, quantized=trained)
    trainer = QATTrainer(detector, features, demo, out, section, {})
    trainer.device = CUDA
    trainer._precision = Precision(section.amp, CUDA)
    return trainer, features


@pytest.fixture
def on_cuda() -> Iterator[None]:
    with fake_cuda(), quiet_ultralytics():
        yield


def _step(trainer: QATTrainer, batch: dict[str, Any]) -> None:
    """The part of Ultralytics' loop from one batch to the next."""
    trainer._before_step()
    loss, trainer.loss_items = trainer.model(trainer.preprocess_batch(batch))
    assert {part.device for part in trainer.loss_items.values()} == {CUDA}
    trainer.loss = loss.sum()
    backward(trainer.scaler.scale(trainer.loss))
    trainer.optimizer_step()
    trainer._batch_done()


def _begun(trainer: QATTrainer) -> list[dict[str, Any]]:
    """Set up, with the batches of an epoch."""
    trainer._setup_train()
    assert devices(trainer._quantized.network) == devices(trainer.ema.ema) == {CUDA}
    trainer.epoch = 0
    trainer._begin()
    trainer._model_train()
    return list(trainer.train_loader)


def test_steps_with_every_idea_and_what_follows_an_epoch(
    tiny_int8: Model, demo: Dataset, tmp_path: Path, on_cuda: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[str, Any] = {}
    monkeypatch.setattr(qat, "save_state", lambda folder, fingerprint, state: kept.update(state))
    trainer, features = _trainer(tiny_int8, demo, tmp_path / "run", EVERYTHING | {"amp": "float16"})
    assert {type(feature) for feature in features} == set(FEATURES)
    batches = _begun(trainer)
    for batch in batches[:2]:
        _step(trainer, batch)
    assert not trainer.stop
    assert trainer.scaler.is_enabled()
    learned = [parameter for parameter in trainer._quantized.network.parameters() if parameter.requires_grad]
    assert len(trainer.optimizer.state) == len(learned) > 20
    assert {state["exp_avg"].device for state in trainer.optimizer.state.values()} == {CUDA}
    model = trainer._evaluated_model()
    for feature in features:
        feature.after_epoch(Epoch(1, model, 0.5, 0.5))
        assert devices(feature.as_saved(model).network) == {CUDA}
    # and resumed, where the state is read to the CPU
    trainer.csv.write_text("epoch\n", encoding="utf-8")
    trainer.fitness = trainer.best_fitness = 0.5
    trainer._save_state()
    trainer._restore(tree_map_only(torch.Tensor, lambda tensor: tensor.cpu(), kept))
    trainer._begin()
    trainer._model_train()
    _step(trainer, batches[2])


def test_distillation_alone(tiny_int8: Model, demo: Dataset, tmp_path: Path, on_cuda: None) -> None:
    trainer, features = _trainer(tiny_int8, demo, tmp_path / "run", {"batch": 4, "monitor": False})
    assert len(features) == 2
    _step(trainer, _begun(trainer)[0])
    assert list(trainer.loss_items) == ["box_loss", "cls_loss", "dfl_loss", *Distillation.terms]


def test_what_is_left_on_the_cpu_is_found(tiny_int8: Model, demo: Dataset, tmp_path: Path, on_cuda: None) -> None:
    trainer, features = _trainer(tiny_int8, demo, tmp_path / "run", EVERYTHING)
    batch = _begun(trainer)[0]
    (distillation,) = (feature for feature in features if isinstance(feature, Distillation))
    distillation.teacher.to("cpu")
    with pytest.raises(RuntimeError, match=MIXED):
        _step(trainer, batch)
    distillation.teacher.to(CUDA)
    quantizer = next(iter(trainer._quantized.weight_quantizers().values()))
    quantizer._buffers["_amax"] = quantizer._amax.cpu()
    with pytest.raises(RuntimeError, match=MIXED):
        _step(trainer, batch)
    quantizer._buffers["_amax"] = quantizer._amax.to(CUDA)
    _step(trainer, batch)


def test_a_gradient_on_another_device_is_found(on_cuda: None) -> None:
    class Lost(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
            return values * 2

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            return gradient.cpu()

    leaf = torch.ones(3, device=CUDA, requires_grad=True)
    with pytest.raises(RuntimeError, match="a gradient on cpu of a tensor on cuda:0"):
        backward(Lost.apply(leaf).sum())
