"""Ultralytics' DetectionTrainer, told which dataset and network to use instead of looking for them by name.

Its loader, loss, EMA, validator and loggers stay in charge; FP32 training and QAT both build on this class.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import LOGGER

from trt_qat.config import ModelSection


class DatasetTrainer(DetectionTrainer):  # type: ignore[misc]  # ultralytics has no types
    """DetectionTrainer on a given dataset dictionary and network.

    Args:
        network: trained in place; its class count must equal the dataset's.
        data: what ``trt_qat.data.dataset.ultralytics_data`` returns.
        overrides: Ultralytics training arguments.
    """

    def __init__(self, network: DetectionModel, data: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
        self._dataset = dict(data)
        # imported logger integrations would look for services on the network
        super().__init__(overrides={"task": "detect", "mode": "train", **overrides})
        network.args = self.args
        self.model = network
        self.add_callback("on_train_start", _use_all_cores)

    def get_dataset(self) -> dict[str, Any]:
        """The dataset given at construction."""
        return self._dataset


def _use_all_cores(_: Any) -> None:
    # Ultralytics leaves one core free, which halves the speed of a small machine
    torch.set_num_threads(os.cpu_count() or 1)


def common_overrides(section: ModelSection, out: Path, epochs: int, batch: int, seed: int) -> dict[str, Any]:
    """Ultralytics arguments that FP32 training and QAT share."""
    return {
        "model": "yolov8n.yaml",  # a placeholder that Ultralytics insists on; the network is set right after
        "data": "given.yaml",
        "imgsz": section.imgsz,
        "epochs": epochs,
        "batch": batch,
        "seed": seed,
        "project": str(out.parent.resolve()),
        "name": out.name,
        "exist_ok": True,
        "device": "0" if torch.cuda.is_available() else "cpu",
        "plots": False,
        "amp": False,
        "verbose": False,
    }


@contextmanager
def quiet_ultralytics(level: int = logging.ERROR) -> Iterator[None]:
    """Within: Ultralytics' own log lines stay silent, errors apart."""
    before = LOGGER.level
    LOGGER.setLevel(level)
    try:
        yield
    finally:
        LOGGER.setLevel(before)
