"""Targets for datasets: label lines, ``data.yaml``, annotations of other formats, images."""

from __future__ import annotations

import io
import json
import re
from functools import cache
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import cv2
import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from mutations import json_values, mutated_bytes, mutated_json, mutated_text, nudged_json, odd_numbers, text_lines
from target import Target, assert_one_line, written


def _labels() -> SearchStrategy[bytes]:
    side = st.floats(0.05, 0.75)
    centre = st.floats(0.4, 0.6)
    box = st.tuples(st.integers(0, 6), centre, centre, side, side).map(lambda values: " ".join(map(repr, values)))
    polygon = st.lists(st.floats(0, 1), min_size=6, max_size=12).map(lambda values: f"0 {' '.join(map(repr, values))}")
    number = st.one_of(st.floats(0, 1).map(repr), odd_numbers(), st.integers(-2, 9).map(str), st.floats().map(repr))
    odd = st.lists(number, min_size=0, max_size=12).map(" ".join)
    near = st.tuples(box, st.integers(0, 4), number).map(_with_column)
    inside = st.tuples(box, st.integers(1, 4), st.one_of(side.map(repr), st.sampled_from(_EDGES))).map(_with_column)
    return st.one_of(
        text_lines(inside), text_lines(st.one_of(inside, box)),
        text_lines(box), text_lines(polygon), text_lines(st.one_of(box, box, near)), text_lines(st.one_of(near, odd)),
        text_lines(st.one_of(box, st.text(max_size=20))),
    )  # fmt: skip


_EDGES = ("0.0", "1", "1.0", "1.005", "-0.005", "1e-7", "1e-46", "5e-1", "+.5", ".5", "00.5")


def _with_column(row_column_value: tuple[str, int, str]) -> str:
    row, column, value = row_column_value
    columns = row.split()
    columns[column] = value
    return " ".join(columns)


def _check_labels(content: bytes, folder: Path) -> None:
    from trt_qat.data.labels import label_defects, read_labels

    path = written(folder, "0.txt", content)
    defects = label_defects(path, 7)
    for defect in defects:
        assert_one_line(str(defect))
    labels = read_labels(path, 7)
    assert not any(defect.severity == "error" for defect in defects), "read in spite of an error"
    assert np.isfinite(labels.boxes_cxcywh).all(), "a box that is not finite"
    assert ((labels.class_ids >= 0) & (labels.class_ids < 7)).all(), "a class id out of range"
    assert (labels.boxes_cxcywh[:, 2:] > 0).all(), "a box without area"
    assert len(labels.class_ids) == len(labels.boxes_cxcywh)


def _data_yaml() -> SearchStrategy[bytes]:
    good = [
        "path: .\ntrain: images/train\nval: images/train\nnames: [a, b]\nnc: 2\n",
        "train: list.txt\nnames: {0: a}\n",
    ]
    values = json_values().map(lambda value: json.dumps({"train": "images/train", "names": value}).encode())
    others = st.tuples(st.sampled_from(["train", "val", "path", "nc", "names"]), json_values()).map(
        lambda pair: json.dumps({"train": "images/train", "names": ["a"], pair[0]: pair[1]}).encode()
    )
    names = st.one_of(
        st.lists(st.text(max_size=6), min_size=1, max_size=5), st.dictionaries(st.integers(0, 3), st.text(max_size=6))
    )
    plausible = st.tuples(names, st.one_of(st.none(), st.integers(0, 5))).map(
        lambda pair: json.dumps(
            {"train": "images/train", "names": pair[0], **({"nc": pair[1]} if pair[1] else {})}
        ).encode()
    )
    whole = {
        "path": ".", "train": "images/train", "val": ["images/train"], "names": {"0": "a", "1": "Cấm rẽ trái"}, "nc": 2,
        "test": "list.txt", "channels": 3, "download": "x",
    }  # fmt: skip
    return st.one_of(mutated_text(good), values, others, plausible, nudged_json(whole), nudged_json(whole))


def _check_data_yaml(content: bytes, folder: Path) -> None:
    from trt_qat.data.dataset import load_dataset

    (folder / "images/train").mkdir(parents=True)
    (folder / "images/train/0.png").write_bytes(b"")
    (folder / "list.txt").write_text("./images/train/0.png\n")
    dataset = load_dataset(written(folder, "data.yaml", content))
    assert list(dataset.names) == list(range(len(dataset.names)))
    assert dataset.train
    assert dataset.val


COCO = {
    "images": [
        {"id": 1, "file_name": "0.png", "width": 16, "height": 16},
        {"id": 2, "file_name": "1.png"},
        {"id": 3, "file_name": "2"},
    ],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 8, 8], "iscrowd": 0},
        {"id": 2, "image_id": 2, "category_id": 2, "bbox": [0.5, 2.5, 12.0, 10.25], "iscrowd": 0},
        {"id": 3, "image_id": 3, "category_id": 1, "bbox": [4, 4, 4, 4], "iscrowd": 1},
    ],
    "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
}
VOC = (
    "<annotation><filename>0.png</filename><size><width>16</width><height>16</height><depth>3</depth></size>"
    "<object><name>a</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax>"
    "</bndbox></object></annotation>"
)


