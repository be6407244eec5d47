"""What is usable of a split, and what is said about the rest."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from trt_qat.data.dataset import Dataset, label_path, load_dataset
from trt_qat.data.labelled import checked_split, labelled_split
from trt_qat.errors import DatasetError


@pytest.fixture
def dataset(demo_yaml: Path, tmp_path: Path) -> Dataset:
    """A copy of the generated dataset (12 train and 6 val images), to be spoiled."""
    return load_dataset(Path(shutil.copytree(demo_yaml.parent, tmp_path / "set")) / "data.yaml")


def test_all_is_well(dataset: Dataset) -> None:
    split = checked_split(dataset, "val")
    assert [given.image for given in split.images] == list(dataset.val)
    assert split.left_out is None
    assert sum(len(given.labels) for given in split.images) > 0


def test_reason_and_number_of_what_is_left_out(dataset: Dataset) -> None:
    bad, cut, background = dataset.train[:3]
    label_path(bad).write_text("0 0.5 0.5 0.5 0.5 0.93\n")
    cut.write_bytes(cut.read_bytes()[:-200])
    label_path(background).unlink()
    parsed, checked = labelled_split(dataset, "train"), checked_split(dataset, "train")
    assert (len(parsed.images), len(checked.images)) == (11, 10)
    assert background in {given.image for given in checked.images}
    assert checked.left_out is not None
    assert (checked.left_out.images, checked.left_out.of) == (2, 12)
    assert str(checked.left_out).startswith("2 of 12 images left out, the first: ")
    assert f"'{label_path(bad)}' line 1: 6 columns" in checked.left_out.reason
    assert f"Image '{cut}' cannot be read" in checked.reasons[1]


@pytest.mark.parametrize("name", ["train", "val"])
def test_no_usable_image_is_one_line(dataset: Dataset, name: str) -> None:
    images = dataset.train if name == "train" else dataset.val
    for image in images[1:]:
        label_path(image).write_text("0 0.5 0.5 0.5 0.5 0.93\n")
    images[0].write_text("no image")
    count = len(images)
    message = rf"No image of split '{name}' of .* is usable: {count} of {count} images left out.*6 columns"
    with pytest.raises(DatasetError, match=message) as caught:
        checked_split(dataset, name)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_no_box_is_one_line(dataset: Dataset) -> None:
    for image in dataset.val:
        label_path(image).write_text("")
    with pytest.raises(DatasetError, match=r"Split 'val' of .* has no box: the label files of 6 images are empty"):
        labelled_split(dataset, "val")


def test_the_only_boxes_are_on_an_unreadable_image(dataset: Dataset) -> None:
    for image in dataset.val[1:]:
        label_path(image).write_text("")
    dataset.val[0].write_bytes(b"")
    assert labelled_split(dataset, "val").left_out is None
    with pytest.raises(DatasetError, match=r"has no box: .* of 5 images.* Besides, 1 of 6 images left out.*not an im"):
        checked_split(dataset, "val")
