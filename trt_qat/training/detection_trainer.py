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
from ultralytics.utils.torch_utils import strip_optimizer

from trt_qat import distributed
from trt_qat.config import ModelSection
from trt_qat.data.progress import Report, no_report


class DatasetTrainer(DetectionTrainer):  # type: ignore[misc]  # ultralytics has no types
    """DetectionTrainer on a given dataset dictionary and network.

    Args:
        report: told after each batch.
        network: trained in place; its class count must equal the dataset's.
        data: what ``trt_qat.data.dataset.ultralytics_data`` returns.
        overrides: Ultralytics training arguments.
    """

    stage = "training"

    def __init__(
        self, network: DetectionModel, data: Mapping[str, Any], overrides: Mapping[str, Any], report: Report = no_report
    ) -> None:
        self._dataset = dict(data)
        self._report = report
        self._batches_done = 0
        super().__init__(overrides={"task": "detect", "mode": "train", **overrides})
        network.args = self.args
        self.model = network
        self.add_callback("on_train_start", lambda _: use_all_cores())
        self.add_callback("on_train_epoch_start", DatasetTrainer._epoch_started)
        self.add_callback("on_train_batch_end", DatasetTrainer._batch_done)

    def get_dataset(self) -> dict[str, Any]:
        """The dataset given at construction."""
        return self._dataset

    def final_eval(self) -> None:
        """Shrink the checkpoints to what inference needs; the best epoch was validated when it was trained."""
        for file in (self.last, self.best):
            if Path(file).is_file():
                strip_optimizer(file)

    def _epoch_started(self) -> None:
        self._batches_done = 0

    def _batch_done(self) -> None:
        self._batches_done += 1
        self._report(f"{self.stage} epoch {self.epoch + 1}/{self.epochs}", self._batches_done, len(self.train_loader))


def use_all_cores() -> None:
    """Ultralytics leaves one core idle; on two cores that is half the speed. Processes of one job share them."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // distributed.local_world_size()))


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
