"""The fewest float groups that meet a budget: the search, the mixed model itself, and what is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from trt_qat.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from trt_qat.config import Config, ExportSection, Residual
from trt_qat.data.dataset import Dataset
from trt_qat.errors import BudgetMissed, ConfigError
from trt_qat.evaluation import mixed_precision
from trt_qat.evaluation.accuracy import Accuracy
from trt_qat.evaluation.parity import lowest_cosine
from trt_qat.evaluation.torch_runner import TorchRunner
from trt_qat.exporter.onnx_export import export_onnx
from trt_qat.linter.report import lint
from trt_qat.mixed_precision.mixes import (
    check_budget_runtime,
    keep_budget,
    macs_shares,
    rank_candidates,
    table,
)
from trt_qat.model.loading import LoadedModel, raw_output
from trt_qat.runtime.onnxruntime import OnnxRuntimeRunner

if TYPE_CHECKING:
    from conftest import Calibrated


def test_macs_shares(calibrated: Calibrated) -> None:
    model = calibrated()
    shares = macs_shares(model, 64)
    assert shares.keys() == {group.name for group in model.placement.groups}
    assert 0.5 < sum(shares.values()) < 1  # the head's last layers are float
    first, second = model.placement.groups[:2]
    assert (first.convs, second.convs) == (("model.0.conv",), ("model.1.conv",))
    assert shares[first.name] / shares[second.name] == pytest.approx((3 * 16 * 32 * 32) / (16 * 32 * 16 * 16))
    assert macs_shares(model, 128)[first.name] == pytest.approx(shares[first.name])


def test_candidates_are_ranked_by_error(calibrated: Calibrated, batches: tuple[Tensor, ...]) -> None:
    candidates = rank_candidates(calibrated(), batches[:1], 64)
    errors = [candidate.sensitivity.cost for candidate in candidates]
    assert errors == sorted(errors, reverse=True)
    ratios = [candidate.error_per_share for candidate in candidates]
    assert ratios == [candidate.sensitivity.cost / candidate.macs_share for candidate in candidates]
    assert ratios != sorted(ratios, reverse=True)  # the share does matter


@pytest.fixture
def start(calibrated: Calibrated) -> Checkpoint:
    """A calibrated model in which 6 groups are INT8, so that few mixes are measured."""
    model = calibrated()
    few = model.leave_float([group.name for group in model.placement.groups[6:]], "test")
    return Checkpoint(few.network, few.names, "ptq", 64, few, {})


@pytest.fixture
def best(start: Checkpoint, tmp_path: Path) -> Path:
    """As if fine-tuned from ``start``: every convolution's weights are other ones."""
    assert start.quantized is not None
    tuned = start.quantized.leave_float((), "")
    with torch.no_grad():
        for parameter in tuned.network.parameters():
            parameter.mul_(1.01)
    return save_checkpoint(tmp_path / "best.safetensors", tuned, "qat", 64, {"a": 1}).path


def weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Weight and bias of every convolution."""
    return {
        f"{name}.{kind}": parameter
        for name, conv in checkpoint.network.named_modules()
        if isinstance(conv, torch.nn.Conv2d)
        for kind, parameter in conv.named_parameters(recurse=False)
    }


def assert_weights(mixed: Checkpoint, expected: Callable[[str], Checkpoint]) -> None:
    """Every convolution of ``mixed`` has the weights of the checkpoint that is expected for its name."""
    for name, tensor in weights(mixed).items():
        assert torch.equal(tensor, weights(expected(name.rpartition(".")[0]))[name]), name


@pytest.mark.parametrize("residual", ["none", "skip", "both"])
def test_a_mixed_checkpoint_exports_what_it_computes(
    calibrated: Calibrated, detector: LoadedModel, batches: tuple[Tensor, ...], tmp_path: Path, residual: Residual
) -> None:
    model = calibrated(residual=residual)
    removed = [group.name for group in model.placement.groups[2:30:3]]
    mixed = model.leave_float(removed, "test")
    checkpoint = load_checkpoint(save_checkpoint(tmp_path / "mixed.safetensors", mixed, "qat", 64, {}).path)
    assert checkpoint.quantized is not None
    assert checkpoint.quantized.placement == mixed.placement
    assert checkpoint.quantized.amax().keys() == mixed.amax().keys()
    assert torch.equal(raw_output(checkpoint.network, batches[0]), raw_output(mixed.network, batches[0]))

    path = export_onnx(checkpoint, tmp_path / "mixed.onnx", ExportSection(), 64).path
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
        assert lowest_cosine(TorchRunner(checkpoint.network, checkpoint.names, 64), runner, images)[0] > 0.9999
    assert np.median(relative) < 0.01  # not all: a sum of another order may round to the other side


def test_left_out_groups_are_half_precision_in_int8_fp16(
    calibrated: Calibrated, batches: tuple[Tensor, ...], tmp_path: Path
) -> None:
    model = calibrated()
    group = next(group for group in model.placement.groups if group.convs == ("model.3.conv",))
    mixed = model.leave_float([group.name], "test")
    checkpoint = Checkpoint(mixed.network, mixed.names, "qat", 64, mixed, {})
    types = {}
    for precision in ("int8+fp32", "int8+fp16"):
        section = ExportSection.model_validate({"precision": precision})
        graph = onnx.load(export_onnx(checkpoint, tmp_path / f"{precision}.onnx", section, 64).path).graph
        initializers = {entry.name: entry.data_type for entry in graph.initializer}
        conv = next(node for node in graph.node if node.op_type == "Conv" and "/model.3/conv/" in node.name)
        types[precision] = initializers[conv.input[1]]
    assert types == {"int8+fp32": onnx.TensorProto.FLOAT, "int8+fp16": onnx.TensorProto.FLOAT16}


def kept(start: Checkpoint, best: Path, demo: Dataset, batches: tuple[Tensor, ...], max_drop: float) -> dict[str, Any]:
    """Run the whole thing on a checkpoint; the JSON file."""
    keys = ["evaluation.latency_iterations=3", "evaluation.latency_warmup=0", "evaluation.runtime=onnxruntime"]
    config = Config.load(overrides=[*keys, f"qat.max_drop={max_drop}"])
    try:
        assert keep_budget(start, best, demo, batches[:1], config).path == best
    finally:
        content: dict[str, Any] = json.loads((best.parent / "mixed_precision.json").read_text())
        assert [path.name for path in best.parent.iterdir() if path.name.startswith(".")] == []
    return content


@pytest.fixture
def accuracy(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, float], float], None]:
    """Replace mAP by given figures, by what is measured; else ``otherwise``."""

    def replace(figures: dict[str, float], otherwise: float) -> None:
        def measure(runner: Any, dataset: Any, section: Any, batch: Any, progress: Any, label: str) -> Accuracy:
            return Accuracy(figures.get(label, otherwise), 0.9, 2)

        monkeypatch.setattr(mixed_precision, "measure_accuracy", measure)

    return replace


def test_a_budget_that_is_met_changes_nothing(
    start: Checkpoint, best: Path, demo: Dataset, batches: tuple[Tensor, ...]
) -> None:
    before = best.read_bytes()
    content = kept(start, best, demo, batches, 100)
    assert best.read_bytes() == before
    assert not best.with_name("best_int8.safetensors").exists()
    assert (content["met"], content["chosen"]["k"], content["ranking"], len(content["steps"])) == (True, 0, [], 1)
    assert content["float"]["latency_ms"] > 0
    assert table(best.with_name("mixed_precision.json"))[2] == "All INT8 is within 100 points."


def test_three_groups_float(
    start: Checkpoint, best: Path, demo: Dataset, batches: tuple[Tensor, ...], accuracy: Callable[..., None]
) -> None:
    before = best.read_bytes()
    few = {"all INT8": 0.48, "groups left float: 1": 0.49, "groups left float: 2": 0.495}
    accuracy({"FP32": 0.5, **few, "groups left float: 3": 0.499, "groups left float: 4": 0.499}, otherwise=0.47)
    content = kept(start, best, demo, batches, 0.2)
    orders = {
        "error": [line["group"] for line in content["ranking"]],
        "error / MACs share": [
            line["group"] for line in sorted(content["ranking"], key=lambda line: -line["error_per_share"])
        ],
    }
    tuned = ["fine-tuned"] * 8  # no search goes on where another one needed fewer groups
    assert [step["k"] for step in content["steps"]] == [0, 1, 2, 4, 3, 1, 2, 3, 0, 1, 2, 3, 1, 2, 3]
    assert [step["weights"] for step in content["steps"]] == tuned + ["calibrated"] * 7
    floats = [step for step in content["steps"] if step["k"]]
    by = ["error"] * 3 + ["error / MACs share"] * 3
    assert [step["order"] for step in floats] == ["error", *by, *by]
    assert all(step["groups"] == orders[step["order"]][: step["k"]] for step in floats)
    ranked = orders[content["chosen"]["order"]]
    assert all(step["latency_ms"] > 0 < step["int8_latency_ms"] for step in content["steps"])
    chosen = content["chosen"]
    assert (content["met"], chosen["k"], chosen["groups"]) == (True, 3, ranked[:3])
    assert chosen["drop_points"] == pytest.approx(0.1)
    assert [line["group"] for line in chosen["why"]] == ranked[:3]
    assert all(line["error"] > 0 < line["macs_share"] for line in chosen["why"])

    assert best.with_name("best_int8.safetensors").read_bytes() == before
    all_int8, mixed = load_checkpoint(best.with_name("best_int8.safetensors")), load_checkpoint(best)
    assert all_int8.quantized is not None
    assert mixed.quantized is not None
    names = [group.name for group in all_int8.quantized.placement.groups]
    assert [group.name for group in mixed.quantized.placement.groups] == [n for n in names if n not in ranked[:3]]
    said_of_it = {"max_drop": 0.2, "left_float": ranked[:3], "int8_weights": "fine-tuned"}
    assert mixed.provenance == {"a": 1, "mixed_precision": said_of_it}
    left = {conv for group in all_int8.quantized.placement.groups if group.name in ranked[:3] for conv in group.convs}
    assert len(left) >= 3
    assert_weights(mixed, lambda conv: start if conv in left else all_int8)
    assert mixed.stage == "qat"
    header, rows, said = table(best.with_name("mixed_precision.json"))
    assert {len(row) for row in rows} == {len(header)}
    counts = ["0"] * 2 + ["1"] * 4 + ["2"] * 4 + ["3"] * 3 + ["3  <- kept", "4"]
    assert sorted(row[0] for row in rows[1:]) == counts
    assert said.startswith("Left float: model.")
    assert f" The INT8 groups have the fine-tuned weights. It takes {chosen['latency_ms']:.1f} ms, all INT8 " in said
    assert said.endswith(f" ms, the float model {content['float']['latency_ms']:.1f} ms.")

    content["chosen"]["why"] = content["ranking"][1:]  # the sentence names the fewer ones
    report = best.with_name("other.json")
    report.write_text(json.dumps(content))
    (group,) = [group for group in all_int8.quantized.placement.groups if group.name == content["ranking"][0]["group"]]
    assert table(report)[2].startswith(f"Left float: all but {group.convs[0].removesuffix('.conv')}")


@pytest.mark.parametrize("k", [0, 1])
def test_the_calibrated_weights_are_kept_where_they_need_fewer_groups(
    start: Checkpoint,
    best: Path,
    demo: Dataset,
    batches: tuple[Tensor, ...],
    accuracy: Callable[..., None],
    k: int,
) -> None:
    before = best.read_bytes()
    label = f"groups left float: {k}" if k else "all INT8"
    accuracy({"FP32": 0.5, f"{label}, calibrated weights": 0.499, "groups left float: 2": 0.499}, otherwise=0.4)
    content = kept(start, best, demo, batches, 0.2)
    chosen = content["chosen"]
    assert (content["met"], chosen["k"], chosen["weights"]) == (True, k, "calibrated")
    assert best.with_name("best_int8.safetensors").read_bytes() == before
    mixed = load_checkpoint(best)
    assert mixed.provenance["mixed_precision"]["int8_weights"] == "calibrated"
    assert mixed.quantized is not None
    assert len(mixed.quantized.placement.groups) == 6 - k
    assert_weights(mixed, lambda conv: start)
    assert "calibrated weights" in table(best.with_name("mixed_precision.json"))[2]


def test_a_budget_out_of_reach_keeps_the_best_measured(
    start: Checkpoint, best: Path, demo: Dataset, batches: tuple[Tensor, ...], accuracy: Callable[..., None]
) -> None:
    accuracy({"FP32": 0.5, "all INT8": 0.3, "groups left float: 2": 0.45}, otherwise=0.4)
    with pytest.raises(BudgetMissed) as caught:
        kept(start, best, demo, batches, 0.2)
    assert caught.value.exit_code == 3
    assert "0.5000 float, 0.4500 at best (with 2 of " in str(caught.value)
    content = json.loads(best.with_name("mixed_precision.json").read_text())
    assert (content["met"], content["chosen"]["k"]) == (False, 2)
    assert max(step["k"] for step in content["steps"]) == len(content["ranking"]) - 1  # one always stays INT8
    mixed = load_checkpoint(best)
    assert mixed.provenance["mixed_precision"]["left_float"] == content["chosen"]["groups"]
    assert best.with_name("best_int8.safetensors").exists()


@pytest.mark.parametrize("runtime", ["tensorrt", "torch"])
def test_a_runtime_without_onnx_is_refused_if_there_is_a_budget(runtime: str) -> None:
    check_budget_runtime(Config.load(overrides=[f"evaluation.runtime={runtime}"]))
    with pytest.raises(ConfigError, match="Use openvino or onnxruntime"):
        check_budget_runtime(Config.load(overrides=[f"evaluation.runtime={runtime}", "qat.max_drop=0"]))
