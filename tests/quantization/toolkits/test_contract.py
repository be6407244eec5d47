"""What trt_qat asks of a quantization package, of every one that is installed."""

from __future__ import annotations

import copy
import inspect
import io
import warnings
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from trt_qat import api
from trt_qat.checkpoint import Model, load, save
from trt_qat.config import ExportSection, ToolkitName, choices
from trt_qat.data.dataset import Dataset
from trt_qat.errors import MissingDependency, QuantizationError
from trt_qat.exporter.onnx_export import export_onnx
from trt_qat.linter.report import lint
from trt_qat.model.loading import raw_output
from trt_qat.quantization.toolkits.choose import toolkit_from_name
from trt_qat.quantization.toolkits.protocol import Toolkit


@pytest.fixture(params=choices(ToolkitName))
def toolkit(request: pytest.FixtureRequest) -> Toolkit:
    try:
        return toolkit_from_name(request.param)
    except MissingDependency as exc:
        said = str(exc)
    assert f"quantization.toolkit={request.param} needs" in said
    assert "pip install" in said
    pytest.skip(f"{request.param} is not installed")


@pytest.fixture
def conv() -> nn.Conv2d:
    """A convolution in which nothing has its default value, and whose channels have different ranges."""
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(4, 6, (3, 1), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2, padding_mode="reflect")
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        conv.weight.mul_(torch.logspace(-2, 1, 6).reshape(6, 1, 1, 1))
    return conv.eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)) * 2


def quantized(toolkit: Toolkit, conv: nn.Conv2d, amax: float = 3.0) -> nn.Module:
    """The convolution with the range of its input set and both quantizers on."""
    quantizer = toolkit.activation_quantizer()
    module = toolkit.quantize_conv(copy.deepcopy(conv), quantizer, "channel")
    toolkit.set_amax(quantizer, torch.tensor(amax))
    toolkit.set_enabled(quantizer, True)
    return module


def on_the_grid(values: Tensor, amax: Tensor) -> Tensor:
    """Symmetric INT8 with step amax / 127, written out."""
    step = amax / 127
    return (values / step).round().clamp(-128, 127) * step


def test_every_method_of_the_protocol_is_there(toolkit: Toolkit) -> None:
    for name, promised in inspect.getmembers(Toolkit, inspect.isfunction):
        if not name.startswith("_"):
            found = inspect.signature(getattr(type(toolkit), name)).parameters
            assert list(found) == list(inspect.signature(promised).parameters), name
            assert inspect.getdoc(getattr(toolkit, name)), name
    assert toolkit.name in choices(ToolkitName)


def test_a_new_activation_quantizer_lets_values_through_until_it_is_switched_on(
    toolkit: Toolkit, images: Tensor
) -> None:
    quantizer = toolkit.activation_quantizer()
    assert not toolkit.enabled(quantizer)
    assert torch.equal(quantizer(images), images)
    toolkit.set_amax(quantizer, torch.tensor(3.0))
    assert torch.equal(quantizer(images), images)
    toolkit.set_enabled(quantizer, True)
    assert toolkit.enabled(quantizer)
    assert torch.allclose(quantizer(images), on_the_grid(images, torch.tensor(3.0)), atol=1e-6)
    toolkit.set_enabled(quantizer, False)
    assert not toolkit.enabled(quantizer)
    assert torch.equal(quantizer(images), images)


def test_zero_and_both_ends_of_the_range(toolkit: Toolkit) -> None:
    quantizer = toolkit.activation_quantizer()
    toolkit.set_amax(quantizer, torch.tensor(2.54))
    toolkit.set_enabled(quantizer, True)
    found = quantizer(torch.tensor([0.0, 0.009, 2.54, 100.0, -100.0]))
    assert torch.allclose(found, torch.tensor([0.0, 0.0, 2.54, 2.54, -2.56]), atol=1e-6)


def test_a_range_may_be_set_again(toolkit: Toolkit, conv: nn.Conv2d) -> None:
    module = quantized(toolkit, conv)
    quantizer, weights = toolkit.input_quantizer(module), toolkit.weight_quantizer(module)
    for value in (3.0, 0.5, 7.0):
        toolkit.set_amax(quantizer, torch.tensor(value))
        assert torch.equal(toolkit.amax(quantizer), torch.tensor(value))
        toolkit.set_amax(weights, torch.full((6, 1, 1, 1), value))
        assert torch.equal(toolkit.amax(weights), torch.full((6, 1, 1, 1), value))
        assert torch.allclose(quantizer(torch.tensor([100.0])), torch.tensor([value]))


