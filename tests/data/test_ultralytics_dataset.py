"""Ultralytics' trainer on our reader: the same images, pixels and boxes, and nothing touched in the user's folders."""

from __future__ import annotations

import copy
import hashlib
import os
import pickle
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from ultralytics.cfg import get_cfg
from ultralytics.data import YOLODataset
from ultralytics.data.base import BaseDataset

from trt_qat.data.dataset import Dataset, label_path, load_dataset
from trt_qat.data.labelled import checked_split
from trt_qat.data.ultralytics_dataset import GivenDataset
from trt_qat.errors import DatasetError
from trt_qat.progress import Silent
from trt_qat.training.detection_trainer import DatasetTrainer, common_overrides
from trt_qat.vision.image import read_image_bgr
from trt_qat.vision.letterbox import network_input

if TYPE_CHECKING:
    from trt_qat.checkpoint import Model

IMGSZ = 96
SIZES = [(96, 96), (64, 96), (96, 32)]


class Trap:
    """Unpickling this leaves a folder: what a hostile cache could do."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (os.mkdir, (str(self.marker),))


@pytest.fixture
def odd(demo_yaml: Path, tmp_path: Path) -> Dataset:
    """The generated dataset with everything that Ultralytics' own reader drops, rewrites, unpickles or deletes."""
    root = Path(shutil.copytree(demo_yaml.parent, tmp_path / "set"))
    train = root / "images" / "train"
    files = sorted(train.iterdir())
    files[0].write_bytes(files[0].read_bytes() + bytes(64))  # cameras pad JPEGs like this
    wide = np.random.default_rng(0).integers(0, 256, (75, 131, 3), dtype=np.uint8)  # no side of it scales to a whole
    cv2.imwrite(str(files[1]), wide)
    for name, size_wh, form in (
        ("tiny.png", (7, 5), "png"),
        ("moving.jpg", (64, 48), "gif"),
        ("x.avif", (64, 32), "avif"),
    ):
        Image.new("RGB", size_wh, (90, 140, 30)).save(train / name, format=form)
        (root / "labels" / "train" / name).with_suffix(".txt").write_text("0 0.5 0.5 0.5 0.5\n")
    np.save(files[2].with_suffix(".npy"), np.zeros((8, 8, 3), np.uint8))
    files[3].with_suffix(".npy").write_bytes(b"no array")
    for split in ("train", "val"):
        (root / "labels" / f"{split}.cache").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    return load_dataset(root / "data.yaml")


def given(dataset: Dataset, augment: bool, imgsz: tuple[int, int] = (IMGSZ, IMGSZ), **settings: Any) -> GivenDataset:
    arguments = get_cfg(overrides={"task": "detect", "imgsz": max(imgsz), **settings})
    data = {"names": dict(dataset.names), "channels": 3}
    images = checked_split(dataset, "train").images
    return GivenDataset(images, imgsz, arguments, data, augment=augment, batch=2, stride=32)


