from __future__ import annotations

import itertools
import os
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from clips import number_in, numbered, turned, write_clip

from trt_qat.errors import DatasetError
from trt_qat.runtime.frames import Frame, Source
from trt_qat.runtime.sources import open_sources


def _open(path: Path | str, **settings: object) -> Source:
    (source,) = open_sources([str(path)], **settings)  # type: ignore[arg-type]
    return source


def _read(path: Path | str, **settings: object) -> tuple[Source, list[Frame]]:
    source = _open(path, **settings)
    return source, list(source.frames())


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".avi", ".ts", ".flv"])
def test_every_frame_comes_once_in_order_with_its_time(tmp_path: Path, suffix: str) -> None:
    path = write_clip(tmp_path / f"x{suffix}", 31, fps=29.97)
    source, frames = _read(path)
    assert [number_in(frame.image_bgr) for frame in frames] == list(range(31))
    assert [frame.number for frame in frames] == list(range(31))
    assert [frame.seconds for frame in frames] == pytest.approx([number / 29.97 for number in range(31)], abs=2e-3)
    assert {(frame.source, frame.path) for frame in frames} == {(str(path), None)}
    assert (source.live, source.size_wh, source.broken, source.dropped, source.reconnects) == (
        False,
        (128, 64),
        0,
        0,
        0,
    )
    assert source.fps == pytest.approx(29.97, rel=1e-3)
    assert source.announced == (None if suffix in (".ts", ".flv") else 31)
    image_bgr = frames[0].image_bgr
    assert (image_bgr.dtype, image_bgr.shape) == (np.uint8, (64, 128, 3))
    assert image_bgr.flags["C_CONTIGUOUS"]
    assert image_bgr.flags["WRITEABLE"]


def test_pixels_are_those_of_opencv(tmp_path: Path) -> None:
    chosen = np.random.default_rng(0)
    pictures = [cv2.resize(chosen.integers(0, 256, (8, 16, 3), dtype=np.uint8), (128, 64)) for _ in range(4)]
    path = write_clip(tmp_path / "x.mp4", pictures, codec="mpeg4", fps=10)
    capture = cv2.VideoCapture(str(path))
    for frame in _read(path)[1]:
        np.testing.assert_array_equal(frame.image_bgr, capture.read()[1])
    assert not capture.read()[0]


def test_variable_rates_keep_their_timestamps(tmp_path: Path) -> None:
    seconds = [0.0, 0.04, 0.08, 1.0, 1.5, 1.52]
    path = write_clip(tmp_path / "x.mp4", 6, seconds=seconds, options={"bf": "0"})
    assert [frame.seconds for frame in _read(path)[1]] == pytest.approx(seconds, abs=1e-4)


@pytest.mark.parametrize(
    ("matrix", "upright"),
    [
        ((1, 0, 0, 1), lambda image: image),
        ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),
        ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
        ((0, -1, 1, 0), lambda image: np.rot90(image, 1)),
        ((-1, 0, 0, 1), lambda image: image[:, ::-1]),
    ],
    ids=["upright", "clockwise", "half a turn", "counter-clockwise", "mirrored"],
)
def test_rotation_is_honoured(tmp_path: Path, matrix: tuple[int, int, int, int], upright: object) -> None:
    chosen = np.random.default_rng(0)
    picture = cv2.resize(chosen.integers(0, 256, (4, 8, 3), dtype=np.uint8), (128, 64))
    path = turned(write_clip(tmp_path / "x.mp4", [picture] * 2, options={"qp": "5"}), matrix)
    source, frames = _read(path)
    expected = upright(picture)  # type: ignore[operator]
    assert source.size_wh == expected.shape[1::-1]
    assert len(frames) == 2
    assert frames[0].image_bgr.shape == expected.shape
    assert np.abs(frames[0].image_bgr.astype(int) - expected).mean() < 10


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "size_wh", "context"),
    [
        ("odd.mkv", "ffv1", "yuv420p", (641, 359), {}),
        ("alpha.mkv", "ffv1", "bgra", (129, 65), {}),
        ("gray.mkv", "ffv1", "gray", (128, 64), {}),
        ("ten bits.mkv", "libx265", "yuv420p10le", (128, 64), {"options": {"x265-params": "log-level=none"}}),
        ("interlaced.mkv", "mpeg2video", "yuv420p", (128, 64), {"options": {"flags": "+ildct+ilme"}}),
        ("full.mkv", "mjpeg", "yuvj420p", (128, 64), {}),
        ("422.mkv", "ffv1", "yuv422p", (127, 63), {}),
        ("planar.avi", "ffvhuff", "gbrp", (128, 64), {}),
    ],
)
def test_odd_sizes_and_pixel_formats(
    tmp_path: Path, name: str, codec: str, pixels: str, size_wh: tuple[int, int], context: dict[str, object]
) -> None:
    path = write_clip(tmp_path / name, 4, codec=codec, pixels=pixels, size_wh=size_wh, **context)  # type: ignore[arg-type]
    source, frames = _read(path)
    assert source.size_wh == size_wh
    assert [number_in(frame.image_bgr) for frame in frames] == [0, 1, 2, 3]
    assert {frame.image_bgr.shape for frame in frames} == {(size_wh[1], size_wh[0], 3)}
    white, black = frames[3].image_bgr.max(), frames[3].image_bgr.min()
    assert (white >= 250, black <= 5) == (True, True)  # limited and full range both end where they should


