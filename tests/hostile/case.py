"""What a hostile input is: the files it makes in a fresh folder, and the one command line that meets them."""

from __future__ import annotations

import base64
import json
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MARKER = "EXECUTED"  # a payload that runs makes a file whose name begins so
PYTHON_PAYLOAD = f"__import__('os').system('touch {MARKER}')"
Make = Callable[[Path, Path], object]
Content = bytes | Callable[[], bytes]  # a function where making it takes time: only the case that is run pays


def nothing(place: Path, kit: Path) -> None:
    """The command line alone is the input."""
    del place, kit


@dataclass(frozen=True)
class Case:
    """One input.

    Args:
        name: unique; the family is what stands before the first "/".
        command: the arguments of ``trt-qat``. Relative paths are inside of the case's folder.
        make: makes the files; gets the case's folder (the working folder) and the kit.
        needs: pieces of the kit, see ``kit.py``.
        alone: run a new interpreter instead of a fork, for what is decided when Python starts.
        environment: set for the command; None removes a variable.
        secrets: texts that may appear in no output and in no file that the command writes.
        leaves: paths (of files, or folders with all in them) that the command may write beside --out and --json.
        stdout: "file", "closed" or "full".
        seconds: the longest the command may take.
    """

    name: str
    command: tuple[str, ...]
    make: Make = nothing
    needs: tuple[str, ...] = ()
    alone: bool = False
    environment: Mapping[str, str | None] | None = None
    secrets: tuple[str, ...] = ()
    leaves: tuple[str, ...] = ("calib",)
    stdout: str = "file"
    seconds: float = 20.0

    @property
    def family(self) -> str:
        """What its row of the table is called."""
        return self.name.partition("/")[0]

    def written(self) -> list[str]:
        """Where the command may write: --out, --svg and --json."""
        return [
            value
            for option, value in zip(self.command, self.command[1:], strict=False)
            if option in ("--out", "--json", "--svg")
        ]


def words(text: str, **paths: str) -> tuple[str, ...]:
    """A command line as arguments; {name} is replaced by a path, which may hold blanks."""
    return tuple(word.format(**paths) for word in text.split())


SMALL = "--set quantization.images=2 --set model.imgsz=64 --set quantization.calibrator=max"
CALIBRATE = "calibrate --weights {weights} --data {data} " + SMALL + " --out out.safetensors"
EXPORT = "export {weights} --precision fp32 --set model.imgsz=64 --no-check --out out.onnx"
EVALUATE = (
    "evaluate {model} --data {data} --set evaluation.latency_iterations=2 --set evaluation.latency_warmup=1 "
    "--json out.json"
)
QAT = (
    "qat --weights {weights} --data {data} --epochs 1 --set qat.batch=2 --set model.imgsz=64 "
    "--set quantization.images=2 --set quantization.calibrator=max --out out"
)


# -- making files ------------------------------------------------------------------------------------------------------


def with_set(*more: Make) -> Make:
    """Copy the small dataset to ``set`` and go on with ``more``."""

    def make(place: Path, kit: Path) -> None:
        shutil.copytree(kit / "set", place / "set")
        for step in more:
            step(place, kit)

    return make


def with_tiny(*more: Make) -> Make:
    """Copy the tiny ONNX detector to ``tiny.onnx`` and a picture to ``good.png``."""

    def make(place: Path, kit: Path) -> None:
        shutil.copy(kit / "tiny.onnx", place / "tiny.onnx")
        shutil.copy(kit / "set/images/train/0.png", place / "good.png")
        for step in more:
            step(place, kit)

    return make


def copied(source: str, target: str) -> Make:
    """Copy a file or folder of the kit."""

    def make(place: Path, kit: Path) -> None:
        where = place / target
        where.parent.mkdir(parents=True, exist_ok=True)
        if (kit / source).is_dir():
            shutil.copytree(kit / source, where)
        else:
            shutil.copy(kit / source, where)

    return make


def text(name: str, content: str) -> Make:
    """Write a text file."""
    return data(name, content.encode("utf-8", "surrogateescape"))


def data(name: str, content: Content) -> Make:
    """Write a file."""

    def make(place: Path, kit: Path) -> None:
        del kit
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content() if callable(content) else content)

    return make


