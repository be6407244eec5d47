"""What DatasetTrainer changes in Ultralytics' trainer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest

from trt_qat.data.dataset import load_dataset
from trt_qat.training.detection_trainer import DatasetTrainer, common_overrides

if TYPE_CHECKING:
    from trt_qat.checkpoint import Model
    from trt_qat.data.dataset import Dataset


@pytest.mark.parametrize(("fraction", "count"), [(1.0, 12), (0.34, 4), (0.001, 1)])
def test_a_share_of_the_training_images(
    detector: Model, demo: Dataset, tmp_path: Path, fraction: float, count: int
) -> None:
    overrides = common_overrides(tmp_path / "run", epochs=1, batch=1, seed=0) | {"fraction": fraction}
    trainer = DatasetTrainer(copy.deepcopy(detector.network), demo, (64, 64), overrides)
    assert len(trainer.build_dataset("train", "train", 1)) == count
    assert len(trainer.build_dataset("val", "val", 1)) == len(demo.val)


@pytest.mark.parametrize("imgsz", [(64, 64), (32, 96), (96, 64)])
def test_validation_images_are_as_in_deployment(detector: Model, tmp_path: Path, imgsz: tuple[int, int]) -> None:
    for kind in ("train", "val"):
        (tmp_path / "images" / kind).mkdir(parents=True)
        (tmp_path / "labels" / kind).mkdir(parents=True)
        wide = np.random.default_rng(len(kind)).integers(0, 255, (32, 128, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / "images" / kind / "a.png"), wide)
        (tmp_path / "labels" / kind / "a.txt").write_text("0 0.5 0.5 0.2 0.5\n")
    names = "".join(f"  {index}: {name}\n" for index, name in detector.names.items())
    (tmp_path / "data.yaml").write_text(f"path: {tmp_path}\ntrain: images/train\nval: images/val\nnames:\n{names}")
    dataset = load_dataset(tmp_path / "data.yaml")
    overrides = common_overrides(tmp_path / "run", epochs=1, batch=1, seed=0) | {"mosaic": 0.0}
    trainer = DatasetTrainer(copy.deepcopy(detector.network), dataset, imgsz, overrides)
    for mode in ("train", "val"):
        assert trainer.build_dataset(trainer.data[mode], mode, 1)[0]["img"].shape == (3, *imgsz)
