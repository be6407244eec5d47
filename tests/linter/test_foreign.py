"""Files that other tools wrote: what the lint says about ONNX Runtime, NNCF and ModelOpt defaults."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from lint_graphs import IMAGE, detector

from trt_qat.linter.finding import ERRORS
from trt_qat.linter.report import LintReport, lint

pytestmark = pytest.mark.filterwarnings("ignore")  # strangers' warnings
_IMAGES = [np.random.default_rng(seed).random((1, 3, 16, 16), dtype=np.float32) for seed in range(2)]


@pytest.fixture
def float_file(tmp_path: Path) -> Path:
    onnx.save(detector(quantized=False), tmp_path / "float.onnx")
    return tmp_path / "float.onnx"


def rules(report: LintReport, severity: str) -> set[str]:
    return {finding.rule for finding in report.findings if finding.severity == severity}


def quantize_static(float_file: Path, out: Path, **options: Any) -> None:
    quantization = pytest.importorskip("onnxruntime.quantization")

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds = iter({IMAGE: image} for image in _IMAGES)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.feeds, None)

    quantization.quantize_static(float_file, out, Reader(), activation_type=quantization.QuantType.QUInt8, **options)


def test_onnxruntime_qdq(float_file: Path, tmp_path: Path) -> None:
    quantization = pytest.importorskip("onnxruntime.quantization")
    out = tmp_path / "ort.onnx"
    quantize_static(float_file, out, quant_format=quantization.QuantFormat.QDQ)
    report = lint(out)
    assert rules(report, "broken") == {"not-int8", "asymmetric", "box-score-concat"}
    assert rules(report, "slow") >= {"q-between-conv-and-activation", "unequal-scales"}
    between = {finding.module for finding in report.findings if finding.rule == "q-between-conv-and-activation"}
    assert between >= {"model.0", "model.1.cv1", "model.1.m.0.cv1", "model.3.cv2.0"}
    operators = Counter(node.op_type for node in onnx.load(out).graph.node)
    assert report.counts.qdq_pairs == operators["QuantizeLinear"] < operators["DequantizeLinear"]
    assert report.counts.convs == report.counts.int8_convs == 11
    assert report.counts.quantized_weights == 11 + 1  # the strides that boxes are multiplied by


@pytest.mark.parametrize("target", ["openvino", "onnxruntime", "ultralytics"])
def test_uint8_with_zero_points_is_right_on_a_cpu(float_file: Path, tmp_path: Path, target: str) -> None:
    quantization = pytest.importorskip("onnxruntime.quantization")
    out = tmp_path / "ort.onnx"
    quantize_static(float_file, out, quant_format=quantization.QuantFormat.QDQ)
    assert rules(lint(out, target), "broken") == {"box-score-concat"}


def test_onnxruntime_qoperator(float_file: Path, tmp_path: Path) -> None:
    """Its convolutions are INT8 ones, of a kind that TensorRT does not take; it has no Q/DQ pair."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    out = tmp_path / "ort.onnx"
    quantize_static(float_file, out, quant_format=quantization.QuantFormat.QOperator)
    report = lint(out)
    assert rules(report, "broken") >= {"qoperator"}
    counts = report.counts
    assert (counts.convs, counts.int8_convs, counts.qoperator_convs, counts.quantized_weights) == (11, 11, 11, 11)
    assert counts.qdq_pairs == 0
    assert "11 of 11 convolutions in INT8 (11 with built-in quantization)" in report.as_text()
    assert lint(out, "onnxruntime").errors == 0


def test_onnxruntime_dynamic(float_file: Path, tmp_path: Path) -> None:
    quantization = pytest.importorskip("onnxruntime.quantization")
    out = tmp_path / "dynamic.onnx"
    quantization.quantize_dynamic(float_file, out, weight_type=quantization.QuantType.QUInt8)
    report = lint(out)
    assert rules(report, "broken") == {"qoperator", "non-constant-scale"}
    counts = report.counts
    assert (counts.convs, counts.int8_convs, counts.qoperator_convs, counts.quantized_weights) == (11, 11, 11, 11)
    assert counts.qdq_pairs == 0
    on_cpu = lint(out, "onnxruntime")
    assert on_cpu.errors == 0
    assert rules(on_cpu, "warning") == {"non-constant-scale"}


def test_nncf(float_file: Path, tmp_path: Path) -> None:
    nncf = pytest.importorskip("nncf")
    data = nncf.Dataset([{IMAGE: image} for image in _IMAGES])
    quantized = nncf.quantize(onnx.load(float_file), data, subset_size=len(_IMAGES))
    onnx.save(quantized, tmp_path / "nncf.onnx")
    report = lint(tmp_path / "nncf.onnx")
    assert "not-int8" in rules(report, "broken")  # uint8 for the image: it has no negative values
    assert "q-between-conv-and-activation" not in rules(report, "slow")
    assert report.counts.int8_convs == report.counts.convs


def test_modelopt_torch(tmp_path: Path) -> None:
    """ModelOpt's default configuration puts one quantizer before each convolution and nowhere else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch = pytest.importorskip("torch")
        mtq = pytest.importorskip("modelopt.torch.quantization")

    class Conv(torch.nn.Module):
        def __init__(self, ins: int, outs: int) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(ins, outs, 3, padding=1)
            self.act = torch.nn.SiLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.act(self.conv(x))

    class C2f(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cv1, self.m, self.cv2 = Conv(16, 32), Conv(16, 16), Conv(48, 32)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            left, right = self.cv1(x).split((16, 16), 1)
            return self.cv2(torch.cat((left, right, self.m(right)), 1))

    model = torch.nn.Sequential(Conv(3, 16), C2f(), torch.nn.Conv2d(32, 32, 1)).eval()
    images = [torch.from_numpy(image) for image in _IMAGES]
    model = mtq.quantize(model, mtq.INT8_DEFAULT_CFG, lambda net: [net(image) for image in images])
    out = tmp_path / "modelopt.onnx"
    torch.onnx.export(model, (images[0],), out, dynamo=False, opset_version=19)
    report = lint(out)
    places = {(finding.rule, finding.module) for finding in report.findings if finding.severity in ERRORS}
    assert places == {("float-round-trip", "1")}  # module "1": the C2f, its split and its concat
    assert report.counts.int8_convs == report.counts.convs == 5
    assert report.counts.avoidable_round_trips == report.errors


def test_modelopt_onnx(float_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxslim", reason="needs nvidia-modelopt[onnx]")
    quantize = pytest.importorskip("modelopt.onnx.quantization", exc_type=ImportError).quantize
    out = tmp_path / "modelopt.onnx"
    quantize(
        str(float_file),
        quantize_mode="int8",
        calibration_data={IMAGE: _IMAGES[0]},
        calibration_method="max",
        calibration_eps=["cpu"],
        output_path=str(out),
    )
    report = lint(out)
    assert rules(report, "slow") & {"float-round-trip", "unequal-scales"}
    assert report.counts.int8_convs > 0
