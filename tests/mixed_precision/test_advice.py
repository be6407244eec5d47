"""The advice: real compiled forms of the shipped detector, and the rule that recommends one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from trt_qat import api, pipeline
from trt_qat.checkpoint import Model, with_weight_scales
from trt_qat.config import Config, QuantizationSection
from trt_qat.engine.compiled import CompiledEngine
from trt_qat.engine.roofline import GPUS, Estimate, estimate
from trt_qat.errors import ConfigError
from trt_qat.mixed_precision.advice import (
    CHANNEL,
    FACTORED,
    FP16,
    MIXED,
    TENSOR,
    Advice,
    Adviser,
    Form,
    gpu_for_advice,
    group_gains,
    with_any_ranges,
)
from trt_qat.mixed_precision.compiler_search import Mix

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")


@pytest.fixture(scope="module")
def advice(demo_int8: Model, demo_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Advice:
    return api.advise(demo_int8, demo_set, tmp_path_factory.mktemp("advice"), "rtx3060", batch=8, mixes=4)


def test_every_form_is_compiled_and_measured(advice: Advice) -> None:
    forms = {form.name: form for form in advice.forms}
    assert {FP16, CHANNEL, TENSOR, FACTORED} <= set(forms)
    assert {form.engine.sm for form in advice.forms} == {86}
    types = {
        name: {pair: len(found) for pair, found in form.engine.convolutions.items()} for name, form in forms.items()
    }
    # 64 with DFL and 8 more: a convolution for each part of a split one
    assert types[FP16] == {("Half", "Half"): 71, ("Float", "Float"): 1}
    assert types[CHANNEL]["Int8", "Float"] == 55
    assert types[FACTORED] == types[TENSOR] == {("Int8", "Half"): 57, ("Half", "Half"): 6, ("Float", "Float"): 1}
    assert forms[FACTORED].engine.activation_bytes < 0.7 * forms[CHANNEL].engine.activation_bytes
    assert forms[CHANNEL].engine.activation_bytes > 1.3 * forms[FP16].engine.activation_bytes
    for form in advice.forms:
        assert form.file.is_file()
        assert form.map50_95 is not None
        assert form.map50_95 > 0.6
        assert form.ms == estimate(form.engine, "rtx3060").total_ms
        assert len(form.float_groups) + len(form.int8_groups) == 38
    assert advice.recommended.ms <= advice.fp16.ms
    assert advice.tried <= 4


def test_what_is_written_is_what_was_found(advice: Advice) -> None:
    content = advice.as_dict()
    assert content["recommended"] == advice.recommended.name
    assert [row["form"] for row in content["forms"]] == [form.name for form in advice.forms]
    assert "measured" not in str(content["sentence"]).lower().replace("measure it there", "")
    assert "nothing was run on a GPU" in content["what"]


def test_gains_of_groups_are_the_difference_of_the_engines(advice: Advice, demo_int8: Model) -> None:
    forms = {form.name: form for form in advice.forms}
    convs = {group.name: group.convs for group in demo_int8.require_quantized().placement.groups}
    gains = group_gains(convs, forms[FP16].estimate, forms[FACTORED].estimate)
    assert set(gains) == set(convs)
    whole = forms[FP16].ms - forms[FACTORED].ms
    # all but the kernels of the head's last layers, the decoding and the copies, which belong to no group
    assert sum(gains.values()) == pytest.approx(whole, abs=0.15 * forms[FP16].ms)


@pytest.mark.slow
def test_a_mix_that_costs_too_much_gets_more_float_groups(
    demo_int8: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accuracy is made up: it is kept from three further float groups on, and the compiler wants none."""

    def accuracy(file: Path) -> float:
        floats = int(file.stem.rpartition("_")[2]) if file.stem.count("_") == 3 else 0
        return 0.5 if file.stem == "fp16" or floats >= 3 else 0.4

    groups = [group.name for group in demo_int8.require_quantized().placement.groups]
    monkeypatch.setattr("trt_qat.mixed_precision.advice.cheapest_mix", lambda *_: Mix(frozenset(), 0.0, 2))
    adviser = Adviser(demo_int8, tmp_path, accuracy, lambda _: groups[::-1])
    found = adviser.advise(GPUS["rtx3060"], 8, max_drop=1.0, limit=2)
    mixed = found.forms[-1]
    assert (mixed.name, mixed.float_groups) == (MIXED, tuple(groups[-3:]))
    assert [form.name for form in found.forms if found.keeps_accuracy(form)] == [FP16, MIXED]
    assert {pair: len(k) for pair, k in mixed.engine.convolutions.items()}["Int8", "Half"] < 57


