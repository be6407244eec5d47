"""A method of Ultralytics that we override and that a new version renames would never be called again, silently."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tiny_runs import finetune
from ultralytics.utils.callbacks import default_callbacks

import trt_qat.data
import trt_qat.evaluation
import trt_qat.training
from trt_qat.checkpoint import Model
from trt_qat.data.dataset import Dataset
from trt_qat.training.detection_trainer import DatasetTrainer
from trt_qat.training.qat import QATTrainer

_ROOMS = (trt_qat.data, trt_qat.evaluation, trt_qat.training)


def modules(room: ModuleType) -> Iterator[ModuleType]:
    for info in pkgutil.walk_packages(room.__path__, f"{room.__name__}."):
        yield importlib.import_module(info.name)


def ultralytics_bases(kind: type) -> list[type]:
    return [base for base in kind.__mro__ if base.__module__.startswith("ultralytics.")]


def subclasses() -> list[type]:
    """Each class of ours below one of Ultralytics'."""
    classes = {
        kind
        for room in _ROOMS
        for module in modules(room)
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if kind.__module__.startswith("trt_qat.") and ultralytics_bases(kind)
    }
    return sorted(classes, key=lambda kind: kind.__qualname__)


def exists_on_base(kind: type, name: str) -> bool:
    return any(callable(vars(base).get(name)) for base in ultralytics_bases(kind))


def marked(kind: type) -> set[str]:
    return {name for name, value in vars(kind).items() if getattr(value, "__override__", False)}


def test_the_trainers_are_looked_at() -> None:
    assert {DatasetTrainer, QATTrainer} <= set(subclasses())
    assert marked(DatasetTrainer) >= {"_setup_train", "_setup_ddp", "_build_train_pipeline"}
    assert marked(QATTrainer) >= {"_setup_train", "_model_train", "_handle_nan_recovery"}


@pytest.mark.parametrize("kind", subclasses(), ids=lambda kind: kind.__qualname__)
def test_what_is_marked_as_overridden_exists(kind: type) -> None:
    missing = {name for name in marked(kind) if not exists_on_base(kind, name)}
    assert not missing, f"{kind.__qualname__} overrides {missing}, which Ultralytics does not call any more"


@pytest.mark.parametrize("kind", subclasses(), ids=lambda kind: kind.__qualname__)
def test_every_private_hook_is_marked(kind: type) -> None:
    private = {name for name in vars(kind) if name.startswith("_") and not name.startswith("__")}
    unmarked = {name for name in private - marked(kind) if exists_on_base(kind, name)}
    assert not unmarked, f"mark {unmarked} of {kind.__qualname__} with typing_extensions.override"


def test_every_event_is_one_that_ultralytics_raises(
    int8: Model, demo: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its table of callbacks takes any name."""
    asked: list[str] = []
    original = QATTrainer.add_callback

    def spy(self: QATTrainer, event: str, callback: Any) -> None:
        asked.append(event)
        original(self, event, callback)

    raised: set[str] = set()
    run = QATTrainer.run_callbacks

    def note(self: QATTrainer, event: str) -> None:
        raised.add(event)
        run(self, event)

    monkeypatch.setattr(QATTrainer, "add_callback", spy)
    monkeypatch.setattr(QATTrainer, "run_callbacks", note)
    finetune(int8, demo, tmp_path / "run", fraction=0.34)
    assert len(asked) > 5
    assert set(asked) <= set(default_callbacks)
    assert set(asked) <= raised
