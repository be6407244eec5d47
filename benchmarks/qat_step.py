"""What one QAT step costs against the FP32 step of the same detector, interleaved, medians.

    python benchmarks/qat_step.py --weights yolov8n.pt --imgsz 640 --batch 8

A step is forward, loss, backward, gradient clipping and AdamW, on random images. ``FP32`` is what ``trt-qat train``
and Ultralytics run: BatchNorm unfolded, detection loss. The QAT steps have BatchNorm folded; ``distill`` is the default
loss and includes the float teacher's forward pass. Learned scales are off by default.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import click
import numpy as np
import torch
from torch import Tensor
from ultralytics.nn.tasks import DetectionModel

import trt_qat
from trt_qat.model.cpu import tune_cpu
from trt_qat.quantization.insert import QuantizedModel
from trt_qat.training.criterion import QATCriterion
from trt_qat.training.features.distillation import Distillation
from trt_qat.training.features.lsq import learn_scales_


def batch_of(count: int, imgsz: int, boxes: int = 4) -> dict[str, Tensor]:
    """Random images with random boxes, as Ultralytics' loader gives them."""
    generator = torch.Generator().manual_seed(0)
    index = torch.arange(count).repeat_interleave(boxes)
    return {
        "img": torch.rand(count, 3, imgsz, imgsz, generator=generator),
        "batch_idx": index.float(),
        "cls": torch.zeros(len(index), 1),
        "bboxes": torch.rand(len(index), 4, generator=generator) * 0.3 + 0.2,
    }


def calibrated(model: trt_qat.Model) -> QuantizedModel:
    """Ranges do not change the time of a step: those of one image of noise will do."""
    noise = np.random.default_rng(0).integers(0, 256, (*model.imgsz, 3), dtype=np.uint8)
    return trt_qat.quantize(model, [noise], calibrator="max").require_quantized()


def step_of(network: DetectionModel, batch: dict[str, Tensor]) -> Callable[[], None]:
    """A training step of the network with the criterion that it has."""
    network.train()
    for parameter in network.parameters():
        parameter.requires_grad_(parameter.dtype.is_floating_point)
    for parameter in network.model[-1].dfl.parameters():
        parameter.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-6)

    def step() -> None:
        loss, _ = network(batch)
        loss.sum().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


@click.command()
@click.option("--weights", type=click.Path(path_type=Path), required=True)
@click.option("--imgsz", default=640, show_default=True)
@click.option("--batch", "size", default=8, show_default=True)
@click.option("--rounds", default=9, show_default=True)
def main(weights: Path, imgsz: int, size: int, rounds: int) -> None:
    """Measure."""
    tune_cpu()
    batch = batch_of(size, imgsz)
    loaded = trt_qat.load(weights, imgsz)
    model = calibrated(loaded)
    with model.quantizers_off():
        teacher = copy.deepcopy(model.network)
    networks: dict[str, DetectionModel] = {
        "FP32": loaded.unfolded(),
        "FP32, BatchNorm folded": copy.deepcopy(teacher),
        "QAT, loss detection": copy.deepcopy(model.network),
        "QAT, loss distill": copy.deepcopy(model.network),
        "QAT, loss both": copy.deepcopy(model.network),
        "QAT, loss distill, learned scales": model.network,
    }
    learn_scales_(model)
    for network in networks.values():
        network.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5, cls_pw=0.0)
        network.criterion = network.init_criterion()
    distilled = {"QAT, loss distill": False, "QAT, loss both": True, "QAT, loss distill, learned scales": False}
    for name, with_labels in distilled.items():
        network = networks[name]
        network.criterion = QATCriterion(network.criterion, with_labels, [Distillation(copy.deepcopy(teacher))])
    steps = {name: step_of(network, batch) for name, network in networks.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in range(rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if round_number:  # the first is warm-up
                seconds[name].append(time.perf_counter() - start)
    base, folded = median(seconds["FP32"]), median(seconds["FP32, BatchNorm folded"])
    click.echo("| step | ms | of FP32 | of FP32 folded |\n|---|---|---|---|")
    for name, times in seconds.items():
        value = median(times)
        click.echo(f"| {name} | {1000 * value:.0f} | {value / base:.2f}x | {value / folded:.2f}x |")


if __name__ == "__main__":
    main()
