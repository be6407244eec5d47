"""SiLU replaced everywhere and nothing else, and a file that says so."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import pytest
import torch
from tiny_network import tiny_architecture
from torch import Tensor, nn
from ultralytics.nn.tasks import DetectionModel

from trt_qat import api
from trt_qat.checkpoint import Model, load, save
from trt_qat.config import Activation, QuantizationSection
from trt_qat.errors import ConfigError
from trt_qat.linter.report import lint
from trt_qat.model.activation import REPLACEMENTS, has_silu, with_activation
from trt_qat.model.loading import fold_batchnorm, raw_output
from trt_qat.quantization.calibration_cache import cache_key
from trt_qat.quantization.calibrators.max import Max
from trt_qat.quantization.insert import quantize_model
from trt_qat.quantization.observe import collect_histograms

if TYPE_CHECKING:
    from trt_qat.data.dataset import Dataset

MakeUnfolded = Callable[..., DetectionModel]
NAMES = {0: "a", 1: "b"}
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "hardswish": nn.functional.hardswish,
    "relu": nn.functional.relu,
}


@pytest.fixture(scope="module")
def unfolded_tiny(make_unfolded: MakeUnfolded) -> DetectionModel:
    return make_unfolded({**tiny_architecture(), "nc": 2}, NAMES)


@pytest.fixture(scope="module")
def tiny(unfolded_tiny: DetectionModel) -> Model:
    folded = fold_batchnorm(copy.deepcopy(unfolded_tiny))
    return Model(folded, NAMES, (64, 64), Path("tiny.yaml"), with_batchnorm=unfolded_tiny)


def kinds(network: nn.Module) -> Counter[type[nn.Module]]:
    return Counter(type(module) for _, module in network.named_modules(remove_duplicate=False))


@pytest.mark.parametrize("activation", ["hardswish", "relu"])
@pytest.mark.parametrize("folded", [False, True])
def test_each_silu_is_replaced_and_nothing_else(
    unfolded_tiny: DetectionModel, tiny: Model, activation: Activation, folded: bool
) -> None:
    before = tiny.network if folded else unfolded_tiny
    state = {name: value.clone() for name, value in before.state_dict().items()}
    after = with_activation(before, activation)
    counted, wanted = kinds(after), kinds(before)
    assert wanted[nn.SiLU] > 5
    wanted[REPLACEMENTS[activation]] = wanted.pop(nn.SiLU)
    assert counted == wanted
    assert {name: module.kernel_size for name, module in after.named_modules() if isinstance(module, nn.Conv2d)} == {
        name: module.kernel_size for name, module in before.named_modules() if isinstance(module, nn.Conv2d)
    }
    for network in (before, after):  # neither's weights are others than before
        assert network.state_dict().keys() == state.keys()
        assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert has_silu(before)
    assert not has_silu(after)
    assert isinstance(DetectionModel(before.yaml, verbose=False).model[0].act, nn.SiLU)  # nor what is built later


def test_it_computes_the_other_function(tiny: Model, batches: tuple[Tensor, ...]) -> None:
    first = tiny.network.model[0]
    raw = first.conv(batches[0])
    for activation, function in FUNCTIONS.items():
        changed = with_activation(tiny.network, activation).model[0]  # type: ignore[arg-type]
        assert torch.equal(changed(batches[0]), function(raw))


def test_a_checkpoint_keeps_it_bit_for_bit(tiny: Model, batches: tuple[Tensor, ...], tmp_path: Path) -> None:
    changed = replace(tiny, network=with_activation(tiny.network, "hardswish"), with_batchnorm=None)
    again = load(save(tmp_path / "a.safetensors", changed).path)
    assert again.network.yaml["activation"] == "torch.nn.Hardswish()"
    assert torch.equal(raw_output(again.network, batches[0]), raw_output(changed.network, batches[0]))


@pytest.mark.parametrize(
    ("activation", "operator", "targets"),
    [("hardswish", "HardSwish", ("tensorrt", "openvino")), ("relu", "Relu", ("onnxruntime",))],
)
def test_files_have_it_and_lint_clean(
    tiny: Model, demo: Dataset, tmp_path: Path, activation: Activation, operator: str, targets: tuple[str, ...]
) -> None:
    changed = replace(tiny, network=with_activation(tiny.network, activation), with_batchnorm=None, names=demo.names)
    int8 = api.quantize(changed, list(demo.train), calibrator="max", images=2)
    for target in targets:
        file = tmp_path / f"{target}.onnx"
        api.export(int8, file, target=target, check=False)
        operators = Counter(node.op_type for node in onnx.load(file).graph.node)
        assert operators[operator] == kinds(changed.network)[REPLACEMENTS[activation]], target
        assert lint(file, target=target).errors == 0, target


def test_ranges_are_those_of_the_new_outputs(tiny: Model, batches: tuple[Tensor, ...]) -> None:
    seen: list[list[float]] = []
    keys = set()
    for network in (tiny.network, with_activation(tiny.network, "relu")):
        model = quantize_model(copy.deepcopy(network), NAMES, QuantizationSection())
        keys.add(cache_key(model, "images", (64, 64), 4096))
        found = Max().ranges(collect_histograms(model, batches, 4096))
        seen.append([float(found[f"activation.{group.name}"]) for group in model.placement.groups])
    assert len(keys) == 2  # equal weights, and yet what was seen of one is not taken for the other
    silu, relu = seen
    outputs = tiny.network.model[0].conv(torch.cat(batches))
    assert silu[0] == relu[0]  # of the image
    assert silu[1] == pytest.approx(float(nn.functional.silu(outputs).max()), rel=1e-3)
    assert relu[1] == pytest.approx(float(outputs.max()), rel=1e-3)


def test_what_cannot_be_replaced_is_refused(tiny: Model) -> None:
    relu = with_activation(tiny.network, "relu")
    with pytest.raises(ConfigError, match="no SiLU to replace"):
        with_activation(relu, "hardswish", Path("x.pt"))
    architecture = tiny_architecture()
    architecture["backbone"][1] = [-1, 1, "BottleneckCSP", [16]]  # builds a SiLU that no architecture names
    odd = DetectionModel({**architecture, "nc": 2}, verbose=False)
    with pytest.raises(ConfigError, match=r"layer 'model\.1\.act' of 'x\.pt' has an activation of its own \(SiLU\)"):
        with_activation(odd, "relu", Path("x.pt"))
