"""A trained YOLOv8n as the start of a YOLOv8s: twice as many channels, the same function, nothing to learn again.

    python scripts/widen.py yolov8n.pt --out yolov8s_start.pt
    trt-qat train --weights yolov8s_start.pt --data data.yaml --out runs/v8s

Net2WiderNet (Chen et al. 2016, "Net2Net: Accelerating Learning via Knowledge Transfer"): every channel is copied, and
each weight that reads copies divided by how many there are. A little noise lets the two copies part in training. The
result is no YOLOv8s that was trained from its own start, and where it is measured that is said.
"""

from __future__ import annotations

import copy
from pathlib import Path

import click
import torch
from torch import Tensor
from ultralytics.nn.tasks import DetectionModel

from trt_qat.checkpoint import load
from trt_qat.model.loading import check_same_output, network_from_architecture


def widened(narrow: DetectionModel, scale: str) -> DetectionModel:
    """The same function in the architecture of another scale of the same depth."""
    wide = network_from_architecture({**copy.deepcopy(narrow.yaml), "scale": scale}, narrow.names)
    state = narrow.state_dict()
    wide.load_state_dict({name: _copied(state[name], like) for name, like in wide.state_dict().items()})
    return wide


def _copied(narrow: Tensor, like: Tensor) -> Tensor:
    """Each channel next to its copies, so that a layer that splits its channels in halves gives all of one half."""
    value = narrow
    for axis in range(min(2, narrow.dim())):
        before, after = narrow.shape[axis], like.shape[axis]
        of = torch.arange(after) * before // after
        value = value.index_select(axis, of)
        if axis == 1:
            copies = torch.bincount(of, minlength=before)[of]
            value = value / copies.view(1, -1, *[1] * (narrow.dim() - 2))
    return value


def parted_(network: DetectionModel, noise: float) -> None:
    """Move each filter by noise, as a share of its own spread, in place."""
    generator = torch.Generator().manual_seed(0)
    for name, weight in network.named_parameters():
        if weight.dim() == 4 and "dfl" not in name:
            spread = weight.detach().std(dim=(1, 2, 3), keepdim=True)
            weight.data.add_(noise * spread * torch.randn(weight.shape, generator=generator))


@click.command()
@click.argument("weights", type=click.Path(exists=True, path_type=Path))
@click.option("--scale", default="s", show_default=True)
@click.option("--noise", default=0.02, show_default=True, help="Of a filter's own spread.")
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(weights: Path, scale: str, noise: float, out: Path) -> None:
    """Write the wider detector."""
    model = load(weights)
    narrow = model.as_trained()
    wide = widened(narrow, scale)
    difference = check_same_output(narrow, wide, f"'{weights}' made wider")
    parted_(wide, noise)
    out.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": wide.half(), "train_args": {"imgsz": max(model.imgsz)}}, out)
    click.echo(f"{out}: the same output to {difference:.1e}, then noise of {noise:g}.")


if __name__ == "__main__":
    main()
