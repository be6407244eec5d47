"""One pass over the images: what is seen, what is cached, and when the cache is not used."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pytest
import torch
from recording import Recording
from torch import Tensor, nn

from trt_qat.api import quantize
from trt_qat.checkpoint import save
from trt_qat.config import Config, QuantizationSection, Residual
from trt_qat.data.dataset import Dataset
from trt_qat.data.images import images_sha256, network_batch
from trt_qat.errors import QuantizationError
from trt_qat.model.loading import raw_output
from trt_qat.pipeline import calibrate
from trt_qat.quantization.calibrate import calibrate_
from trt_qat.quantization.calibration import Calibration
from trt_qat.quantization.calibration_cache import CalibrationCache, cache_key, load_histograms, save_histograms
from trt_qat.quantization.calibrators.max import Max
from trt_qat.quantization.calibrators.percentile import Percentile
from trt_qat.quantization.insert import QuantizedModel, quantize_model
from trt_qat.quantization.observe import collect_histograms

if TYPE_CHECKING:
    from conftest import Calibrated

    from trt_qat.checkpoint import Model

Item = TypeVar("Item")


def test_float_output_with_quantizers_off(calibrated: Calibrated, detector: Model, batches: tuple[Tensor, ...]) -> None:
    model = calibrated(residual="both")
    expected = raw_output(detector.network, batches[0])
    with model.quantizers_off():
        assert torch.equal(raw_output(model.network, batches[0]), expected)
    quantized = raw_output(model.network, batches[0])
    assert not torch.allclose(quantized, expected, rtol=1e-4)
    assert torch.nn.functional.cosine_similarity(quantized.flatten(), expected.flatten(), dim=0) > 0.98


@pytest.mark.parametrize("residual", ["none", "both"])
def test_every_member_of_a_group_is_seen(detector: Model, batches: tuple[Tensor, ...], residual: Residual) -> None:
    """The maximum of a group is the maximum over every tensor that one of its convolutions reads."""
    model = quantize_model(copy.deepcopy(detector.network), detector.names, QuantizationSection(residual=residual))
    found = {name: histogram.maximum for name, histogram in collect_histograms(model, batches, 2048).items()}

    read: dict[str, float] = dict.fromkeys(found, 0.0)
    for group in model.placement.groups:

        def watch(_: nn.Module, inputs: tuple[Tensor, ...], name: str = group.name) -> None:
            read[name] = max(read[name], float(inputs[0].abs().max()))

        for conv in group.convs:
            model.network.get_submodule(conv).register_forward_pre_hook(watch)
    with model.quantizers_off():
        for batch in batches:
            raw_output(model.network, batch)
    assert found == read
    assert len(set(found.values())) == len(found)


def test_every_value_is_counted_once(detector: Model, batches: tuple[Tensor, ...]) -> None:
    model = quantize_model(copy.deepcopy(detector.network), detector.names, QuantizationSection())
    histograms = collect_histograms(model, batches, 2048)
    image = next(group for group in model.placement.groups if "model.0.conv" in group.convs)
    assert histograms[image.name].counts.sum() == 12 * 3 * 64 * 64
    concat = next(group for group in model.placement.groups if "model.4.cv2.conv" in group.convs)
    values = 12 * model.network.get_submodule("model.4.cv2.conv").in_channels * 8 * 8
    assert histograms[concat.name].counts.sum() == values


def test_calibration_leaves_mode_and_hooks(detector: Model, batches: tuple[Tensor, ...]) -> None:
    model = quantize_model(copy.deepcopy(detector.network), detector.names, QuantizationSection())
    model.network.train()
    collect_histograms(model, batches[:1], 128)
    assert model.network.training
    assert not any(module._forward_pre_hooks for module in model.network.modules())


def test_no_images(calibrated: Calibrated) -> None:
    with pytest.raises(QuantizationError, match="no image"):
        collect_histograms(calibrated(), [], 128)


def test_ranges_come_from_the_chosen_calibrator(calibrated: Calibrated, demo: Dataset) -> None:
    """All images are seen, in batches of the section's size; the answer says which calibrator it was."""
    model = copy.deepcopy(calibrated())
    batches = [torch.from_numpy(network_batch(demo.train[first : first + 5], (64, 64))) for first in (0, 5, 10)]
    histograms = collect_histograms(model, batches, 2048)
    section = QuantizationSection(calibrator="max", histogram_bins=2048, batch=5)
    assert calibrate_(model, demo.train, (64, 64), section) == Calibration(Max())
    amax = {name: value.clone() for name, value in model.amax().items()}
    for name, histogram in histograms.items():
        assert float(amax[f"activation.{name}"]) == pytest.approx(histogram.maximum)
    section = section.replace(calibrator="percentile", percentile=90)
    assert calibrate_(model, demo.train, (64, 64), section) == Calibration(Percentile(90))
    for name, histogram in histograms.items():
        assert float(model.amax()[f"activation.{name}"]) == pytest.approx(Percentile(90).amax(histogram))
        assert model.amax()[f"activation.{name}"] < amax[f"activation.{name}"]


