"""Strategies that damage what ``torch.save`` writes: a zip archive of a pickle and of tensors."""

from __future__ import annotations

import io
import pickletools
import struct
import zipfile
from collections.abc import Mapping
from functools import cache
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from mutations import mutated_bytes

_NAMES = (
    "posix system", "builtins eval", "builtins getattr", "torch FloatStorage", "torch HalfStorage", "torch._utils _rebuild_tensor_v2",
    "collections OrderedDict", "pathlib PosixPath", "ultralytics.nn.modules.conv Conv", "torch.nn.modules.conv Conv2d",
    "numpy dtype", "torch Size", "x y",
)  # fmt: skip
_FLOATS = (0.0, -1.0, float("nan"), float("inf"), 1e300, 0.5)
_INTEGERS = (0, 1, 2, 3, -1, 64, 96, 255, 2**31 - 1, -(2**31))
_TEXTS = (
    *(
        "",
        "x",
        "model",
        "ema",
        "names",
        "yaml",
        "_modules",
        "_parameters",
        "weight",
        "cpu",
        "storage",
        "0",
        "touch ran",
    ),
    *("\ud800", "a\nb\x1b[2J", "n", "nc", "imgsz", "é"),
)


def mutated_archive(good: bytes) -> SearchStrategy[bytes]:
    """A file of torch.save with steps of its pickle changed, with other numbers in a tensor, or damaged as bytes."""
    steps = _mutated_program(good).map(lambda program: _with_part(good, "/data.pkl", program))
    pickles = mutated_bytes([_parts(good)[_name(good, "/data.pkl")]]).map(
        lambda program: _with_part(good, "/data.pkl", program)
    )
    return st.one_of(steps, steps, steps, pickles, _other_storage(good), mutated_bytes([good]), _other_parts(good))


@cache
def _parts(archive: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(archive)) as stored:
        return {entry.filename: stored.read(entry) for entry in stored.infolist()}


def _name(archive: bytes, ending: str) -> str:
    return next(name for name in _parts(archive) if name.endswith(ending))


def _zipped(parts: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as stored:
        for name, content in parts.items():
            stored.writestr(zipfile.ZipInfo(name), content, compression)
    return stream.getvalue()


def _with_part(archive: bytes, ending: str, content: bytes) -> bytes:
    return _zipped({**_parts(archive), _name(archive, ending): content})


@st.composite
def _other_storage(draw: st.DrawFn, archive: bytes) -> bytes:
    """Some values of one tensor are others."""
    name = draw(st.sampled_from([name for name in _parts(archive) if "/data/" in name]))
    content = bytearray(_parts(archive)[name])
    if len(content) >= 4:
        place = draw(st.integers(0, len(content) // 4 - 1)) * 4
        content[place : place + 4] = struct.pack("<f", draw(st.sampled_from([0.0, 1.0, -3.0, 1e30, *_FLOATS[2:4]])))
    if draw(st.integers(0, 4)) == 0:
        content = content[: draw(st.integers(0, len(content)))]
    return _zipped({**_parts(archive), name: bytes(content)})


@st.composite
def _other_parts(draw: st.DrawFn, archive: bytes) -> bytes:
    """A part is missing, there under another name, empty, or the archive is packed."""
    parts = dict(_parts(archive))
    name = draw(st.sampled_from(sorted(parts)))
    kind = draw(st.sampled_from(["missing", "renamed", "empty", "packed", "more"]))
    content = parts[name]
    if kind in ("missing", "renamed"):
        del parts[name]
    if kind == "renamed":
        parts[draw(st.sampled_from([f"../{name}", f"/{name}", name.upper(), f"x/{name}"]))] = content
    if kind == "empty":
        parts[name] = b""
    if kind == "more":
        parts[draw(st.sampled_from(["other/data.pkl", "x", name.replace("data", "constants")]))] = content
    return _zipped(parts, zipfile.ZIP_DEFLATED if kind == "packed" else zipfile.ZIP_STORED)


@cache
def _program(archive: bytes) -> tuple[tuple[str, Any, bytes], ...]:
    """The steps of its pickle: name, argument, bytes."""
    content = _parts(archive)[_name(archive, "/data.pkl")]
    found = [(step.name, argument, place) for step, argument, place in pickletools.genops(content)]
    ends = [place or 0 for _, _, place in found[1:]] + [len(content)]
    return tuple(
        (name, argument, content[place or 0 : end]) for (name, argument, place), end in zip(found, ends, strict=True)
    )


@st.composite
def _mutated_program(draw: st.DrawFn, archive: bytes) -> bytes:
    """The pickle with one to three steps that have another argument, or are gone, doubled, or exchanged."""
    program = list(_program(archive))
    for _ in range(draw(st.integers(1, 3))):
        # the ends are where the fields of the file are, the middle is layers
        reach = draw(st.sampled_from([min(len(program), 60), len(program)]))
        place = draw(st.integers(0, reach - 1))
        place = len(program) - 1 - place if draw(st.booleans()) else place
        kind = draw(st.sampled_from(["argument"] * 6 + ["remove", "double", "exchange"]))
        if kind == "argument":
            wanted = draw(st.sampled_from(["UNICODE", "INT", "FLOAT", "GLOBAL", "NEW", "any"]))
            following = [at for at in range(place, len(program)) if wanted == "any" or wanted in program[at][0]]
            place = following[0] if following else place
            name, argument, content = program[place]
            program[place] = (name, argument, _with_argument(draw, name, content))
        elif kind == "remove":
            del program[place]
        elif kind == "double":
            program.insert(place, program[place])
        else:
            other = draw(st.integers(0, len(program) - 1))
            program[place], program[other] = program[other], program[place]
    return b"".join(content for _, _, content in program)


def _with_argument(draw: st.DrawFn, name: str, content: bytes) -> bytes:
    """The same kind of step for another value; memory numbers and marks stay."""
    if "UNICODE" in name:
        encoded = draw(st.sampled_from(_TEXTS)).encode("utf-8", "surrogatepass")
        return b"X" + struct.pack("<I", len(encoded)) + encoded
    if name.startswith(("BININT", "LONG")) and not name.startswith("LONG_BIN"):
        return b"J" + struct.pack("<i", draw(st.sampled_from(_INTEGERS)))
    if name == "BINFLOAT":
        return b"G" + struct.pack(">d", draw(st.sampled_from(_FLOATS)))
    if name == "GLOBAL":
        return b"c" + draw(st.sampled_from(_NAMES)).replace(" ", "\n").encode() + b"\n"
    if name in ("NEWTRUE", "NEWFALSE", "NONE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_TUPLE"):
        return draw(st.sampled_from([b"\x88", b"\x89", b"N", b"]", b"}", b")", b"K\x01"]))
    return content
