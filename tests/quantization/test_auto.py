"""``calibrator: auto``: the comparison, its answer, and the file that remembers it."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from recording import Recording
from torch import Tensor

from trt_qat.artifacts import write_json
from trt_qat.checkpoint import load, save
from trt_qat.config import Config, QuantizationSection
from trt_qat.model.output_error import output_error, raw_predictions
from trt_qat.pipeline import calibrate
from trt_qat.quantization.auto import CANDIDATES, choose_calibrator
from trt_qat.quantization.calibration import Calibration
from trt_qat.quantization.calibration_cache import choice_key, load_choice
from trt_qat.quantization.calibrators.base import calibrator_from_dict
from trt_qat.quantization.observe import collect_histograms

if TYPE_CHECKING:
    from conftest import Calibrated

    from trt_qat.checkpoint import Model

FLOAT = ("model.[4-9].*", "model.[12][0-9].*")  # few groups are left, for each costs a search


def given(images: Tensor) -> Tensor:
    return images


@torch.no_grad()
def test_error_of_a_candidate_is_that_of_its_ranges(calibrated: Calibrated, batches: tuple[Tensor, ...]) -> None:
    """Each candidate's error, computed again from a network calibrated with it; the smallest one is chosen."""
    model = copy.deepcopy(calibrated(exclude=FLOAT))
    histograms = collect_histograms(model, batches, 4096)
    result = choose_calibrator(model, histograms, [partial(given, batch) for batch in batches])
    assert tuple(c.calibrator for c in result.candidates) == CANDIDATES
    for candidate in result.candidates:
        model.load_amax_(candidate.calibrator.ranges(histograms))
        errors = []
        for batch in batches:
            with model.quantizers_off():
                reference = raw_predictions(model.network, batch)
            errors.append(float(output_error(raw_predictions(model.network, batch), reference)))
        assert candidate.error == pytest.approx(sum(errors) / len(errors), rel=1e-5)
    (chosen,) = [c for c in result.candidates if c.chosen]
    assert chosen.error == min(c.error for c in result.candidates)
    assert result.calibrator == chosen.calibrator
    assert len({c.error for c in result.candidates}) > 4


def test_a_short_last_batch_weighs_by_its_images(calibrated: Calibrated, batches: tuple[Tensor, ...]) -> None:
    model = copy.deepcopy(calibrated(exclude=FLOAT))
    histograms = collect_histograms(model, batches, 4096)
    alone = [choose_calibrator(model, histograms, [partial(given, part)]) for part in (batches[0], batches[1][:1])]
    both = choose_calibrator(model, histograms, [partial(given, batches[0]), partial(given, batches[1][:1])])
    for first, second, joint in zip(alone[0].candidates, alone[1].candidates, both.candidates, strict=True):
        assert joint.error == pytest.approx((4 * first.error + second.error) / 5, rel=1e-6)


def test_comparison_leaves_mode_and_head(calibrated: Calibrated, batches: tuple[Tensor, ...]) -> None:
    model = copy.deepcopy(calibrated(exclude=FLOAT))
    histograms = collect_histograms(model, batches[:1], 4096)
    for training in (True, False):
        model.network.train(training)
        choose_calibrator(model, histograms, [partial(given, batches[0])])
        assert all(module.training == training for module in model.network.modules() if list(module.children()))
        assert model.network.model[-1].training == training


# the file --------------------------------------------------------------------------------------------------------


def test_key_changes_with_what_decides_the_choice() -> None:
    section = QuantizationSection(calibrator="auto")
    key = choice_key("a", section, "channel")
    assert key == choice_key("a", section.replace(percentile=99), "channel")
    others = {
        choice_key("b", section, "channel"),
        choice_key("a", section, "tensor"),
        choice_key("a", section.replace(batch=4), "channel"),
        choice_key("a", section.replace(auto_images=31), "channel"),
        choice_key("a", section.replace(auto_per_group=True), "channel"),
        choice_key("a", section.replace(toolkit="pytorch-quantization"), "channel"),
    }
    assert len({key, *others}) == 7


def test_key_changes_with_the_table_and_the_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    section = QuantizationSection(calibrator="auto")
    keys = [choice_key("a", section, "channel")]
    monkeypatch.setattr("trt_qat.quantization.calibration_cache.MEASURE", "other")
    keys.append(choice_key("a", section, "channel"))
    monkeypatch.setattr("trt_qat.quantization.calibration_cache.CANDIDATES", CANDIDATES[1:])
    keys.append(choice_key("a", section, "channel"))
    assert len(set(keys)) == 3