def form(name: str, ms: float, map50_95: float | None) -> Form:
    engine = CompiledEngine("x.onnx", "tensorrt-rtx", "1.7", 86, ())
    return Form(name, Path("x.onnx"), engine, Estimate(GPUS["rtx3060"], (), ms, 2.0, lower_bound=False), map50_95)


def recommended(max_drop: float | None, *forms: Form) -> str:
    return Advice(GPUS["rtx3060"], 1, max_drop, forms, 4).recommended.name


def test_recommendation() -> None:
    fp16 = form(FP16, 1.0, 0.500)
    assert recommended(None, fp16, form(FACTORED, 0.8, 0.49), form(TENSOR, 0.7, 0.40)) == TENSOR
    assert recommended(1.0, fp16, form(FACTORED, 0.8, 0.49), form(TENSOR, 0.7, 0.40)) == FACTORED
    assert recommended(0.5, fp16, form(FACTORED, 0.8, 0.49), form(TENSOR, 0.7, 0.40)) == FP16
    assert recommended(None, fp16, form(FACTORED, 1.2, 0.51), form(TENSOR, 1.001, 0.51)) == FP16
    assert recommended(None, fp16, form(FACTORED, 0.995, 0.51)) == FP16  # no estimate tells half a percent
    assert recommended(None, fp16, form(TENSOR, 0.700, 0.40), form(FACTORED, 0.704, 0.49)) == FACTORED
    assert recommended(None, replace(fp16, map50_95=None), form(TENSOR, 0.700, None), form(MIXED, 0.702, None)) == MIXED


def test_the_sentence_names_fp16_where_that_is_faster() -> None:
    forms = (form(FP16, 1.0, 0.5), form(FACTORED, 1.2, 0.5))
    assert Advice(GPUS["rtx3060"], 1, None, forms, 4).sentence.startswith("Use FP16: no INT8 form is estimated")


@pytest.mark.parametrize("name", ["orin-nano", "agx-orin", "a100"])
def test_cards_that_run_tensorrt_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"runs TensorRT, whose compiler needs the GPU itself"):
        gpu_for_advice(name)


def test_scales_per_tensor_are_no_start(demo_int8: Model, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Calibrate with quantization\.weights=channel"):
        api.advise(with_weight_scales(demo_int8, "tensor"), None, tmp_path, "rtx3060")


def test_zero_points_are_no_start(tiny_asymmetric: Model, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"takes no zero points\. Calibrate with quantization\.scheme=symmetric"):
        api.advise(tiny_asymmetric, None, tmp_path, "rtx3060")
    config = Config.load(overrides=["quantization.scheme=asymmetric"])
    with pytest.raises(ConfigError, match="takes no zero points"):  # before anything is read
        pipeline.advise(Path("missing.pt"), None, tmp_path, config, "rtx3060", 1, None, 1)


def test_any_ranges_need_no_image(demo_detector: Model) -> None:
    model = with_any_ranges(demo_detector, QuantizationSection())
    ranges = {float(amax) for name, amax in model.require_quantized().amax().items() if name.startswith("activation.")}
    assert ranges == {8.0}
    assert demo_detector.quantized is None
