"""``qat.amp``: the forward pass in 16 bit, what must be exact in float32, and nothing at all without it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from tiny_runs import finetune, weights
from torch import nn

from trt_qat.config import Amp
from trt_qat.errors import ConfigError
from trt_qat.training.features.distillation import Distillation
from trt_qat.training.precision import Precision, exact, in_float32, is_scale_too_large

if TYPE_CHECKING:
    from trt_qat.checkpoint import Model
    from trt_qat.data.dataset import Dataset

CPU = torch.device("cpu")
KEYS: dict[str, Any] = {"epochs": 1, "loss": "both", "dampening": 0.1, "collapse": 0.0, "lr0": 1e-4}


class Convolved(nn.Module):
    """What it computes its loss in."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)

    def loss(self, images: torch.Tensor) -> torch.Tensor:
        return self.conv(images)


@pytest.mark.parametrize(("amp", "kind"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_the_loss_is_computed_under_autocast(amp: Amp, kind: torch.dtype) -> None:
    network = Convolved()
    Precision(amp, CPU).forward_in_16_bit_(network)
    assert network.loss(torch.zeros(1, 1, 2, 2)).dtype == kind
    assert network.conv(torch.zeros(1, 1, 2, 2)).dtype == torch.float32
    assert network.conv.weight.dtype == torch.float32


def test_none_leaves_the_network_as_it_is() -> None:
    network = Convolved()
    Precision("none", CPU).forward_in_16_bit_(network)
    assert "loss" not in network.__dict__
    assert not Precision("none", CPU).scaler().is_enabled()
    assert not Precision("bfloat16", CPU).scaler().is_enabled()


def test_a_gpu_without_bfloat16_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(ConfigError, match=r"Tesla T4 does not compute in it\. Set qat.amp=float16 or none\."):
        Precision("bfloat16", torch.device("cuda", 0))


def test_only_a_scale_above_one_may_be_too_large() -> None:
    scaler = Precision("float16", CPU).scaler()
    assert is_scale_too_large(scaler)
    scaler.load_state_dict({**scaler.state_dict(), "scale": 1.0})
    assert not is_scale_too_large(scaler)
    assert not is_scale_too_large(Precision("bfloat16", CPU).scaler())


def test_exact_stands_within_autocast() -> None:
    values = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert (values @ values).dtype == torch.bfloat16
        with exact(CPU):
            assert (values @ values).dtype == torch.float32


def test_predictions_in_float32() -> None:
    half, whole = torch.ones(2, dtype=torch.float16), torch.ones(2, dtype=torch.int64)
    found = in_float32({"a": half, "b": [half, (whole, None)]})
    assert found["a"].dtype == found["b"][0].dtype == torch.float32
    assert found["b"][1] == (whole, None)


def _figures(out: Path) -> dict[str, float]:
    """The losses of the last epoch in results.csv; validation computes the detection loss alone."""
    header, *rows = (out / "results.csv").read_text().splitlines()
    cells = dict(zip(header.split(","), rows[-1].split(","), strict=True))
    return {name: float(value) for name, value in cells.items() if name.startswith("train/") or "_loss" in name}


@pytest.fixture(scope="module")
def float32(
    tiny_int8: Model, demo: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Model, dict[str, float]]:
    out = tmp_path_factory.mktemp("float32") / "run"
    return finetune(tiny_int8, demo, out, **KEYS), _figures(out)


@pytest.mark.parametrize("amp", ["bfloat16", "float16"])
def test_a_run_comes_near_that_of_float32(
    tiny_int8: Model, demo: Dataset, tmp_path: Path, float32: tuple[Model, dict[str, float]], amp: Amp
) -> None:
    expected, figures = float32
    found = finetune(tiny_int8, demo, tmp_path / "run", amp=amp, **KEYS)
    for name, value in _figures(tmp_path / "run").items():
        assert math.isfinite(value), name
        assert value == pytest.approx(figures[name], rel=0.05, abs=0.02), name
    assert {"train/score", "train/box_kl", "train/feature", "train/dampening"} <= figures.keys()
    ranges, wanted = found.require_quantized().amax(), expected.require_quantized().amax()
    assert all(torch.equal(ranges[name], wanted[name]) for name in wanted)  # none is learned, and none is cast
    start, end = weights(tiny_int8), weights(expected)
    steps = np.concatenate([(end[name] - start[name]).flatten().numpy() for name in end])
    others = np.concatenate([(weights(found)[name] - start[name]).flatten().numpy() for name in end])
    assert all(value.dtype == torch.float32 for value in weights(found).values())
    cosine = steps @ others / (np.linalg.norm(steps) * np.linalg.norm(others))
    assert 0.8 < cosine < 0.999999  # the same way, and not the same numbers


def test_the_teacher_computes_in_16_bit_and_its_terms_in_float32(tiny_int8: Model) -> None:
    feature = Distillation(tiny_int8.unfolded())
    kinds: list[torch.dtype] = []
    feature.teacher.model[0].conv.register_forward_hook(lambda _, inputs, output: kinds.append(output.dtype))
    images = torch.rand(2, 3, 64, 64)
    student = tiny_int8.unfolded().train()(images)
    with torch.autocast("cpu", torch.bfloat16):
        terms = feature.loss(student, images)
    assert kinds == [torch.bfloat16]
    assert {term.dtype for term in terms.values()} == {torch.float32}
