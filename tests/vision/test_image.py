from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from trt_qat.errors import DatasetError
from trt_qat.vision.image import IMAGE_SUFFIXES, check_image, decode_image_bgr, image_size, read_image_bgr


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
    Image.fromarray(image).save(folder / "truncated.avif")
    (folder / "truncated.avif").write_bytes((folder / "truncated.avif").read_bytes()[:300])
    (folder / "text.jpg").write_text("this is no image\n" * 50)
    (folder / "empty.jpg").touch()
    (folder / "folder.jpg").mkdir()
    (folder / "zeros.png").write_bytes(bytes(5000))
    content = bytearray(cv2.imencode(".bmp", image)[1].tobytes())
    content[18:26] = (100_000).to_bytes(4, "little") * 2  # a header that promises 10,000 megapixels
    (folder / "huge.bmp").write_bytes(content)
    return folder


BROKEN = [
    "truncated.avif",
    "truncated.jpg",
    "truncated.png",
    "text.jpg",
    "empty.jpg",
    "folder.jpg",
    "zeros.png",
    "huge.bmp",
    "missing.jpg",
]
ADVICE = {
    "missing.jpg": "does not exist. Check the path.",
    "folder.jpg": "is a folder, not a file. Give a file.",
    "huge.bmp": "the limit is 128. If this is meant, raise it: TRT_QAT_MAX_IMAGE_MEGAPIXELS=10000.",
}


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


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_what_a_viewer_shows(tmp_path: Path, suffix: str, orientation: int) -> None:
    """Pixels and size are those of Pillow's upright image; for JPEG also OpenCV's own."""
    pixels = cv2.resize(np.random.default_rng(0).integers(0, 256, (5, 9, 3), dtype=np.uint8), (90, 50))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / f"turned{suffix}"
    turned = {"tiffinfo": {int(ExifTags.Base.Orientation): orientation}} if suffix == ".tif" else {"exif": exif}
    Image.fromarray(pixels).save(path, **turned)
    with Image.open(path) as image:
        shown = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))[..., ::-1]
    found = read_image_bgr(path)
    assert found.flags.c_contiguous
    np.testing.assert_allclose(found, shown, atol=2)  # two decoders of a lossy format may differ in the last bit
    np.testing.assert_array_equal(found, decode_image_bgr(path))
    assert check_image(path) == image_size(path) == (found.shape[1], found.shape[0])
    if suffix == ".jpg":
        np.testing.assert_array_equal(found, cv2.imread(str(path)))


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_every_suffix_that_counts_is_read(tmp_path: Path, suffix: str) -> None:
    Image.new("RGB", (40, 20), (200, 30, 60)).save(tmp_path / f"x{suffix}")
    image = read_image_bgr(tmp_path / f"x{suffix}")
    assert image.shape == (20, 40, 3)
    np.testing.assert_allclose(image, np.broadcast_to([60, 30, 200], image.shape), atol=6)


def test_padding_behind_the_end_and_tiny_images_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "padded.jpg"
    Image.new("RGB", (5, 3), (9, 9, 9)).save(path)
    before = read_image_bgr(path)
    path.write_bytes(path.read_bytes() + bytes(64))  # cameras pad files like this
    np.testing.assert_array_equal(read_image_bgr(path), before)
    assert before.shape == (3, 5, 3)


def test_size_of_a_truncated_image_is_known(broken: Path) -> None:
    assert image_size(broken / "truncated.jpg") == (64, 48)
    with pytest.raises(DatasetError, match="is not an image"):
        image_size(broken / "text.jpg")


@pytest.mark.parametrize("name", BROKEN)
def test_broken_image_is_named(broken: Path, name: str) -> None:
    for read in (read_image_bgr, check_image):
        with pytest.raises(DatasetError, match=re.escape(f"Image '{broken / name}' ")) as caught:
            read(broken / name)
        assert str(caught.value).endswith(ADVICE.get(name, "Replace or remove it."))


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
