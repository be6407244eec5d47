"""Where Q/DQ goes, compared in one run: naive, ours, ModelOpt's ONNX quantizer, NNCF, ONNX Runtime.

    python benchmarks/placement.py --weights yolov8n.pt --data data.yaml --out runs/placement

Writes every model, ``placement.json`` and ``placement.md``. Latency is OpenVINO's, interleaved over all models; other
quantizers that are not installed are left out by name.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

import trt_qat
from trt_qat.config import EvaluationSection, QuantizationSection
from trt_qat.data.dataset import Dataset, calibration_images, load_dataset
from trt_qat.data.images import network_batch
from trt_qat.errors import RunnerError
from trt_qat.evaluation.accuracy import measure_accuracy
from trt_qat.evaluation.latency import measure_latency
from trt_qat.model.graph import trace
from trt_qat.quantization.placement import Placement, ScaleGroup, place
from trt_qat.results import Latency
from trt_qat.runtime.openvino import OpenVinoRunner
from trt_qat.runtime.runner import Runner

IMGSZ = 640
Images = Sequence[NDArray[np.float32]]


@dataclass(frozen=True)
class Row:
    """One quantizer's result; counts are None where there is no ONNX file to count in."""

    name: str
    int8_convs: int | None
    round_trips: int | None
    scales: int | None
    lint_errors: int | None
    map50_95: float
    latency: Latency


