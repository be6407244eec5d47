"""``calibrator: auto``: the comparison, its answer, and the file that remembers it."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest
import torch
from torch import Tensor

from trt_qat.checkpoint import load_checkpoint, save_checkpoint
from trt_qat.config import Config, QuantizationSection
from trt_qat.errors import QuantizationError
from trt_qat.model.loading import LoadedModel
from trt_qat.model.output_error import output_error, raw_predictions
from trt_qat.pipeline import CalibrationResult, calibrate
from trt_qat.quantization.auto import CANDIDATES, choice_key, choose_calibrator, load_choice, save_choice
from trt_qat.quantization.calibration import calibrate_, collect_histograms

if TYPE_CHECKING:
    from conftest import Calibrated

Item = TypeVar("Item")


def given(images: Tensor) -> Tensor:
    return images


@torch.no_grad()
def test_error_of_a_candidate_is_that_of_its_ranges(calibrated: Calibrated, batches: tuple[Tensor, ...]) -> None:
    """Each candidate's error, computed again from a network calibrated with it; the smallest one is chosen."""
    model = copy.deepcopy(calibrated())
    histograms = collect_histograms(model, batches, 4096)
    result = choose_calibrator(model, histograms, [partial(given, batch) for batch in batches])
    assert [(c.calibrator, c.percentile) for c in result.candidates] == list(CANDIDATES)
    for candidate in result.candidates:
        section = QuantizationSection(calibrator=candidate.calibrator, percentile=candidate.percentile or 99.0)
        calibrate_(model, histograms, section)
        errors = []
        for batch in batches:
            with model.quantizers_off():
                reference = raw_predictions(model.network, batch)
            errors.append(float(output_error(raw_predictions(model.network, batch), reference)))
        assert candidate.error == pytest.approx(sum(errors) / len(errors), rel=1e-5)
    (chosen,) = [c for c in result.candidates if c.chosen]
    assert chosen.error == min(c.error for c in result.candidates)
    assert (result.calibrator, result.percentile) == (chosen.calibrator, chosen.percentile)
    assert len({c.error for c in result.candidates}) > 4


def test_a_short_last_batch_weighs_by_its_images(calibrated: Calibrated, batches: tuple[Tensor, ...]) -> None:
    model = copy.deepcopy(calibrated())
    histograms = collect_histograms(model, batches, 4096)
    alone = [choose_calibrator(model, histograms, [partial(given, part)]) for part in (batches[0], batches[1][:1])]
    both = choose_calibrator(model, histograms, [partial(given, batches[0]), partial(given, batches[1][:1])])
    for first, second, joint in zip(alone[0].candidates, alone[1].candidates, both.candidates, strict=True):
        assert joint.error == pytest.approx((4 * first.error + second.error) / 5, rel=1e-6)


def test_comparison_leaves_mode_and_head(calibrated: Calibrated, batches: tuple[Tensor, ...]) -> None:
    model = copy.deepcopy(calibrated())
    histograms = collect_histograms(model, batches[:1], 4096)
    for training in (True, False):
        model.network.train(training)
        choose_calibrator(model, histograms, [partial(given, batches[0])])
        assert all(module.training == training for module in model.network.modules() if list(module.children()))
        assert model.network.model[-1].training == training


def test_auto_without_images_is_refused(calibrated: Calibrated) -> None:
    with pytest.raises(QuantizationError, match="calibrator=auto"):
        calibrate_(calibrated(), {}, QuantizationSection(calibrator="auto"))


# the file --------------------------------------------------------------------------------------------------------


def test_key_changes_with_what_decides_the_choice() -> None:
    section = QuantizationSection(calibrator="auto")
    key = choice_key("a", section, 8)
    assert key == choice_key("a", QuantizationSection(calibrator="auto", percentile=99), 8)
    others = {
        choice_key("b", section, 8),
        choice_key("a", section, 4),
        choice_key("a", QuantizationSection(calibrator="auto", auto_images=31), 8),
        choice_key("a", QuantizationSection(calibrator="auto", auto_per_group=True), 8),
        choice_key("a", QuantizationSection(calibrator="auto", toolkit="pytorch-quantization"), 8),
    }
    assert len({key, *others}) == 6


def test_key_changes_with_the_table_and_the_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    section = QuantizationSection(calibrator="auto")
    keys = [choice_key("a", section, 8)]
    monkeypatch.setattr("trt_qat.quantization.auto.MEASURE", "other")
    keys.append(choice_key("a", section, 8))
    monkeypatch.setattr("trt_qat.quantization.auto.CANDIDATES", CANDIDATES[1:])
    keys.append(choice_key("a", section, 8))
    assert len(set(keys)) == 3


class Steps:
    def __init__(self) -> None:
        self.seen: dict[str, int] = {}

    def __call__(self, items: Sequence[Item], description: str, /) -> Iterable[Item]:
        self.seen[description] = len(items)
        return items


