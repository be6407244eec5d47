from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from trt_qat.data.dataset import (
    Dataset,
    calibration_images,
    check_classes,
    label_path,
    load_dataset,
)
from trt_qat.data.images import images_sha256
from trt_qat.errors import DatasetError

NAMES = {0: "car", 1: "sign"}


def picture(path: Path, shade: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", np.full((8, 8, 3), shade, dtype=np.uint8))[1].tobytes())
    return path


def write_yaml(path: Path, /, **content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    for split, count in (("train", 3), ("val", 2)):
        for index in range(count):
            picture(folder / "images" / split / f"{index}.png", index)
    return folder


def names_of(images: tuple[Path, ...], root: Path) -> list[str]:
    return [image.relative_to(root).as_posix() for image in images]


class TestYaml:
    def test_folders(self, root: Path) -> None:
        file = write_yaml(root / "data.yaml", path=".", train="images/train", val="images/val", names=["car", "sign"])
        dataset = load_dataset(file)
        assert dataset.source == file
        assert names_of(dataset.train, root) == ["images/train/0.png", "images/train/1.png", "images/train/2.png"]
        assert names_of(dataset.val, root) == ["images/val/0.png", "images/val/1.png"]
        assert dataset.names == NAMES

    def test_without_path_the_yaml_folder_is_the_root(self, root: Path) -> None:
        dataset = load_dataset(write_yaml(root / "a.yml", train="images/train", val="images/val", names=NAMES))
        assert len(dataset.train) == 3

    def test_absolute_path(self, root: Path, tmp_path: Path) -> None:
        file = write_yaml(tmp_path / "x" / "d.yaml", path=str(root), train="images/train", val="images/val", nc=2)
        assert len(load_dataset(file).val) == 2

    def test_yaml_folder_wins_over_cwd(self, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        picture(tmp_path / "elsewhere" / "set" / "images" / "train" / "other.png")
        monkeypatch.chdir(tmp_path / "elsewhere")
        file = write_yaml(tmp_path / "d.yaml", path="set", train="images/train", nc=1)
        assert len(load_dataset(file).train) == 3

    def test_cwd_is_the_second_choice(self, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        file = write_yaml(tmp_path / "configs" / "d.yaml", path="set", train="images/train", nc=1)
        assert len(load_dataset(file).train) == 3

    def test_relative_argument_gives_absolute_images(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_yaml(root / "data.yaml", path=".", train="images/train", names=NAMES)
        monkeypatch.chdir(root)
        dataset = load_dataset(Path("data.yaml"))
        assert dataset.source == root / "data.yaml"
        assert all(image.is_absolute() for image in dataset.train)

    def test_list_file(self, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        lines = ["./images/train/2.png", "", str(root / "images/val/0.png"), "set/images/train/1.png", "./note.md"]
        (root / "train.txt").write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
        dataset = load_dataset(write_yaml(root / "data.yaml", train="train.txt", val="images/val", nc=1))
        assert names_of(dataset.train, root) == ["images/train/1.png", "images/train/2.png", "images/val/0.png"]

    def test_list_of_folders_and_lists(self, root: Path) -> None:
        (root / "more.txt").write_text("./images/val/0.png\n./images/train/0.png\n", encoding="utf-8")
        dataset = load_dataset(write_yaml(root / "data.yaml", train=["images/train", "more.txt"], nc=1))
        assert len(dataset.train) == 4

    def test_a_folder_that_is_listed_again_and_again_is_walked_once(self, root: Path) -> None:
        listed = "images/train, " * 100_000
        (root / "data.yaml").write_text(f"train: [{listed}./images/train]\nval: images/val\nnames: [car]\n")
        started = time.perf_counter()
        dataset = load_dataset(root / "data.yaml")
        assert len(dataset.train) == 3
        assert time.perf_counter() - started < 10  # most of it reads the YAML

    @pytest.mark.parametrize(("given", "count"), [("train", 3), ("val", 2)])
    def test_missing_split_falls_back(self, root: Path, given: str, count: int) -> None:
        dataset = load_dataset(write_yaml(root / "data.yaml", names=NAMES, **{given: f"images/{given}"}))
        assert dataset.train == dataset.val
        assert len(dataset.train) == count

    def test_validation_is_another_spelling_of_val(self, root: Path) -> None:
        dataset = load_dataset(write_yaml(root / "d.yaml", train="images/train", validation="images/val", nc=1))
        assert len(dataset.val) == 2

    def test_roboflow_spelling(self, root: Path) -> None:
        dataset = load_dataset(write_yaml(root / "data.yaml", train="../images/train", val="../images/val", nc=1))
        assert len(dataset.train) == 3

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ({"names": ["car", "sign"]}, NAMES),
            ({"names": {1: "sign", 0: "car"}}, NAMES),
            ({"names": {"0": "car", "1": 7}}, {0: "car", 1: "7"}),
            ({"names": ["car", "sign"], "nc": 2}, NAMES),
            ({"nc": 2}, {0: "class_0", 1: "class_1"}),
        ],
    )
    def test_names(self, root: Path, given: dict[str, Any], expected: dict[int, str]) -> None:
        dataset = load_dataset(write_yaml(root / "data.yaml", train="images/train", **given), names={0: "model's"})
        assert dataset.names == expected
        assert list(dataset.names) == sorted(dataset.names)

    def test_names_of_the_model_fill_in(self, root: Path) -> None:
        assert load_dataset(write_yaml(root / "data.yaml", train="images/train"), names=NAMES).names == NAMES

    def test_hidden_and_other_files_are_ignored(self, root: Path) -> None:
        (root / "images/train/notes.md").write_text("x", encoding="utf-8")
        picture(root / "images/train/._0.png")
        picture(root / "images/train/deep/UPPER.PNG").rename(root / "images/train/deep/UPPER.JPG")
        dataset = load_dataset(write_yaml(root / "data.yaml", train="images/train", nc=1))
        assert [image.name for image in dataset.train] == ["0.png", "1.png", "2.png", "UPPER.JPG"]


class TestYamlErrors:
    def test_path_missing(self, tmp_path: Path) -> None:
        with pytest.raises(DatasetError, match=r"nothing.yaml' does not exist. Give a data.yaml or a folder"):
            load_dataset(tmp_path / "nothing.yaml")

    def test_not_yaml_suffix(self, tmp_path: Path) -> None:
        with pytest.raises(DatasetError, match=r"neither a .yaml file nor a folder"):
            load_dataset(picture(tmp_path / "a.png"))

    @pytest.mark.parametrize("text", ["train: [", "a: b: c", "\t- x"])
    def test_broken(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "d.yaml").write_text(text, encoding="utf-8")
        with pytest.raises(DatasetError, match="is not valid YAML") as caught:
            load_dataset(tmp_path / "d.yaml")
        assert "\n" not in str(caught.value)

    def test_not_utf8(self, tmp_path: Path) -> None:
        (tmp_path / "d.yaml").write_bytes(b"names: [\xff\xfe]")
        with pytest.raises(DatasetError, match="is not UTF-8 text"):
            load_dataset(tmp_path / "d.yaml")

    @pytest.mark.parametrize("text", ["", "- a\n", "hello"])
    def test_not_a_mapping(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "d.yaml").write_text(text, encoding="utf-8")
        with pytest.raises(DatasetError, match="must hold the keys path, train, val and names"):
            load_dataset(tmp_path / "d.yaml")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"train": "images/train"}, "has no class names"),
            ({"names": ["a"]}, "neither 'train' nor 'val'"),
            ({"train": "images/trian", "nc": 1}, "'train: images/trian' in .* does not exist"),
            ({"train": "images/train", "val": "nope", "nc": 1}, "'val: nope' in .* does not exist"),
            ({"path": "nowhere", "train": "images/train", "nc": 1}, "'path: nowhere' in .* does not exist"),
            ({"path": 3, "train": "images/train", "nc": 1}, "'path: 3' in .* must be a folder"),
            ({"train": {"a": 1}, "nc": 1}, "must be a folder, a .txt list, or a list"),
            ({"train": [1], "nc": 1}, "must be a folder, a .txt list, or a list"),
            ({"train": "images/train/0.png", "nc": 1}, "must be a folder or a .txt list"),
            ({"train": "images/train", "names": "car"}, "must be a list, or a mapping"),
            ({"train": "images/train", "names": []}, "must run from 0 without a gap"),
            ({"train": "images/train", "names": {1: "a", 2: "b"}}, "must run from 0 without a gap"),
            ({"train": "images/train", "names": {"x": "a"}}, "must be whole numbers"),
            ({"train": "images/train", "names": ["a"], "nc": 2}, "says nc: 2 but names 1 classes"),
            ({"train": "images/train", "nc": "two"}, "'nc: 'two'' in .* must be a whole number"),
            ({"train": "images/train", "nc": 0}, "'nc: 0' in .* must be a whole number"),
        ],
    )
    def test_content(self, root: Path, content: dict[str, Any], message: str) -> None:
        with pytest.raises(DatasetError, match=message) as caught:
            load_dataset(write_yaml(root / "data.yaml", **content))
        assert "\n" not in str(caught.value)

    def test_empty_split(self, root: Path) -> None:
        (root / "images" / "none").mkdir()
        with pytest.raises(DatasetError, match=r"Split 'val' of .* has no image in .*Allowed: .avif, .bmp"):
            load_dataset(write_yaml(root / "data.yaml", train="images/train", val="images/none", nc=1))

    def test_list_whose_lines_are_relative_to_the_list(
        self, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (root / "val.txt").write_text("images/val/0.png\nimages/val/1.png\n", encoding="utf-8")
        file = write_yaml(root / "data.yaml", train="images/train", val="val.txt", nc=1)
        with pytest.raises(DatasetError, match=r"Split 'val' .* lists 2 images, and none exists.*begin with './'"):
            load_dataset(file)
        (root / "val.txt").write_text("images/val/0.png\n./images/val/1.png\n", encoding="utf-8")
        assert len(load_dataset(file).val) == 2  # one is there: the other is left out where it is needed

    def test_binary_list(self, root: Path) -> None:
        (root / "train.txt").write_bytes(b"\xff\xff")
        with pytest.raises(DatasetError, match=r"has no image in .*train.txt"):
            load_dataset(write_yaml(root / "data.yaml", train="train.txt", nc=1))


class TestFolder:
    def test_the_only_yaml_is_used(self, root: Path) -> None:
        file = write_yaml(root / "signs.yml", train="images/train", names=["only"])
        dataset = load_dataset(root, names=NAMES)
        assert dataset.source == file
        assert dataset.names == {0: "only"}

    def test_layout(self, root: Path) -> None:
        (root / "images/train").rename(root / "images/train2017")
        picture(root / "images/test/t.png")
        dataset = load_dataset(root, names=NAMES)
        assert dataset.source == root
        assert dataset.names == NAMES

    def test_single_split_serves_as_both(self, tmp_path: Path) -> None:
        picture(tmp_path / "images/val2017/a.png")
        dataset = load_dataset(tmp_path, names=NAMES)
        assert dataset.train == dataset.val == (tmp_path / "images/val2017/a.png",)

    def test_images_without_splits(self, tmp_path: Path) -> None:
        picture(tmp_path / "images/a.png")
        dataset = load_dataset(tmp_path, names=NAMES)
        assert dataset.train == dataset.val == (tmp_path / "images/a.png",)

    def test_several_yamls_need_images(self, root: Path, tmp_path: Path) -> None:
        for folder in (root, tmp_path):
            write_yaml(folder / "a.yaml", nc=1)
            write_yaml(folder / "b.yaml", nc=1)
        assert len(load_dataset(root, names=NAMES).train) == 3
        with pytest.raises(DatasetError, match="2 YAML files, give one of them"):
            load_dataset(tmp_path, names=NAMES)

    def test_no_names(self, root: Path) -> None:
        with pytest.raises(DatasetError, match=r"has no class names. Add a data.yaml with 'names'"):
            load_dataset(root)

    def test_neither_yaml_nor_images(self, tmp_path: Path) -> None:
        with pytest.raises(DatasetError, match=r"neither a data.yaml nor a folder images/"):
            load_dataset(tmp_path, names=NAMES)

    def test_empty(self, tmp_path: Path) -> None:
        (tmp_path / "images/train").mkdir(parents=True)
        with pytest.raises(DatasetError, match=r"Split 'train' of .* has no image"):
            load_dataset(tmp_path, names=NAMES)


def fake(count: int, names: dict[int, str] | None = None) -> Dataset:
    images = tuple(Path(f"/x/images/{index:03d}.png") for index in range(count))
    return Dataset(Path("/x/data.yaml"), images, images[:1], names or NAMES)


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("/d/images/train/a.jpg", "/d/labels/train/a.txt"),
        ("/images/d/images/a.b.jpg", "/images/d/labels/a.b.txt"),
        ("/d/pictures/a.jpg", "/d/pictures/a.txt"),
        ("/d/myimages/a.jpg", "/d/myimages/a.txt"),
    ],
)
def test_label_path(image: str, label: str) -> None:
    assert label_path(Path(image)) == Path(label)


