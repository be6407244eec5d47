"""Images and a video become a dataset that agrees with the model wholly, in a folder of ours and nowhere else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import pytest
import yaml
from clips import write_clip

import trt_qat
from trt_qat import api
from trt_qat.checkpoint import Model
from trt_qat.config import Config, DataSection
from trt_qat.data.dataset import Dataset, label_path, load_dataset
from trt_qat.data.labels import read_labels
from trt_qat.demo.clip import street_clip
from trt_qat.errors import ArtifactError, DatasetError
from trt_qat.footage.dataset import FILE, Making
from trt_qat.footage.named import footage_in
from trt_qat.given_data import check_trainable_dataset, given_dataset
from trt_qat.progress import SILENT, Noting, Silent

SIZE_WH = (320, 192)


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second and a half of the demo's street, whose signs the shipped detector knows."""
    folder = tmp_path_factory.mktemp("street")
    clip: Path = write_clip(
        folder / "street.mp4", (image for image, _ in street_clip(36, size_wh=SIZE_WH)), size_wh=SIZE_WH
    )
    return clip


@pytest.fixture(scope="module")
def small(demo_detector: Model) -> Model:
    """The shipped detector, for small pictures."""
    return replace(demo_detector, imgsz=(192, 320))


@pytest.fixture(scope="module")
def labelled(small: Model, street: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The street as a dataset."""
    return trt_qat.label(small, street, tmp_path_factory.mktemp("out") / "footage", difference=1.0)


def noted(*arguments: Any, **keys: Any) -> tuple[Dataset, list[str]]:
    noting = Noting(Silent())
    return trt_qat.label(*arguments, **keys, progress=noting), noting.lines


@pytest.fixture
def images(demo_set: Path, tmp_path: Path) -> Iterator[Path]:
    """A folder of six images without labels, which nobody may change."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for image in load_dataset(demo_set).train[:6]:
        shutil.copy(image, folder)
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.iterdir()}
    yield folder
    assert {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.iterdir()} == before


def test_the_video_is_a_dataset_held_out_by_time(labelled: Dataset) -> None:
    assert (labelled.labelled_by, labelled.measure) == ("model", "agreement")
    numbers = {split: [int(file.stem[-6:]) for file in files] for split, files in splits(labelled).items()}
    assert max(numbers["train"]) + 1 < min(numbers["val"])  # a gap between them
    assert len(numbers["val"]) >= 4
    assert numbers["train"] == sorted(numbers["train"])
    for file in labelled.train:
        assert cv2.imread(str(file)).shape == (SIZE_WH[1], SIZE_WH[0], 3)
    assert all(label_path(file).is_file() for file in (*labelled.train, *labelled.val))


def splits(dataset: Dataset) -> dict[str, tuple[Path, ...]]:
    return {"train": dataset.train, "val": dataset.val}


def test_the_model_agrees_with_itself(labelled: Dataset, small: Model) -> None:
    (row,) = api.evaluate([small], labelled, latency_iterations=3, latency_warmup=0)
    assert row.measure == "agreement"
    assert row.map50_95 == pytest.approx(0.995)  # Ultralytics' most: it interpolates precision between 101 recalls


def test_what_it_was_made_from_is_said(labelled: Dataset, small: Model, street: Path) -> None:
    content = json.loads((labelled.source.parent / FILE).read_text())
    assert content["weights_sha256"] == labelled.weights_sha256 == small.weights_sha256
    assert list(content["frames"]) == [str(street)]
    labels = [read_labels(label_path(file), 8) for file in (*labelled.train, *labelled.val)]
    assert content["detections"] == sum(map(len, labels)) > 10
    assert len(content["images"]) == len(labels)


def test_the_users_images_are_linked_and_stay_as_they_are(images: Path, small: Model, tmp_path: Path) -> None:
    (images / "broken.jpg").write_bytes(b"no image")
    dataset, lines = noted(small, images, tmp_path / "footage")
    (images / "broken.jpg").unlink()
    linked = [file.readlink() for file in (*dataset.train, *dataset.val)]
    assert linked == sorted(images.iterdir())
    assert len(dataset.val) == 1
    assert "5 images, and 1 held out" in lines[0]
    assert f"1 left out: Image '{images / 'broken.jpg'}' is not an image" in lines[0]


