from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image

from trt_qat.data.convert import yolo_from_coco, yolo_from_voc
from trt_qat.data.dataset import label_path, load_dataset
from trt_qat.data.validate import validate_dataset
from trt_qat.errors import ArtifactError, DatasetError


def picture(path: Path, width: int = 40, height: int = 20, shade: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", np.full((height, width, 3), shade, dtype=np.uint8))[1].tobytes())
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for index in range(5):
        picture(tmp_path / "images" / f"{index}.png", shade=index)
    return tmp_path / "images"


def coco(**changes: Any) -> dict[str, Any]:
    """Five images as in the Zalo traffic-sign file: category ids from 1, a street_id, one box each."""
    content: dict[str, Any] = {
        "info": {},
        "images": [
            {"id": index, "file_name": f"{index}.png", "width": 40, "height": 20, "street_id": 1} for index in range(5)
        ],
        "annotations": [
            {"id": index, "image_id": index, "category_id": 2, "bbox": [4, 2, 8, 4], "iscrowd": 0} for index in range(5)
        ],
        "categories": [{"id": 2, "name": "No stopping"}, {"id": 1, "name": "No entry"}],
    }
    return content | changes


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def labels_of(yaml_file: Path) -> dict[str, list[list[float]]]:
    dataset = load_dataset(yaml_file)
    return {
        image.name: [[float(v) for v in line.split()] for line in label_path(image).read_text("utf-8").splitlines()]
        for image in dataset.train + dataset.val
    }


def photo(path: Path, orientation: int = 6) -> Path:
    """40 x 20 pixels stored, which the camera held upright: shown as 20 x 40."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.new("RGB", (40, 20), (path.stem.count("a") * 9, 9, 9)).save(path, exif=exif)
    return path


UPRIGHT = [4, 30, 8, 6]  # x, y, width, height in the shown 20 x 40: outside of the stored 40 x 20


class TestCoco:
    @pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".avif"])
    @pytest.mark.parametrize("size", [{}, {"width": 40, "height": 20}, {"width": 20, "height": 40}], ids=str)
    def test_the_shown_size_counts(
        self, tmp_path: Path, suffix: str, size: dict[str, int], caplog: pytest.LogCaptureFixture
    ) -> None:
        for name in ("a", "aa"):
            photo(tmp_path / "photos" / f"{name}{suffix}")
        content = coco(
            images=[{"id": i, "file_name": f"{name}{suffix}", **size} for i, name in enumerate(("a", "aa"))],
            annotations=[{"id": i, "image_id": i, "category_id": 1, "bbox": UPRIGHT} for i in (0, 1)],
        )
        yaml_file = yolo_from_coco(write(tmp_path / "a.json", content), tmp_path / "photos", tmp_path / "out")
        assert list(labels_of(yaml_file).values()) == [[[0, 0.4, 0.825, 0.4, 0.15]]] * 2
        assert validate_dataset(load_dataset(yaml_file)) == []
        exchanged = "2 images are listed with width and height exchanged"
        assert (exchanged in caplog.text) == (size.get("width") == 40)

    def test_boxes_of_a_larger_copy_fit_a_smaller_one(self, tmp_path: Path, images: Path) -> None:
        entries = [{"id": i, "file_name": f"{i}.png", "width": 400, "height": 200} for i in range(5)]
        boxes = [{"id": i, "image_id": i, "category_id": 2, "bbox": [40, 20, 80, 40]} for i in range(5)]
        file = write(tmp_path / "a.json", coco(images=entries, annotations=boxes))
        assert labels_of(yolo_from_coco(file, images, tmp_path / "out"))["0.png"] == [[1, 0.2, 0.2, 0.2, 0.2]]

    def test_not_one_box_inside_is_an_error(self, tmp_path: Path, images: Path) -> None:
        boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [400, 300, 60, 40]} for i in range(5)]
        with pytest.raises(DatasetError, match="Not one of 5 boxes is left inside its image"):
            yolo_from_coco(write(tmp_path / "a.json", coco(annotations=boxes)), images, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_result_loads_and_is_clean(self, tmp_path: Path, images: Path) -> None:
        yaml_file = yolo_from_coco(write(tmp_path / "a.json", coco()), images, tmp_path / "out")
        assert yaml_file == tmp_path / "out" / "data.yaml"
        assert yaml_file.read_text(encoding="utf-8").startswith("path: .\ntrain: images/train\nval: images/val\n")
        dataset = load_dataset(yaml_file)
        assert dataset.names == {0: "No entry", 1: "No stopping"}
        assert (len(dataset.train), len(dataset.val)) == (4, 1)
        assert labels_of(yaml_file) == {f"{index}.png": [[1, 0.2, 0.2, 0.2, 0.2]] for index in range(5)}
        assert validate_dataset(dataset) == []
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "images", "out"]

    def test_folder_can_be_moved(self, tmp_path: Path, images: Path) -> None:
        yolo_from_coco(write(tmp_path / "a.json", coco()), images, tmp_path / "out")
        (tmp_path / "out").rename(tmp_path / "moved")
        assert len(load_dataset(tmp_path / "moved").train) == 4

    def test_images_are_hard_links(self, tmp_path: Path, images: Path) -> None:
        yaml_file = yolo_from_coco(write(tmp_path / "a.json", coco()), images, tmp_path / "out")
        for image in load_dataset(yaml_file).train:
            assert image.samefile(images / image.name)

    def test_copied_where_links_are_impossible(
        self, tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def no_link(source: Path, target: Path) -> None:
            raise OSError(18, "Invalid cross-device link")

        monkeypatch.setattr(os, "link", no_link)
        yaml_file = yolo_from_coco(write(tmp_path / "a.json", coco()), images, tmp_path / "out")
        image = load_dataset(yaml_file).train[0]
        assert not image.samefile(images / image.name)
        assert image.read_bytes() == (images / image.name).read_bytes()

    def test_symbolic_links_are_followed(self, tmp_path: Path, images: Path) -> None:
        linked = tmp_path / "linked"
        linked.mkdir()
        for image in images.iterdir():
            (linked / image.name).symlink_to(Path("..") / "images" / image.name)
        yaml_file = yolo_from_coco(write(tmp_path / "a.json", coco()), linked, tmp_path / "deep" / "out")
        assert validate_dataset(load_dataset(yaml_file)) == []

    def test_split_follows_seed_and_fraction(self, tmp_path: Path, images: Path) -> None:
        file = write(tmp_path / "a.json", coco())

        def val(seed: int, fraction: float, out: str) -> set[str]:
            yaml_file = yolo_from_coco(file, images, tmp_path / out, val_fraction=fraction, seed=seed)
            return {image.name for image in load_dataset(yaml_file).val}

        assert val(0, 0.4, "a") == val(0, 0.4, "b")
        assert len(val(0, 0.4, "c")) == 2
        assert len({frozenset(val(seed, 0.4, f"s{seed}")) for seed in range(5)}) > 1
        assert len(val(0, 0.001, "d")) == 1
        assert len(val(0, 0.999, "e")) == 4

    def test_boxes_are_clipped_and_slips_dropped(
        self, tmp_path: Path, images: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        boxes = [[-10, -10, 30, 20], [30, 10, 100, 100], [50, 5, 10, 10], [3, 3, 0, 5], [3, 3, -2, 5], [3, 3, 5, 0.5]]
        annotations = [{"id": i, "image_id": 0, "category_id": 1, "bbox": box} for i, box in enumerate(boxes)]
        annotations.append({"id": 9, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "iscrowd": 1})
        with caplog.at_level(logging.INFO, logger="trt_qat.data.convert"):
            file = write(tmp_path / "a.json", coco(annotations=annotations))
            found = labels_of(yolo_from_coco(file, images, tmp_path / "out"))
        assert found["0.png"] == [[0, 0.25, 0.25, 0.5, 0.5], [0, 0.875, 0.75, 0.25, 0.5]]
        assert found["1.png"] == []
        assert "4 train and 1 val images, 2 boxes" in caplog.text
        assert "4 degenerate boxes" in caplog.text
        assert "1 crowd annotations" in caplog.text

    @pytest.mark.parametrize(
        "entry",
        [
            {"file_name": "7"},
            {"file_name": "some/where/7.png"},
            {"file_name": "/another/machine/7.png"},
            {"file_name": "C:\\another\\7.png"},
            {"file_name": "../../7"},
            {},
        ],
        ids=["no suffix", "no such folder", "absolute", "windows", "upwards", "no name"],
    )
    def test_spellings_of_the_file_name(self, tmp_path: Path, images: Path, entry: dict[str, str]) -> None:
        picture(images / "7.png", width=80, height=40)
        content = coco()
        content["images"].append({"id": 7, **entry})
        content["annotations"].append({"id": 7, "image_id": 7, "category_id": 1, "bbox": [8, 4, 16, 8]})
        found = labels_of(yolo_from_coco(write(tmp_path / "a.json", content), images, tmp_path / "out"))
        assert found["7.png"] == [[0, 0.2, 0.2, 0.2, 0.2]]

    def test_equal_names_in_folders_do_not_collide(self, tmp_path: Path) -> None:
        images = tmp_path / "images"
        for index, name in enumerate(("a/1.png", "b/1.png", "a_1.png", "c.png", "c.bmp")):
            picture(images / name, shade=index)
        entries = [{"id": i, "file_name": n} for i, n in enumerate(("a/1.png", "b/1.png", "a_1.png", "c.png", "c.bmp"))]
        content = coco(images=entries)
        found = labels_of(yolo_from_coco(write(tmp_path / "a.json", content), images, tmp_path / "out"))
        assert set(found) == {"a_1.png", "b_1.png", "a_1_2.png", "c.png", "c_2.bmp"}
        assert all(len(boxes) == 1 for boxes in found.values())

    def test_images_without_a_file_are_left_out(
        self, tmp_path: Path, images: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (images / "3.png").unlink()
        found = labels_of(yolo_from_coco(write(tmp_path / "a.json", coco()), images, tmp_path / "out"))
        assert set(found) == {"0.png", "1.png", "2.png", "4.png"}
        assert "1 images without a file" in caplog.text

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"images": None}, "the lists images, annotations, categories are needed"),
            ({"categories": []}, "no categories"),
            ({"categories": [{"id": 1}]}, "KeyError 'name'"),
            ({"images": [{"file_name": "0.png"}]}, "KeyError 'id'"),
            ({"annotations": [{"image_id": 0, "category_id": 1}]}, "KeyError 'bbox'"),
            ({"annotations": [{"image_id": 0, "category_id": 1, "bbox": [1, 2, 3]}]}, "not enough values"),
            ({"annotations": [{"image_id": 0, "category_id": 9, "bbox": [1, 2, 3, 4]}]}, "KeyError 9"),
            (
                {"annotations": [{"image_id": 99, "category_id": 1, "bbox": [1, 2, 3, 4]}]},
                "image 99, which is not listed",
            ),
            ({"annotations": [7]}, "TypeError"),
            ({"images": []}, "image 0, which is not listed"),
        ],
    )
    def test_broken_content(self, tmp_path: Path, images: Path, change: dict[str, Any], message: str) -> None:
        with pytest.raises(DatasetError, match=message):
            yolo_from_coco(write(tmp_path / "a.json", coco(**change)), images, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_not_json_and_not_there(self, tmp_path: Path, images: Path) -> None:
        (tmp_path / "a.json").write_text("{", encoding="utf-8")
        with pytest.raises(DatasetError, match="is not valid JSON"):
            yolo_from_coco(tmp_path / "a.json", images, tmp_path / "out")
        with pytest.raises(DatasetError, match=r"Annotations .*b.json' does not exist"):
            yolo_from_coco(tmp_path / "b.json", images, tmp_path / "out")
        with pytest.raises(DatasetError, match="the lists images"):
            yolo_from_coco(write(tmp_path / "c.json", [1]), images, tmp_path / "out")

    def test_no_image_found(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(DatasetError, match="0 images found, 5 missing"):
            yolo_from_coco(write(tmp_path / "a.json", coco()), tmp_path / "empty", tmp_path / "out")

    def test_unreadable_image_without_a_size(self, tmp_path: Path, images: Path) -> None:
        (images / "0.png").write_bytes(b"not a picture")
        content = coco(images=[{"id": i, "file_name": f"{i}.png"} for i in range(5)])
        with pytest.raises(DatasetError, match=r"Image '.*0.png' (is|cannot)"):
            yolo_from_coco(write(tmp_path / "a.json", content), images, tmp_path / "out")

    def test_arguments(self, tmp_path: Path, images: Path) -> None:
        file = write(tmp_path / "a.json", coco())
        with pytest.raises(DatasetError, match=r"Image folder .* does not exist"):
            yolo_from_coco(file, tmp_path / "nowhere", tmp_path / "out")
        for fraction in (0.0, 1.0, -1.0):
            with pytest.raises(DatasetError, match="above 0 and below 1"):
                yolo_from_coco(file, images, tmp_path / "out", val_fraction=fraction)
        with pytest.raises(DatasetError, match="not an empty folder"):
            yolo_from_coco(file, images, images)
        with pytest.raises(DatasetError, match="not an empty folder"):
            yolo_from_coco(file, images, file)

    def test_empty_out_is_fine(self, tmp_path: Path, images: Path) -> None:
        (tmp_path / "out").mkdir()
        assert yolo_from_coco(write(tmp_path / "a.json", coco()), images, tmp_path / "out").is_file()

    def test_failure_leaves_nothing(self, tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(self: Path, *args: Any, **kwargs: Any) -> int:
            raise OSError(28, "No space left on device")

        file = write(tmp_path / "a.json", coco())
        monkeypatch.setattr(Path, "write_text", full)
        with pytest.raises(ArtifactError, match="No space left"):
            yolo_from_coco(file, images, tmp_path / "out")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "images"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('{"images": NaN}', "is not valid JSON: NaN"),
            ("[" * 100_000, "is not valid JSON: nested too deeply"),
        ],
    )
    def test_hostile_json(self, tmp_path: Path, images: Path, text: str, message: str) -> None:
        (tmp_path / "a.json").write_text(text, encoding="utf-8")
        with pytest.raises(DatasetError, match=message):
            yolo_from_coco(tmp_path / "a.json", images, tmp_path / "out")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                {"images": [{"id": 0, "file_name": "0.png", "width": 1e308, "height": 1}]},
                r"1e\+308 x 1 pixels; allowed",
            ),
            ({"images": [7]}, "is not a COCO instances file"),
            ({"annotations": [{"image_id": 0, "category_id": 1, "bbox": [10**400, 0, 1, 1]}]}, "OverflowError"),
            ({"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "two categories have one id"),
            ({"categories": [{"id": 1, "name": "a\nb"}]}, "printable"),
            ({"categories": [{"id": i, "name": "a"} for i in range(10_001)]}, "10,001 classes, the limit is 10,000"),
        ],
    )
    def test_hostile_content(self, tmp_path: Path, images: Path, change: dict[str, Any], message: str) -> None:
        with pytest.raises(DatasetError, match=message):
            yolo_from_coco(write(tmp_path / "a.json", coco(**change)), images, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_infinite_boxes_are_clipped_or_dropped(self, tmp_path: Path, images: Path) -> None:
        text = json.dumps(coco()).replace("[4, 2, 8, 4]", "[-1e999, 0, 1e999, 9]", 1)  # JSON says 1e999, floats do not
        (tmp_path / "a.json").write_text(text, encoding="utf-8")
        found = labels_of(yolo_from_coco(tmp_path / "a.json", images, tmp_path / "out"))
        assert all(np.isfinite(found[name]).all() for name in found)

    def test_what_is_no_file(self, tmp_path: Path, images: Path, caplog: pytest.LogCaptureFixture) -> None:
        (images / "0.png").unlink()
        os.mkfifo(images / "0.png")
        found = labels_of(yolo_from_coco(write(tmp_path / "a.json", coco()), images, tmp_path / "out"))
        assert set(found) == {"1.png", "2.png", "3.png", "4.png"}
        assert "1 images that are pipes, devices or folders" in caplog.text
        os.mkfifo(tmp_path / "b.json")
        with pytest.raises(DatasetError, match=r"b.json' is a pipe, not a file"):
            yolo_from_coco(tmp_path / "b.json", images, tmp_path / "other")


LAUGHS = '<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;&b;&b;">]><annotation><folder>&c;</folder></annotation>'

OBJECT = (
    "<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin>"
    "<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
)
SIGN = ("sign", 0, (5, 3, 12, 6))  # pixels 5 to 12 of 40 and 3 to 6 of 20, counted from 1


def voc(
    folder: Path, stem: str, objects: list[Any], filename: str | None = None, size: tuple[int, int] = (40, 20)
) -> None:
    folder.mkdir(exist_ok=True)
    body = "".join(OBJECT.format(name=name, difficult=difficult, box=box) for name, difficult, box in objects)
    head = f"<filename>{filename}</filename>" if filename else ""
    shape = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    (folder / f"{stem}.xml").write_text(f"<annotation>{head}{shape}{body}</annotation>", encoding="utf-8")


@pytest.fixture
def xmls(tmp_path: Path) -> Path:
    folder = tmp_path / "xml"
    for index in range(5):
        voc(folder, str(index), [SIGN], filename=f"{index}.png")
    return folder


class TestVoc:
    def test_result_loads_and_is_clean(self, tmp_path: Path, images: Path, xmls: Path) -> None:
        voc(xmls, "0", [("car", 0, (1, 1, 40, 20)), SIGN], filename="0.png")
        yaml_file = yolo_from_voc(xmls, images, tmp_path / "out")
        dataset = load_dataset(yaml_file)
        assert dataset.names == {0: "car", 1: "sign"}
        found = labels_of(yaml_file)
        assert found["0.png"] == [[0, 0.5, 0.5, 1, 1], [1, 0.2, 0.2, 0.2, 0.2]]
        assert found["4.png"] == [[1, 0.2, 0.2, 0.2, 0.2]]
        assert validate_dataset(dataset) == []

    def test_given_names_decide_the_ids(self, tmp_path: Path, images: Path, xmls: Path) -> None:
        yaml_file = yolo_from_voc(xmls, images, tmp_path / "out", names=["sign", "tree"])
        assert load_dataset(yaml_file).names == {0: "sign", 1: "tree"}
        assert labels_of(yaml_file)["0.png"][0][0] == 0
        with pytest.raises(DatasetError, match="not in names: sign"):
            yolo_from_voc(xmls, images, tmp_path / "other", names=["tree"])

    def test_difficult_and_degenerate_objects(
        self, tmp_path: Path, images: Path, xmls: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        voc(xmls, "0", [("ghost", 1, (1, 1, 9, 9)), ("sign", 0, (9, 9, 5, 5)), ("sign", 0, (1, 1, 99, 99))])
        yaml_file = yolo_from_voc(xmls, images, tmp_path / "out")
        assert load_dataset(yaml_file).names == {0: "sign"}
        assert labels_of(yaml_file)["0.png"] == [[0, 0.5, 0.5, 1, 1]]
        assert "1 difficult objects" in caplog.text
        assert "1 degenerate boxes" in caplog.text

    def test_size_zero_is_read_from_the_image(self, tmp_path: Path, images: Path, xmls: Path) -> None:
        voc(xmls, "0", [SIGN], size=(0, 0))
        assert labels_of(yolo_from_voc(xmls, images, tmp_path / "out"))["0.png"] == [[0, 0.2, 0.2, 0.2, 0.2]]

    @pytest.mark.parametrize("size", [(0, 0), (40, 20), (20, 40)])
    def test_the_shown_size_counts(self, tmp_path: Path, size: tuple[int, int]) -> None:
        x, y, width, height = UPRIGHT
        for name in ("a", "aa"):
            photo(tmp_path / "photos" / f"{name}.jpg", orientation=8)
            voc(tmp_path / "xml", name, [("sign", 0, (x + 1, y + 1, x + width, y + height))], f"{name}.jpg", size)
        yaml_file = yolo_from_voc(tmp_path / "xml", tmp_path / "photos", tmp_path / "out")
        assert list(labels_of(yaml_file).values()) == [[[0, 0.4, 0.825, 0.4, 0.15]]] * 2

    def test_file_name_of_another_file_falls_back_to_the_stem(self, tmp_path: Path, images: Path, xmls: Path) -> None:
        voc(xmls, "0", [SIGN], filename="renamed.png")
        voc(xmls, "1", [SIGN], filename=" ")
        assert set(labels_of(yolo_from_voc(xmls, images, tmp_path / "out"))) == {f"{i}.png" for i in range(5)}

    def test_missing_image(self, tmp_path: Path, images: Path, xmls: Path, caplog: pytest.LogCaptureFixture) -> None:
        (images / "2.png").unlink()
        assert len(labels_of(yolo_from_voc(xmls, images, tmp_path / "out"))) == 4
        assert "1 images without a file" in caplog.text

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("<annotation>", "is not a Pascal VOC file"),
            ("<annotation><object><bndbox/></object></annotation>", "an object has no name"),
            ("<annotation><object><name>a</name></object></annotation>", "object 'a' has no bndbox/xmin"),
            ("<annotation><size><width>wide</width></size></annotation>", "is not a Pascal VOC file"),
            ("<!DOCTYPE a [<!ENTITY b 'c'>]><annotation>&b;</annotation>", "declares a document type"),
        ],
    )
    def test_broken_xml(self, tmp_path: Path, images: Path, xmls: Path, text: str, message: str) -> None:
        (xmls / "3.xml").write_text(text, encoding="utf-8")
        with pytest.raises(DatasetError, match=rf"3.xml.*{message}"):
            yolo_from_voc(xmls, images, tmp_path / "out")

    def test_no_xml_and_no_objects(self, tmp_path: Path, images: Path) -> None:
        with pytest.raises(DatasetError, match=r"holds no .xml file"):
            yolo_from_voc(images, images, tmp_path / "out")
        voc(tmp_path / "xml", "0", [])
        with pytest.raises(DatasetError, match="there are no classes"):
            yolo_from_voc(tmp_path / "xml", images, tmp_path / "out")

    def test_out_is_checked(self, tmp_path: Path, images: Path, xmls: Path) -> None:
        with pytest.raises(DatasetError, match="not an empty folder"):
            yolo_from_voc(xmls, images, images)

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
    def test_entities_are_refused_in_every_encoding(
        self, tmp_path: Path, images: Path, xmls: Path, encoding: str
    ) -> None:
        (xmls / "3.xml").write_text(LAUGHS, encoding=encoding)
        with pytest.raises(DatasetError, match=r"3.xml' is not a Pascal VOC file: it declares a document type"):
            yolo_from_voc(xmls, images, tmp_path / "out")

    @pytest.mark.parametrize(
        "text",
        [
            '<?xml version="1.0" encoding="nonsense"?><annotation/>',
            "<annotation><size><width>1e308</width><height>1e999</height></size></annotation>",
            "<a>" * 200_000,
            "\0",
        ],
        ids=["encoding", "size", "deep", "nul"],
    )
    def test_hostile_xml(self, tmp_path: Path, images: Path, xmls: Path, text: str) -> None:
        (xmls / "3.xml").write_text(text, encoding="utf-8")
        with pytest.raises(DatasetError, match=r"3.xml' is not a Pascal VOC file"):
            yolo_from_voc(xmls, images, tmp_path / "out")

    def test_an_annotation_that_is_a_pipe(self, tmp_path: Path, images: Path, xmls: Path) -> None:
        os.mkfifo(xmls / "pipe.xml")
        with pytest.raises(DatasetError, match=r"pipe.xml' is a pipe, not a file"):
            yolo_from_voc(xmls, images, tmp_path / "out")