def steps(*makes: Make) -> Make:
    """One after the other."""

    def make(place: Path, kit: Path) -> None:
        for step in makes:
            step(place, kit)

    return make


def changed(name: str, change: Callable[[bytes], bytes], source: str | None = None) -> Make:
    """Write ``name`` with the changed bytes of a file of the kit (by default the one of the same name)."""

    def make(place: Path, kit: Path) -> None:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(change((kit / (source or name)).read_bytes()))

    return make


# -- bytes -------------------------------------------------------------------------------------------------------------


def flipped(seed: int, count: int = 8, start: float = 0.0, end: float = 1.0) -> Callable[[bytes], bytes]:
    """Bytes at random places of a part of the file get random values."""

    def change(content: bytes) -> bytes:
        random = np.random.default_rng(seed)
        array = bytearray(content)
        low, high = int(start * len(array)), max(int(end * len(array)), int(start * len(array)) + 1)
        for place in random.integers(low, high, count):
            array[place] = int(random.integers(256))
        return bytes(array)

    return change


def cut(share: float) -> Callable[[bytes], bytes]:
    """The beginning of the file."""
    return lambda content: content[: int(share * len(content))]


def safetensors(tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file, written by hand so that anything can stand in it."""
    kinds = {"float32": "F32", "float16": "F16", "float64": "F64", "int64": "I64", "int8": "I8", "uint8": "U8"}
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    blocks, offset = [], 0
    for name, array in tensors.items():
        block = np.ascontiguousarray(array).tobytes()
        shape = list(array.shape)
        header[name] = {"dtype": kinds[str(array.dtype)], "shape": shape, "data_offsets": [offset, offset + len(block)]}
        blocks.append(block)
        offset += len(block)
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded + b"".join(blocks)


def read_safetensors(content: bytes) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Tensors and metadata of a good safetensors file."""
    kinds = {"F32": np.float32, "F16": np.float16, "F64": np.float64, "I64": np.int64, "I8": np.int8, "U8": np.uint8}
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    body = content[8 + length :]
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        low, high = entry["data_offsets"]
        tensors[name] = np.frombuffer(body[low:high], kinds[entry["dtype"]]).reshape(entry["shape"])
    return tensors, metadata


def checkpoint_with(
    change_header: Callable[[dict[str, Any]], object] | None = None,
    change_tensors: Callable[[dict[str, NDArray[Any]]], object] | None = None,
) -> Callable[[bytes], bytes]:
    """A checkpoint whose header (a dict, changed in place) or tensors are different."""

    def change(content: bytes) -> bytes:
        tensors, metadata = read_safetensors(content)
        header = json.loads(metadata["header"])
        header.setdefault("format", metadata.get("format", header.get("format")))
        if change_header is not None:
            change_header(header)
        if change_tensors is not None:
            change_tensors(tensors)
        return safetensors(tensors, {"header": json.dumps(header)})

    return change


def at(content: Any, path: str) -> Iterator[tuple[Any, Any]]:
    """The container and the key of a dotted path."""
    *parents, leaf = path.split(".")
    for part in parents:
        content = content[int(part) if isinstance(content, list) else part]
    yield content, int(leaf) if isinstance(content, list) else leaf


def setting(path: str, value: Any) -> Callable[[Any], None]:
    """Sets a value in nested JSON, in place."""

    def change(content: Any) -> None:
        for container, key in at(content, path):
            container[key] = value

    return change


def without(path: str) -> Callable[[Any], None]:
    """Removes a value from nested JSON, in place."""

    def change(content: Any) -> None:
        for container, key in at(content, path):
            del container[key]

    return change


def json_with(change: Callable[[Any], object]) -> Callable[[bytes], bytes]:
    """A JSON file that is changed in place."""

    def changed_bytes(content: bytes) -> bytes:
        values = json.loads(content)
        change(values)
        return json.dumps(values).encode()

    return changed_bytes


def deep(depth: int, opening: str = "[", closing: str = "]") -> str:
    """Brackets in brackets."""
    return opening * depth + closing * depth


def shown(content: bytes) -> str:
    """Bytes as text for a report."""
    return base64.b64encode(content[:60]).decode()
