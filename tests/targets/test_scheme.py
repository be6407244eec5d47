"""Asymmetric activations as files: the zero points of the checkpoint, right in their clients, refused elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from trt_qat.config import Config, ExportSection
from trt_qat.errors import ConfigError
from trt_qat.linter.report import lint
from trt_qat.model.loading import raw_output
from trt_qat.run import run
from trt_qat.runtime.selection import open_runner
from trt_qat.targets.base import all_targets
from trt_qat.targets.export import export

if TYPE_CHECKING:
    from trt_qat.checkpoint import Model

NAMES = {"openvino": "x_openvino_model", "onnx": "x.onnx", "engine": "x.engine"}
REFUSING = ("tensorrt", "tensorrt-rtx", "ultralytics")


@pytest.fixture(scope="module")
def written(tiny_asymmetric: Model, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Files of the calibrated network, each checked in its client."""

    def write(**keys: str) -> Path:
        section = ExportSection.model_validate(keys)
        return export(tiny_asymmetric, tmp_path_factory.mktemp("files") / NAMES[section.format], section).path

    return write


def test_these_targets_refuse_zero_points() -> None:
    assert tuple(target.name for target in all_targets() if not target.zero_points) == REFUSING


@pytest.mark.parametrize("target", REFUSING)
def test_the_others_are_refused_in_one_line(target: str, tiny_asymmetric: Model, tmp_path: Path) -> None:
    section = ExportSection(target=target)
    with pytest.raises(ConfigError) as raised:
        export(tiny_asymmetric, tmp_path / "x.onnx", section)
    assert str(raised.value) == (
        f"Target '{target}' takes no zero points, which quantization.scheme=asymmetric has. Use target openvino or "
        "onnxruntime, or calibrate with quantization.scheme=symmetric."
    )
    assert not (tmp_path / "x.onnx").exists()
    # its float form has no quantizers
    assert export(tiny_asymmetric, tmp_path / "x.onnx", section.replace(precision="fp32", check=False)).path.is_file()


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_the_file_holds_the_checkpoints_grids(
    target: str, written: Callable[..., Path], tiny_asymmetric: Model, batches: tuple[Tensor, ...]
) -> None:
    file = written(target=target)
    graph = onnx.load(file).graph
    constants = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    found = set()
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            scale, code = (constants[name] for name in node.input[1:3])
            assert code.dtype == np.uint8
            found.add((float(scale), int(code)))
    grids = tiny_asymmetric.require_quantized().grids().values()
    assert found == {(float(np.float32(grid.amax) / np.float32(127)), grid.zero_point) for grid in grids}
    assert len({code for _, code in found}) > 2
    expected = raw_output(tiny_asymmetric.network, batches[0][:1]).numpy()
    with open_runner(file, target) as runner:
        output = runner.infer(batches[0][:1].numpy())[0]
    with tiny_asymmetric.require_quantized().quantizers_off(), torch.no_grad():
        rounding = np.abs(raw_output(tiny_asymmetric.network, batches[0][:1]).numpy() - expected)
    # nearer to the fake-quantized network than that is to the float one
    assert np.abs(output - expected).mean() < 0.25 * rounding.mean()


def test_the_ir_folder_is_right_too(written: Callable[..., Path]) -> None:
    assert (written(target="openvino", format="openvino") / "x.xml").is_file()


def test_lint_takes_it_for_the_cpu_and_refuses_it_for_tensorrt(written: Callable[..., Path]) -> None:
    file = written(target="openvino")
    for target in ("openvino", "onnxruntime"):
        assert not lint(file, target).errors
    report = lint(file, "tensorrt")
    asymmetric = [finding for finding in report.findings if finding.rule == "asymmetric"]
    assert report.errors >= len(asymmetric) > 0
    assert "quantization.scheme=symmetric" in asymmetric[0].advice


def test_fp16_scales_round_as_those_of_symmetric_files(tiny_asymmetric: Model, tmp_path: Path) -> None:
    section = ExportSection(target="openvino", precision="int8+fp16")
    assert export(tiny_asymmetric, tmp_path / "x.onnx", section).precision == "int8+fp16"


def test_run_refuses_it_for_tensorrt_before_anything_is_read(tmp_path: Path) -> None:
    config = Config.load(overrides=["quantization.scheme=asymmetric"])
    with pytest.raises(ConfigError, match="Target 'tensorrt' takes no zero points"):
        run(Path("missing.pt"), Path("missing.yaml"), tmp_path / "out", config)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_run_makes_the_openvino_file_and_the_report_without_an_engine(demo_set: Path, tmp_path: Path) -> None:
    changed = ["quantization.scheme=asymmetric", "export.target=openvino", "quantization.calibrator=max"]
    changed += ["qat.epochs=1", "sensitivity.images=2", f"data.calibration_cache={tmp_path / 'calib'}"]
    shipped = Path(__file__).parents[2] / "trt_qat" / "demo" / "detector.safetensors"
    result = run(shipped, demo_set, tmp_path / "out", Config.load(overrides=changed))
    assert result.engine is None
    assert sorted(result.exported) == ["fp32", "ptq", "qat"]
    assert [row.runtime for row in result.rows] == ["openvino"] * 3
    assert result.rows[2].map50_95 > 0.9 * result.rows[0].map50_95
    page = result.report.read_text(encoding="utf-8")
    assert "No engine: TensorRT takes no zero points" in page
    assert "\u22120.2" in page  # the lower end of a range
    assert not list((tmp_path / "out").glob("*tensorrt*"))
