"""A file that takes any height and width: the same network as a file of one size, with the anchors computed in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tiny_network import NAMES, tiny_network

from trt_qat.checkpoint import Model
from trt_qat.config import EngineSection, ExportSection, QuantizationSection
from trt_qat.engine.build import build_engine
from trt_qat.engine.engine_file import read_sidecar
from trt_qat.errors import ConfigError, ExportError
from trt_qat.evaluation.layers import OnnxLayers, OpenVinoLayers
from trt_qat.exporter import onnx_export
from trt_qat.linter.report import lint
from trt_qat.metadata import read_metadata
from trt_qat.model.loading import export_mode, fold_batchnorm
from trt_qat.quantization.insert import quantize_model
from trt_qat.runtime.onnxruntime import OnnxRuntimeRunner
from trt_qat.runtime.openvino import OpenVinoRunner
from trt_qat.targets.check import difference
from trt_qat.targets.export import export

USUAL, OTHER = (64, 96), (96, 32)
TINY_ANCHORS = 24 * 8  # of OTHER, one per 4 x 4 pixels


@pytest.fixture(scope="module")
def small(demo_int8: Model) -> Model:
    return replace(demo_int8, imgsz=USUAL)


@pytest.fixture(scope="module")
def any_size(small: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checked in its client at two sizes."""
    section = ExportSection(target="openvino", dynamic_size=True)
    return export(small, tmp_path_factory.mktemp("any") / "any.onnx", section).path


@pytest.fixture(scope="module")
def tiny() -> Model:
    """Three layers and a head, calibrated to anything: exported in a moment."""
    network = fold_batchnorm(tiny_network())
    quantized = quantize_model(network, NAMES, QuantizationSection(calibrator="max"))
    quantized.load_amax_({f"activation.{group.name}": torch.tensor(2.0) for group in quantized.placement.groups})
    return Model(network, NAMES, USUAL, Path("tiny.yaml"), "ptq", quantized)


def fixed(model: Model, imgsz: tuple[int, int], folder: Path, target: str = "openvino") -> Path:
    section = ExportSection(target=target, check=False)
    return export(replace(model, imgsz=imgsz), folder / "fixed.onnx", section).path


def quantizers(file: Path) -> Counter[tuple[str, ...]]:
    nodes = onnx.load(file).graph.node
    return Counter((node.op_type, node.name, *node.input) for node in nodes if node.op_type.endswith("quantizeLinear"))


@pytest.mark.slow
def test_it_is_the_file_of_each_size(small: Model, any_size: Path, tmp_path: Path) -> None:
    """In OpenVINO rounding may differ: it computes another size by other kernels, see :mod:`trt_qat.targets.check`."""
    for imgsz in (USUAL, OTHER):
        one_size = fixed(small, imgsz, tmp_path)
        assert quantizers(one_size) == quantizers(any_size)
        assert lint(any_size, "openvino").findings == lint(one_size, "openvino").findings
        for layers in (OnnxLayers, OpenVinoLayers):
            assert layers(any_size, 1).tensors.keys() == layers(one_size, 1).tensors.keys()
        images = np.random.default_rng(0).random((1, 3, *imgsz), dtype=np.float32)
        for opener, most in ((OnnxRuntimeRunner, 1e-5), (OpenVinoRunner, 5e-2)):
            with opener(any_size) as free, opener(one_size) as expected:
                assert free.input_shape == (1, 3, None, None)
                found, wanted = free.infer(images)[0], expected.infer(images)[0]
            assert found.shape == wanted.shape
            off = difference(found, wanted, imgsz)
            assert max(off.logits, off.boxes) < most


def test_what_it_says_about_itself(tiny: Model, small: Model, any_size: Path, tmp_path: Path) -> None:
    def said(file: Path) -> dict[str, str]:
        return {entry.key: entry.value for entry in onnx.load(file).metadata_props}

    assert read_metadata(said(any_size)).imgsz == USUAL
    assert said(any_size)["dynamic"] == "True"
    assert "'dynamic': False" in said(any_size)["args"]  # of Ultralytics, to which True frees the batch as well
    output = onnx.load(any_size).graph.output[0].type.tensor_type.shape.dim
    assert [axis.dim_param or axis.dim_value for axis in output] == [1, 4 + len(small.names), "anchors"]
    section = ExportSection(target="onnxruntime", dynamic_size=True, dynamic_batch=True, check=False)
    both = export(tiny, tmp_path / "both.onnx", section).path
    assert "'dynamic': True" in said(both)["args"]
    with OnnxRuntimeRunner(both) as runner:
        assert runner.input_shape == (None, 3, None, None)
        assert runner.infer(np.zeros((2, 3, *OTHER), np.float32))[0].shape == (2, 4 + len(tiny.names), TINY_ANCHORS)


@pytest.mark.parametrize("target", ["tensorrt", pytest.param("tensorrt-rtx", marks=pytest.mark.slow)])
def test_an_engine_takes_the_sizes_of_its_profile(tiny: Model, tmp_path: Path, target: str) -> None:
    """In FP16 too, whose tail is FP32; nothing for a lint rule to find that a file of one size has not."""
    section = ExportSection(target=target, dynamic_size=True, check=False)
    file = export(tiny, tmp_path / "x.onnx", section).path
    one_size = fixed(tiny, USUAL, tmp_path, target)
    assert quantizers(file) == quantizers(one_size)
    found, expected = (lint(onnx_file, target) for onnx_file in (file, one_size))
    assert found.findings == expected.findings
    assert found.errors == 0
    sizes = EngineSection(flavor="tensorrt-rtx", min_size=(32, 32), max_size=(96, 128))
    (profile,) = read_sidecar(build_engine(file, tmp_path / "x.plan", sizes).path).profiles
    shapes = profile["images"]
    assert (shapes.min[2:], shapes.opt[2:], shapes.max[2:]) == ((32, 32), USUAL, (96, 128))


def test_the_gate_looks_at_a_second_size(tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anchors of one size in a file that promises any."""

    @contextmanager
    def of_one_size(network: Any, *, any_size: bool) -> Iterator[None]:
        with export_mode(network):
            network(torch.zeros(1, 3, *USUAL))  # from now on the head has anchors
            yield

    monkeypatch.setattr(onnx_export, "export_mode", of_one_size)
    with pytest.raises(ExportError, match=r"ONNX Runtime does not run 'x\.onnx'"):
        export(tiny, tmp_path / "x.onnx", ExportSection(target="onnxruntime", dynamic_size=True))
    assert list(tmp_path.iterdir()) == []


def test_ultralytics_engine_of_any_size_is_refused(tiny: Model, tmp_path: Path) -> None:
    section = ExportSection(target="ultralytics", format="engine", dynamic_size=True)
    with pytest.raises(ConfigError, match=r"engine\.min_size"):
        export(tiny, tmp_path / "x.engine", section)
