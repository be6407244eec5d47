from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from recording import Recording

from trt_qat.data.dataset import load_dataset
from trt_qat.data.validate import validate_dataset
from trt_qat.demo.generate import DEMO_NAMES, generate_demo_image, generate_demo_set
from trt_qat.demo.signs import SignTile, render_sign
from trt_qat.errors import ArtifactError, DatasetError
from trt_qat.progress import Silent


def tree(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def sign(name: str, size: float = 96, seed: int = 0) -> SignTile:
    return render_sign(np.random.default_rng(seed), name, size)


def test_names_are_the_documented_seven() -> None:
    assert DEMO_NAMES == (
        "no_entry",
        "no_stopping",
        "speed_limit",
        "no_turning",
        "warning",
        "mandatory",
        "pedestrian_crossing",
    )


@pytest.mark.parametrize("name", DEMO_NAMES)
@pytest.mark.parametrize("size", [12.0, 40.0, 96.0])
def test_box_is_tight_around_the_visible_face(name: str, size: float) -> None:
    for seed in range(4):
        tile = sign(name, size, seed)
        visible = tile.alpha[..., 0] > 0.5
        rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
        left, top, right, bottom = tile.box_xyxy
        seen = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        slack = 1.01 if name != "warning" else 2.5 + size * 0.02  # the tip of a triangle covers little of its pixel
        assert np.abs(np.subtract(seen, (left, top, right, bottom))).max() <= slack
        assert 0.6 * size <= right - left <= 1.2 * size
        assert not tile.alpha[0].any() or size < 20, "the face is cut off by its tile"


def test_colours_follow_the_standard() -> None:
    def face(name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
        tile = sign(name)
        return np.asarray(tile.color_bgr[tile.alpha[..., 0] > 0.99].mean(axis=0))

    blue, green, red = face("no_entry")
    assert red > 1.5 * blue
    assert red > 1.5 * green
    for name in ("mandatory", "pedestrian_crossing", "no_stopping"):
        blue, green, red = face(name)
        assert blue > green
    blue, green, red = face("warning")
    assert red > 1.5 * blue
    assert green > 1.2 * blue


def test_colour_is_premultiplied() -> None:
    tile = sign("warning")
    assert (tile.color_bgr <= 255 * tile.alpha + 1e-3).all()
    assert not tile.color_bgr[tile.alpha[..., 0] == 0].any()


def test_image_and_labels_are_in_range() -> None:
    classes: Counter[int] = Counter()
    for index in range(30):
        image, boxes = generate_demo_image(np.random.default_rng([5, index]))
        assert image.shape == (320, 320, 3)
        assert image.dtype == np.uint8
        assert image.std() > 10
        assert 1 <= len(boxes) <= 4
        for class_id, x, y, width, height in boxes:
            classes[class_id] += 1
            assert 0 <= x - width / 2 < x + width / 2 <= 1
            assert 0 <= y - height / 2 < y + height / 2 <= 1
            assert 8 <= width * 320 <= 100
            assert 8 <= height * 320 <= 100
    assert set(classes) == set(range(len(DEMO_NAMES)))


def test_signs_do_not_overlap() -> None:
    several = 0
    for index in range(40):
        _, boxes = generate_demo_image(np.random.default_rng([6, index]), (96, 96))
        corners = [(x - w / 2, y - h / 2, x + w / 2, y + h / 2) for _, x, y, w, h in boxes]
        for number, a in enumerate(corners):
            for b in corners[:number]:
                several += 1
                width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
                height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
                union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
                assert width * height / union <= 0.1
    assert several > 10


def test_the_sign_is_where_the_label_says() -> None:
    """Inside its box a sign is far more saturated red than the whole picture."""
    contrasts = []
    for index in range(40):
        image, boxes = generate_demo_image(np.random.default_rng([7, index]))
        redness = image[..., 2].astype(float) - image[..., 1]
        for class_id, x, y, width, height in boxes:
            if DEMO_NAMES[class_id] == "no_entry" and width > 0.06:
                left, top = int((x - width / 2) * 320), int((y - height / 2) * 320)
                inside = redness[top : top + int(height * 320), left : left + int(width * 320)]
                contrasts.append(inside.mean() - redness.mean())
    assert len(contrasts) > 3
    assert min(contrasts) > 10


def test_wide_image() -> None:
    image, boxes = generate_demo_image(np.random.default_rng(1), (160, 96))
    assert image.shape == (96, 160, 3)
    assert boxes


def test_too_small_image_is_refused() -> None:
    with pytest.raises(DatasetError, match="at least 64x64"):
        generate_demo_image(np.random.default_rng(0), (320, 63))


def test_same_state_same_image() -> None:
    first, labels = generate_demo_image(np.random.default_rng(3), (96, 96))
    again, labels_again = generate_demo_image(np.random.default_rng(3), (96, 96))
    other, _ = generate_demo_image(np.random.default_rng(4), (96, 96))
    assert np.array_equal(first, again)
    assert labels == labels_again
    assert not np.array_equal(first, other)


def test_set_loads_and_is_clean(tmp_path: Path) -> None:
    yaml_file = generate_demo_set(tmp_path / "demo", train=6, val=3, size_wh=(96, 64))
    assert yaml_file == tmp_path / "demo" / "data.yaml"
    assert yaml_file.read_text(encoding="utf-8").startswith("path: .\n")
    dataset = load_dataset(yaml_file)
    assert (len(dataset.train), len(dataset.val)) == (6, 3)
    assert tuple(dataset.names.values()) == DEMO_NAMES
    assert cv2.imread(str(dataset.train[0])).shape == (64, 96, 3)
    assert validate_dataset(dataset) == []
    assert list(tmp_path.iterdir()) == [tmp_path / "demo"]


def test_image_i_does_not_depend_on_the_count(tmp_path: Path) -> None:
    generate_demo_set(tmp_path / "short", train=2, val=1, size_wh=(64, 64))
    generate_demo_set(tmp_path / "long", train=4, val=2, size_wh=(64, 64))
    short, long = tree(tmp_path / "short"), tree(tmp_path / "long")
    shared = [name for name in short if name != "demo.json"]
    assert len(shared) == 7
    assert {name: short[name] for name in shared} == {name: long[name] for name in shared}


def test_seeds_and_splits_differ(tmp_path: Path) -> None:
    generate_demo_set(tmp_path / "a", train=1, val=1, size_wh=(64, 64))
    generate_demo_set(tmp_path / "b", train=1, val=1, size_wh=(64, 64), seed=1)
    images = [digest for folder in "ab" for name, digest in tree(tmp_path / folder).items() if name.endswith(".jpg")]
    assert len(set(images)) == 4


def test_same_parameters_are_reused(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    generate_demo_set(out, train=2, val=1, size_wh=(64, 64))
    (out / "labels" / "train.cache").write_bytes(b"cache")  # Ultralytics leaves these
    marked = out / "images" / "train" / "train_00000.jpg"
    marked.write_bytes(b"marked")
    assert generate_demo_set(out, train=2, val=1, size_wh=(64, 64)) == out / "data.yaml"
    assert marked.read_bytes() == b"marked"


def test_other_parameters_replace_the_set(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    generate_demo_set(out, train=3, val=1, size_wh=(64, 64))
    generate_demo_set(out, train=1, val=1, size_wh=(64, 64))
    assert [path.name for path in (out / "images" / "train").iterdir()] == ["train_00000.jpg"]
    assert json.loads((out / "demo.json").read_text(encoding="utf-8"))["train"] == 1
    assert list(tmp_path.iterdir()) == [out]


def test_broken_parameter_file_means_regenerate(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    generate_demo_set(out, train=1, val=1, size_wh=(64, 64))
    (out / "demo.json").write_text("{", encoding="utf-8")
    generate_demo_set(out, train=1, val=1, size_wh=(64, 64))
    assert json.loads((out / "demo.json").read_text(encoding="utf-8"))["seed"] == 0


def test_foreign_folder_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"no demo set \(thesis.txt\)"):
        generate_demo_set(tmp_path, train=1, val=1)
    assert (tmp_path / "thesis.txt").read_text(encoding="utf-8") == "years of work"


def test_demo_set_with_foreign_files_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    generate_demo_set(out, train=1, val=1, size_wh=(64, 64))
    (out / "runs").mkdir()
    with pytest.raises(DatasetError, match="runs"):
        generate_demo_set(out, train=2, val=1, size_wh=(64, 64))
    assert (out / "runs").is_dir()


def test_out_may_be_an_empty_folder_but_not_a_file(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert generate_demo_set(empty, train=1, val=1, size_wh=(64, 64)).is_file()
    file = tmp_path / "file"
    file.write_text("x", encoding="utf-8")
    with pytest.raises(DatasetError, match="is a file"):
        generate_demo_set(file, train=1, val=1)


def test_counts_are_checked(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="1 or more"):
        generate_demo_set(tmp_path / "demo", train=0, val=1)
    assert not (tmp_path / "demo").exists()


def test_failure_leaves_nothing(tmp_path: Path) -> None:
    class Breaking(Silent):
        def over(self, items: Sequence[Any], description: str) -> Iterable[Any]:
            yield items[0]
            raise OSError(28, "No space left on device")

    with pytest.raises(ArtifactError, match="No space left"):
        generate_demo_set(tmp_path / "demo", train=2, val=1, size_wh=(64, 64), progress=Breaking())
    assert list(tmp_path.iterdir()) == []


def test_progress_sees_both_splits(tmp_path: Path) -> None:
    recording = Recording()
    generate_demo_set(tmp_path / "demo", train=2, val=1, size_wh=(64, 64), progress=recording)
    assert list(recording.seen.items()) == [("demo train", 2), ("demo val", 1)]
