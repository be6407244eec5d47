"""Ultralytics' DetectionTrainer, told which dataset and network to use instead of looking for them by name.

Its loader, loss, EMA, validator and loggers stay in charge; FP32 training and QAT both build on this class.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import override
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import LOGGER
from ultralytics.utils.callbacks import default_callbacks
from ultralytics.utils.torch_utils import strip_optimizer, unwrap_model

from trt_qat import distributed
from trt_qat.data.dataset import Dataset
from trt_qat.data.images import evenly_spaced
from trt_qat.data.labelled import LabelledImage, SplitName, checked_split
from trt_qat.data.ultralytics_dataset import GivenDataset
from trt_qat.errors import ConsistencyError
from trt_qat.model.cpu import tune_cpu
from trt_qat.model.device import CPU
from trt_qat.progress import SILENT, Progress
from trt_qat.training.precision import Precision
from trt_qat.vision.image import read_image_bgr
from trt_qat.vision.letterbox import network_input
from trt_qat.vision.size import ImageSize

_INTEGRATIONS = ("ultralytics.utils.callbacks.", "ultralytics.utils.events")


class DatasetTrainer(DetectionTrainer):  # type: ignore[misc]  # ultralytics has no types
    """DetectionTrainer on a given dataset dictionary and network, in one process or several that torchrun started.

    Args:
        progress: told after each batch.
        network: trained in place; its class count must equal the dataset's.
        dataset: trained on, and validated on its val split.
        imgsz: height and width of the network's input, pixels.
        overrides: Ultralytics training arguments; of ``imgsz`` it knows the longer side only.
        precision: whose scaler the gradients get; None is float32 throughout.
    """

    stage = "training"

    def __init__(
        self,
        network: DetectionModel,
        dataset: Dataset,
        imgsz: ImageSize,
        overrides: Mapping[str, Any],
        progress: Progress = SILENT,
        precision: Precision | None = None,
    ) -> None:
        self._precision = precision or Precision("none", CPU)
        self._dataset = dataset
        self._imgsz = imgsz
        self._progress = progress
        self._batches_done = 0
        super().__init__(overrides={"task": "detect", "mode": "train", **overrides, "imgsz": max(imgsz)})
        network.args = self.args  # where Ultralytics' criterion looks for the weights of its parts
        self.model = network  # a module instead of a name: setup_model() then looks for nothing
        self.add_callback("on_train_start", lambda _: tune_cpu())  # Ultralytics has set its own thread count by now
        self.add_callback("on_train_start", DatasetTrainer._check_validation_images)
        self.add_callback("on_train_epoch_start", DatasetTrainer._epoch_started)
        self.add_callback("on_train_batch_end", DatasetTrainer._batch_done)

    def get_dataset(self) -> dict[str, Any]:
        """What Ultralytics asks of a data.yaml; its splits are names for :meth:`build_dataset`."""
        names = dict(self._dataset.names)
        return {"train": "train", "val": "val", "names": names, "nc": len(names), "channels": 3}

    def build_dataset(self, img_path: str, mode: str = "train", batch: int | None = None) -> GivenDataset:
        """The usable images of a split, of the training images the share ``fraction``; what was left out is noted.

        Raises:
            DatasetError: no image of the split is usable, or there is not one box on them.
        """
        del img_path
        name: SplitName = "train" if mode == "train" else "val"
        split = checked_split(self._dataset, name, self._progress)
        if split.left_out and distributed.is_main():
            self._progress.note(f"{name}: {split.left_out}")
        stride = max(int(unwrap_model(self.model).stride.max()), 32)
        images: Sequence[LabelledImage] = split.images
        if mode == "train":
            images = evenly_spaced(images, max(1, round(len(images) * self.args.fraction)))
        return GivenDataset(
            images, self._imgsz, self.args, self.data, augment=mode == "train", batch=batch, stride=stride
        )

    @override
    def run_callbacks(self, event: str) -> None:
        """Without Ultralytics' integrations, which send a run to a server where its settings say so."""
        for callback in self.callbacks.get(event, ()):
            if not callback.__module__.startswith(_INTEGRATIONS) or callback in default_callbacks.get(event, ()):
                callback(self)

    @override
    def save_metrics(self, metrics: Mapping[str, float]) -> None:
        """Ultralytics' results.csv, whose columns are called after what the labels give."""
        measure = self._dataset.measure
        super().save_metrics(
            {name.replace("metrics/mAP", f"metrics/{measure}"): value for name, value in metrics.items()}
        )

    @property
    def steps_done(self) -> int:
        """Steps since the start of the run; before a step also its number, from 0."""
        return int(self.epoch) * len(self.train_loader) + self._batches_done

    @override
    def _setup_train(self) -> None:
        self.world_size = 0  # Ultralytics wraps the network for GPUs only, see _build_train_pipeline
        super()._setup_train()

    @override
    def _setup_ddp(self) -> None:
        """Nothing: the command line has made the process group, on a CPU as well."""

    @override
    def _build_train_pipeline(self) -> None:
        processes = distributed.world_size()
        if processes > 1 and self.world_size != processes:  # it is called again after a batch that was too large
            self.world_size = processes
            self.model = DistributedDataParallel(self.model, find_unused_parameters=True)
        self.scaler = self._precision.scaler()  # instead of Ultralytics'; restored later where a run is resumed
        super()._build_train_pipeline()

    @override
    def final_eval(self) -> None:
        """Shrink the checkpoints to what inference needs; the best epoch was validated when it was trained."""
        for file in (self.last, self.best) if distributed.is_main() else ():
            if Path(file).is_file():
                strip_optimizer(file)

    def _check_validation_images(self) -> None:
        """Ultralytics' loader must hand over what deployment does, else epochs are compared by a wrong figure.

        Raises:
            ConsistencyError: its first image is another one.
        """
        batch = self.preprocess_batch(next(iter(self.test_loader)))
        file = Path(batch["im_file"][0])
        expected = network_input(read_image_bgr(file), self._imgsz)[0][0]
        found = batch["img"][0].float().cpu().numpy()
        if found.shape != expected.shape or not np.allclose(found, expected, atol=1e-3):
            raise ConsistencyError(
                f"The validation image '{file}' reaches the network otherwise than in deployment. Nothing was trained; "
                "the installation is damaged."
            )

    def _epoch_started(self) -> None:
        self._batches_done = 0
        self._oom_retries = 3  # as if used up: Ultralytics' own halving says nothing, see halving.py

    def _batch_done(self) -> None:
        self._batches_done += 1
        self._progress.step(
            f"{self.stage} epoch {self.epoch + 1}/{self.epochs}", self._batches_done, len(self.train_loader)
        )


def common_overrides(out: Path, epochs: int, batch: int, seed: int, device: torch.device = CPU) -> dict[str, Any]:
    """Ultralytics arguments that FP32 training and QAT share."""
    return {
        "model": "yolov8n.yaml",  # a placeholder that Ultralytics insists on; the network is set right after
        "data": "given.yaml",
        "epochs": epochs,
        "batch": batch,
        "seed": seed,
        "save_dir": str(out.resolve()),  # project and name would not do: a run named "model" gets another name
        "device": str(device.index or 0) if device.type == "cuda" else "cpu",
        "plots": False,
        "amp": False,  # its own validates in FP16 and looks for a network of its own to try it on; see precision.py
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
