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
from trt_qat.artifacts import atomic_path
from trt_qat.errors import ArtifactError, TrtQatError
from trt_qat.model.loading import build_network, check_same_output, class_names, network_from_architecture

STEM = "model.0.conv.weight"


def widened(narrow: DetectionModel, source: Path) -> DetectionModel:
    """The same function in twice the channels; seeded.

    Raises:
        ArtifactError: it is no YOLOv8n, which ``source`` came from.
    """
    # not the stored architecture with another scale: it may hold its width itself, and then stays what it is
    wide = network_from_architecture(build_network(Path("yolov8s.yaml")).yaml, class_names(narrow))
    draws, old, new = torch.Generator().manual_seed(0), narrow.state_dict(), wide.state_dict()
    if old.keys() != new.keys() or 2 * len(old[STEM]) != len(new[STEM]):
        raise ArtifactError(f"'{source}' is no YOLOv8n, whose weights are needed.")
    wide.load_state_dict({name: _fitted(old[name], like, draws) for name, like in new.items()})
    check_same_output(narrow, wide, f"'{source}' made wider")
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
    try:
        model = trt_qat.load(weights)
        wide = widened(model.as_trained(), weights)
    except TrtQatError as exc:
        raise click.ClickException(str(exc)) from exc
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out) as temporary:
        torch.save({"model": wide.half(), "train_args": {"imgsz": max(model.imgsz)}}, temporary)
    click.echo(f"Written: {out}")


if __name__ == "__main__":
    main()
