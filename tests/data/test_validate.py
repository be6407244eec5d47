from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import pytest

from trt_qat.data.dataset import Dataset, load_dataset
from trt_qat.data.validate import Finding, validate_dataset
from trt_qat.progress import Silent

NAMES = {0: "car", 1: "sign"}
Item = TypeVar("Item")


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    return bytes(cv2.imencode(".jpg", pixels)[1].tobytes())


def add(root: Path, split: str, name: str, label: str | None = "0 0.5 0.5 0.2 0.2\n", seed: int | None = None) -> Path:
    image = root / "images" / split / f"{name}.jpg"
    image.parent.mkdir(parents=True, exist_ok=True)
    image.write_bytes(jpeg(sum(map(ord, split + name)) if seed is None else seed))
    if label is not None:
        text = root / "labels" / split / f"{name}.txt"
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text(label, encoding="utf-8")
    return image


@pytest.fixture
def root(tmp_path: Path) -> Path:
    add(tmp_path, "train", "good")
    add(tmp_path, "val", "fine")
    return tmp_path


def load(root: Path) -> Dataset:
    return load_dataset(root, names=NAMES)


def only(root: Path) -> Finding:
    findings = validate_dataset(load(root))
    assert len(findings) == 1, findings
    return findings[0]


def test_clean(root: Path) -> None:
    assert validate_dataset(load(root)) == []


@pytest.mark.parametrize(
    "label",
    [
        "",
        "\n\n",
        "\ufeff1 0.5 0.5 1 1\n",
        "1 0.005 0.5 0.02 0.2\n",
        "0 0.1 0.1 0.5 0.1 0.5 0.5\n1 0 0 1 0 1 1 0 1\n",
    ],
    ids=["empty", "blank lines", "byte-order mark", "within tolerance", "polygons"],
)
def test_good_labels(root: Path, label: str) -> None:
    add(root, "train", "x", label)
    assert validate_dataset(load(root)) == []


def test_missing_label(root: Path) -> None:
    add(root, "train", "x", label=None)
    finding = only(root)
    assert (finding.kind, finding.severity) == ("missing-label", "warning")
    assert finding.path == root / "labels/train/x.txt"
    assert "background" in finding.detail


@pytest.mark.parametrize(
    ("label", "detail"),
    [
        ("0 0.5 0.5 0.2\n", "line 1: 4 columns"),
        ("0 0.5 0.5 0.2 0.2\n0 0.5 0.5 0.2 0.2 0.9\n", "line 2: 6 columns"),
        ("0 0.5 0.5 0.2 0.2 0.1 0.1 0.1\n", "line 1: 8 columns"),
        ("car 0.5 0.5 0.2 0.2\n", "is not numbers"),
        ("0 0.5 nan 0.2 0.2\n", "finite"),
        ("0.5 0.5 0.5 0.2 0.2\n", "whole class id"),
        ("0 0.5 0.5 0 0.2\n", "must be above 0"),
        ("0 0.5 0.5 0.2 -0.005\n", "must be above 0"),
        ("0 0.1 0.1 0.1 0.5 0.1 0.9\n", "must be above 0"),
        ("0 0.5 0.5 0.2 0.2\n0 0.1 0.1 0.5 0.1 0.5 0.5\n", "mixes boxes and polygons"),
    ],
)
def test_bad_label(root: Path, label: str, detail: str) -> None:
    add(root, "train", "x", label)
    finding = only(root)
    assert (finding.kind, finding.severity) == ("bad-label", "error")
    assert detail in finding.detail


def test_binary_label(root: Path) -> None:
    add(root, "train", "x")
    (root / "labels/train/x.txt").write_bytes(b"\xff\xfe\x00")
    finding = only(root)
    assert (finding.kind, finding.severity) == ("bad-label", "error")


@pytest.mark.parametrize("class_id", [2, -1, 80])
def test_class_out_of_range(root: Path, class_id: int) -> None:
    add(root, "val", "x", f"{class_id} 0.5 0.5 0.2 0.2\n")
    finding = only(root)
    assert (finding.kind, finding.severity) == ("class-out-of-range", "error")
    assert finding.detail == f"line 1: class {class_id}, allowed are 0 to 1"


@pytest.mark.parametrize("row", ["0 320 240 50 50", "0 -0.2 0.5 0.1 0.1", "0 0.1 0.1 1.5 0.1 0.5 0.5"])
def test_coordinates_that_ultralytics_drops(root: Path, row: str) -> None:
    add(root, "train", "x", row + "\n")
    finding = only(root)
    assert (finding.kind, finding.severity) == ("box-outside", "error")
    assert "fractions" in finding.detail


def test_box_over_the_edge(root: Path) -> None:
    add(root, "train", "x", "0 0.05 0.5 0.2 0.2\n")
    finding = only(root)
    assert (finding.kind, finding.severity) == ("box-outside", "warning")
    assert "5.0% beyond" in finding.detail


def test_one_finding_per_kind_and_file(root: Path) -> None:
    add(root, "train", "x", "9 0.5 0.5 0.2 0.2\n" * 3 + "0 0.5\n")
    findings = validate_dataset(load(root))
    assert [finding.kind for finding in findings] == ["class-out-of-range", "bad-label"]
    assert findings[0].detail.startswith("line 1:")
    assert findings[0].detail.endswith("(and 2 more)")


def test_truncated_image(root: Path) -> None:
    image = add(root, "train", "x")
    image.write_bytes(image.read_bytes()[:-200])
    finding = only(root)
    assert (finding.kind, finding.severity, finding.path) == ("unreadable-image", "error", image)