def test_label_path_is_that_of_ultralytics() -> None:
    from ultralytics.data.utils import img2label_paths

    images = ["/d/images/train/a.jpg", "/images/d/images/a.b.jpg", "/d/pictures/a.jpeg", "/images/x.png"]
    assert [str(label_path(Path(image))) for image in images] == img2label_paths(images)


def test_check_classes() -> None:
    check_classes(fake(1), {0: "a", 1: "b"})
    message = r"'/x/data.yaml' has 2 classes \(car, sign\), the model 80 classes \(c0, c1, c2, ...\)"
    with pytest.raises(DatasetError, match=message):
        check_classes(fake(1), {index: f"c{index}" for index in range(80)})
    with pytest.raises(DatasetError, match=r"the model 1 class \(a\)"):
        check_classes(fake(1), {0: "a"})


@pytest.mark.parametrize(
    ("total", "count", "expected"), [(10, 5, [0, 2, 4, 6, 8]), (10, 3, [0, 3, 6]), (3, 9, [0, 1, 2])]
)
def test_calibration_images(total: int, count: int, expected: list[int]) -> None:
    dataset = fake(total)
    assert calibration_images(dataset, count) == [dataset.train[index] for index in expected]


def test_calibration_images_are_distinct() -> None:
    for count in range(1, 40):
        assert len(set(calibration_images(fake(37), count))) == min(37, count)


