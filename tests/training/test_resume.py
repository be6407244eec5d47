"""A run that was killed and resumed gives the very same weights as one that was not."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from trt_qat.checkpoint import load_checkpoint
from trt_qat.config import Config, ModelSection, QatSection
from trt_qat.data.dataset import Dataset, ultralytics_data
from trt_qat.errors import ArtifactError
from trt_qat.quantization.insert import QuantizedModel
from trt_qat.training.qat import train_qat
from trt_qat.training.resume import run_fingerprint

if TYPE_CHECKING:
    from conftest import Calibrated


class Killed(Exception):
    """Stands for the signal that ends the process."""


def train(
    model: QuantizedModel, data: Dataset, out: Path, kill_at: tuple[int, int] | None = None, resume: bool = False
) -> Path:
    with model.quantizers_off():
        teacher = copy.deepcopy(model.network)
    section = QatSection(
        epochs=3, batch=4, lr0=1e-3, loss="both", penalty=0.1, learned_scales=True, progressive="depth", hsv=0.5
    )
    done: list[str] = []

    def report(description: str, step: int, _: int) -> None:
        done.append(description)
        if kill_at is not None and (len(set(done)), step) == kill_at:
            raise Killed

    settings = {"settings": section.model_dump(mode="json")}
    artifact = train_qat(
        model, teacher, ultralytics_data(data), out, ModelSection(imgsz=64), section, settings, report, resume=resume
    )
    return artifact.path


def content(out: Path) -> dict[str, Any]:
    best, last = load_checkpoint(out / "best.safetensors"), load_checkpoint(out / "last.safetensors")
    return {
        "best": best.network.state_dict(),
        "last": last.network.state_dict(),
        "fitness": [entry.provenance["training"] for entry in (best, last)],
        "errors": (out / "quantization_error.csv").read_text(),
        "results": [line.split(",")[2:] for line in (out / "results.csv").read_text().splitlines()],  # time apart
    }


@pytest.fixture(scope="module")
def unbroken(calibrated: Calibrated, demo: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("unbroken") / "run"
    train(calibrated(), demo, out)
    return content(out)


@pytest.mark.parametrize("kill_at", [(1, 2), (2, 1), (3, 3)])
def test_killed_and_resumed(
    calibrated: Calibrated, demo: Dataset, tmp_path: Path, unbroken: dict[str, Any], kill_at: tuple[int, int]
) -> None:
    out = tmp_path / "run"
    with pytest.raises(Killed):
        train(calibrated(), demo, out, kill_at)
    assert (out / "resume.pt").is_file() == (kill_at[0] > 1)
    train(calibrated(), demo, out, resume=True)
    found = content(out)
    for name in ("best", "last"):
        assert found[name].keys() == unbroken[name].keys()
        assert all(torch.equal(value, found[name][key]) for key, value in unbroken[name].items()), name
    for name in ("fitness", "errors", "results"):
        assert found[name] == unbroken[name]
    before = (out / "best.safetensors").stat().st_mtime_ns
    assert train(calibrated(), demo, out, resume=True) == out / "best.safetensors"  # finished: nothing to do
    assert (out / "best.safetensors").stat().st_mtime_ns == before


def test_another_runs_state_is_refused(calibrated: Calibrated, demo: Dataset, tmp_path: Path) -> None:
    (tmp_path / "resume.pt").write_bytes(b"not a state")
    with pytest.raises(ArtifactError, match="is damaged"):
        train(calibrated(), demo, tmp_path, resume=True)
    torch.save({"format": "trt_qat-resume-1", "fingerprint": "another"}, tmp_path / "resume.pt")
    with pytest.raises(ArtifactError, match="other weights, data, versions or settings"):
        train(calibrated(), demo, tmp_path, resume=True)


@pytest.mark.parametrize(
    ("setting", "decides"),
    [
        ("qat.lr0=1e-4", True),
        ("model.imgsz=320", True),
        ("data.batch=4", True),
        ("quantization.calibrator=max", True),
        ("sensitivity.images=4", True),
        ("qat.max_drop=0.2", False),
        ("evaluation.latency_iterations=3", False),
        ("export.opset=20", False),
        ("engine.max_batch=2", False),
        ("infer.conf=0.5", False),
        ("train.epochs=3", False),
    ],
)
def test_only_settings_that_training_reads_decide_a_run(setting: str, decides: bool) -> None:
    provenance = {"weights": "a", "config": Config().model_dump(mode="json")}
    other = {"weights": "a", "config": Config.load(overrides=[setting]).model_dump(mode="json")}
    assert (run_fingerprint(other) != run_fingerprint(provenance)) == decides
    assert run_fingerprint({**provenance, "weights": "b"}) != run_fingerprint(provenance)
    assert run_fingerprint({**provenance, "calibration": {}}) == run_fingerprint(provenance)
