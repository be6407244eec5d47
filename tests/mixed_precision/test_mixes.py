"""The fewest float groups that meet a budget: the search, the mixed model itself, and what is reported."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from trt_qat import api
from trt_qat.checkpoint import Model, load, save
from trt_qat.config import EvaluationSection, ExportSection, Precision, Residual
from trt_qat.data.dataset import load_dataset
from trt_qat.errors import ConfigError
from trt_qat.evaluation.parity import lowest_cosine
from trt_qat.evaluation.torch_runner import TorchRunner
from trt_qat.exporter.onnx_export import export_onnx
from trt_qat.linter.report import lint
from trt_qat.mixed_precision.budget_search import Measured
from trt_qat.mixed_precision.exported import ExportedMeasure, check_budget_runtime
from trt_qat.mixed_precision.mixes import Budget, float_of, keep_budget, macs_shares, rank_candidates, table
from trt_qat.model.loading import raw_output
from trt_qat.runtime.onnxruntime import OnnxRuntimeRunner

if TYPE_CHECKING:
    from conftest import Calibrated


def test_macs_shares(calibrated: Calibrated) -> None:
    model = calibrated()
    shares = macs_shares(model, (64, 64))
    assert shares.keys() == {group.name for group in model.placement.groups}
    assert 0.5 < sum(shares.values()) < 1  # the head's last layers are float
    first, second = model.placement.groups[:2]
    assert (first.convs, second.convs) == (("model.0.conv",), ("model.1.conv",))
    assert shares[first.name] / shares[second.name] == pytest.approx((3 * 16 * 32 * 32) / (16 * 32 * 16 * 16))
    for imgsz in ((128, 128), (64, 32)):
        assert macs_shares(model, imgsz)[first.name] == pytest.approx(shares[first.name])


def test_candidates_are_ranked_by_error(calibrated: Calibrated, batches: tuple[Tensor, ...]) -> None:
    candidates = rank_candidates(calibrated(), batches[:1], (64, 64))
    errors = [candidate.sensitivity.cost for candidate in candidates]
    assert errors == sorted(errors, reverse=True)
    ratios = [candidate.error_per_share for candidate in candidates]
    assert ratios == [candidate.sensitivity.cost / candidate.macs_share for candidate in candidates]
    assert ratios != sorted(ratios, reverse=True)  # the share does matter


@pytest.fixture
def start(calibrated: Calibrated, detector: Model) -> Model:
    """A calibrated model in which 6 groups are INT8, so that few mixes are measured."""
    model = calibrated()
    few = model.leave_float([group.name for group in model.placement.groups[6:]], "test")
    return detector.with_quantized(few, "ptq", {})


@pytest.fixture
def tuned(start: Model) -> Model:
    """As if fine-tuned from ``start``: every convolution's weights are other ones."""
    model = start.require_quantized().leave_float((), "")
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.mul_(1.01)
    return start.with_quantized(model, "qat", {"a": 1})


def weights(model: Model) -> dict[str, Tensor]:
    """Weight and bias of every convolution."""
    return {
        f"{name}.{kind}": parameter
        for name, conv in model.network.named_modules()
        if isinstance(conv, nn.Conv2d)
        for kind, parameter in conv.named_parameters(recurse=False)
    }


def assert_weights(mixed: Model, expected: Callable[[str], Model]) -> None:
    """Every convolution of ``mixed`` has the weights of the model that is expected for its name."""
    for name, tensor in weights(mixed).items():
        assert torch.equal(tensor, weights(expected(name.rpartition(".")[0]))[name]), name