def test_a_quantized_convolution_is_the_same_convolution(toolkit: Toolkit, conv: nn.Conv2d, images: Tensor) -> None:
    quantizer = toolkit.activation_quantizer()
    module = toolkit.quantize_conv(copy.deepcopy(conv), quantizer, "channel")
    assert toolkit.is_quant_conv(module)
    assert isinstance(module, nn.Conv2d)  # tracing, folding and counting go by that
    assert not toolkit.is_quant_conv(conv)
    assert not toolkit.is_quant_conv(nn.Identity())
    assert toolkit.input_quantizer(module) is quantizer
    assert not module.training
    assert toolkit.quantize_conv(copy.deepcopy(conv).train(), quantizer, "channel").training
    assert toolkit.enabled(toolkit.weight_quantizer(module))
    maxima = conv.weight.detach().abs().amax(dim=(1, 2, 3), keepdim=True)
    assert torch.equal(toolkit.amax(toolkit.weight_quantizer(module)), maxima)
    toolkit.set_enabled(toolkit.weight_quantizer(module), False)
    assert torch.equal(module(images), conv(images))


@pytest.mark.parametrize("bias", [True, False])
def test_input_and_weights_are_rounded_and_nothing_else(
    toolkit: Toolkit, conv: nn.Conv2d, images: Tensor, bias: bool
) -> None:
    if not bias:
        conv.bias = None
    found = quantized(toolkit, conv)(images)
    maxima = conv.weight.detach().abs().amax(dim=(1, 2, 3), keepdim=True)
    expected = copy.deepcopy(conv)
    expected.weight.data = on_the_grid(conv.weight.detach(), maxima)
    assert torch.allclose(found, expected(on_the_grid(images, torch.tensor(3.0))), atol=1e-4)
    assert not torch.allclose(found, conv(images), atol=1e-2)


def test_one_scale_for_the_whole_weight(toolkit: Toolkit, conv: nn.Conv2d, images: Tensor) -> None:
    quantizer = toolkit.activation_quantizer()
    module = toolkit.quantize_conv(copy.deepcopy(conv), quantizer, "tensor")
    amax, weight = toolkit.amax(toolkit.weight_quantizer(module)), conv.weight.detach()
    assert amax.shape == (1, 1, 1, 1)

    def error(amax: Tensor) -> float:
        channels = (on_the_grid(weight, amax) - weight).square().sum(dim=(1, 2, 3))
        return float((channels / weight.square().sum(dim=(1, 2, 3))).sum())

    tried = [error(weight.abs().max() * share / 100) for share in range(1, 101)]
    assert error(amax) < 1.02 * min(tried)  # its range is the one with the least error relative to each channel
    assert error(amax) < 0.9 * error(weight.abs().max())
    expected = copy.deepcopy(conv)
    expected.weight.data = on_the_grid(weight, amax)
    assert torch.allclose(module(images), expected(images), atol=1e-5)
    module(images).sum().backward()
    clipped = weight.abs() > amax * 128.5 / 127
    assert module.weight.grad is not None
    assert not module.weight.grad[clipped].any()
    zeros = nn.Conv2d(2, 2, 1, bias=False)
    zeros.weight.data.zero_()
    assert not toolkit.quantize_conv(zeros, toolkit.activation_quantizer(), "tensor")(torch.ones(1, 2, 3, 3)).any()


def test_convolutions_share_a_quantizer(toolkit: Toolkit, conv: nn.Conv2d, images: Tensor) -> None:
    quantizer = toolkit.activation_quantizer()
    pair = [toolkit.quantize_conv(copy.deepcopy(conv), quantizer, "channel") for _ in range(2)]
    toolkit.set_amax(toolkit.input_quantizer(pair[0]), torch.tensor(1.0))
    toolkit.set_enabled(toolkit.input_quantizer(pair[1]), True)
    assert toolkit.enabled(toolkit.input_quantizer(pair[0]))
    assert torch.equal(toolkit.amax(toolkit.input_quantizer(pair[1])), torch.tensor(1.0))
    assert torch.equal(pair[0](images), pair[1](images))


