"""Checkpoints that were damaged or made up: one line that names the file and the field, nothing is computed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_network import NAMES, tiny_network
from torch import Tensor

from trt_qat.checkpoint import Model, load, save
from trt_qat.config import QuantizationSection
from trt_qat.errors import ArtifactError, ConfigError
from trt_qat.model.loading import fold_batchnorm, raw_output
from trt_qat.quantization.insert import quantize_model

Tensors = dict[str, Tensor]
Change = Callable[[dict[str, Any], Tensors], object]
GROUP = "x"


@pytest.fixture(scope="module")
def tiny() -> Model:
    """A calibrated model of the tiny network."""
    network = fold_batchnorm(tiny_network())
    quantized = quantize_model(network, NAMES, QuantizationSection(calibrator="max", float_roles=["dfl", "head_last"]))
    ranges = {f"activation.{group.name}": torch.tensor(2.0) for group in quantized.placement.groups}
    quantized.load_amax_(ranges)
    return Model(quantized.network, NAMES, (64, 64), Path("tiny.yaml"), "ptq", quantized, {"seed": 1})


@pytest.fixture(scope="module")
def content(tiny: Model, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Tensors]:
    path = save(tmp_path_factory.mktemp("tiny") / "tiny.safetensors", tiny).path
    with safe_open(path, framework="pt") as stream:
        return stream.metadata()["header"], {key: stream.get_tensor(key) for key in list(stream.keys())}


def header(key: str, value: Any) -> Change:
    return lambda header, _: header.update({key: value})


def without(key: str) -> Change:
    return lambda header, _: header.pop(key)


def group(key: str, value: Any, **more: Any) -> Change:
    return lambda header, _: header["placement"]["groups"][1].update({key: value, **more})


def first(tensors: Tensors, kind: str) -> str:
    return next(name for name in sorted(tensors) if name.startswith(kind))


def tensor(kind: str, value: Any) -> Change:
    """Another value for the first tensor of a kind; a function gets the one that is there."""

    def change(_: dict[str, Any], tensors: Tensors) -> None:
        name = first(tensors, kind)
        tensors[name] = value(tensors[name]) if callable(value) else value

    return change


WEIGHT, ACTIVATION = "amax.weight.", "amax.activation."
HEADERS: dict[str, tuple[Change, str]] = {
    **{f"without {key}": (without(key), key) for key in ("stage", "imgsz", "architecture", "names")},
    "without toolkit": (without("toolkit"), "stage ptq goes with a toolkit"),
    "without placement": (without("placement"), "stage ptq goes with a placement"),
    "float with placement": (header("stage", "fp32"), "stage fp32 goes without a toolkit"),
    "another format": (header("format", "trt_qat-checkpoint-9"), "not a trt_qat checkpoint"),
    "unknown key": (header("hook", "x"), "hook = 'x'"),
    "unknown stage": (header("stage", "done"), "stage = 'done'"),
    "unknown toolkit": (header("toolkit", "os"), "toolkit = 'os'"),
    **{f"imgsz {v!r}": (header("imgsz", v), "imgsz") for v in (0, -32, 31, 100, 8224, 10**9, 64.0, "64", None, True)},
    "imgsz NaN": (header("imgsz", float("nan")), "NaN is not a number"),
    "provenance is a list": (header("provenance", []), "provenance = "),
    "architecture is text": (header("architecture", "yolov8n.yaml"), "architecture = "),
    "architecture is empty": (header("architecture", {}), "backbone"),
    "names are a list": (header("names", ["a", "b"]), "names = "),
    "names are empty": (header("names", {}), "names = "),
    "names from 1": (header("names", {"1": "a", "2": "b"}), r"names\.0 = None"),
    "names with a gap": (header("names", {"0": "a", "2": "b"}), r"names\.1 = None"),
    "names by word": (header("names", {"0": "a", "one": "b"}), r"names\.1 = None"),
    "names of another spelling": (header("names", {"0": "a", "01": "b"}), r"names\.1 = None"),
    "an empty name": (header("names", {"0": "", "1": "b"}), r"names\.0 = ''"),
    "an unprintable name": (header("names", {"0": "a\u0000", "1": "b"}), r"names\.0 = 'a"),
    "a number as name": (header("names", {"0": 1, "1": "b"}), r"names\.0 = 1"),
    "a name too many": (header("names", {"0": "a", "1": "b", "2": "c"}), r"names has 3 entries, architecture\.nc is 2"),
    "20,000 names": (header("names", {str(i): "x" for i in range(20_000)}), "TRT_QAT_MAX_CLASSES"),
    "placement is a list": (header("placement", []), "placement = "),
    "placement is empty": (header("placement", {}), "placement"),
    "group without convolutions": (group("convs", []), "convs"),
    "unknown convolution": (group("convs", ["model.99.conv"], observed=[]), r"groups\.1.*no such convolution"),
    "a convolution that is none": (group("convs", ["model.3.m"], observed=[]), "no such convolution"),
    "a convolution twice": (
        lambda header, _: header["placement"]["groups"][1].update(
            convs=header["placement"]["groups"][0]["convs"], observed=[]
        ),
        r"convolution '.*' is there twice",
    ),
    "two groups of one name": (
        lambda header, _: header["placement"]["groups"][1].update(name=header["placement"]["groups"][0]["name"]),
        "group '.*' is there twice",
    ),
    "unknown observed": (group("observed", ["__class__"]), "observes what is not in it|observes what is not"),
    "unknown add": (group("adds", [["model.99", 0, 0]]), "adds"),
    "an add of a third operand": (group("adds", [["model.2.m.0", 0, 2]]), "adds"),
    "an add that is text": (group("adds", ["abc"]), "adds|another trt_qat version"),
    "unknown float layer": (
        lambda header, _: header["placement"]["float_convs"].update({"model.99": "x"}),
        r"float_convs",
    ),
}
TENSORS: dict[str, tuple[Change, str]] = {
    "weights NaN": (tensor("model.0", lambda t: t * float("nan")), r"'model\.0\.conv\.\w+' holds NaN"),
    "weights infinite": (tensor("model.0", lambda t: t / 0.0), "holds NaN or infinite"),
    "weights too large": (tensor("model.1.conv.weight", lambda t: t.fill_(3e38)), "NaN or infinite"),
    "weights are integers": (tensor("model.0", lambda t: t.to(torch.int32)), "torch.int32"),
    "weights are bytes": (tensor("model.0", lambda t: t.to(torch.uint8)), "torch.uint8"),
    "weights missing": (lambda _, tensors: tensors.pop("model.1.conv.weight"), "do not fit"),
    "weights left over": (lambda _, tensors: tensors.update({"extra.weight": torch.ones(2)}), "do not fit"),
    "weights flat": (tensor("model.1.conv.weight", lambda t: t.flatten()), "has weights of shape"),
    "weights empty": (tensor("model.1.conv.weight", torch.ones(10**9, 0, 3, 3)), "has weights of shape"),
    "weights wider": (tensor("model.1.conv.weight", torch.ones(16, 99, 3, 3)), "fit|cannot run"),
    "weights of another kernel": (tensor("model.1.conv.weight", torch.ones(16, 8, 9, 9)), "another size"),
    "bias of another size": (tensor("model.1.conv.bias", torch.ones(3)), "do not fit"),
    **{
        f"{kind} {value}": (tensor(kind, lambda t, v=value: torch.full_like(t, v)), message)
        for kind in (WEIGHT, ACTIVATION)
        for value, message in (
            (float("nan"), "holds NaN"),
            (float("inf"), "holds NaN or infinite"),
            (0.0, r"= 0: a range is finite and above 0"),
            (-1.0, r"= -1: a range is finite and above 0"),
        )
    },
    "activation range missing": (lambda _, t: t.pop(first(t, ACTIVATION)), r"amax\.activation\..* is missing"),
    "weight range missing": (lambda _, t: t.pop(first(t, WEIGHT)), r"amax\.weight\..* is missing"),
    "a range left over": (
        lambda _, t: t.update({"amax.weight.model.99": torch.ones(1)}),
        r"amax\.weight\.model\.99 is left over",
    ),
    "activation range of two": (tensor(ACTIVATION, torch.ones(2)), r"has shape \[2\], needs \[\]"),
    "weight range of one": (tensor(WEIGHT, torch.ones(())), r"has shape \[\], needs"),
    "weight range too short": (tensor(WEIGHT, torch.ones(1, 1, 1, 1)), "has shape"),
}
EVERY = {**HEADERS, **TENSORS}


def written(path: Path, header: Any, tensors: Tensors) -> Path:
    save_file(tensors, path, metadata={"header": header if isinstance(header, str) else json.dumps(header)})
    return path


def assert_refused(path: Path, message: str) -> None:
    with pytest.raises(ArtifactError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 800
    assert path.name in str(caught.value)


@pytest.mark.parametrize("name", EVERY)
def test_hostile_checkpoint(content: tuple[str, Tensors], tmp_path: Path, name: str) -> None:
    change, message = EVERY[name]
    changed, tensors = json.loads(content[0]), {key: value.clone() for key, value in content[1].items()}
    change(changed, tensors)
    assert_refused(written(tmp_path / "hostile.safetensors", changed, tensors), message)


def test_the_unchanged_one_is_loaded(content: tuple[str, Tensors], tmp_path: Path) -> None:
    model = load(written(tmp_path / "same.safetensors", *content))
    assert (model.stage, model.names, model.provenance) == ("ptq", NAMES, {"seed": 1})


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "", "null", "[]", '"x"', "1e999", '{"format": NaN}'])
def test_headers_that_are_none(content: tuple[str, Tensors], tmp_path: Path, text: str) -> None:
    assert_refused(written(tmp_path / "hostile.safetensors", text, content[1]), "not a trt_qat checkpoint|JSON")


def test_a_header_of_nine_megabytes(content: tuple[str, Tensors], tmp_path: Path) -> None:
    path = written(tmp_path / "hostile.safetensors", "[" + "[]," * 3_000_000 + "[]]", content[1])
    assert_refused(path, "TRT_QAT_MAX_HEADER_MB")


@pytest.mark.parametrize("length", [2**63, 10**9, 7, 0])
def test_a_length_that_lies(content: tuple[str, Tensors], tmp_path: Path, length: int) -> None:
    path = written(tmp_path / "hostile.safetensors", *content)
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    assert_refused(path, "not a readable checkpoint")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"imgsz": (64, 100)}, r"imgsz\.1 = 100"),
        ({"names": {0: "a", 2: "b"}}, r"names\.1 = None"),
        ({"names": {0: "a", 1: "b\n"}}, r"names\.1 = 'b"),
        ({"stage": "fp32"}, "stage fp32 goes without"),
        ({"stage": "int4"}, "stage = 'int4'"),
        ({"provenance": {"loss": float("nan")}}, "provenance|NaN"),
    ],
)
def test_what_load_refuses_is_not_saved(tiny: Model, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        save(tmp_path / "out.safetensors", replace(tiny, **change))
    assert list(tmp_path.iterdir()) == []


def test_nan_is_not_saved(tmp_path: Path) -> None:
    network = fold_batchnorm(tiny_network())
    with torch.no_grad():
        network.model[0].conv.weight[0] = float("nan")
    with pytest.raises(ArtifactError, match=r"'model\.0\.conv\.weight' holds NaN"):
        save(tmp_path / "out.safetensors", Model(network, NAMES, (64, 64), Path("x")))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("imgsz", "expected"), [(96, (96, 96)), ([96, 96], (96, 96)), ([64, 96], (64, 96))])
def test_one_number_is_a_square(
    content: tuple[str, Tensors], tmp_path: Path, imgsz: int | list[int], expected: tuple[int, int]
) -> None:
    """Files up to 0.1 hold one number."""
    changed = {**json.loads(content[0]), "imgsz": imgsz}
    path = written(tmp_path / "sized.safetensors", changed, content[1])
    assert load(path).imgsz == expected
    assert load(path, (64, 32)).imgsz == load(path, [64, 32]).imgsz == (64, 32)


@pytest.mark.parametrize("imgsz", [0, 31, 100, 8224, -64, True, (64,), (64, 100), (64, 64, 64), "64", 64.0, (64.0, 64)])
def test_sizes_that_no_detector_takes(content: tuple[str, Tensors], tmp_path: Path, imgsz: Any) -> None:
    path = written(tmp_path / "same.safetensors", *content)
    with pytest.raises(ConfigError, match=r"imgsz=.* must be a multiple of 32 from 32 to 8192"):
        load(path, imgsz)


def test_a_channel_of_zeros_has_a_range(tmp_path: Path) -> None:
    """Pruning leaves such; a range of 0 would make NaN of it."""
    network = fold_batchnorm(tiny_network())
    with torch.no_grad():
        network.model[1].conv.weight[3] = 0
    quantized = quantize_model(network, NAMES, QuantizationSection(calibrator="max"))
    quantized.load_amax_({f"activation.{group.name}": torch.tensor(2.0) for group in quantized.placement.groups})
    assert torch.isfinite(raw_output(quantized.network, torch.rand(1, 3, 64, 64))).all()
    path = save(tmp_path / "dead.safetensors", Model(network, NAMES, (64, 64), Path("x"), "ptq", quantized)).path
    assert float(load(path).require_quantized().amax()["weight.model.1.conv"][3]) > 0