@pytest.mark.parametrize(
    "residual", [pytest.param("none", marks=pytest.mark.slow), "skip", pytest.param("both", marks=pytest.mark.slow)]
)
def test_a_mixed_checkpoint_exports_what_it_computes(
    calibrated: Calibrated, detector: Model, batches: tuple[Tensor, ...], tmp_path: Path, residual: Residual
) -> None:
    model = calibrated(residual=residual)
    removed = [group.name for group in model.placement.groups[2:30:3]]
    mixed = model.leave_float(removed, "test")
    checkpoint = load(save(tmp_path / "mixed.safetensors", detector.with_quantized(mixed, "qat", {})).path)
    quantized = checkpoint.require_quantized()
    assert quantized.placement == mixed.placement
    assert quantized.amax().keys() == mixed.amax().keys()
    assert torch.equal(raw_output(checkpoint.network, batches[0]), raw_output(mixed.network, batches[0]))

    path = export_onnx(checkpoint, tmp_path / "mixed.onnx", ExportSection(precision="int8+fp32")).path
    report = lint(path)
    assert report.errors == 0
    assert report.counts.int8_convs == sum(len(group.convs) for group in mixed.placement.groups)

    plain, relative = detector.network, []
    with OnnxRuntimeRunner(path, optimize=False) as runner:
        for image in torch.cat(batches).split(1):
            expected = raw_output(checkpoint.network, image).numpy()
            (found,) = runner.infer(image.numpy())
            quantization = np.abs(expected - raw_output(plain, image).numpy()).mean()
            relative.append(float(np.abs(found - expected).mean() / quantization))
        images = [image.numpy() for image in torch.cat(batches).split(1)]
        assert lowest_cosine(TorchRunner(checkpoint), runner, images)[0] > 0.9999
    assert np.median(relative) < 0.01  # not all: a sum of another order may round to the other side


@pytest.mark.slow
def test_left_out_groups_are_half_precision_in_int8_fp16(
    calibrated: Calibrated, detector: Model, tmp_path: Path
) -> None:
    model = calibrated()
    group = next(group for group in model.placement.groups if group.convs == ("model.3.conv",))
    mixed = detector.with_quantized(model.leave_float([group.name], "test"), "qat", {})
    types = {}
    for precision in ("int8+fp32", "int8+fp16"):
        section = ExportSection.model_validate({"precision": precision})
        graph = onnx.load(export_onnx(mixed, tmp_path / f"{precision}.onnx", section).path).graph
        initializers = {entry.name: entry.data_type for entry in graph.initializer}
        conv = next(node for node in graph.node if node.op_type == "Conv" and "/model.3/conv/" in node.name)
        types[precision] = initializers[conv.input[1]]
    assert types == {"int8+fp32": onnx.TensorProto.FLOAT, "int8+fp16": onnx.TensorProto.FLOAT16}


# the search, on made-up accuracy ----------------------------------------------------------------------------------


@pytest.fixture
def kept(start: Model, tuned: Model, batches: tuple[Tensor, ...]) -> Callable[..., Budget]:
    """What is kept if accuracy depends on how many groups are float: 0.5 if all are, else as given, else ``otherwise``.

    ``fine_tuned`` and ``calibrated`` say it for the two kinds of weights, told apart by the weights themselves.
    """
    before = weights(start)

    def run(
        fine_tuned: dict[int, float], calibrated: dict[int, float], otherwise: float, max_drop: float = 0.2
    ) -> Budget:
        def measure(model: Model) -> Measured:
            if model.quantized is None:
                return Measured(0.5, 10.0, 5.0)
            groups = model.quantized.placement.groups
            name = f"{groups[0].convs[0]}.weight"
            by_count = calibrated if torch.equal(weights(model)[name], before[name]) else fine_tuned
            return Measured(by_count.get(6 - len(groups), otherwise), 10.0 - len(groups), 5.0)

        return keep_budget(start, tuned, max_drop, measure, batches[:1])

    return run


def test_a_budget_that_is_met_changes_nothing(kept: Callable[..., Budget], tuned: Model) -> None:
    budget = kept({0: 0.498}, {}, otherwise=0.0)
    assert budget.model is tuned
    report = budget.report
    assert (budget.met, report["met"], report["chosen"]["k"], report["ranking"]) == (True, True, 0, [])
    assert len(report["steps"]) == 1
    assert report["float"] == {"map50_95": 0.5, "latency_ms": 10.0}
    assert table(report)[2] == "All INT8 is within 0.2 points of mAP50-95."