def test_gradients_pass_inside_the_range_and_not_outside(toolkit: Toolkit, conv: nn.Conv2d) -> None:
    quantizer = toolkit.activation_quantizer()
    toolkit.set_amax(quantizer, torch.tensor(1.0))
    toolkit.set_enabled(quantizer, True)
    values = torch.tensor([-5.0, -1.1, -0.9, 0.0, 0.004, 0.9, 1.1, 5.0], requires_grad=True)
    (quantizer(values) * torch.arange(1.0, 9.0)).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0, 0, 3, 4, 5, 6, 0, 0]

    module = quantized(toolkit, conv)
    module(torch.ones(1, 4, 8, 8)).sum().backward()
    assert module.weight.grad is not None
    assert (module.weight.grad != 0).all()
    assert [name for name, _ in module.named_parameters()] == ["weight", "bias"]  # a range is none until it is learned


def test_a_range_is_learned_or_that_is_refused(toolkit: Toolkit) -> None:
    quantizer = toolkit.activation_quantizer()
    toolkit.set_amax(quantizer, torch.tensor(1.0))
    toolkit.set_enabled(quantizer, True)
    refused = ""
    try:
        toolkit.learn_range(quantizer)
    except QuantizationError as exc:
        refused = str(exc)
    if refused:
        assert "needs quantization.toolkit=" in refused
        assert "\n" not in refused
        return
    (parameter,) = quantizer.parameters()
    quantizer(torch.tensor([5.0, 6.0])).sum().backward()
    assert parameter.grad is not None
    assert parameter.grad > 0  # all clipped: the output grows with the range
    with torch.no_grad():
        parameter.mul_(2)
    assert torch.equal(toolkit.amax(quantizer), torch.tensor(2.0))
    assert torch.allclose(quantizer(torch.tensor([5.0])), torch.tensor([2.0]))


def test_a_copy_is_independent_and_alike(toolkit: Toolkit, conv: nn.Conv2d, images: Tensor) -> None:
    module = quantized(toolkit, conv)
    before = module(images)
    copied = copy.deepcopy(module)
    assert torch.equal(copied(images), before)
    toolkit.set_amax(toolkit.input_quantizer(copied), torch.tensor(0.1))
    toolkit.set_enabled(toolkit.weight_quantizer(copied), False)
    assert not torch.equal(copied(images), before)
    assert torch.equal(module(images), before)


def test_state_of_quantizers_is_told_from_weights_by_name(toolkit: Toolkit, conv: nn.Conv2d) -> None:
    """A checkpoint keeps what has no "quantizer" in its name, and the ranges apart."""
    keys = quantized(toolkit, conv).state_dict()
    assert {key for key in keys if "quantizer" not in key} == {"weight", "bias"}


def test_export_writes_pairs_and_leaves_the_network_as_it_was(
    toolkit: Toolkit, conv: nn.Conv2d, images: Tensor
) -> None:
    conv.padding_mode = "zeros"
    module = quantized(toolkit, conv)
    before = module(images)
    stream = io.BytesIO()
    with toolkit.exporting(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the packages' own, about tracing
        torch.onnx.export(module, (images,), stream, dynamo=False, opset_version=19)
    operators = [node.op_type for node in onnx.load_from_string(stream.getvalue()).graph.node]
    assert operators.count("QuantizeLinear") == operators.count("DequantizeLinear") == 2
    assert operators[-1] == "Conv"
    assert torch.equal(module(images), before)
    module(images.requires_grad_()).sum().backward()  # training goes on after an export
    assert images.grad is not None


def test_a_whole_network(toolkit: Toolkit, detector: Model, demo: Dataset, tmp_path: Path) -> None:
    """Calibrated, saved and loaded bit for bit, exported with a scale for each activation and weight."""
    model = api.quantize(detector, demo, toolkit=toolkit.name, calibrator="max", images=4)
    again = load(save(tmp_path / "ptq.safetensors", model).path)
    assert again.require_quantized().toolkit.name == toolkit.name
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = raw_output(again.network, images)
    assert torch.equal(found, raw_output(model.network, images))
    assert not torch.equal(found, raw_output(detector.network, images))
    report = lint(export_onnx(again, tmp_path / "int8.onnx", ExportSection(precision="int8+fp32")).path)
    assert report.errors == 0
    assert report.counts.int8_convs == sum(len(group.convs) for group in model.require_quantized().placement.groups)