def run_calibration(
    detector: LoadedModel, data: Path, folder: Path, **quantization: object
) -> tuple[CalibrationResult, Steps]:
    weights = save_checkpoint(folder / "fp32.safetensors", detector, "fp32", 64, {}).path
    config = Config.model_validate(
        {
            "model": {"imgsz": 64},
            "data": {"calibration_cache": str(folder / "calib"), "batch": 4},
            "quantization": {"calibrator": "auto", "auto_images": 6, **quantization},
        }
    )
    steps = Steps()
    return calibrate(weights, data, folder / "ptq.safetensors", config, steps), steps


def test_pipeline_compares_once(detector: LoadedModel, demo_yaml: Path, tmp_path: Path) -> None:
    """The second time neither pass is made; a damaged answer is made anew; the ranges are the chosen ones."""
    first, steps = run_calibration(detector, demo_yaml, tmp_path)
    assert steps.seen == {"calibrating": 3, "comparing calibrators": 2 * len(CANDIDATES)}
    checkpoint = load_checkpoint(tmp_path / "ptq.safetensors")
    assert checkpoint.quantized is not None
    assert checkpoint.provenance["calibration"] == first.calibration.as_dict()
    (answer,) = (tmp_path / "calib").glob("*.json")
    again, steps = run_calibration(detector, demo_yaml, tmp_path)
    assert steps.seen == {}
    assert again == first

    keys = {"calibrator": first.calibration.calibrator, "percentile": first.calibration.percentile or 99.0}
    explicit, steps = run_calibration(detector, demo_yaml, tmp_path, **keys)
    assert steps.seen == {}
    assert explicit.calibration.candidates == ()
    same = load_checkpoint(tmp_path / "ptq.safetensors").quantized
    assert same is not None
    assert all(torch.equal(value, same.amax()[name]) for name, value in checkpoint.quantized.amax().items())

    _, steps = run_calibration(detector, demo_yaml, tmp_path, auto_images=4)
    assert steps.seen == {"comparing calibrators": len(CANDIDATES)}
    _, steps = run_calibration(detector, demo_yaml, tmp_path, residual="none")
    assert set(steps.seen) == {"calibrating", "comparing calibrators"}
    answer.write_text("{}", encoding="utf-8")
    anew, steps = run_calibration(detector, demo_yaml, tmp_path)
    assert set(steps.seen) == {"comparing calibrators"}
    assert anew == first


def test_pipeline_compares_groups_once(detector: LoadedModel, demo_yaml: Path, tmp_path: Path) -> None:
    run = partial(run_calibration, exclude=["model.[4-9].*", "model.[12][0-9].*"])  # few groups
    first, steps = run(detector, demo_yaml, tmp_path, auto_per_group=True)
    model = load_checkpoint(tmp_path / "ptq.safetensors").quantized
    assert model is not None
    assert steps.seen["calibrators per group"] == len(model.placement.groups)
    assert first.calibration.groups
    again, steps = run(detector, demo_yaml, tmp_path, auto_per_group=True)
    assert steps.seen == {}
    assert again == first
    same = load_checkpoint(tmp_path / "ptq.safetensors").quantized
    assert same is not None
    assert all(torch.equal(value, same.amax()[name]) for name, value in model.amax().items())
    plain, steps = run(detector, demo_yaml, tmp_path)
    assert set(steps.seen) == {"comparing calibrators"}
    assert plain.calibration.groups == {}
    assert plain.calibration.candidates == first.calibration.candidates
    other = load_checkpoint(tmp_path / "ptq.safetensors").quantized
    assert other is not None
    changed = {name for name, value in model.amax().items() if not torch.equal(value, other.amax()[name])}
    assert changed == {f"activation.{group}" for group in first.calibration.groups}


@pytest.mark.parametrize(
    "damage", ["", "[]", "{", "two chosen", "none chosen", "another table", "another key", "groups"]
)
def test_damaged_answer_is_ignored(
    calibrated: Calibrated, batches: tuple[Tensor, ...], tmp_path: Path, damage: str
) -> None:
    model = copy.deepcopy(calibrated())
    result = choose_calibrator(model, collect_histograms(model, batches[:1], 128), [partial(given, batches[0])])
    file = tmp_path / "answer.json"
    save_choice(file, result)
    assert load_choice(file) == result
    content = json.loads(file.read_text(encoding="utf-8"))
    if damage in ("two chosen", "none chosen"):
        for candidate in content["candidates"]:
            candidate["chosen"] = damage == "two chosen"
    elif damage == "another table":
        content["candidates"] = [c for c in content["candidates"] if c["chosen"]]
    elif damage == "groups":
        content["groups"] = {"silu": ["mse", 1.0]}
    elif damage == "another key":
        content["candidates"][0]["more"] = 1
    file.write_text(damage if damage in ("", "[]", "{") else json.dumps(content), encoding="utf-8")
    assert load_choice(file) is None
    assert load_choice(tmp_path / "none.json") is None
