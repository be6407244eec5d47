from __future__ import annotations

import contextlib
import io
import os
import random
import re
import subprocess
import sys
import warnings
import zlib
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from trt_qat.errors import DatasetError
from trt_qat.vision import quiet
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


def _saved(form: str, image: Image.Image, **settings: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **settings)
    return stream.getvalue()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


def _malformed() -> dict[str, bytes]:
    """About 200 files: each format cut at many lengths and with bytes changed, odd pixels, odd metadata, no images."""
    pixels = cv2.resize(np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8), (90, 60))
    photo = Image.fromarray(pixels)
    whole = {form: _saved(form, photo) for form in ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "AVIF", "GIF")}
    whole["LZW"] = _saved("TIFF", photo, compression="tiff_lzw")
    whole["JPEG-in-TIFF"] = _saved("TIFF", photo, compression="jpeg")
    files = {}
    for form, content in whole.items():
        for length in (1, 2, 3, 8, 13, 30, 100, len(content) // 2, len(content) - 3):
            files[f"{form} cut at {length}"] = content[:length]
        chosen = random.Random(form)
        for index in range(8):
            changed = bytearray(content)
            for _ in range(index + 1):
                changed[chosen.randrange(len(changed))] = chosen.randrange(256)
            files[f"{form} changed {index}"] = bytes(changed)
    for form, mode in [(f, m) for f in ("PNG", "TIFF") for m in ("1", "L", "LA", "P", "RGBA", "I;16")]:
        files[f"{form} {mode}"] = _saved(
            form, photo.convert("L").convert(mode) if mode == "I;16" else photo.convert(mode)
        )
    files |= {f"{form} CMYK": _saved(form, photo.convert("CMYK")) for form in ("JPEG", "TIFF")}
    files["TIFF F"], files["TIFF LAB"] = (_saved("TIFF", photo.convert(mode)) for mode in ("F", "LAB"))
    turned = [photo.rotate(90)]
    files |= {
        f"{f} moving": _saved(f, photo, save_all=True, append_images=turned) for f in ("PNG", "WEBP", "GIF", "AVIF")
    }
    files["1 x 65500"] = _saved("JPEG", Image.new("RGB", (1, 65500)))
    files["65535 x 1"] = _saved("PNG", Image.new("RGB", (65535, 1)))
    for name, exif in {
        "broken": b"II*\0\xff\xff\xff\xff",
        "garbage": bytes(range(256)) * 9,
        "huge": b"MM\0*" + b"\xff" * 60000,
    }.items():
        files[f"EXIF {name}"] = _saved("JPEG", photo, exif=b"Exif\0\0" + exif)
    jpeg, png = whole["JPEG"], whole["PNG"]
    files["extraneous bytes"] = jpeg[:-2] + b"\0\0\0" + jpeg[-2:]
    files["zeros inside"] = jpeg[: len(jpeg) // 2] + bytes(50) + jpeg[len(jpeg) // 2 :]
    files["bad profile"] = png[:33] + _chunk(b"iCCP", b"x\0\0" + zlib.compress(b"junk")) + png[33:]
    files["text bomb"] = png[:33] + _chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(20_000_000))) + png[33:]
    for side in (0, 13_000, 2**31 - 1):
        size = side.to_bytes(4, "big") * 2
        files[f"PNG of {side}"] = png[:8] + _chunk(b"IHDR", size + bytes([8, 2, 0, 0, 0])) + png[33:]
    files |= {"empty": b"", "zeros": bytes(5000), "text": b"hello", "3 bytes": b"\xff\xd8\xff"}
    files |= {
        "heic": b"\0\0\0\x18ftypheic" + bytes(99),
        "mif1": b"\0\0\0\x18ftypmif1" + bytes(99),
        "avi": b"RIFF\1\0\0\0AVI ",
    }
    return files


def test_malformed_files_are_pixels_or_one_line_and_nothing_is_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files = _malformed()
    assert len(files) > 190
    path, read, messages = tmp_path / "x.jpg", [], []
    for name, content in files.items():
        path.write_bytes(content)
        try:
            image = read_image_bgr(path)
            assert (image.dtype, image.ndim, image.shape[2]) == (np.uint8, 3, 3), name
            assert check_image(path) == (image.shape[1], image.shape[0]), name
            read.append(name)
        except DatasetError as exc:
            messages.append(str(exc))
        for other in (decode_image_bgr, image_size):
            with contextlib.suppress(DatasetError):
                other(path)
        assert capfd.readouterr() == ("", ""), name
    assert not [message for message in messages if "\n" in message or len(message) > 400 + len(str(path))]
    assert {"JPEG CMYK", "PNG LA", "PNG I;16", "TIFF 1", "1 x 65500", "EXIF broken", "WEBP moving"} <= set(read)
    assert not {"text bomb", "PNG of 13000", "TIFF F", "3 bytes", "heic", "empty"} & set(read)