def test_three_groups_float(kept: Callable[..., Budget], start: Model, tuned: Model) -> None:
    budget = kept({0: 0.48, 1: 0.49, 2: 0.495, 3: 0.499, 4: 0.499}, {}, otherwise=0.47)
    content = budget.report
    orders = {
        "error": [line["group"] for line in content["ranking"]],
        "error / MACs share": [
            line["group"] for line in sorted(content["ranking"], key=lambda line: -line["error_per_share"])
        ],
    }
    assert orders["error"] != orders["error / MACs share"]
    fine_tuned = ["fine-tuned"] * 8  # no search goes on where another one needed fewer groups
    assert [step["k"] for step in content["steps"]] == [0, 1, 2, 4, 3, 1, 2, 3, 0, 1, 2, 3, 1, 2, 3]
    assert [step["weights"] for step in content["steps"]] == fine_tuned + ["calibrated"] * 7
    floats = [step for step in content["steps"] if step["k"]]
    by = ["error"] * 3 + ["error / MACs share"] * 3
    assert [step["order"] for step in floats] == ["error", *by, *by]
    assert all(step["groups"] == orders[step["order"]][: step["k"]] for step in floats)
    chosen = content["chosen"]
    ranked = orders[chosen["order"]]
    assert (budget.met, chosen["k"], chosen["groups"]) == (True, 3, ranked[:3])
    assert chosen["drop_points"] == pytest.approx(0.1)
    assert [line["group"] for line in chosen["why"]] == ranked[:3]
    assert all(line["error"] > 0 < line["macs_share"] for line in chosen["why"])

    mixed, groups = budget.model, tuned.require_quantized().placement.groups
    left = [group.name for group in mixed.require_quantized().placement.groups]
    assert left == [group.name for group in groups if group.name not in ranked[:3]]
    said_of_it = {"max_drop": 0.2, "left_float": ranked[:3], "int8_weights": "fine-tuned"}
    assert mixed.provenance == {"a": 1, "mixed_precision": said_of_it}
    assert mixed.stage == "qat"
    convs = {conv for group in groups if group.name in ranked[:3] for conv in group.convs}
    assert len(convs) >= 3
    assert_weights(mixed, lambda conv: start if conv in convs else tuned)

    header, rows, said = table(content)
    assert {len(row) for row in rows} == {len(header)}
    counts = ["0"] * 2 + ["1"] * 4 + ["2"] * 4 + ["3"] * 3 + ["3  <- kept", "4"]
    assert sorted(row[0] for row in rows[1:]) == counts
    assert said.startswith("Left float: model.")
    assert said.endswith(
        " The INT8 groups have the fine-tuned weights. It takes 7.0 ms, all INT8 5.0 ms, the float model 10.0 ms."
    )
    other: dict[str, Any] = {**content, "chosen": {**chosen, "why": content["ranking"][1:]}}
    (group,) = [group for group in groups if group.name == content["ranking"][0]["group"]]
    assert table(other)[2].startswith(f"Left float: all but {group.convs[0].removesuffix('.conv')}")  # names the fewer


def test_the_start_and_the_tuned_model_are_left_as_they_are(
    kept: Callable[..., Budget], start: Model, tuned: Model, batches: tuple[Tensor, ...]
) -> None:
    before = [raw_output(model.network, batches[0]) for model in (start, tuned)]
    kept({3: 0.499, 4: 0.499}, {}, otherwise=0.47)
    assert all(
        torch.equal(raw_output(model.network, batches[0]), output)
        for model, output in zip((start, tuned), before, strict=True)
    )


@pytest.mark.slow
def test_a_saved_mix_is_the_one_that_was_measured(
    kept: Callable[..., Budget], batches: tuple[Tensor, ...], tmp_path: Path
) -> None:
    """Mixes are measured in memory; bit for bit the file that is kept computes the same."""
    mixed = kept({3: 0.499, 4: 0.499}, {}, otherwise=0.47).model
    again = load(save(tmp_path / "best.safetensors", mixed).path)
    assert len(again.require_quantized().placement.groups) == 3
    assert again.require_quantized().placement == mixed.require_quantized().placement
    assert again.provenance == mixed.provenance
    for batch in batches:
        assert torch.equal(raw_output(again.network, batch), raw_output(mixed.network, batch))
    outputs, operators = [], []
    for name, model in (("memory", mixed), ("file", again)):
        path = export_onnx(model, tmp_path / f"{name}.onnx", ExportSection()).path
        operators.append([node.op_type for node in onnx.load(path).graph.node])
        with OnnxRuntimeRunner(path) as runner:
            outputs.append(runner.infer(batches[0][:1].numpy())[0])
    assert operators[0] == operators[1]
    np.testing.assert_array_equal(outputs[0], outputs[1])


@pytest.mark.parametrize("k", [0, 1])
def test_the_calibrated_weights_are_kept_where_they_need_fewer_groups(
    kept: Callable[..., Budget], start: Model, k: int
) -> None:
    budget = kept({2: 0.499}, {k: 0.499}, otherwise=0.4)
    chosen = budget.report["chosen"]
    assert (budget.met, chosen["k"], chosen["weights"]) == (True, k, "calibrated")
    assert budget.model.provenance["mixed_precision"]["int8_weights"] == "calibrated"
    assert len(budget.model.require_quantized().placement.groups) == 6 - k
    assert_weights(budget.model, lambda conv: start)
    assert "calibrated weights" in table(budget.report)[2]