@cache
def _png() -> bytes:
    return cv2.imencode(".png", np.arange(768, dtype=np.uint8).reshape(16, 16, 3))[1].tobytes()


def _image_folder(folder: Path) -> Path:
    (folder / "images").mkdir()
    for index in range(3):
        (folder / f"images/{index}.png").write_bytes(_png())
    return folder / "images"


def _coco() -> SearchStrategy[bytes]:
    return st.one_of(nudged_json(COCO), nudged_json(COCO), mutated_json(COCO))


def _check_coco(content: bytes, folder: Path) -> None:
    from trt_qat.data.convert import yolo_from_coco

    _check_converted(
        yolo_from_coco(written(folder, "a.json", content), _image_folder(folder), folder / "out", 0.5), folder
    )


def _voc() -> SearchStrategy[bytes]:
    """Good XML with odd values and repeated, missing or empty elements; and text that is no XML."""
    content = st.one_of(odd_numbers(), st.sampled_from(["", " ", "a", "b", "0.png", "1.png", "../0.png", "/dev/zero", "&#10;", "1", "16"]),
                        st.integers(-5, 40).map(str), st.text(max_size=8).map(escape))  # fmt: skip
    number = st.one_of(st.integers(1, 16).map(str), st.floats(0, 17).map(repr), st.sampled_from(["a", "b", "0", "1"]))
    edit = st.tuples(st.integers(0, 20), st.sampled_from(["text", "text", "text", "remove", "double"]), content)
    nudge = st.tuples(st.integers(0, 20), st.sampled_from(["text", "text", "double"]), number)
    gentle = st.lists(nudge, min_size=1, max_size=2).map(_edited_voc)
    return st.one_of(gentle, gentle, st.lists(edit, min_size=1, max_size=3).map(_edited_voc), mutated_text([VOC]))


def _edited_voc(edits: list[tuple[int, str, str]]) -> bytes:
    text = VOC
    for number, kind, content in edits:
        leaves = list(re.finditer(r"<(\w+)>([^<]*)</\1>", text))
        if not leaves:
            break
        leaf = leaves[number % len(leaves)]
        start, end = leaf.span(2) if kind == "text" else leaf.span()
        text = text[:start] + {"text": content, "remove": "", "double": leaf.group() * 2}[kind] + text[end:]
    return text.encode("utf-8", "surrogatepass")


def _check_voc(content: bytes, folder: Path) -> None:
    from trt_qat.data.convert import yolo_from_voc

    (folder / "voc").mkdir()
    (folder / "voc/1.xml").write_text(VOC.replace("0.png", "1.png"))
    written(folder / "voc", "0.xml", content)
    _check_converted(yolo_from_voc(folder / "voc", _image_folder(folder), folder / "out", 0.5), folder)


def _check_converted(yaml_file: Path, folder: Path) -> None:
    from trt_qat.data.dataset import load_dataset
    from trt_qat.data.labels import read_labels

    dataset = load_dataset(yaml_file)
    files = list((folder / "out").rglob("labels/**/*.txt"))
    assert len(files) == len(dataset.train) + len(dataset.val), "images without a label file"
    for file in files:
        boxes = read_labels(file, len(dataset.names)).boxes_cxcywh
        corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2])
        assert ((corners > -1e-5) & (corners < 1 + 1e-5)).all(), "a box that reaches out of its image"


@cache
def _pictures() -> list[bytes]:
    image = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    made = [cv2.imencode(f".{suffix}", image)[1].tobytes() for suffix in ("jpg", "png", "bmp", "tiff", "webp")]
    from PIL import Image

    turned = Image.Exif()
    turned[0x0112] = 6  # orientation
    with_exif: tuple[dict[str, Any], ...] = ({"format": "TIFF", "compression": "tiff_lzw"}, {"format": "PNG"},
                                             {"format": "JPEG", "progressive": True}, {"format": "AVIF"})  # fmt: skip
    for options in (*({**options, "exif": turned} for options in with_exif), {"format": "GIF"}, {"format": "PPM"}):
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, **options)
        made.append(stream.getvalue())
    return made


def _check_image(content: bytes, folder: Path) -> None:
    from trt_qat.vision.image import image_size, read_image_bgr

    path = written(folder, "a.jpg", content)
    image = read_image_bgr(path)
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3
    assert image_size(path) == (image.shape[1], image.shape[0])


TARGETS = (
    Target("labels", _labels, _check_labels),
    Target("data-yaml", _data_yaml, _check_data_yaml),
    Target("coco", _coco, _check_coco),
    Target("voc", _voc, _check_voc),
    Target("image", lambda: mutated_bytes(_pictures()), _check_image),
)