class CompiledRunner:
    """A Runner over any OpenVINO model, such as one that never was an ONNX file (NNCF's own format).

    Args:
        like: a runner whose input shape and metadata are the model's too.
        precision: what OpenVINO computes the float part in, ``f32`` or ``bf16``.

    Raises:
        RunnerError: the CPU does not compute in that precision.
    """

    name = "openvino"
    parallel = 1

    def __init__(self, model: Any, like: Runner, precision: str = "f32") -> None:
        import openvino

        core = openvino.Core()
        # OpenVINO takes the hint everywhere, and computes in FP32 where the CPU has no BF16
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise RunnerError("This CPU does not compute in BF16.")
        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
        self._request = core.compile_model(model, "CPU", options).create_infer_request()
        self.input_shape, self.metadata, self.device = like.input_shape, like.metadata, like.device
        self.largest_batch = like.largest_batch

    def infer(self, batch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """See Runner.infer."""
        return [np.array(value, dtype=np.float32) for value in self._request.infer([batch]).values()]

    def __enter__(self) -> CompiledRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to release."""


def naive(placement: Placement) -> Placement:
    """One quantizer per convolution, nothing shared, no residual rule."""
    convs = [conv for group in placement.groups for conv in group.convs]
    groups = tuple(ScaleGroup(f"own_{i}", (conv,), (), (conv,)) for i, conv in enumerate(convs))
    return replace(placement, groups=groups)


def ours(model: trt_qat.Model, images: Sequence[Path], out: Path, residual: str, one_per_conv: bool = False) -> Path:
    """Place, calibrate and export."""
    section = QuantizationSection().replace(calibrator="mse", residual=residual, images=len(images))
    placement = naive(place(model.network, trace(model.network), section)) if one_per_conv else None
    int8 = trt_qat.quantize(model, images, section, placement=placement)
    # as TensorRT takes it, which the lint judges, but in FP32 for the rest, which OpenVINO's times compare fairly
    return trt_qat.export(int8, out, target="tensorrt", precision="int8+fp32", check=False).path


def modelopt_onnx(fp32: Path, images: Images, out: Path) -> Path:
    """modelopt.onnx.quantization.quantize with its defaults (entropy), FP32 for the float part."""
    from modelopt.onnx.quantization import quantize

    quantize(
        str(fp32),
        calibration_data={"images": np.concatenate(images[:64])},
        output_path=str(out),
        high_precision_dtype="fp32",
        calibration_eps=["cpu"],
        log_level="ERROR",
    )
    return out


def nncf_onnx(fp32: Path, images: Images, out: Path) -> Path:
    """NNCF on the ONNX model, defaults."""
    import nncf
    import onnx

    onnx.save(nncf.quantize(onnx.load(fp32), nncf.Dataset([{"images": image} for image in images])), out)
    return out


def nncf_openvino(fp32: Path, images: Images) -> Any:
    """NNCF on the OpenVINO model with the settings of Ultralytics' OpenVINO INT8 export."""
    import nncf
    import openvino

    # the box decoding by its names in the ONNX export, the convolutions of the head stay quantizable
    decoding = [r".*/model\.22/(Add|Sub|Mul|Div|Concat|dfl).*"]
    return nncf.quantize(
        # read_model leaves Sigmoid and Multiply apart; NNCF then quantizes between them and no SiLU is fused
        openvino.convert_model(fp32),
        nncf.Dataset(list(images)),
        preset=nncf.QuantizationPreset.MIXED,
        ignored_scope=nncf.IgnoredScope(patterns=decoding, types=["Sigmoid"], validate=False),
    )


def ort_static(fp32: Path, images: Images, out: Path) -> Path:
    """onnxruntime.quantization.quantize_static, QDQ, signed symmetric, per channel."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(images[:64])

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            image = next(self._left, None)
            return None if image is None else {"images": image}

    quantize_static(
        str(fp32),
        str(out),
        Reader(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
    )
    return out


def build_all(
    model: trt_qat.Model, fp32: Path, files: Sequence[Path], out: Path
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """(name, maker); a maker returns a path, or an OpenVINO model."""
    images: Images = [network_batch([file], (IMGSZ, IMGSZ)) for file in files]
    # before ModelOpt, whose import replaces parts of ONNX Runtime's quantizer
    yield "ONNX Runtime quantize_static", lambda: ort_static(fp32, images, out / "ort.onnx")
    yield "naive: one quantizer per conv", lambda: ours(model, files, out / "naive.onnx", "skip", one_per_conv=True)
    for residual in ("none", "skip", "both"):
        target = out / f"ours_{residual}.onnx"
        yield f"ours, residual {residual}", functools.partial(ours, model, files, target, residual)
    yield "modelopt.onnx.quantize", lambda: modelopt_onnx(fp32, images, out / "modelopt.onnx")
    yield "NNCF (ONNX)", lambda: nncf_onnx(fp32, images, out / "nncf.onnx")
    yield "NNCF (OpenVINO)", lambda: nncf_openvino(fp32, images)


def _open(made: Any, like: Runner) -> Runner:
    return OpenVinoRunner(made) if isinstance(made, Path) else CompiledRunner(made, like)


def measure(built: Sequence[tuple[str, Any]], fp32: Path, dataset: Dataset, section: EvaluationSection) -> list[Row]:
    """mAP and interleaved latency on OpenVINO, counts from the lint."""
    rows = []
    with ExitStack() as stack:
        float_runner = stack.enter_context(OpenVinoRunner(fp32))
        runners: list[Runner] = [float_runner]
        for _, made in built:
            runner = _open(made, float_runner)
            stack.enter_context(runner)
            runners.append(runner)
        latencies = measure_latency(runners, section)
        named = [("FP32", fp32), *built]
        for (name, made), runner, latency in zip(named, runners, latencies, strict=True):
            # files of other tools carry no metadata; the float export's holds for all
            runner.metadata = float_runner.metadata
            accuracy = measure_accuracy(runner, dataset, section)
            report = trt_qat.lint(made) if isinstance(made, Path) else None
            counts = report.counts if report else None
            rows.append(
                Row(
                    name,
                    counts.int8_convs if counts else None,
                    counts.avoidable_round_trips if counts else None,
                    counts.scales if counts else None,
                    report.errors if report and name != "FP32" else None,
                    accuracy.map50_95,
                    latency,
                )
            )
            click.echo(f"{name}: mAP50-95 {accuracy.map50_95:.4f}, {latency.median:.1f} ms")
    return rows


def as_markdown(rows: Sequence[Row]) -> str:
    """A Markdown table."""
    header = (
        "| model | INT8 convs | float round trips | scales | lint errors | mAP50-95 | ms median | p90 | vs FP32 |\n"
    )
    base = rows[0].latency.median

    def text(value: int | None) -> str:
        return "-" if value is None else str(value)

    lines = [
        f"| {r.name} | {text(r.int8_convs)} | {text(r.round_trips)} | {text(r.scales)} | {text(r.lint_errors)} | "
        f"{r.map50_95:.4f} | {r.latency.median:.1f} | {r.latency.p90:.1f} | {base / r.latency.median:.2f}x |\n"
        for r in rows
    ]
    return header + "|---" * 9 + "|\n" + "".join(lines)


@click.command()
@click.option("--weights", type=click.Path(path_type=Path), required=True)
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--images", "count", default=128, show_default=True, help="Calibration images for every quantizer.")
@click.option("--iterations", default=60, show_default=True)
def main(weights: Path, data: Path, out: Path, count: int, iterations: int) -> None:
    """Build, lint and measure every placement."""
    out.mkdir(parents=True, exist_ok=True)
    model = trt_qat.load(weights, IMGSZ)
    dataset = load_dataset(data, model.names)
    files = calibration_images(dataset, count)
    fp32 = trt_qat.export(model, out / "fp32.onnx", target="openvino", check=False).path
    built = []
    for name, make in build_all(model, fp32, files, out):
        try:
            built.append((name, make()))
            click.echo(f"built: {name}")
        except Exception as exc:  # noqa: BLE001  another tool's failure is a result, not ours to hide or to die of
            click.echo(f"left out: {name} ({type(exc).__name__}: {' '.join(str(exc).split())[:200]})")
    rows = measure(built, fp32, dataset, EvaluationSection(latency_iterations=iterations))
    (out / "placement.md").write_text(as_markdown(rows), encoding="utf-8")
    (out / "placement.json").write_text(
        json.dumps([vars(row) | {"latency": vars(row.latency)} for row in rows], indent=2)
    )
    click.echo(as_markdown(rows))


if __name__ == "__main__":
    main()
