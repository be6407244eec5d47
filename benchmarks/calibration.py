"""What a calibration pass costs beside a bare forward pass, interleaved on the same images.

    python benchmarks/calibration.py --weights yolov8n.pt --data data.yaml

Prints medians per batch, images/s with and without reading the images, and the ratio of calibration to forward pass.
"""

from __future__ import annotations

import copy
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch
from torch import Tensor

import trt_qat
from trt_qat.config import Config
from trt_qat.data.dataset import calibration_images, load_dataset
from trt_qat.data.images import network_batch
from trt_qat.model.cpu import tune_cpu
from trt_qat.quantization.insert import quantize_model
from trt_qat.quantization.observe import collect_histograms


def seconds(job: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


@click.command()
@click.option("--weights", type=click.Path(path_type=Path), required=True)
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--batch", type=int, default=Config().quantization.batch, show_default=True)
@click.option("--imgsz", type=int, default=640, show_default=True)
@click.option("--rounds", type=int, default=15, show_default=True, help="Measured after 3 to warm up.")
def main(weights: Path, data: Path, batch: int, imgsz: int, rounds: int) -> None:
    """Measure and print."""
    tune_cpu()
    model = trt_qat.load(weights, imgsz)
    section = Config().quantization
    quantized = quantize_model(copy.deepcopy(model.network), model.names, section)
    images = calibration_images(load_dataset(data, model.names), batch)
    if len(images) < batch:
        raise click.UsageError(f"{len(images)} training images are fewer than --batch {batch}")

    def read() -> Tensor:
        return torch.from_numpy(network_batch(images, model.imgsz))

    inputs = read()
    jobs: dict[str, Callable[[], object]] = {
        "read and letterbox": read,
        "bare forward pass": lambda: model.network(inputs),
        "calibration pass": lambda: collect_histograms(quantized, [inputs], section.histogram_bins),
    }
    times: dict[str, list[float]] = {name: [] for name in jobs}
    ratios = []
    with torch.no_grad():
        for turn in range(3 + rounds):
            measured = {name: seconds(job) for name, job in jobs.items()}
            if turn >= 3:
                for name, value in measured.items():
                    times[name].append(value)
                ratios.append(measured["calibration pass"] / measured["bare forward pass"])
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, value in medians.items():
        print(f"{name:20s} {value / batch * 1e3:7.1f} ms/image  {batch / value:6.1f} images/s")
    whole = medians["read and letterbox"] + medians["calibration pass"]
    print(f"{'reading included':20s} {whole / batch * 1e3:7.1f} ms/image  {batch / whole:6.1f} images/s")
    print(f"calibration / forward: {statistics.median(ratios):.2f} (median of {rounds} rounds, batch {batch})")
    print(f"{torch.get_num_threads()} threads, load average {', '.join(f'{load:.1f}' for load in os.getloadavg())}")


if __name__ == "__main__":
    main()