def test_a_budget_out_of_reach_keeps_the_best_measured(kept: Callable[..., Budget]) -> None:
    budget = kept({0: 0.3, 2: 0.45}, {}, otherwise=0.4)
    content = budget.report
    assert (budget.met, content["met"], content["chosen"]["k"]) == (False, False, 2)
    assert max(step["k"] for step in content["steps"]) == len(content["ranking"]) - 1  # one always stays INT8
    assert budget.model.provenance["mixed_precision"]["left_float"] == content["chosen"]["groups"]
    assert len(budget.model.require_quantized().placement.groups) == 4
    assert table(content)[2].startswith("Left float, though not within 0.2 points of mAP50-95: ")


def test_the_float_model_of_a_calibrated_one(start: Model, detector: Model, batches: tuple[Tensor, ...]) -> None:
    found = float_of(start)
    assert (found.quantized, found.stage) == (None, "fp32")
    assert torch.equal(raw_output(found.network, batches[0]), raw_output(detector.network, batches[0]))
    assert not torch.equal(raw_output(start.network, batches[0]), raw_output(detector.network, batches[0]))


# the measure ------------------------------------------------------------------------------------------------------


QUICK = EvaluationSection(latency_iterations=3, latency_warmup=0)


@pytest.fixture(scope="module")
def broken(demo_int8: Model) -> tuple[Model, str]:
    """The trained detector with 3 groups in INT8, at half its size; and the group whose range ruins it."""
    quantized = demo_int8.require_quantized()
    few = quantized.leave_float([group.name for group in quantized.placement.groups[3:]], "test")
    name = few.placement.groups[1].name
    few.load_amax_({f"activation.{name}": few.amax()[f"activation.{name}"] / 100})
    return replace(demo_int8.with_quantized(few, "ptq", {}), imgsz=(160, 160)), name


@pytest.mark.parametrize("precision", ["int8+fp16", pytest.param("fp32", marks=pytest.mark.slow)])
def test_accuracy_and_latency_are_those_of_the_exported_file(
    broken: tuple[Model, str], demo_detector: Model, demo_set: Path, tmp_path: Path, precision: Precision
) -> None:
    """INT8 models are written in INT8 and the float one in float, whatever precision is asked for."""
    model, name = broken
    dataset = load_dataset(demo_set)
    measure = ExportedMeasure(model, dataset, ExportSection(precision=precision), QUICK, tmp_path)
    of_float, of_broken = measure(float_of(model)), measure(model)
    mended = measure(model.with_quantized(model.require_quantized().leave_float([name], "test"), "ptq", {}))
    (row,) = api.evaluate([replace(demo_detector, imgsz=(160, 160))], dataset, QUICK)
    assert of_float.map50_95 == pytest.approx(row.map50_95, abs=0.005)
    assert of_float.map50_95 > 0.3
    assert of_broken.map50_95 < 0.5 * of_float.map50_95
    assert mended.map50_95 == pytest.approx(of_float.map50_95, abs=0.03)
    assert all(min(found.latency_ms, found.int8_latency_ms) > 0 for found in (of_float, of_broken, mended))


@pytest.mark.slow
def test_the_group_that_ruins_a_trained_detector_is_left_float(broken: tuple[Model, str], demo_set: Path) -> None:
    model, name = broken
    budget = api.keep_budget(model, copy.copy(model), demo_set, 3, evaluation=QUICK)
    assert budget.met
    assert (budget.report["chosen"]["k"], budget.report["chosen"]["groups"]) == (1, [name])
    assert budget.report["int8"]["drop_points"] > 10
    assert budget.report["chosen"]["drop_points"] <= 3
    assert name not in {group.name for group in budget.model.require_quantized().placement.groups}


@pytest.mark.parametrize("runtime", ["tensorrt", "torch"])
def test_a_runtime_without_onnx_is_refused(runtime: str, broken: tuple[Model, str], demo_set: Path) -> None:
    section = EvaluationSection(runtime=runtime)
    with pytest.raises(ConfigError, match="Use openvino or onnxruntime"):
        check_budget_runtime(section)
    with pytest.raises(ConfigError, match="Use openvino or onnxruntime"):
        api.keep_budget(broken[0], broken[0], demo_set, 1, evaluation=section)
