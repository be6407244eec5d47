"""The distillation terms: zero where there is nothing to learn, and a gradient where there is."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from trt_qat.model.loading import LoadedModel
from trt_qat.training.distillation import DistillationCriterion, distillation_terms

if TYPE_CHECKING:
    from conftest import Calibrated


def predictions(network: torch.nn.Module, images: Tensor) -> dict[str, Any]:
    network.train()
    output: dict[str, Any] = network(images)
    return output


def test_zero_for_equal_networks(detector: LoadedModel, batches: tuple[Tensor, ...]) -> None:
    network = copy.deepcopy(detector.network)
    with torch.no_grad():
        same = predictions(network, batches[0])
    terms = distillation_terms(same, same)
    assert set(terms) == {"score", "dist", "feat"}
    assert all(float(term) == pytest.approx(0.0, abs=1e-6) for term in terms.values())


@pytest.mark.parametrize(("changed", "key"), [("score", "scores"), ("dist", "boxes"), ("feat", "feats")])
def test_each_term_follows_its_own_output(
    detector: LoadedModel, batches: tuple[Tensor, ...], changed: str, key: str
) -> None:
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


def test_criterion_adds_the_detection_loss_only_when_asked(detector: LoadedModel, batches: tuple[Tensor, ...]) -> None:
    student, teacher = copy.deepcopy(detector.network), copy.deepcopy(detector.network)
    output = predictions(student, batches[0])

    def detection(*_: Any) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.tensor([5.0, 7.0]), {"box": torch.tensor(5.0), "cls": torch.tensor(7.0)}

    batch = {"img": batches[0]}
    for with_labels, size in ((False, 3), (True, 5)):
        criterion = DistillationCriterion(detection, teacher, with_labels, weight=2.0)
        loss, parts = criterion(output, batch)
        assert loss.shape == (size,)
        assert float(loss[-3:].detach().abs().max()) == pytest.approx(0.0, abs=1e-4)
        assert list(parts) == ["box", "cls", "score", "dist", "feat"]
        with torch.no_grad():
            loss, parts = criterion(output, batch)
        assert loss.tolist() == [5.0, 7.0]  # validation reports the detection loss alone
        assert list(parts) == ["box", "cls", "score", "dist", "feat"]
    assert copy.deepcopy(criterion).teacher is teacher


def test_weight_scales_the_terms(detector: LoadedModel, batches: tuple[Tensor, ...]) -> None:
    teacher = copy.deepcopy(detector.network)
    student = copy.deepcopy(detector.network)
    with torch.no_grad():
        student.get_submodule("model.4.cv1.conv").weight *= 1.2
    output = predictions(student, batches[0])
    losses = [
        DistillationCriterion(lambda *_: (torch.zeros(3), {}), teacher, False, weight)(output, {"img": batches[0]})[0]
        for weight in (1.0, 3.0)
    ]
    assert torch.allclose(losses[1], 3 * losses[0])
    assert losses[0].min() > 0