def test_text_named_as_image(root: Path) -> None:
    image = add(root, "val", "x")
    image.write_text("not found", encoding="utf-8")
    assert only(root).kind == "unreadable-image"


def test_listed_image_that_is_gone(root: Path) -> None:
    for split in ("train", "val"):
        images = [f"./images/{split}/{path.name}" for path in (root / "images" / split).iterdir()]
        (root / f"{split}.txt").write_text("\n".join([*images, f"./images/{split}/gone.jpg"]), encoding="utf-8")
        (root / "labels" / split / "gone.txt").write_text("", encoding="utf-8")
    (root / "data.yaml").write_text("{train: train.txt, val: val.txt, names: [car, sign]}", encoding="utf-8")
    findings = validate_dataset(load_dataset(root))
    assert [finding.kind for finding in findings] == ["unreadable-image"] * 2 + ["orphan-label"] * 2


def test_leak(root: Path) -> None:
    add(root, "train", "a", seed=1)
    leaked = add(root, "val", "b", seed=1)
    finding = only(root)
    assert (finding.kind, finding.severity, finding.path) == ("train-val-leak", "error", leaked)
    assert "a.jpg" in finding.detail


def test_same_size_is_no_leak(root: Path) -> None:
    for split, shade in (("train", 10), ("val", 20)):
        image = add(root, split, "s")
        image.with_suffix(".jpg").unlink()
        pixels = np.full((8, 8, 3), shade, dtype=np.uint8)
        (image.with_suffix(".bmp")).write_bytes(cv2.imencode(".bmp", pixels)[1].tobytes())
    assert validate_dataset(load(root)) == []


def test_one_split_for_both_is_one_warning(tmp_path: Path) -> None:
    add(tmp_path, "train", "a")
    add(tmp_path, "train", "b")
    finding = only(tmp_path)
    assert (finding.kind, finding.severity, finding.path) == ("train-val-leak", "warning", tmp_path)
    assert finding.detail.endswith("mAP is measured on what was trained on")
    (of_model,) = validate_dataset(replace(load(tmp_path), labelled_by="model"))
    assert of_model.detail.endswith("agreement is measured on what was trained on")


def test_orphan_label(root: Path) -> None:
    orphan = root / "labels/train/ghost.txt"
    orphan.write_text("0 0.5 0.5 0.1 0.1\n", encoding="utf-8")
    (root / "labels/train/classes.txt").write_text("car\nsign\n", encoding="utf-8")
    finding = only(root)
    assert (finding.kind, finding.severity, finding.path) == ("orphan-label", "warning", orphan)


def test_image_outside_the_list_is_no_orphan(root: Path) -> None:
    add(root, "train", "unlisted")
    (root / "train.txt").write_text("./images/train/good.jpg\n", encoding="utf-8")
    (root / "data.yaml").write_text("{train: train.txt, val: images/val, names: [car, sign]}", encoding="utf-8")
    assert validate_dataset(load_dataset(root)) == []


def test_labels_beside_the_images(tmp_path: Path) -> None:
    for split in ("a", "b"):
        folder = tmp_path / split
        folder.mkdir()
        (folder / "x.jpg").write_bytes(jpeg(ord(split)))
        (folder / "x.txt").write_text("0 0.5 0.5 0.2 0.2", encoding="utf-8")
        (folder / "readme.txt").write_text("hello", encoding="utf-8")
    (tmp_path / "data.yaml").write_text("{train: a, val: b, names: [car]}", encoding="utf-8")
    assert validate_dataset(load_dataset(tmp_path)) == []


@pytest.mark.parametrize(("split", "other"), [("train", "val"), ("val", "train")])
def test_split_without_a_box(root: Path, split: str, other: str) -> None:
    for label in (root / "labels" / split).iterdir():
        label.write_text("\ufeff \n", encoding="utf-8")
    add(root, other, "background", "")  # fine beside a labelled image
    finding = only(root)
    assert (finding.kind, finding.severity, finding.path) == ("no-box", "warning", root)
    assert finding.detail.startswith(f"{split}: not one box on 1 images")


def test_no_box_anywhere_is_one_warning(tmp_path: Path) -> None:
    add(tmp_path, "train", "a", "")
    add(tmp_path, "train", "b", "")
    assert [finding.kind for finding in validate_dataset(load(tmp_path))] == ["no-box", "train-val-leak"]


class Recording(Silent):
    """A progress that remembers its loops."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    def over(self, items: Sequence[Item], description: str) -> Iterable[Item]:
        self.seen.append((description, len(items)))
        return items


def test_progress(root: Path) -> None:
    recording = Recording()
    validate_dataset(load(root), recording)
    assert recording.seen == [("images and labels", 2), ("train/val overlap", 1)]


def test_pipes_are_findings_and_are_never_opened(root: Path) -> None:
    os.mkfifo(root / "images/train/pipe.jpg")
    (root / "labels/train/pipe.txt").write_text("0 0.5 0.5 0.2 0.2\n", encoding="utf-8")
    add(root, "train", "other", label=None)
    os.mkfifo(root / "labels/train/other.txt")
    found = {(finding.kind, finding.path.name): finding for finding in validate_dataset(load(root))}
    assert set(found) == {("unreadable-image", "pipe.jpg"), ("bad-label", "other.txt")}
    assert all("is a pipe, not a file" in finding.detail for finding in found.values())
    assert all(finding.severity == "error" for finding in found.values())
