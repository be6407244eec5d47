"""Images, their names, videos, and what SOURCE may say."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from case import (
    CALIBRATE,
    EVALUATE,
    Case,
    Content,
    Make,
    changed,
    copied,
    cut,
    data,
    flipped,
    text,
    with_set,
    with_tiny,
    words,
)

INFER = "infer {source} --model tiny.onnx --out {out}"
FORMATS = ("jpg", "png", "bmp", "tiff", "webp", "avif")


def png(width: int, height: int, depth: int = 8, colour: int = 2, rows: bool = True) -> bytes:
    """A PNG of one colour: small, however many pixels it says it has."""
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    line = bytes(1 + (width * samples * depth + 7) // 8) if rows else b""
    packer = zlib.compressobj(6)
    body = b"".join(packer.compress(line) for _ in range(height if rows else 0)) + packer.flush()
    palette = _chunk(b"PLTE", bytes(768)) if colour == 3 else b""
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + palette + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _bmp(width: int, height: int) -> bytes:
    return (
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 154, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(100)
    )


def _text_bomb() -> bytes:
    whole = png(8, 8)
    return whole[:33] + _chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(100_000_000))) + whole[33:]


IMAGES: dict[str, tuple[str, Content]] = {
    "JPEG of 3 bytes": ("a.jpg", b"\xff\xd8\xff"),
    "JPEG of 2 bytes": ("a.jpg", b"\xff\xd8"),
    "JPEG of zeros": ("a.jpg", b"\xff\xd8\xff\xe0" + bytes(1000)),
    "empty": ("a.jpg", b""),
    "text": ("a.jpg", b"hello\n"),
    "HEIC": ("a.jpg", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)),
    "AVIF head alone": ("a.avif", b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf"),
    "PNG head alone": ("a.png", b"\x89PNG\r\n\x1a\n"),
    "PNG without rows": ("a.png", png(64, 64, rows=False)),
    "PNG of 0 pixels": ("a.png", png(0, 0)),
    "PNG 1 x 1": ("a.png", png(1, 1)),
    "PNG 1 x 30000": ("a.png", png(1, 30_000)),
    "PNG 30000 x 1": ("a.png", png(30_000, 1)),
    "PNG 13000 x 13000": ("a.png", lambda: png(13_000, 13_000)),
    "PNG 13000 x 13000 gray": ("a.png", lambda: png(13_000, 13_000, colour=0)),
    "PNG 2**31 pixels": ("a.png", png(2**31 - 1, 2**31 - 1, rows=False)),
    "PNG 100000 x 100000 of bits": ("a.png", png(100_000, 100_000, 1, 0, rows=False)),
    "PNG 16 bit": ("a.png", png(64, 64, 16, 2)),
    "PNG palette": ("a.png", png(64, 64, 8, 3)),
    "PNG gray and alpha": ("a.png", png(64, 64, 8, 4)),
    "PNG text bomb": ("a.png", _text_bomb),
    "PNG bad checksum": ("a.png", png(64, 64)[:29] + b"\0\0\0\0" + png(64, 64)[33:]),
    "BMP of 2**31": ("a.bmp", _bmp(2**31 - 1, 2**31 - 1)),
    "BMP negative": ("a.bmp", _bmp(-64, -64)),
    "BMP 0": ("a.bmp", _bmp(0, 0)),
    "TIFF loop": ("a.tif", b"II*\0\x08\0\0\0\0\0\x08\0\0\0"),
    "TIFF head": ("a.tif", b"II*\0\xff\xff\xff\xff"),
    "TIFF of 65535 entries": ("a.tif", b"II*\0\x08\0\0\0\xff\xff" + bytes(range(256)) * 100),
    "BigTIFF": ("a.tif", b"II+\0\x08\0\0\0" + b"\xff" * 16),
    "WebP head": ("a.webp", b"RIFF\x24\0\0\0WEBPVP8 \xff\xff\xff\xff"),
    "WebP of 2**24": ("a.webp", b"RIFF\x24\0\0\0WEBPVP8L\x10\0\0\0\x2f\xff\xff\xff\xff" + bytes(20)),
    "GIF as jpg": ("a.jpg", b"GIF89a\xff\xff\xff\xff\x80\0\0" + bytes(100)),
    "SVG as jpg": ("a.jpg", b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>"),
    "PostScript as jpg": ("a.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(EXECUTED) (w) file\n"),
    "PDF as png": ("a.png", b"%PDF-1.4\n"),
    "EXR as png": ("a.png", b"\x76\x2f\x31\x01" + bytes(100)),
    "HDR as jpg": ("a.jpg", b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 99999 +X 99999\n"),
    "PPM as jpg": ("a.jpg", b"P6\n99999 99999\n255\n"),
    "PPM negative": ("a.jpg", b"P6\n-5 -5\n255\n" + bytes(100)),
    "JPEG 2000 as jpg": ("a.jpg", b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100)),
    "JPEG 2000 stream": ("a.jpg", b"\xff\x4f\xff\x51" + b"\xff" * 100),
    "Sun raster": ("a.jpg", b"\x59\xa6\x6a\x95" + b"\xff" * 60),
    "ICO as png": ("a.png", b"\0\0\1\0\1\0\xff\xff" + b"\xff" * 40),
    "FITS as jpg": ("a.jpg", b"SIMPLE  =                    T" + b" " * 3000),
    "zip as png": ("a.png", b"PK\x03\x04" + bytes(100)),
    "pickle as png": ("a.png", b"\x80\x04\x95" + bytes(50)),
    "EXIF broken": ("a.jpg", b"\xff\xd8\xff\xe1\xff\xffExif\0\0II*\0\xff\xff\xff\xff" + bytes(300)),
}


def _pipe(name: str) -> Make:
    def make(place: Path, kit: Path) -> None:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).unlink(missing_ok=True)
        os.mkfifo(place / name)

    return make


def _link(target: str, name: str) -> Make:
    def make(place: Path, kit: Path) -> None:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).unlink(missing_ok=True)
        os.symlink(target, place / name)

    return make


def _folder(name: str) -> Make:
    def make(place: Path, kit: Path) -> None:
        (place / name).unlink(missing_ok=True)
        (place / name).mkdir(parents=True)

    return make


def _socket(name: str) -> Make:
    def make(place: Path, kit: Path) -> None:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).unlink(missing_ok=True)
        os.chdir((place / name).parent)
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(Path(name).name)

    return make


def _named(name: str | bytes) -> Make:
    def make(place: Path, kit: Path) -> None:
        folder = place / "named"
        folder.mkdir()
        shutil.copy(kit / "set/images/train/0.png", os.path.join(os.fsencode(folder), os.fsencode(name)))

    return make


ODD = {"pipe": _pipe, "folder": _folder, "socket": _socket,
       "zero": lambda name: _link("/dev/zero", name), "loop": lambda name: _link(Path(name).name, name),
       "nowhere": lambda name: _link("nowhere", name), "terminal": lambda name: _link("/dev/tty", name),
       "stdin": lambda name: _link("/dev/stdin", name)}  # fmt: skip

NAMES: dict[str, str | bytes] = {
    "not UTF-8": b"\xff\xfe\x80.png",
    "Latin-1": "é.png".encode("latin-1"),
    "newline": "a\nb.png",
    "carriage return": "a\rError: b.png",
    "escape": "a\x1b[2Jb.png",
    "255 bytes": "a" * 251 + ".png",
    "255 bytes of Vietnamese": "đ" * 125 + "a.png",
    "dash": "-rf.png",
    "two dashes": "--out.png",
    "blank": " .png",
    "quotes": "a'\"`$(touch EXECUTED).png",
    "percent": "%d%s%n%03d.png",
    "braces": "{0}{name}[a].png",
    "brackets of rich": "[red]a[bold].png",
    "asterisk": "*?[!a].png",
    "Vietnamese": "biển báo cấm đỗ.png",
    "decomposed": "biê\u0309n.png",
    "right to left": "\u202egnp.a.png",
    "emoji": "🚧.png",
    "semicolon": "a;touch EXECUTED;.png",
    "two dots": "a..png",
    "upper case": "A.PNG",
    "hidden": ".a.png",
    "surrogate escape": b"a\xed\xa0\x80.png",
}

SOURCES = {
    "URL with password": "http://user:hunter2@127.0.0.1:9/a.mp4",
    "RTSP with password": "rtsp://admin:hunter2@127.0.0.1:9/stream",
    "password with @": "rtsp://admin:hun@ter2hunter2@127.0.0.1:9/x",
    "password with /": "rtsp://admin:hunter2/hunter2@127.0.0.1:9/x",
    "user alone": "rtsp://hunter2@127.0.0.1:9/x",
    "no scheme": "admin:hunter2@127.0.0.1:9/x",
    "token": "https://127.0.0.1:9/a.mp4?token=hunter2",
    "access key": "https://127.0.0.1:9/a.mp4?X-Amz-Signature=hunter2",
    "fragment": "https://127.0.0.1:9/a.mp4#access_token=hunter2",
    "upper case": "RTSP://Admin:hunter2@LOCALHOST:9/x",
    "percent": "rtsp://admin:%68hunter2@localhost:9/x",
    "FTP": "ftp://user:hunter2@127.0.0.1:9/a.jpg",
    "file URL": "file:///etc/passwd",
    "GStreamer": "rtspsrc location=rtsp://user:hunter2@localhost:9/x ! decodebin ! appsink",
    "GStreamer fields": "rtspsrc location=rtsp://localhost:9/x user-id=admin user-pw=hunter2 ! appsink",
    "concat protocol": "concat:/etc/passwd|/etc/hosts.mp4",
    "pipe protocol": "pipe:0.mp4",
    "data URL": "data:image/png;base64,AAAA",
    "camera": "0",
    "video device": "/dev/video0",
    "standard input": "-",
    "standard input device": "/dev/stdin",
    "zero": "/dev/zero",
    "random as png": "/dev/urandom",
    "empty": "",
    "blank": " ",
    "NUL-like": "a%00.png",
    "long": "a" * 5000 + ".png",
    "parent": "..",
    "root": "/",
    "proc": "/proc/self/fd",
    "newline": "a\nb.png",
    "option": "--version.png",
    "escape": "\x1b[2J.png",
    "pattern": "*.png",
    "image sequence": "%03d.png",
    "not UTF-8": "\udcff.png",
}


def cases() -> Iterator[Case]:
    """All of them."""
    demo = copied("demo.safetensors", "demo.safetensors")
    calibrate = words(CALIBRATE, weights="demo.safetensors", data="set")
    validate = words("data validate set")
    for name, (file, content) in IMAGES.items():
        infer = words(INFER, source=file, out="out.png")
        yield Case(f"images/{name}", infer, with_tiny(data(file, content)), leaves=())
    for name in ("JPEG of 3 bytes", "PNG 2**31 pixels", "HEIC", "TIFF loop", "PNG text bomb", "PNG 13000 x 13000"):
        file, content = IMAGES[name]
        where = f"set/images/train/0{Path(file).suffix}"
        yield Case(f"images/validate: {name}", validate, with_set(data(where, content)))
        yield Case(f"images/calibrate: {name}", calibrate, with_set(demo, data(where, content)))
    for suffix in FORMATS:
        source = f"picture.{suffix}"
        infer = words(INFER, source=f"a.{suffix}", out="out.png")
        for share in (0.3, 0.95):
            yield Case(f"images/{suffix} cut at {share}", infer, with_tiny(changed(f"a.{suffix}", cut(share), source)))
        for seed in range(3):
            change = flipped(seed, 6, 0, 0.2)
            yield Case(f"images/{suffix} flipped {seed}", infer, with_tiny(changed(f"a.{suffix}", change, source)))
    evaluate = words(EVALUATE, model="demo.safetensors", data="set")
    for name, make in ODD.items():
        yield Case(f"images/{name} named .jpg", words(INFER, source="a.jpg", out="out.jpg"), with_tiny(make("a.jpg")))
        folder = with_tiny(data("folder/b.png", png(64, 64)), make("folder/a.jpg"))
        yield Case(f"images/{name} in a folder", words(INFER, source="folder", out="out"), folder, leaves=("out",))
        bad = with_set(make("set/images/train/0.png"))
        yield Case(f"images/validate: {name}", validate, bad)
        if name in ("pipe", "zero", "loop", "folder"):
            yield Case(f"images/calibrate: {name}", calibrate, with_set(demo, make("set/images/train/0.png")))
            yield Case(f"images/evaluate: {name}", evaluate, with_set(demo, make("set/images/val/0.png")))
    for name, file in NAMES.items():
        path = os.fsdecode(os.path.join(b"named", os.fsencode(file)))
        yield Case(f"names/{name}", ("infer", path, "--model", "tiny.onnx", "--out", "out"), with_tiny(_named(file)))
        many = ("infer", "named", "--model", "tiny.onnx", "--out", "out", "--json", "out.json")
        yield Case(f"names/folder: {name}", many, with_tiny(_named(file)))
    for name in ("not UTF-8", "newline", "Vietnamese", "255 bytes", "escape"):
        target = os.path.join(b"set/images/train", os.fsencode(NAMES[name]))
        move = _moved(target)
        yield Case(f"names/validate: {name}", validate, with_set(move))
        yield Case(f"names/calibrate: {name}", calibrate, with_set(demo, move))
    for name in ("Vietnamese", "not UTF-8", "emoji"):
        for what, environment in (("C", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
                                  ("ASCII", {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0",
                                             "PYTHONIOENCODING": "ascii"})):  # fmt: skip
            path = os.fsdecode(os.path.join(b"named", os.fsencode(NAMES[name])))
            command = ("infer", path, "--model", "tiny.onnx", "--out", "out", "--json", "out.json")
            make = with_tiny(_named(NAMES[name]))
            yield Case(f"names/{what} locale: {name}", command, make, alone=True, environment=environment)
    for suffix in ("mp4", "avi", "mkv"):
        source, infer = f"good.{suffix}", words(INFER, source=f"a.{suffix}", out=f"out.{suffix}")
        for share in (0.05, 0.5, 0.9):
            yield Case(f"videos/{suffix} cut at {share}", infer, with_tiny(changed(f"a.{suffix}", cut(share), source)))
        for seed in range(2):
            for part, (low, high) in {"head": (0, 0.1), "middle": (0.3, 0.7), "end": (0.8, 1)}.items():
                make = with_tiny(changed(f"a.{suffix}", flipped(seed, 30, low, high), source))
                yield Case(f"videos/{suffix} {part} flipped {seed}", infer, make)
        for name in ("pipe", "folder", "zero", "loop"):
            yield Case(f"videos/{suffix} {name}", infer, with_tiny(ODD[name](f"a.{suffix}")))
    infer = words(INFER, source="a.avi", out="out.avi")
    yield Case("videos/avi of 0 fps", infer, with_tiny(changed("a.avi", _avi_field(32, 0), "good.avi")))
    yield Case("videos/avi of 2**32 fps", infer, with_tiny(changed("a.avi", _avi_field(32, 1), "good.avi")))
    yield Case("videos/avi of 2**31 frames", infer, with_tiny(changed("a.avi", _avi_field(48, 2**31 - 1), "good.avi")))
    for name, content in {"empty": b"", "text": b"hello\n", "zeros": bytes(10000),
                          "playlist": b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
                          "concat script": b"ffconcat version 1.0\nfile /etc/passwd\n",
                          "session description": b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
                          "playlist of URLs": b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n"}.items():  # fmt: skip
        infer = words(INFER, source="a.mp4", out="out.mp4")
        yield Case(f"videos/{name}", infer, with_tiny(data("a.mp4", content)))
    yield Case(
        "videos/mp4 in an image's name",
        words(INFER, source="a.jpg", out="out.jpg"),
        with_tiny(copied("good.mp4", "a.jpg")),
    )
    yield Case(
        "videos/image in a video's name",
        words(INFER, source="a.mp4", out="out.mp4"),
        with_tiny(copied("picture.png", "a.mp4")),
    )
    for name, source in SOURCES.items():
        secrets = ("hunter2",) if "hunter2" in source else ()
        command = ("infer", "--model", "tiny.onnx", "--out", "out", "--json", "out.json", "--", source)
        yield Case(f"sources/{name}", command, with_tiny(), secrets=secrets)
        if secrets:
            command = ("infer", "--model", source, "--out", "out", "good.png")
            yield Case(f"sources/as model: {name}", command, with_tiny(), secrets=secrets)
    for name in ("URL with password", "token"):
        command = ("data", "validate", SOURCES[name])
        yield Case(f"sources/as data: {name}", command, secrets=("hunter2",))
        command = words(CALIBRATE, weights=SOURCES[name], data="set")
        yield Case(f"sources/as weights: {name}", command, with_set(), secrets=("hunter2",))
        command = words("lint tiny.onnx --svg {svg}", svg=SOURCES[name] + ".svg")
        yield Case(
            f"sources/as svg: {name}",
            command,
            with_tiny(text("http:", "a file\n"), text("https:", "")),
            secrets=("hunter2",),
        )


def _moved(target: bytes) -> Make:
    def make(place: Path, kit: Path) -> None:
        os.rename(place / "set/images/train/0.png", os.path.join(os.fsencode(place), target))

    return make


def _avi_field(offset: int, value: int):
    """Change a field of the main header, ``avih``; the first is the time per frame."""

    def change(content: bytes) -> bytes:
        array = bytearray(content)
        array[offset : offset + 4] = struct.pack("<I", value)
        stream = content.find(b"strh") + 8
        if offset == 32:  # scale and rate stand in the stream's header too
            array[stream + 20 : stream + 28] = struct.pack("<II", value, 0 if value == 0 else 2**32 - 1)
        return bytes(array)

    return change