@pytest.mark.parametrize(
    ("name", "codec", "pixels"), [("x.mkv", "libx264", "yuv420p"), ("x.ts", "mpeg2video", "yuv420p"),
                                  ("x.avi", "mjpeg", "yuvj420p"), ("x.mp4", "mpeg4", "yuv420p")]
)  # fmt: skip
def test_a_damaged_middle_costs_those_frames_alone(tmp_path: Path, name: str, codec: str, pixels: str) -> None:
    path = write_clip(tmp_path / name, _noisy(60), codec=codec, pixels=pixels, options={"g": "10"}, bit_rate=4_000_000)
    content = bytearray(path.read_bytes())
    chosen = np.random.default_rng(1)
    for _ in range(30):
        content[len(content) // 2 + int(chosen.integers(len(content) // 10))] ^= int(chosen.integers(1, 256))
    path.write_bytes(content)
    source, frames = _read(path)
    assert 0 < source.broken <= 20
    assert len(frames) >= 40
    numbers = [frame.number for frame in frames]
    assert numbers == sorted(set(numbers))
    seconds = [frame.seconds or 0 for frame in frames]
    assert all(later > earlier for earlier, later in itertools.pairwise(seconds))
    said = [number_in(frame.image_bgr) for frame in frames]
    assert {*range(25), *range(50, 60)} <= set(said)  # what was not damaged, and needs nothing that was, is there


def test_a_truncated_file_ends_with_what_was_readable(tmp_path: Path) -> None:
    for suffix in ("mkv", "avi"):
        path = write_clip(tmp_path / f"x.{suffix}", _noisy(20), codec="mjpeg", pixels="yuvj420p")
        with av.open(str(path)) as whole:
            begins = [packet.pos for packet in whole.demux(video=0) if packet.pos]
        path.write_bytes(path.read_bytes()[: (begins[11] + begins[12]) // 2])
        source, frames = _read(path)
        assert [number_in(frame.image_bgr) for frame in frames] == list(range(11))
        assert source.announced == 20


def test_what_is_no_video_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name, content in {
        "empty.mp4": b"", "text.mp4": b"hello\n" * 100, "text.avi": b"RIFF", "junk.mp4": bytes(range(256)) * 40,
        "zeros.ts": bytes(10_000),
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DatasetError, match=f"{name}' cannot be read: not a video, truncated, or an unknown codec"):
            _open(tmp_path / name)
    with pytest.raises(DatasetError, match="does not exist"):
        _open(tmp_path / "none.mp4")
    assert capfd.readouterr() == ("", "")


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "device.mp4").symlink_to("/dev/zero")
    for name, message in (("pipe.mp4", "is a pipe"), ("device.mp4", "is a device")):
        with pytest.raises(DatasetError, match=message):
            _open(tmp_path / name)


@pytest.mark.parametrize(
    "content",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{there}\n#EXT-X-ENDLIST\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:{there}\n#EXT-X-ENDLIST\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile {there}\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    ],
    ids=["playlist", "playlist of file URLs", "playlist of addresses", "concat script", "session description"],
)
def test_a_file_opens_no_other_one(tmp_path: Path, content: str) -> None:
    there = write_clip(tmp_path / "there.ts", 5)
    for name in ("x.mp4", "x.ts"):
        (tmp_path / name).write_text(content.format(there=there))
        with pytest.raises(DatasetError, match="cannot be read"):
            _open(tmp_path / name)


@pytest.mark.parametrize(
    "name",
    [b"\xff\xfe", "đường phố".encode(), b"a%03d", b"-x", b"a:b", b"file:x", b"c|d", b"[a]*"],
    ids=["not UTF-8", "Vietnamese", "pattern", "option", "colon", "protocol", "pipe", "glob"],
)
def test_any_name_is_read(tmp_path: Path, name: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written = write_clip(tmp_path / "x.mp4", 3)
    named = os.fsdecode(name + b".mp4")
    written.rename(tmp_path / named)
    for given in (named, str(tmp_path / named)):
        source, frames = _read(given)
        assert (source.announced, len(frames)) == (3, 3)


def test_frames_are_not_decoded_beyond_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = write_clip(tmp_path / "large.avi", 1, codec="mjpeg", pixels="yuvj420p", size_wh=(1200, 1000))
    small = write_clip(tmp_path / "small.avi", 1, codec="mjpeg", pixels="yuvj420p")
    monkeypatch.setenv("TRT_QAT_MAX_IMAGE_MEGAPIXELS", "1")
    with pytest.raises(DatasetError, match=r"large.avi' has 1.2 megapixels"):
        _open(large)
    assert _open(small).size_wh == (128, 64)


def test_a_picture_that_grows_beyond_the_limit_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRT_QAT_MAX_IMAGE_MEGAPIXELS", "1")
    pictures = [cv2.imencode(".jpg", numbered(n, *size))[1].tobytes() for n, size in
                enumerate([(128, 64), (1200, 1000), (64, 128), (128, 64)])]  # fmt: skip
    (tmp_path / "x.mjpeg").write_bytes(b"".join(pictures))
    source, frames = _read(tmp_path / "x.mjpeg")
    assert [(frame.number, frame.image_bgr.shape[:2]) for frame in frames] == [
        (0, (64, 128)),
        (2, (128, 64)),
        (3, (64, 128)),
    ]
    assert source.broken == 1
    assert [frame.seconds for frame in frames] == pytest.approx([0, 2 / 25, 3 / 25])


def test_closing_ends_the_frames(tmp_path: Path) -> None:
    source = _open(write_clip(tmp_path / "x.mkv", 20))
    frames = source.frames()
    assert next(frames).number == 0
    source.close()
    assert list(frames) == []
    source.close()


def _noisy(frames: int) -> list[np.ndarray]:
    """Numbered frames with enough in them that each takes its share of the file."""
    chosen = np.random.default_rng(0)
    pictures = []
    for number in range(frames):
        picture = numbered(number)
        picture[30:34] = chosen.integers(0, 256, (4, 128, 3))
        pictures.append(picture)
    return pictures