def test_calibration_count_is_checked() -> None:
    with pytest.raises(DatasetError, match="1 or more"):
        calibration_images(fake(3), 0)


class TestHash:
    def test_order_and_place_do_not_matter(self, tmp_path: Path) -> None:
        first = [picture(tmp_path / "a/images/x.png", 1), picture(tmp_path / "a/images/s/y.png", 2)]
        second = [picture(tmp_path / "b/s/y.png", 2), picture(tmp_path / "b/x.png", 1)]
        assert images_sha256(first) == images_sha256(second) == images_sha256(iter(second[::-1]))
        assert len(images_sha256(first)) == 64

    def test_content_and_name_matter(self, tmp_path: Path) -> None:
        digests = {
            images_sha256([picture(tmp_path / "a/x.png", 1)]),
            images_sha256([picture(tmp_path / "b/x.png", 2)]),
            images_sha256([picture(tmp_path / "c/y.png", 1)]),
            images_sha256([]),
        }
        assert len(digests) == 4

    def test_missing_image(self, tmp_path: Path) -> None:
        with pytest.raises(DatasetError, match=f"{os.sep}gone.png' does not exist"):
            images_sha256([tmp_path / "gone.png"])


class TestHostile:
    """Names that are not UTF-8, things that are no files, work without end."""

    NAME = os.fsdecode(b"bi\xe1\xbb\x83n_\xff.png")

    def test_names_that_are_not_utf8(self, root: Path) -> None:
        picture(root / "images/train" / self.NAME)
        (root / "train.txt").write_bytes(b"./images/train/" + os.fsencode(self.NAME) + b"\n./images/train/0.png\n")
        (walked, listed) = (
            load_dataset(write_yaml(root / f"{kind}.yaml", train=train, nc=1)).train
            for kind, train in (("walk", "images/train"), ("list", "train.txt"))
        )
        assert [image.name for image in walked] == ["0.png", "1.png", "2.png", self.NAME]
        assert [image.name for image in listed] == ["0.png", self.NAME]
        assert len(images_sha256(walked)) == 64

    def test_a_pipe_counts_as_an_image_and_is_never_opened(self, root: Path) -> None:
        os.mkfifo(root / "images/train/pipe.jpg")
        train = load_dataset(write_yaml(root / "data.yaml", train="images/train", nc=1)).train
        assert [image.name for image in train] == ["0.png", "1.png", "2.png", "pipe.jpg"]
        with pytest.raises(DatasetError, match=r"pipe.jpg' is a pipe, not a file"):
            images_sha256(train)

    @pytest.mark.parametrize("name", ["data.yaml", "train.txt"])
    def test_descriptions_that_are_pipes(self, root: Path, name: str) -> None:
        file = write_yaml(root / "d.yaml", train="train.txt", nc=1)
        os.mkfifo(root / name)
        with pytest.raises(DatasetError, match=f"{name}' is a pipe, not a file"):
            load_dataset(root / name if name.endswith("yaml") else file)

    def test_folders_that_hold_themselves_end(self, root: Path) -> None:
        (root / "images/train/again").symlink_to(root / "images")
        (root / "images/val/itself").symlink_to(".")
        images = load_dataset(write_yaml(root / "data.yaml", train="images", nc=1)).train
        # val is found a second time through the link in train: another path, other labels
        found = [f"{split}/{index}.png" for split, count in (("train", 3), ("val", 2)) for index in range(count)]
        assert names_of(images, root) == sorted(f"images/{name}" for name in found)

    def test_the_walk_ends_at_the_limit(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TRT_QAT_MAX_FILES", "2")
        with pytest.raises(DatasetError, match=r"Split 'train' .* has 3 files.*TRT_QAT_MAX_FILES=3"):
            load_dataset(write_yaml(root / "data.yaml", train="images", nc=1))

    def test_the_whole_file_system_is_no_dataset(self, root: Path) -> None:
        with pytest.raises(DatasetError, match="is the whole file system"):
            load_dataset(write_yaml(root / "data.yaml", path="/", train=".", nc=1))

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"nc": 10**12}, r"has 1,000,000,000,000 classes, the limit is 10,000.*TRT_QAT_MAX_CLASSES"),
            ({"nc": 10**400}, "has 1e\\+18 classes|classes, the limit is 10,000"),
            ({"nc": 1e12}, "must be a whole number"),
            ({"names": ["x"] * 10_001}, "has 10,001 classes, the limit is 10,000"),
            ({"names": {0: "a", 1.5: "b"}}, "must be whole numbers: found 1.5"),
            ({"names": {0: "a", True: "b"}}, "must be whole numbers: found True"),
            ({"names": ["a\nb"]}, r"one line of 1 to 200 printable characters, found 'a\\nb'"),
            ({"names": ["\x1b[31m"]}, "printable"),
            ({"names": [["a"]]}, "printable"),
            ({"names": ["x" * 201]}, "printable"),
            ({"train": "x\0y"}, "does not exist|cannot be read"),
            ({"train": "x" * 5000}, "cannot be read: File name too long"),
            ({"path": "x" * 5000}, "cannot be read: File name too long"),
            ({"path": "https://me:geheim@host/set"}, r"https://\*\*\*@host"),
        ],
    )
    def test_one_line_each(self, root: Path, content: dict[str, Any], message: str) -> None:
        file = write_yaml(root / "data.yaml", **{"train": "images/train", "names": ["a"], **content})
        with pytest.raises(DatasetError, match=message) as caught:
            load_dataset(file)
        assert "\n" not in str(caught.value)
        assert "geheim" not in str(caught.value)
        assert len(str(caught.value)) < 12_000

    def test_an_endless_link(self, root: Path) -> None:
        (root / "loop").symlink_to("loop")
        with pytest.raises(DatasetError, match=r"does not exist|cannot be read"):
            load_dataset(write_yaml(root / "data.yaml", train="loop", nc=1))