def test_the_rectangle_is_what_the_network_sees(detector: Model, demo: Dataset) -> None:
    seen: list[Tensor] = []
    model = uncalibrated(detector)
    model.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    calibrate_(model, demo.train[:3], (32, 96), QuantizationSection(calibrator="max", histogram_bins=128, batch=2))
    expected = network_batch(demo.train[:3], (32, 96))
    assert expected.shape == (3, 3, 32, 96)
    np.testing.assert_array_equal(torch.cat(seen).numpy(), expected)


def test_weight_ranges_are_the_channels_maxima(calibrated: Calibrated) -> None:
    model = calibrated()
    for name, amax in model.amax().items():
        if name.startswith("weight."):
            weight = model.network.get_submodule(name.removeprefix("weight.")).weight
            assert torch.equal(amax, weight.detach().abs().amax(dim=(1, 2, 3), keepdim=True))


# the cache -------------------------------------------------------------------------------------------------------


def test_cache_gives_the_histograms_back(calibrated: Calibrated, batches: tuple[Tensor, ...], tmp_path: Path) -> None:
    histograms = collect_histograms(calibrated(), batches[:1], 128)
    save_histograms(tmp_path / "cache.safetensors", histograms)
    loaded = load_histograms(tmp_path / "cache.safetensors")
    assert loaded is not None
    assert loaded.keys() == histograms.keys()
    for name, histogram in histograms.items():
        np.testing.assert_array_equal(loaded[name].counts, histogram.counts)
        assert (loaded[name].limit, loaded[name].maximum) == (histogram.limit, histogram.maximum)


def test_key_changes_with_what_decides_the_histograms(calibrated: Calibrated, detector: Model, demo: Dataset) -> None:
    model = calibrated()
    images = images_sha256(demo.train)
    key = cache_key(model, images, (64, 64), 2048)
    assert key == cache_key(copy.deepcopy(model), images, (64, 64), 2048)
    assert key == cache_key(calibrated(calibrator="max"), images, (64, 64), 2048)  # needs no new pass
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.network.get_submodule("model.0.conv").bias[0] += 1e-3
    others = {
        "weights": cache_key(changed, images, (64, 64), 2048),
        "images": cache_key(model, images_sha256(demo.train[:-1]), (64, 64), 2048),
        "imgsz": cache_key(model, images, (96, 96), 2048),
        "a rectangle": cache_key(model, images, (64, 96), 2048),
        "the rectangle upright": cache_key(model, images, (96, 64), 2048),
        "bins": cache_key(model, images, (64, 64), 1024),
        "placement": cache_key(calibrated(residual="both"), images, (64, 64), 2048),
        "exclude": cache_key(uncalibrated(detector, exclude=("model.0.conv",)), images, (64, 64), 2048),
    }
    assert len({key, *others.values()}) == 1 + len(others)


def uncalibrated(detector: Model, **keys: object) -> QuantizedModel:
    section = QuantizationSection.model_validate(keys)
    return quantize_model(copy.deepcopy(detector.network), detector.names, section)


