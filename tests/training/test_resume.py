"""A run that was killed and resumed gives the very same weights as one that was not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import Item

from trt_qat.checkpoint import Model, load
from trt_qat.config import Config, QatSection
from trt_qat.data.dataset import Dataset
from trt_qat.errors import ArtifactError
from trt_qat.training.qat import train_qat
from trt_qat.training.resume import run_fingerprint


class Killed(Exception):
    """Stands for the signal that ends the process."""


class KillAt:
    """A progress that ends the run at a step (from 1) of an epoch (from 1) of this process."""

    def __init__(self, epoch_and_step: tuple[int, int]) -> None:
        self._at = epoch_and_step
        self._epochs: set[str] = set()

    def over(self, items: Sequence[Item], description: str) -> Iterable[Item]:
        return items

    def step(self, description: str, done: int, total: int, detail: str = "") -> None:
        self._epochs.add(description)
        if (len(self._epochs), done) == self._at:
            raise Killed

    def note(self, line: str) -> None:
        pass


NEVER = (0, 0)


def train(
    model: Model, data: Dataset, out: Path, kill_at: tuple[int, int] = NEVER, resume: bool = False, **keys: Any
) -> Path:
    section = QatSection.model_validate(
        {
            "epochs": 3,
            "batch": 4,
            "lr0": 1e-3,
            "loss": "both",
            "dampening": 0.1,
            "lsq": True,
            "progressive": "depth",
            "hsv": 0.5,
            "collapse": 0.0,
            **keys,
        }
    )
    settings = {"settings": section.model_dump(mode="json")}
    return train_qat(model, data, out, section, settings, KillAt(kill_at), resume=resume).path


def content(out: Path) -> dict[str, Any]:
    best, last = load(out / "best.safetensors"), load(out / "last.safetensors")
    return {
        "best": best.network.state_dict(),
        "last": last.network.state_dict(),
        "fitness": [entry.provenance["training"] for entry in (best, last)],
        "errors": (out / "quantization_error.csv").read_text(),
        "results": [line.split(",")[2:] for line in (out / "results.csv").read_text().splitlines()],  # time apart
    }


@pytest.fixture(scope="module")
def unbroken(int8: Model, demo: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("unbroken") / "run"
    train(int8, demo, out)
    return content(out)


@pytest.mark.parametrize(
    "kill_at", [pytest.param((1, 2), marks=pytest.mark.slow), (2, 1), pytest.param((3, 3), marks=pytest.mark.slow)]
)
def test_killed_and_resumed(
    int8: Model, demo: Dataset, tmp_path: Path, unbroken: dict[str, Any], kill_at: tuple[int, int]
) -> None:
    out = tmp_path / "run"
    with pytest.raises(Killed):
        train(int8, demo, out, kill_at)
    assert (out / "resume.pt").is_file() == (kill_at[0] > 1)
    train(int8, demo, out, resume=True)
    check_equal(content(out), unbroken)
    before = (out / "best.safetensors").stat().st_mtime_ns
    assert train(int8, demo, out, resume=True) == out / "best.safetensors"  # finished: nothing to do
    assert (out / "best.safetensors").stat().st_mtime_ns == before


@pytest.mark.slow
def test_killed_and_resumed_with_batchnorm_kept(int8_with_batchnorm: Model, demo: Dataset, tmp_path: Path) -> None:
    """Killed in the epoch in which the statistics are frozen already."""
    keys = {"bn": "freeze", "bn_freeze_epochs": 1, "epochs": 2}
    train(int8_with_batchnorm, demo, tmp_path / "unbroken", **keys)
    with pytest.raises(Killed):
        train(int8_with_batchnorm, demo, tmp_path / "run", (2, 2), **keys)
    train(int8_with_batchnorm, demo, tmp_path / "run", resume=True, **keys)
    check_equal(content(tmp_path / "run"), content(tmp_path / "unbroken"))


@pytest.mark.slow
def test_killed_and_resumed_in_float16(tiny_int8: Model, demo: Dataset, tmp_path: Path) -> None:
    """The scale of the gradients goes on as well."""
    keys = {"amp": "float16", "epochs": 2, "monitor": False}
    train(tiny_int8, demo, tmp_path / "unbroken", **keys)
    with pytest.raises(Killed):
        train(tiny_int8, demo, tmp_path / "run", (2, 2), **keys)
    scaler = torch.load(tmp_path / "run" / "resume.pt", weights_only=True)["scaler"]
    assert scaler["scale"] <= 1024.0
    train(tiny_int8, demo, tmp_path / "run", resume=True, **keys)
    for name in ("best.safetensors", "last.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes()


@pytest.mark.slow
def test_killed_and_resumed_with_zero_points(tiny_asymmetric: Model, demo: Dataset, tmp_path: Path) -> None:
    """Ranges learn, zero points stay; those of a resumed run are not in its state, they are the start's."""
    train(tiny_asymmetric, demo, tmp_path / "unbroken", epochs=2)
    with pytest.raises(Killed):
        train(tiny_asymmetric, demo, tmp_path / "run", (2, 1), epochs=2)
    train(tiny_asymmetric, demo, tmp_path / "run", resume=True, epochs=2)
    check_equal(content(tmp_path / "run"), content(tmp_path / "unbroken"))
    before = tiny_asymmetric.require_quantized().grids()
    after = load(tmp_path / "run" / "last.safetensors").require_quantized().grids()
    assert {name: grid.zero_point for name, grid in after.items()} == {n: g.zero_point for n, g in before.items()}
    assert all(after[name].amax != grid.amax for name, grid in before.items())


def check_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name in ("best", "last"):
        assert found[name].keys() == expected[name].keys()
        assert all(torch.equal(value, found[name][key]) for key, value in expected[name].items()), name
    for name in ("fitness", "errors", "results"):
        assert found[name] == expected[name]


def test_another_runs_state_is_refused(int8: Model, demo: Dataset, tmp_path: Path) -> None:
    (tmp_path / "resume.pt").write_bytes(b"not a state")
    with pytest.raises(ArtifactError, match="is damaged"):
        train(int8, demo, tmp_path, resume=True)
    torch.save({"format": "trt_qat-resume-3", "fingerprint": "another"}, tmp_path / "resume.pt")
    with pytest.raises(ArtifactError, match="other weights, data, versions or settings"):
        train(int8, demo, tmp_path, resume=True)


@pytest.mark.parametrize(
    ("setting", "decides"),
    [
        ("qat.lr0=1e-4", True),
        ("model.imgsz=320", True),
        ("quantization.batch=4", True),
        ("quantization.calibrator=max", True),
        ("sensitivity.images=4", True),
        ("qat.max_drop=0.2", False),
        ("evaluation.latency_iterations=3", False),
        ("export.opset=20", False),
        ("engine.max_batch=2", False),
        ("infer.conf=0.5", False),
        ("train.epochs=3", False),
        ("model.device=cpu", False),
        ("qat.amp=bfloat16", True),
    ],
)
def test_only_settings_that_training_reads_decide_a_run(setting: str, decides: bool) -> None:
    provenance = {"weights": "a", "config": Config().deciding()}
    other = {"weights": "a", "config": Config.load(overrides=[setting]).deciding()}
    assert (run_fingerprint(other) != run_fingerprint(provenance)) == decides
    assert run_fingerprint({**provenance, "weights": "b"}) != run_fingerprint(provenance)
    assert run_fingerprint({**provenance, "calibration": {}}) == run_fingerprint(provenance)
