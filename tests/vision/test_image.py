from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from trt_qat.errors import DatasetError
from trt_qat.vision.image import check_image, read_image_bgr


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one good image and every kind of broken one."""
    folder = tmp_path_factory.mktemp("images")
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    for name in ("good.png", "whole.jpg", "whole.png"):
        assert cv2.imwrite(str(folder / name), image)
    for name in ("whole.jpg", "whole.png"):
        content = (folder / name).read_bytes()
        (folder / name.replace("whole", "truncated")).write_bytes(content[: len(content) * 2 // 3])
        (folder / name).unlink()
    (folder / "text.jpg").write_text("this is no image\n" * 50)
    (folder / "empty.jpg").touch()
    (folder / "folder.jpg").mkdir()
    (folder / "zeros.png").write_bytes(bytes(5000))
    content = bytearray(cv2.imencode(".bmp", image)[1].tobytes())
    content[18:26] = (100_000).to_bytes(4, "little") * 2  # a header that promises 10,000 megapixels
    (folder / "huge.bmp").write_bytes(content)
    return folder


BROKEN = [
    "truncated.jpg",
    "truncated.png",
    "text.jpg",
    "empty.jpg",
    "folder.jpg",
    "zeros.png",
    "huge.bmp",
    "missing.jpg",
]


def test_good_image(broken: Path) -> None:
    image = read_image_bgr(broken / "good.png")
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, cv2.imread(str(broken / "good.png")))
    assert check_image(broken / "good.png") == (64, 48)


def test_gray_and_alpha_become_three_channels(tmp_path: Path) -> None:
    for name, shape in (("gray.png", (20, 30)), ("alpha.png", (20, 30, 4))):
        cv2.imwrite(str(tmp_path / name), np.full(shape, 77, np.uint8))
        image = read_image_bgr(tmp_path / name)
        assert image.shape == (20, 30, 3)
        assert (image == 77).all()


@pytest.mark.parametrize("name", BROKEN)
def test_broken_image_is_named(broken: Path, name: str) -> None:
    for read in (read_image_bgr, check_image):
        with pytest.raises(DatasetError, match=re.escape(f"Image '{broken / name}' ")) as caught:
            read(broken / name)
        assert str(caught.value).endswith("Replace or remove it.")


def test_the_same_errors_after_importing_ultralytics(broken: Path) -> None:
    """Ultralytics replaces functions of Pillow and OpenCV; a process of its own shows what is left of the errors."""
    script = (
        "import sys; from pathlib import Path; import ultralytics; import ultralytics.utils.patches\n"
        "from trt_qat.errors import DatasetError; from trt_qat.vision.image import read_image_bgr\n"
        "assert read_image_bgr(Path(sys.argv[1], 'good.png')).shape == (48, 64, 3)\n"
        "for name in sys.argv[2:]:\n"
        "    try: read_image_bgr(Path(sys.argv[1], name))\n"
        "    except DatasetError as exc: print(name, '|', exc)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(broken), *BROKEN], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(" | ")[0] for line in lines] == BROKEN
    assert all(f"Image '{broken / name}' " in line for name, line in zip(BROKEN, lines, strict=True))