def test_pipeline_calibrates_once(detector: Model, demo_yaml: Path, tmp_path: Path) -> None:
    """Second time and other calibrator: no pass. Damaged cache: a new one, the same ranges."""
    weights = save(tmp_path / "fp32.safetensors", detector).path

    def run(**quantization: object) -> tuple[dict[str, Tensor], list[str]]:
        config = Config.model_validate(
            {
                "data": {"calibration_cache": str(tmp_path / "calib")},
                "quantization": quantization,
            }
        )
        recording = Recording()
        model = calibrate(weights, demo_yaml, tmp_path / "ptq.safetensors", config, recording)
        return model.require_quantized().amax(), list(recording.seen)

    first, passes = run(calibrator="mse")
    assert passes == ["calibrating"]
    (cache,) = (tmp_path / "calib").iterdir()
    again, passes = run(calibrator="mse")
    assert passes == []
    assert all(torch.equal(first[name], again[name]) for name in first)
    other, passes = run(calibrator="max")
    assert passes == []
    assert any(not torch.equal(first[name], other[name]) for name in first)

    cache.write_bytes(cache.read_bytes()[:1000])
    anew, passes = run(calibrator="mse")
    assert passes == ["calibrating"]
    assert all(torch.equal(first[name], anew[name]) for name in first)


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x08\0\0\0\0\0\0\0{}      "])
def test_damaged_cache_is_ignored(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cache.safetensors").write_bytes(content)
    assert load_histograms(tmp_path / "cache.safetensors") is None
    assert load_histograms(tmp_path / "none.safetensors") is None


def test_both_operands_of_an_add_are_seen(calibrated: Calibrated, batches: tuple[Tensor, ...]) -> None:
    model = calibrated(residual="both")
    added = [(group, add) for group in model.placement.groups for add in group.observed_adds]
    assert added, "the branch operand of a residual add is read by the add alone"
    histograms = collect_histograms(model, batches, 256)
    for group, add in added:
        seen: list[float] = []

        def watch(_m: nn.Module, _i: object, output: Tensor, seen: list[float] = seen) -> None:
            seen.append(float(output.abs().max()))

        handle = model.network.get_submodule(f"{add.module}.cv2").register_forward_hook(watch)
        with model.quantizers_off():
            for batch in batches:
                model.network(batch)
        handle.remove()
        assert histograms[group.name].maximum >= max(seen)


def test_an_interrupted_pass_goes_on_after_its_batches(
    detector: Model, demo: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trt_qat.quantization.partial_pass.EVERY_SECONDS", 0.0)
    section = QuantizationSection(calibrator="mse", batch=3)
    whole = quantize(detector, demo, section, remember=CalibrationCache(tmp_path / "whole", "x"))
    files = list((tmp_path / "whole").iterdir())
    assert len(files) == 1  # nothing partial is left

    class Killed(Recording):
        def over(self, items: Sequence[Item], description: str) -> Iterable[Item]:
            super().over(items, description)
            yield from items[:3]
            raise KeyboardInterrupt

    broken, cache = Killed(), CalibrationCache(tmp_path / "broken", "x")
    with pytest.raises(KeyboardInterrupt):
        quantize(detector, demo, section, remember=cache, progress=broken)
    (part,) = (tmp_path / "broken").iterdir()
    assert ".part-3-0of1." in part.name

    going_on = Recording()
    found = quantize(detector, demo, section, remember=cache, progress=going_on)
    assert going_on.notes == ["Calibration goes on after 3 of 4 batches."]
    assert going_on.seen["calibrating"] == 1
    assert [file.name for file in (tmp_path / "broken").iterdir()] == [files[0].name]
    assert next((tmp_path / "broken").iterdir()).read_bytes() == files[0].read_bytes()
    expected = whole.require_quantized().amax()
    assert all(torch.equal(value, expected[name]) for name, value in found.require_quantized().amax().items())

    quantize(detector, demo, section.replace(batch=2), remember=cache, progress=going_on)  # whole: no pass at all
    assert len(going_on.seen) == 1


@pytest.mark.parametrize(
    "damage",
    ["cut", *(pytest.param(what, marks=pytest.mark.slow) for what in ("no count of batches", "another group"))],
)
def test_a_damaged_partial_pass_begins_anew(
    damage: str, detector: Model, demo: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trt_qat.quantization.partial_pass.EVERY_SECONDS", 0.0)
    section, cache = QuantizationSection(calibrator="mse", batch=3), CalibrationCache(tmp_path, "x")
    quantize(detector, demo, section, remember=cache)
    (file,) = tmp_path.iterdir()
    part = file.with_name(f"{file.stem}.part-3-0of1.safetensors")
    histograms = load_histograms(file)
    assert histograms is not None
    expected = file.read_bytes()
    if damage == "cut":
        part.write_bytes(expected[:1000])
    elif damage == "no count of batches":
        part.write_bytes(expected)
    else:
        save_histograms(part, {"other": next(iter(histograms.values()))}, batches=2)
    file.unlink()
    progress = Recording()
    quantize(detector, demo, section, remember=cache, progress=progress)
    assert progress.notes == []
    assert progress.seen["calibrating"] == 4
    assert [left.read_bytes() for left in tmp_path.iterdir()] == [expected]
