"""--out in odd places, and surroundings that a program does not expect."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from case import CALIBRATE, EXPORT, QAT, Case, Make, copied, text, with_set, with_tiny, words

COMMANDS = {
    "infer": ("infer good.png --model tiny.onnx --out {out}", ".png"),
    "infer video": ("infer good.mp4 --model tiny.onnx --out {out}", ".mp4"),
    "export": (EXPORT.format(weights="demo.safetensors").replace("out.onnx", "{out}"), ".onnx"),
    "calibrate": (
        CALIBRATE.format(weights="demo.safetensors", data="set").replace("out.safetensors", "{out}"),
        ".safetensors",
    ),
    "qat": (QAT.format(weights="demo.safetensors", data="set").replace("--out out", "--out {out}"), ""),
    "lint": ("lint tiny.onnx --svg {out}", ".svg"),
    "json": ("lint tiny.onnx --json {out}", ".json"),
    "convert": ("data convert --from coco --annotations coco.json --images set/images/train --out {out}", ""),
    "demo": ("data demo --train 1 --val 1 --out {out}", ""),
}
COCO = (
    '{"images": [{"id": 1, "file_name": "0.png"}, {"id": 2, "file_name": "1.png"}], "categories": [{"id": 1, "name": "a"}], '
    '"annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 8, 20, 20]}]}'
)


def _read_only(place: Path, kit: Path) -> None:
    (place / "closed").mkdir()
    (place / "closed").chmod(0o500)


def _existing_folder(suffix: str) -> Make:
    def make(place: Path, kit: Path) -> None:
        (place / f"there{suffix}").mkdir()
        (place / f"there{suffix}/mine.txt").write_text("mine\n")

    return make


def _link(target: str, name: str) -> Make:
    return lambda place, kit: os.symlink(target, place / name)


def _pipe(name: str) -> Make:
    return lambda place, kit: os.mkfifo(place / name)


def cases() -> Iterator[Case]:
    """All of them."""
    inputs = with_tiny(
        with_set(
            copied("demo.safetensors", "demo.safetensors"), copied("good.mp4", "good.mp4"), text("coco.json", COCO)
        )
    )
    for name, (command, suffix) in COMMANDS.items():
        places: dict[str, tuple[str, Make]] = {
            "existing folder": (f"there{suffix}", _existing_folder(suffix)),
            "device": (f"/dev/full{suffix}", text("unused", "")),
            "full device": ("/dev/full", text("unused", "")),
            "below a file": (f"file/out{suffix}", text("file", "a file\n")),
            "in /proc": (f"/proc/out{suffix}", text("unused", "")),
            "long name": ("a" * 300 + suffix, text("unused", "")),
            "NUL-like name": (f"a\x01\x7f{suffix}", text("unused", "")),
            "dangling link": (f"link{suffix}", _link(f"none/none{suffix}", f"link{suffix}")),
            "loop": (f"loop{suffix}", _link(f"loop{suffix}", f"loop{suffix}")),
            "pipe": (f"pipe{suffix}", _pipe(f"pipe{suffix}")),
            "empty": ("", text("unused", "")),
            "dot": (".", text("unused", "")),
            "slash": ("/", text("unused", "")),
            "read-only folder": (f"closed/out{suffix}", _read_only),
        }
        for what, (out, more) in places.items():
            if (name, what) in {("infer", "dot"), ("infer", "empty"), ("infer video", "dot"), ("infer video", "empty"),
                                ("infer", "existing folder"), ("infer video", "existing folder"), ("qat", "dot"),
                                ("qat", "empty"), ("qat", "existing folder"), ("qat", "NUL-like name"),
                                ("demo", "NUL-like name"), ("convert", "NUL-like name"), ("qat", "dangling link")}:  # fmt: skip
                continue  # these are ordinary places for that command
            yield Case(f"places/{name}: {what}", words(command, out=out), _both(inputs, more), seconds=40)
    for source in ("good.png", "./good.png", "set/../good.png"):
        command = words("infer {source} --model tiny.onnx --out good.png", source=source)
        yield Case(f"places/infer: the source itself as {source}", command, inputs)
    yield Case("places/infer: a link to the source", words("infer good.png --model tiny.onnx --out link.png"),
               _both(inputs, _link("good.png", "link.png")))  # fmt: skip
    yield Case("places/infer: a hard link to the source", words("infer good.png --model tiny.onnx --out hard.png"),
               _both(inputs, lambda place, kit: os.link(place / "good.png", place / "hard.png")))  # fmt: skip
    yield Case("places/infer: the model itself", words("infer good.mp4 --model tiny.onnx --out tiny.onnx"), inputs)
    yield Case(
        "places/infer: the folder itself",
        words("infer set/images/train --model tiny.onnx --out set/images/train"),
        inputs,
    )
    yield Case(
        "places/export: the weights themselves",
        words("export demo.safetensors --precision fp32 --out demo.safetensors"),
        inputs,
    )
    yield Case("places/lint: picture over the model", words("lint tiny.onnx --svg tiny.onnx"), inputs)
    yield Case("places/lint: JSON over the model", words("lint tiny.onnx --json tiny.onnx"), inputs)
    yield Case("places/engine: over the model", words("engine tiny.onnx --out tiny.onnx"), inputs)
    yield from _surroundings(inputs)


def _surroundings(inputs: Make) -> Iterator[Case]:
    infer = words("infer good.png --model tiny.onnx --out out.png")
    video = words("infer good.mp4 --model tiny.onnx --out out.mp4")
    export = words(EXPORT, weights="demo.safetensors")
    lint = words("lint tiny.onnx")

    def read_only_home(place: Path, kit: Path) -> None:
        (place.parent / "home").chmod(0o500)

    for name, command in {"infer": infer, "export": export, "lint": lint}.items():
        settings = {"alone": True, "seconds": 60}
        yield Case(f"surroundings/{name}: no HOME", command, inputs, environment={"HOME": None}, **settings)
        yield Case(
            f"surroundings/{name}: HOME is a file", command, inputs, environment={"HOME": "/dev/null"}, **settings
        )
        yield Case(
            f"surroundings/{name}: HOME is missing",
            command,
            inputs,
            environment={"HOME": "{home}/none/none"},
            **settings,
        )
        yield Case(f"surroundings/{name}: HOME is read-only", command, _both(inputs, read_only_home), **settings)
        yield Case(f"surroundings/{name}: stdout closed", command, inputs, stdout="closed", **settings)
        yield Case(f"surroundings/{name}: stdout full", command, inputs, stdout="full", **settings)
        yield Case(
            f"surroundings/{name}: TMPDIR is missing", command, inputs, environment={"TMPDIR": "/none"}, **settings
        )
        yield Case(f"surroundings/{name}: no PATH", command, inputs, environment={"PATH": None}, **settings)
        yield Case(
            f"surroundings/{name}: odd TERM", command, inputs, environment={"TERM": "x\n", "COLUMNS": "-5"}, **settings
        )
    for name, variables in {
        "threads text": {"OMP_NUM_THREADS": "many"}, "language": {"LANG": "xx_YY.nothing", "LC_ALL": "xx_YY.nothing"},
        "coerced": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        "rank text": {"RANK": "x", "WORLD_SIZE": "y"}, "world size 0": {"RANK": "0", "WORLD_SIZE": "0"},
    }.items():  # fmt: skip
        yield Case(f"surroundings/infer: {name}", infer, inputs, alone=True, environment=variables, seconds=60)
    yield Case("surroundings/video: stdout full", video, inputs, alone=True, stdout="full", seconds=60)


def _both(first: Make, second: Make) -> Make:
    def make(place: Path, kit: Path) -> None:
        first(place, kit)
        second(place, kit)

    return make
