from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trt_qat.data.labels import label_defects, read_labels
from trt_qat.errors import DatasetError

SQUARE = "0 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5"
DIAMOND = "0 0.3 0.1 0.5 0.3 0.3 0.5 0.1 0.3"  # another polygon with the same box


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_boxes(tmp_path: Path) -> None:
    labels = read_labels(write(tmp_path / "a.txt", "\ufeff1 0.5 0.25 0.2 0.1\n\n0 .1 .2 .2 .4\n"), 2)
    assert labels.class_ids.tolist() == [1, 0]
    assert (labels.class_ids.dtype, labels.boxes_cxcywh.dtype) == (np.int64, np.float32)
    np.testing.assert_array_equal(labels.boxes_cxcywh, np.float32([[0.5, 0.25, 0.2, 0.1], [0.1, 0.2, 0.2, 0.4]]))
    assert len(labels) == 2


def test_missing_and_empty_are_background(tmp_path: Path) -> None:
    for labels in (read_labels(tmp_path / "none.txt", 1), read_labels(write(tmp_path / "a.txt", " \n"), 1)):
        assert labels.boxes_cxcywh.shape == (0, 4)
        assert labels.class_ids.shape == (0,)


def test_duplicates_count_once(tmp_path: Path) -> None:
    text = "1 0.5 0.5 0.2 0.2\n0 0.5 0.5 0.2 0.2\n1 0.50 0.5 0.2 2e-1\n"
    assert read_labels(write(tmp_path / "a.txt", text), 2).class_ids.tolist() == [1, 0]


def test_two_polygons_with_one_box_stay_two(tmp_path: Path) -> None:
    labels = read_labels(write(tmp_path / "a.txt", "\n".join([SQUARE, DIAMOND, SQUARE])), 1)
    np.testing.assert_allclose(labels.boxes_cxcywh, [[0.3, 0.3, 0.4, 0.4]] * 2, atol=1e-7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 0.5 0.5 0.5 0.5\n0 0.5 0.5 0.5 0.5 0.93\n", r"a\.txt' line 2: 6 columns; 5 \(class, "),
        ("7 0.5 0.5 0.5 0.5\n", "line 1: class 7, allowed are 0 to 1"),
        (f"{SQUARE}\n0 0.5 0.5 0.5 0.5\n", "mixes boxes and polygons"),
        ("0 0.5 0.5 0 0.5\n", "must be above 0"),
        ("0 320 240 50 50\n", "not in fractions"),
    ],
)
def test_one_bad_row_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "a.txt", text)
    with pytest.raises(DatasetError, match=message) as caught:
        read_labels(path, 2)
    assert "\n" not in str(caught.value)
    assert any(defect.severity == "error" for defect in label_defects(path, 2))


def test_a_warning_is_no_reason_to_leave_an_image_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "0 0.05 0.5 0.2 0.2\n")
    assert [(defect.kind, defect.severity) for defect in label_defects(path, 1)] == [("box-outside", "warning")]
    assert len(read_labels(path, 1)) == 1


GOOD = [
    "1 0.5 0.25 0.2 0.1\n0 .1 .2 .2 .4\n",
    "1 0.5 0.5 0.2 0.2\n0 0.5 0.5 0.2 0.2\n1 0.5 0.5 0.2 0.2\n",
    f"{SQUARE}\n{DIAMOND}\n{SQUARE}\n",
    "0 0.005 1.005 0.3 0.3\n",
    "",
]
BAD = ["0 0.5 0.5 0.5 0.5 0.93\n", "2 0.5 0.5 0.5 0.5\n", "0 0.5 0.5 0.5\n", f"{SQUARE}\n0 0.5 0.5 0.5 0.5\n"]


@pytest.mark.parametrize("text", GOOD + BAD)
def test_the_rules_are_those_of_ultralytics(tmp_path: Path, text: str) -> None:
    from ultralytics.data.utils import verify_image_label

    path, image = write(tmp_path / "a.txt", text), tmp_path / "a.png"
    Image.new("RGB", (32, 32)).save(image)
    file, rows, *_ = verify_image_label((str(image), str(path), "", False, 2, 0, 0, False))
    assert (file is None) == (text in BAD)
    if file is None:
        with pytest.raises(DatasetError):
            read_labels(path, 2)
        return
    labels = read_labels(path, 2)
    found = np.concatenate([labels.class_ids[:, None], labels.boxes_cxcywh], axis=1)
    np.testing.assert_allclose(found[np.lexsort(found.T)], rows[np.lexsort(rows.T)], atol=1e-7)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"0 3e38 0.5 0.1 0.1\n", "not in fractions"),
        (b"0 0.5 0.5 1e-400 0.1\n", "must be above 0"),
        (b"0 0.5 0.5 1e-300 0.1\n", "must be above 0"),  # zero once it is stored as float32
        (b"0 inf 0.5 0.1 0.1\n", "finite numbers"),
        (b"nan 0.5 0.5 0.1 0.1\n", "whole class id"),
        (b"1000000000000000000 0.5 0.5 0.1 0.1\n", "class 1e\\+18, allowed are 0 to 1"),
        (b"0 0.5 0.5 0.1 0.1\0\n", r"\\x00' is not numbers"),
        ("0 0.5 0.5 0.1 0.1\n".encode("utf-16"), "is not UTF-8 text"),
        (b"x\n" * 1_000_000, "has 1,000,000 rows, the limit is 100,000.*TRT_QAT_MAX_LABEL_ROWS=1000000"),
        (b"0 0.5 \x1b[31m 0.1 0.1\n", "x1b.* is not numbers"),
        (b"0 " + b"0.5 " * 1_000_001 + b"\n", "1000002 columns"),
        (b"0 " + b"x " * 1_000_000 + b"\n", "is not numbers"),
    ],
)
def test_rows_that_nobody_wrote(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DatasetError, match=message) as caught:
        read_labels(tmp_path / "a.txt", 2)
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()


def test_a_polygon_of_half_a_million_points(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "0 " + "0.1 0.2 0.6 0.7 " * 250_000)
    np.testing.assert_allclose(read_labels(path, 1).boxes_cxcywh, [[0.35, 0.45, 0.5, 0.5]], atol=1e-6)


def test_what_is_no_file_is_no_background(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "folder.txt").mkdir()
    for name, kind in (("pipe", "a pipe"), ("folder", "a folder")):
        with pytest.raises(DatasetError, match=f"{name}.txt' is {kind}, not a file"):
            read_labels(tmp_path / f"{name}.txt", 1)
        assert label_defects(tmp_path / f"{name}.txt", 1)[0].severity == "error"


def test_too_large_a_label_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRT_QAT_MAX_LABEL_MB", "1")
    with pytest.raises(DatasetError, match="TRT_QAT_MAX_LABEL_MB=2"):
        read_labels(write(tmp_path / "a.txt", "0 0.5 0.5 0.1 0.1\n" * 60_000), 1)