def test_it_is_reused_until_something_is_another(images: Path, small: Model, tmp_path: Path) -> None:
    out = tmp_path / "footage"
    first, _ = noted(small, images, out)
    again, lines = noted(small, images, out)
    assert (again, lines) == (first, [f"Reusing the footage: {out / 'data.yaml'}."])
    label_path(first.train[0]).write_text("changed")  # a label is the dataset's, and whoever changes it wants it
    first.train[0].unlink()
    assert "Reusing" not in noted(small, images, out)[1][0]
    assert "Reusing" not in noted(small, images, out, label_conf=0.5)[1][0]
    assert "Reusing" not in noted(small, [images, images / "none*.jpg", images][:1], out, held_out=0.5)[1][0]


def test_only_its_own_folder_is_replaced(images: Path, small: Model, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(ArtifactError, match="holds other files than footage"):
        trt_qat.label(small, images, tmp_path / "full")
    assert list((tmp_path / "full").iterdir()) == [tmp_path / "full" / "thesis.tex"]


def test_what_cannot_be_labelled_is_said_in_one_line(
    images: Path, small: Model, demo_set: Path, tmp_path: Path
) -> None:
    with pytest.raises(DatasetError, match=r"data\.yaml' has labels\. Images and videos without"):
        trt_qat.label(small, demo_set, tmp_path / "footage")
    with pytest.raises(DatasetError, match="is fine-tuned and cannot label images"):
        trt_qat.label(replace(small, stage="qat"), images, tmp_path / "footage")
    with pytest.raises(DatasetError, match="has no labels, which training a float model needs"):
        trt_qat.train(small, images, tmp_path / "run")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"No image of '.*bad' can be read: Image '.*x\.png' is not an image"):
        trt_qat.label(small, tmp_path / "bad", tmp_path / "footage")
    assert not (tmp_path / "footage").exists()


def test_of_sources_with_few_images_the_last_of_all_are_held_out(images: Path, street: Path, tmp_path: Path) -> None:
    footage = footage_in([*sorted(images.iterdir())[:3], street])
    assert footage is not None
    section = DataSection(frames=3, difference=1.0)
    made = Making(footage, tmp_path / "footage", {0: "x"}, None, section, Config().evaluation, SILENT).dataset()
    assert (len(made.train), [file.name[:13] for file in made.val]) == (5, ["000005_street"])
    assert read_labels(label_path(made.val[0]), 1).boxes_cxcywh.shape == (0, 4)


def test_what_cannot_be_trained_on_is_said_before_the_time(images: Path, small: Model, tmp_path: Path) -> None:
    three = sorted(images.iterdir())[:3]
    few = trt_qat.label(small, three, tmp_path / "few")
    with pytest.raises(DatasetError, match="3 images are too few to fine-tune on and to hold some out"):
        check_trainable_dataset(small, few)
    sure = trt_qat.label(small, images, tmp_path / "sure", label_conf=0.99)
    with pytest.raises(DatasetError, match=r"FP32 model detects nothing on its \d images with a score above data\.lab"):
        check_trainable_dataset(small, sure)
    content = yaml.safe_load(sure.source.read_text())
    sure.source.write_text(yaml.safe_dump({**content, "weights_sha256": "0" * 64}))
    with pytest.raises(DatasetError, match=r"are of another model \(000000000000\)"):
        check_trainable_dataset(small, load_dataset(sure.source))


def test_evaluate_wants_a_float_model(street: Path, small: Model, labelled: Dataset) -> None:
    int8 = api.quantize(small, street, calibrator="percentile", percentile=60, images=4)  # far from the float model
    quick: dict[str, Any] = {"latency_iterations": 3, "latency_warmup": 0}
    with pytest.raises(DatasetError, match="none of the models is a float one that could label it"):
        api.evaluate([int8], street, **quick)
    row, itself = api.evaluate([int8, small], street, footage=DataSection(difference=1.0), **quick)
    (other,) = api.evaluate([int8], street, footage=DataSection(difference=1.0), labels_from=small, **quick)
    (of_dataset,) = api.evaluate([int8], labelled, **quick)
    assert row.measure == "agreement"
    assert row.map50_95 == other.map50_95 == of_dataset.map50_95 < 0.9 < itself.map50_95


def test_no_model_labels_a_labelled_dataset(small: Model, demo_yaml: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"demo.*data\.yaml' is a dataset with labels of its own: no model labels it"
    ):
        api.evaluate([small], demo_yaml, labels_from=small)


def test_calibration_reads_what_would_be_trained_on(labelled: Dataset, street: Path, small: Model) -> None:
    with given_dataset(small, street, section=DataSection(difference=1.0), labels=False) as dataset:
        assert [file.read_bytes() for file in dataset.train] == [file.read_bytes() for file in labelled.train]
        assert not label_path(dataset.train[0]).exists()
        assert dataset.source == street  # messages name what was given, not a temporary folder
    assert not dataset.train[0].exists()