def run_calibration(detector: Model, data: Path, folder: Path, **quantization: object) -> tuple[Model, dict[str, int]]:
    weights = save(folder / "fp32.safetensors", detector).path
    config = Config.model_validate(
        {
            "data": {"calibration_cache": str(folder / "calib")},
            "quantization": {"calibrator": "auto", "auto_images": 6, "batch": 4, "exclude": FLOAT, **quantization},
        }
    )
    recording = Recording()
    return calibrate(weights, data, folder / "ptq.safetensors", config, recording), recording.seen


def calibration_of(model: Model) -> Calibration:
    return Calibration.from_dict(model.provenance["calibration"])


@pytest.mark.slow
def test_pipeline_compares_once(detector: Model, demo_yaml: Path, tmp_path: Path) -> None:
    """The second time neither pass is made; a damaged answer is made anew; the ranges are the chosen ones."""
    first, seen = run_calibration(detector, demo_yaml, tmp_path)
    assert seen == {"calibrating": 3, "comparing calibrators": 2 * len(CANDIDATES)}
    ranges = first.require_quantized().amax()
    written = load(tmp_path / "ptq.safetensors")
    assert written.provenance == first.provenance
    assert all(torch.equal(value, written.require_quantized().amax()[name]) for name, value in ranges.items())
    (answer,) = (tmp_path / "calib").glob("*.json")
    again, seen = run_calibration(detector, demo_yaml, tmp_path)
    assert seen == {}
    assert again.provenance == first.provenance

    chosen = first.provenance["calibration"]
    keys = {"calibrator": chosen["calibrator"], "percentile": chosen["percentile"] or 99.0}
    explicit, seen = run_calibration(detector, demo_yaml, tmp_path, **keys)
    assert seen == {}
    assert calibration_of(explicit) == Calibration(calibrator_from_dict(chosen))
    assert all(torch.equal(value, explicit.require_quantized().amax()[name]) for name, value in ranges.items())

    _, seen = run_calibration(detector, demo_yaml, tmp_path, auto_images=4)
    assert seen == {"comparing calibrators": len(CANDIDATES)}
    _, seen = run_calibration(detector, demo_yaml, tmp_path, residual="none")
    assert set(seen) == {"calibrating", "comparing calibrators"}
    answer.write_text("{}", encoding="utf-8")
    anew, seen = run_calibration(detector, demo_yaml, tmp_path)
    assert set(seen) == {"comparing calibrators"}
    assert anew.provenance == first.provenance


@pytest.mark.slow
def test_pipeline_compares_groups_once(detector: Model, demo_yaml: Path, tmp_path: Path) -> None:
    first, seen = run_calibration(detector, demo_yaml, tmp_path, auto_per_group=True)
    model = first.require_quantized()
    assert seen["calibrators per group"] == len(model.placement.groups)
    assert calibration_of(first).groups
    again, seen = run_calibration(detector, demo_yaml, tmp_path, auto_per_group=True)
    assert seen == {}
    assert again.provenance == first.provenance
    same = again.require_quantized().amax()
    assert all(torch.equal(value, same[name]) for name, value in model.amax().items())
    plain, seen = run_calibration(detector, demo_yaml, tmp_path)
    assert set(seen) == {"comparing calibrators"}
    assert calibration_of(plain).groups == {}
    assert calibration_of(plain).candidates == calibration_of(first).candidates
    other = plain.require_quantized().amax()
    changed = {name for name, value in model.amax().items() if not torch.equal(value, other[name])}
    assert changed == {f"activation.{group}" for group in calibration_of(first).groups}


@pytest.mark.parametrize(
    "damage", ["", "[]", "{", "two chosen", "none chosen", "another table", "no error", "groups", "unknown calibrator"]
)
def test_damaged_answer_is_ignored(
    calibrated: Calibrated, batches: tuple[Tensor, ...], tmp_path: Path, damage: str
) -> None:
    model = copy.deepcopy(calibrated(exclude=FLOAT))
    result = choose_calibrator(model, collect_histograms(model, batches[:1], 128), [partial(given, batches[0])])
    file = tmp_path / "answer.json"
    write_json(file, result.as_dict())
    assert load_choice(file) == result
    content = result.as_dict()
    if damage in ("two chosen", "none chosen"):
        for candidate in content["candidates"]:
            candidate["chosen"] = damage == "two chosen"
    elif damage == "another table":
        content["candidates"] = [c for c in content["candidates"] if c["chosen"]]
    elif damage == "groups":
        content["groups"] = {"silu": ["mse", 1.0]}
    elif damage == "no error":
        del content["candidates"][0]["error"]
    elif damage == "unknown calibrator":
        content["candidates"][0]["calibrator"] = "mes"
    file.write_text(damage if damage in ("", "[]", "{") else json.dumps(content), encoding="utf-8")
    assert load_choice(file) is None
    assert load_choice(tmp_path / "none.json") is None