def test_quick_and_checked_pixels_are_the_same_and_opencvs(tmp_path: Path) -> None:
    pixels = cv2.resize(np.random.default_rng(1).integers(0, 256, (5, 9, 3), dtype=np.uint8), (91, 53))
    for settings in ({}, {"quality": 30}, {"subsampling": 0}, {"progressive": True}):
        for image in (Image.fromarray(pixels), Image.fromarray(pixels).convert("L")):
            image.save(tmp_path / "x.jpg", **settings)
            shown = read_image_bgr(tmp_path / "x.jpg")
            np.testing.assert_array_equal(shown, decode_image_bgr(tmp_path / "x.jpg"))
            np.testing.assert_array_equal(shown, cv2.imread(str(tmp_path / "x.jpg")))
    deep = np.random.default_rng(2).integers(0, 65536, (20, 30), dtype=np.uint16)
    (tmp_path / "deep.png").write_bytes(cv2.imencode(".png", deep)[1].tobytes())
    np.testing.assert_array_equal(read_image_bgr(tmp_path / "deep.png"), np.repeat((deep >> 8)[..., None], 3, 2))


def test_too_large_names_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (1100, 1000)).save(tmp_path / "x.png")
    monkeypatch.setenv("TRT_QAT_MAX_IMAGE_MEGAPIXELS", "1")
    with pytest.raises(DatasetError, match=r"has 1.1 megapixels, the limit is 1\..*TRT_QAT_MAX_IMAGE_MEGAPIXELS=2"):
        read_image_bgr(tmp_path / "x.png")
    monkeypatch.delenv("TRT_QAT_MAX_IMAGE_MEGAPIXELS")
    (tmp_path / "x.png").write_bytes((tmp_path / "x.png").read_bytes() + bytes(1_100_000))
    monkeypatch.setenv("TRT_QAT_MAX_IMAGE_MB", "1")
    with pytest.raises(DatasetError, match="TRT_QAT_MAX_IMAGE_MB=2"):
        read_image_bgr(tmp_path / "x.png")


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    for path, kind in ((tmp_path / "pipe.jpg", "a pipe"), (Path("/dev/zero"), "a device")):
        for read in (read_image_bgr, check_image, image_size, decode_image_bgr):
            with pytest.raises(DatasetError, match=f"Image '{path}' is {kind}, not a file"):
                read(path)


NAMES = [os.fsdecode(name) for name in (b"\xff\xfe.png", "biển báo.png".encode(), b"a%03d.png", b"new\nline.png")]


@pytest.mark.parametrize("locale", [{}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
def test_any_name_in_any_locale(tmp_path: Path, locale: dict[str, str]) -> None:
    for name in NAMES:
        Image.new("RGB", (9, 5), (1, 2, 3)).save(tmp_path / "x.png")
        (tmp_path / "x.png").rename(tmp_path / name)
    script = (
        "import sys; from pathlib import Path; from trt_qat.vision.image import read_image_bgr\n"
        "for path in Path(sys.argv[1]).iterdir(): print(read_image_bgr(path)[0, 0].tolist())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, env={**os.environ, **locale}
    )
    assert (done.stdout, done.stderr, done.returncode) == ("[3, 2, 1]\n" * len(NAMES), "", 0)


def test_silence_is_shared_by_threads_and_ends(capfd: pytest.CaptureFixture[str]) -> None:
    before = warnings.filters[:]
    with quiet.NO_WARNINGS, quiet.NO_STDERR:
        with ThreadPool(4) as pool:
            pool.map(_noisy, range(32))
        os.write(2, b"lost\n")
        warnings.warn("lost", stacklevel=1)
    assert warnings.filters[:] == before
    os.write(2, b"said\n")
    assert capfd.readouterr().err == "said\n"


def _noisy(_index: int) -> None:
    with quiet.NO_WARNINGS, quiet.NO_STDERR:
        os.write(2, b"lost\n")
        warnings.warn("lost", stacklevel=1)
