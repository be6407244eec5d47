"""A detector of three layers and a head, for tests that need a file of weights and not a detection."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import torch
from ultralytics.nn.tasks import DetectionModel

from trt_qat.model.loading import network_from_architecture

NAMES = {0: "stop", 1: "Cấm rẽ trái"}
ARCHITECTURE: dict[str, Any] = {
    "nc": 2,
    "scales": {"n": [1.0, 1.0, 1024]},
    "scale": "n",
    "backbone": [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [16, 3, 2]], [-1, 1, "C2f", [16, True]]],
    "head": [[-1, 1, "SPPF", [16, 5]], [[2, 3], 1, "Concat", [1]], [[4], 1, "Detect", ["nc"]]],
}


def tiny_architecture() -> dict[str, Any]:
    """A fresh copy, to change."""
    return copy.deepcopy(ARCHITECTURE)


def tiny_network() -> DetectionModel:
    """Unfolded, the same weights at every call, to change."""
    return copy.deepcopy(_network())


@cache
def _network() -> DetectionModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return network_from_architecture(ARCHITECTURE, NAMES)


def save_pt(network: Any, path: Path, protocol: int = 2, **fields: Any) -> Path:
    """A checkpoint as Ultralytics' trainer writes one."""
    torch.save({"model": network, "train_args": {"imgsz": 96}, **fields}, path, pickle_protocol=protocol)
    return path
