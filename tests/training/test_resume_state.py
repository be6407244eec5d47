"""The state of an interrupted run: checked on save and on load, and nothing in it runs."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from trt_qat.errors import ArtifactError
from trt_qat.training.resume import FILE, fitting, load_state, save_state

STATE: dict[str, Any] = {
    "epoch": 0,
    "finished": False,
    "model": {"weight": torch.ones(2)},
    "ema": {"weight": torch.ones(2), "count": torch.tensor(3)},
    "updates": 4,
    "optimizer": {"state": {}, "param_groups": []},
    "best_fitness": 0.5,
    "start_fitness": 0.4,
    "best_choice": -0.2,
    "stopper": (0.5, 1),
    "results_csv": "epoch,loss\n1,0.5\n",
    "features": {"monitor": {"amax": {}, "sqnr_db": {}}},
}
VIOLATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "epoch": ({"epoch": -2}, "epoch = -2"),
    "epoch is a text": ({"epoch": "0"}, "epoch = '0'"),
    "finished": ({"finished": 1}, "finished = 1"),
    "model": ({"model": []}, "model = []"),
    "no tensor": ({"model": {"weight": 1.0}}, "'weight' is no tensor"),
    "NaN weights": ({"ema": {"weight": torch.tensor([float("nan")])}}, "'weight' holds NaN or infinity"),
    "updates": ({"updates": -1}, "updates = -1"),
    "optimizer": ({"optimizer": None}, "optimizer = None"),
    "NaN momentum": (
        {"optimizer": {"state": {0: {"buffer": torch.tensor([float("nan")])}}}},
        "a tensor in it holds",
    ),
    "NaN rate": (
        {"optimizer": {"param_groups": [{"lr": float("nan")}]}},
        "optimizer = {'param_groups': [{'lr': nan}]}",
    ),
    "infinite range": (
        {"features": {"monitor": {"amax": {"a": torch.tensor(float("inf"))}}}},
        "holds NaN or infinity",
    ),
    "best fitness": ({"best_fitness": float("inf")}, "best_fitness = inf"),
    "best choice": ({"best_choice": None}, "best_choice = None"),
    "stopper": ({"stopper": (0.5,)}, "stopper"),
    "row": ({"results_csv": "epoch,loss\n1\n"}, "a row has 1 values, the header 2"),
    "cell": ({"results_csv": "epoch,loss\n1,much\n"}, "could not convert string to float"),
    "features": ({"features": {"monitor": 3}}, "features.monitor = 3"),
    "unknown field": ({"extra": 1}, "extra = 1"),
}


def _store(folder: Path, **change: Any) -> None:
    torch.save({"format": "trt_qat-resume-3", "fingerprint": "f", **STATE, **change}, folder / FILE)


@pytest.mark.parametrize("state", [STATE, {"finished": True}])
def test_what_was_saved_is_loaded(state: dict[str, Any], tmp_path: Path) -> None:
    save_state(tmp_path, "f", state)
    loaded = load_state(tmp_path, "f")
    assert loaded is not None
    assert loaded.keys() == {"format", "fingerprint", *state}
    assert load_state(tmp_path / "none", "f") is None


@pytest.mark.parametrize(("change", "found"), VIOLATIONS.values(), ids=VIOLATIONS)
def test_a_violation_is_one_line(change: dict[str, Any], found: str, tmp_path: Path) -> None:
    _store(tmp_path, **change)
    with pytest.raises(ArtifactError) as caught:
        load_state(tmp_path, "f")
    assert found in str(caught.value)
    assert str(tmp_path / FILE) in str(caught.value)
    assert str(caught.value).endswith("Start without --resume.")
    assert "\n" not in str(caught.value)
    (tmp_path / FILE).unlink()
    with pytest.raises(ArtifactError, match="Start without --resume"):
        save_state(tmp_path, "f", STATE | change)
    assert not (tmp_path / FILE).exists()


class _Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("executed",))


class _Hooked:
    """A tensor whose hooks are a name that restricted loading allows."""

    def __reduce__(self) -> tuple[Any, ...]:
        return torch._utils._rebuild_tensor_v2, (torch.ones(2)._typed_storage(), 0, (2,), (1,), False, OrderedDict)


@pytest.mark.parametrize("section", ["model", "optimizer"])
def test_a_tensor_that_brings_hooks(section: str, tmp_path: Path) -> None:
    _store(tmp_path, **{section: {"weight": _Hooked()}})
    with pytest.raises(ArtifactError, match=rf"{section} = .* has hooks\. Start without --resume"):
        load_state(tmp_path, "f")


@pytest.mark.parametrize("kind", ["code", "pickle", "truncated", "empty", "list", "pipe", "folder"])
def test_a_damaged_file(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / FILE
    if kind == "code":
        _store(tmp_path, extra=_Runs())
    elif kind == "pickle":
        file.write_bytes(pickle.dumps(_Runs()))
    elif kind == "truncated":
        _store(tmp_path)
        file.write_bytes(file.read_bytes()[:-200])
    elif kind == "list":
        torch.save([1], file)
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.touch()
    with pytest.raises(ArtifactError) as caught:
        load_state(tmp_path, "f")
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path("executed").exists()


def test_shapes_of_another_network_are_one_line(tmp_path: Path) -> None:
    pattern = r"does not fit this run .*size mismatch.*Start without --resume"
    with pytest.raises(ArtifactError, match=pattern) as caught, fitting(tmp_path):
        torch.nn.Linear(2, 2).load_state_dict({"weight": torch.ones(3, 3), "bias": torch.ones(2)})
    assert "\n" not in str(caught.value)
