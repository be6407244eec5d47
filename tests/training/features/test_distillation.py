"""The distillation terms: zero where there is nothing to learn, and a gradient where there is."""

from __future__ import annotations

import copy
import itertools
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from trt_qat.checkpoint import Model
from trt_qat.training.criterion import QATCriterion
from trt_qat.training.features.base import Step
from trt_qat.training.features.dampening import Dampening
from trt_qat.training.features.distillation import Distillation, distillation_terms

if TYPE_CHECKING:
    from conftest import Calibrated


def predictions(network: torch.nn.Module, images: Tensor) -> dict[str, Any]:
    network.train()
    output: dict[str, Any] = network(images)
    return output


def test_zero_for_equal_networks(detector: Model, batches: tuple[Tensor, ...]) -> None:
    network = copy.deepcopy(detector.network)
    with torch.no_grad():
        same = predictions(network, batches[0])
    terms = distillation_terms(same, same)
    assert set(terms) == {"score", "box_kl", "feature"}
    assert all(float(term) == pytest.approx(0.0, abs=1e-6) for term in terms.values())


@pytest.mark.parametrize(("changed", "key"), [("score", "scores"), ("box_kl", "boxes"), ("feature", "feats")])
def test_each_term_follows_its_own_output(detector: Model, batches: tuple[Tensor, ...], changed: str, key: str) -> None:
    with torch.no_grad():
        teacher = predictions(copy.deepcopy(detector.network), batches[0])
    generator = torch.Generator().manual_seed(0)

    def moved(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value + torch.randn(value.shape, generator=generator) * 0.3
        return [moved(entry) for entry in value]

    terms = distillation_terms({**teacher, key: moved(teacher[key])}, teacher)
    assert float(terms[changed]) > 1e-4
    assert all(float(term) == pytest.approx(0.0, abs=1e-6) for name, term in terms.items() if name != changed)


def test_gradient_reaches_every_quantized_convolution(calibrated: Calibrated, batches: tuple[Tensor, ...]) -> None:
    model = copy.deepcopy(calibrated(residual="both"))
    for parameter in model.network.parameters():
        parameter.requires_grad_(True)
    with torch.no_grad(), model.quantizers_off():
        teacher = predictions(model.network, batches[0])
    sum(distillation_terms(predictions(model.network, batches[0]), teacher).values()).backward()
    for name in model.weight_quantizers():
        gradient = model.network.get_submodule(name).weight.grad
        assert gradient is not None, name
        assert torch.isfinite(gradient).all()
        assert gradient.abs().max() > 0, name


def test_criterion_has_the_configured_parts(
    calibrated: Calibrated, detector: Model, batches: tuple[Tensor, ...]
) -> None:
    student, teacher = copy.deepcopy(detector.network), copy.deepcopy(detector.network)
    output = predictions(student, batches[0])
    dampening = Dampening(weight=1.0)
    dampening.prepare_(calibrated(), torch.device("cpu"))
    dampening.before_step(Step(2, per_epoch=1, epochs=2), torch.optim.SGD(student.parameters()))

    def detection(*_: Any) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.tensor([5.0, 7.0]), {"box": torch.tensor(5.0), "cls": torch.tensor(7.0)}

    batch = {"img": batches[0]}
    terms = ["score", "box_kl", "feature"]
    for with_labels, with_teacher, damped in itertools.product((False, True), repeat=3):
        if not with_labels and not with_teacher:
            continue
        features = [Distillation(teacher)] * with_teacher + [dampening] * damped
        criterion = QATCriterion(detection, with_labels, features)
        names = ["box", "cls"] + terms * with_teacher + ["dampening"] * damped
        loss, parts = criterion(output, batch)
        assert loss.shape == (2 * with_labels + 3 * with_teacher + damped,)
        assert list(parts) == names
        assert [float(parts["box"]), float(parts["cls"])] == pytest.approx(
            [5.0, 7.0] if with_labels else [torch.nan, torch.nan], nan_ok=True
        )
        if with_teacher:
            start = 2 * with_labels
            assert float(loss[start : start + 3].detach().abs().max()) == pytest.approx(0.0, abs=1e-4)
        if damped:
            assert float(parts["dampening"]) > 0
            assert float(loss[-1].detach()) == pytest.approx(len(batches[0]) * float(parts["dampening"]))
        with torch.no_grad():
            loss, parts = criterion(output, batch)
        assert loss.tolist() == [5.0, 7.0]  # validation reports the detection loss alone
        assert list(parts) == names
        assert copy.deepcopy(criterion) is criterion  # the EMA network does not copy the teacher


def test_weights_scale_the_terms(detector: Model, batches: tuple[Tensor, ...]) -> None:
    teacher, student = copy.deepcopy(detector.network), copy.deepcopy(detector.network)
    with torch.no_grad():
        student.get_submodule("model.4.cv1.conv").weight *= 1.2
    output = predictions(student, batches[0])
    plain = Distillation(teacher).loss(output, batches[0])
    weighted = Distillation(teacher, score=3.0, box=0.0, feature=0.5).loss(output, batches[0])
    assert min(float(term.detach()) for term in plain.values()) > 0
    for name, factor in (("score", 3.0), ("box_kl", 0.0), ("feature", 0.5)):
        assert torch.allclose(weighted[name], factor * plain[name])
