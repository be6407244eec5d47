"""Is the mAP of an int8+fp16 file another than that of the int8+fp32 file of the same model, or is that chance?

    python benchmarks/fp16_gap.py --weights ptq.safetensors --data data.yaml --out runs/fp16_gap

Both files on OpenVINO (float part in FP32) over the val images, with a paired bootstrap over images; and beside them
int8+fp32 files whose activation scales are off by at most what FP16 rounds away, each in another random way: how far
those spread is what chance does to one calibration.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import onnx
from onnx import numpy_helper

from trt_qat.api import evaluate, export
from trt_qat.checkpoint import load
from trt_qat.data.dataset import load_dataset
from trt_qat.report.compare import map_difference

FP16_STEP = 2.0**-11  # half of the distance of two FP16 numbers, relative to them, at most


def shifted(source: Path, out: Path, seed: int) -> Path:
    """The file with every activation's scale off by less than FP16 rounds away."""
    model, random = onnx.load(source), np.random.default_rng(seed)
    scales = {node.input[1] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    for entry in model.graph.initializer:
        if entry.name in scales:
            value = numpy_helper.to_array(entry) * (1 + random.uniform(-FP16_STEP, FP16_STEP))
            entry.CopyFrom(numpy_helper.from_array(np.asarray(value, np.float32), entry.name))
    onnx.save(model, out)
    return out


@click.command()
@click.option("--weights", type=click.Path(path_type=Path), required=True, help="Calibrated *.safetensors.")
@click.option("--data", type=click.Path(path_type=Path), required=True, help="data.yaml; its val images are used.")
@click.option("--shifts", default=6, show_default=True, help="Files with shifted scales.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the files.")
def main(weights: Path, data: Path, shifts: int, out: Path) -> None:
    """Print mAP50-95 in points."""
    model = load(weights)
    dataset = load_dataset(data, model.names)
    files = {
        precision: export(model, out / f"{precision}.onnx", target="openvino", precision=precision).path
        for precision in ("int8+fp32", "int8+fp16")
    }
    made = [shifted(files["int8+fp32"], out / f"shifted{seed}.onnx", seed) for seed in range(shifts)]
    rows = evaluate([*files.values(), *made], dataset, details=True, latency_iterations=3)
    fp32, fp16 = rows[:2]
    others = [100 * row.map50_95 for row in rows[2:]]
    click.echo(
        f"{fp32.images} images: " + ", ".join(f"{row.precision} {100 * row.map50_95:.2f}" for row in (fp32, fp16))
    )
    click.echo(f"fp16 - fp32: {map_difference(fp32, fp16)}")
    click.echo("scales shifted: " + ", ".join(f"{value:.2f}" for value in others) + f"; spread {np.ptp(others):.2f}")


if __name__ == "__main__":
    main()
