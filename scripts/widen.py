"""A YOLOv8s that computes what a trained YOLOv8n computes: a start for training where no weights of it are at hand.

    python scripts/widen.py yolov8n.pt --out yolov8s.pt

Channels stand twice (some of the classes' once), and a weight that reads one is divided between its copies at random,
so that they learn apart (Chen et al., Net2Net, 2016). The result is no better than what it came from: train it.
"""

from __future__ import annotations

from pathlib import Path

import click
import torch
from torch import Tensor
from ultralytics.nn.tasks import DetectionModel

import trt_qat
from trt_qat.model.loading import check_same_output


def widened(narrow: DetectionModel) -> DetectionModel:
    """The same function in twice the channels; seeded."""
    wide = DetectionModel("yolov8s.yaml", nc=len(narrow.names), verbose=False).eval()
    draws, old = torch.Generator().manual_seed(0), narrow.state_dict()
    wide.load_state_dict({name: _fitted(old[name], like, draws) for name, like in wide.state_dict().items()})
    wide.names = narrow.names
    check_same_output(narrow.eval(), wide, "widening")
    return wide


def _fitted(value: Tensor, like: Tensor, draws: torch.Generator) -> Tensor:
    if value.shape == like.shape:
        return value
    value = value[_twice(value.shape[0], like.shape[0])]
    if value.shape != like.shape:
        of = _twice(value.shape[1], like.shape[1])
        shares = 0.5 + torch.rand(like.shape[0], len(of), generator=draws)
        sums = torch.zeros(value.shape[:2]).index_add_(1, of, shares)
        value = value[:, of] * (shares / sums[:, of])[..., None, None]
    return value


def _twice(old: int, new: int) -> Tensor:
    """Which old channel each new one copies. Copies are neighbours: halves and joins of channels stay what they are."""
    return torch.arange(new) * old // new


@click.command()
@click.argument("weights", type=click.Path(exists=True, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(weights: Path, out: Path) -> None:
    """Widen WEIGHTS, a trained YOLOv8n."""
    torch.save({"model": widened(trt_qat.load(weights).as_trained()).half(), "train_args": {}}, out)


if __name__ == "__main__":
    main()
