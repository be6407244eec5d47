from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from trt_qat.data.usual_size import UsualSize, usual_size
from trt_qat.errors import DatasetError


def images(folder: Path, *sizes_wh: tuple[int, int]) -> list[Path]:
    paths = [folder / f"{index}.png" for index in range(len(sizes_wh))]
    for path, size_wh in zip(paths, sizes_wh, strict=True):
        Image.new("L", size_wh).save(path)
    return paths


LYING, UPRIGHT, SQUARE = (64, 36), (36, 64), (50, 50)


@pytest.mark.parametrize(
    ("sizes_wh", "imgsz", "fitting"),
    [
        ([LYING] * 10, (384, 640), 10),
        ([UPRIGHT] * 10, (640, 384), 10),
        ([LYING] * 9 + [SQUARE], (384, 640), 9),  # one of ten is not usual
        ([LYING] * 8 + [SQUARE] * 2, (640, 640), 10),
        ([LYING] * 5 + [UPRIGHT] * 5, (640, 640), 10),
        ([LYING] * 9 + [UPRIGHT], (384, 640), 9),
        ([LYING], (384, 640), 1),
        ([LYING, (64, 48)], (480, 640), 2),
    ],
)
def test_the_size_of_most(
    tmp_path: Path, sizes_wh: list[tuple[int, int]], imgsz: tuple[int, int], fitting: int
) -> None:
    assert usual_size(images(tmp_path, *sizes_wh), 640) == UsualSize(imgsz, fitting, len(sizes_wh))


def test_what_cannot_be_read_does_not_count(tmp_path: Path) -> None:
    good = images(tmp_path, LYING)
    (broken := tmp_path / "broken.png").write_bytes(b"no image")
    assert usual_size([broken, *good], 64) == UsualSize((64, 64), 1, 1)
    with pytest.raises(DatasetError, match=r"model\.imgsz=auto.* no image can be read: Image '.*broken\.png' is not"):
        usual_size([broken], 64)
    with pytest.raises(DatasetError, match="there is none"):
        usual_size([], 64)