def fingerprint(folder: Path) -> dict[str, str]:
    return {str(f): hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.mark.parametrize("imgsz", SIZES)
def test_every_image_is_the_networks_input_bit_for_bit(odd: Dataset, imgsz: tuple[int, int]) -> None:
    dataset = given(odd, augment=False, imgsz=imgsz)
    assert [Path(file) for file in dataset.im_files] == list(odd.train)
    assert len(dataset) == len(odd.train) == 15
    for index, path in enumerate(odd.train):
        item = dataset[index]
        batch, transform = network_input(read_image_bgr(path), imgsz)
        assert torch.equal(item["img"].float() / 255, torch.from_numpy(batch[0])), path
        assert item["ori_shape"] == transform.size_wh[::-1]


@pytest.mark.parametrize("imgsz", SIZES)
def test_boxes_lie_where_the_letterbox_puts_them(odd: Dataset, imgsz: tuple[int, int]) -> None:
    dataset = given(odd, augment=False, imgsz=imgsz)
    for index, image in enumerate(checked_split(odd, "train").images):
        item = dataset[index]
        _, transform = network_input(read_image_bgr(image.image), imgsz)
        cx, cy, width, height = (item["bboxes"].numpy() * (imgsz[::-1] * 2)).T
        corners = np.stack([cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2], axis=1)
        centres, halves = image.labels.boxes_cxcywh[:, :2], image.labels.boxes_cxcywh[:, 2:] / 2
        expected = np.concatenate([centres - halves, centres + halves], axis=1) * (transform.size_wh * 2)
        found = transform.boxes_to_image(corners.astype(np.float32))
        np.testing.assert_allclose(found, expected, atol=1e-2)
        assert item["cls"].flatten().tolist() == image.labels.class_ids.tolist()


def test_training_images_fill_the_rectangle(demo: Dataset) -> None:
    """Through Ultralytics' augmentations, all of them off: the letterbox, which they are given as a shift."""
    off = dict.fromkeys(("mosaic", "scale", "translate", "fliplr", "hsv_h", "hsv_s", "hsv_v", "erasing"), 0.0)
    for imgsz in ((64, 96), (64, 64)):
        item = given(demo, True, imgsz, **off, augmentations=[])[0]
        expected, _ = network_input(read_image_bgr(demo.train[0]), imgsz)
        assert torch.equal(item["img"].float() / 255, torch.from_numpy(expected[0])), imgsz


@pytest.mark.parametrize("augment", [False, True])
def test_nothing_in_the_dataset_is_run_written_or_removed(odd: Dataset, tmp_path: Path, augment: bool) -> None:
    before = fingerprint(odd.source.parent)
    dataset = given(odd, augment)
    for index in range(len(dataset)):
        dataset[index]
    assert fingerprint(odd.source.parent) == before
    assert not (tmp_path / "sprung").exists()


def test_the_trap_springs_without_us(odd: Dataset, tmp_path: Path) -> None:
    """So that the test above means something: Ultralytics' own class on the same folder."""
    before = fingerprint(odd.source.parent)
    arguments = get_cfg(overrides={"task": "detect", "imgsz": IMGSZ})
    data = {"names": dict(odd.names), "channels": 3}
    theirs = YOLODataset(img_path=str(odd.train[0].parent), data=data, imgsz=IMGSZ, augment=False, hyp=arguments)
    assert len(theirs) < len(odd.train)
    for index in range(len(theirs)):
        theirs[index]
    assert (tmp_path / "sprung").exists()
    assert fingerprint(odd.source.parent) != before


def test_mosaics_hold_few_images(odd: Dataset) -> None:
    dataset = given(odd, augment=True, mosaic=1.0)
    dataset.max_buffer_length = 5
    for index in (*range(len(dataset)), 3, 1):
        assert dataset[index]["img"].shape == (3, IMGSZ, IMGSZ)
        assert sum(image is not None for image in dataset.ims) == len(dataset.buffer) < 5
        assert {i for i, image in enumerate(dataset.ims) if image is not None} == set(dataset.buffer)


def test_labels_are_ours_alone_to_change(odd: Dataset) -> None:
    images = checked_split(odd, "train").images
    before = copy.deepcopy(images)
    arguments = get_cfg(overrides={"task": "detect", "imgsz": IMGSZ, "single_cls": True})
    data = {"names": dict(odd.names), "channels": 3}
    dataset = GivenDataset(images, (IMGSZ, IMGSZ), arguments, data, augment=False, batch=1, stride=32)
    assert {float(label["cls"].max(initial=0)) for label in dataset.labels} == {0.0}
    for first, second in zip(before, images, strict=True):
        np.testing.assert_array_equal(first.labels.class_ids, second.labels.class_ids)


@pytest.mark.parametrize("hook", ["get_img_files", "get_labels", "load_image"])
def test_what_is_overridden_exists_and_is_called(hook: str) -> None:
    assert hook in vars(GivenDataset)
    assert callable(getattr(YOLODataset, hook))
    assert any(hook in vars(base) for base in (YOLODataset, BaseDataset))


def test_other_ways_of_resizing_are_refused(odd: Dataset) -> None:
    with pytest.raises(NotImplementedError):
        given(odd, augment=False).load_image(0, rect_mode=False)


class Notes(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


def trainer(detector: Model, dataset: Dataset, out: Path, notes: Notes) -> DatasetTrainer:
    return DatasetTrainer(copy.deepcopy(detector.network), dataset, (64, 64), common_overrides(out, 1, 2, 0), notes)


def test_the_trainer_says_what_it_leaves_out(detector: Model, odd: Dataset, tmp_path: Path) -> None:
    label_path(odd.train[1]).write_text("0 0.5 0.5 0.5 0.5 0.93\n")
    notes = Notes()
    built = trainer(detector, odd, tmp_path / "run", notes)
    assert len(built.build_dataset(built.data["train"], "train", 2)) == 14
    assert len(built.build_dataset(built.data["val"], "val", 2)) == len(odd.val)
    assert len(notes.lines) == 1
    assert notes.lines[0].startswith(f"train: 1 of 15 images left out, the first: '{label_path(odd.train[1])}' line 1")


@pytest.mark.parametrize(("text", "message"), [("0 0.5 0.5 0.5 0.5 0.93\n", "is usable"), ("", "has no box")])
def test_nothing_to_validate_on_ends_training_at_once(
    detector: Model, odd: Dataset, tmp_path: Path, text: str, message: str
) -> None:
    for image in odd.val:
        label_path(image).write_text(text)
    with pytest.raises(DatasetError, match=f"split 'val' of .*{message}".replace("split", "[sS]plit")):
        trainer(detector, odd, tmp_path / "run", Notes()).train()
