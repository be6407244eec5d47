"""File names for what belongs to a frame: nothing that a URL, a class name or a path holds leads out of the folder."""

from __future__ import annotations

import re
from pathlib import Path, PurePath

from trt_qat.redact import redacted
from trt_qat.runtime.frames import Frame

_LONGEST = 80  # characters
_GLOB = re.compile(r"[*?\[]")
_SCHEME = re.compile(r"^[a-z][a-z0-9+.-]+:/+", re.IGNORECASE)


class UniqueNames:
    """One name for each key, no two the same, also on a file system that does not tell upper from lower case."""

    def __init__(self) -> None:
        self._names: dict[object, PurePath] = {}
        self._taken: set[str] = set()

    def of(self, key: object, wanted: PurePath) -> PurePath:
        """The key's name: ``wanted``, or with a number behind it if another key has that."""
        if key not in self._names:
            name, number = wanted, 1
            while str(name).casefold() in self._taken:
                number += 1
                name = wanted.with_name(f"{wanted.stem}_{number}{wanted.suffix}")
            self._taken.add(str(name).casefold())
            self._names[key] = name
        return self._names[key]


class FrameNames:
    """Where what belongs to a frame goes inside of a folder.

    An image keeps its name, and its folders below the source's; a frame of a video is ``<source>_<number>``.

    Args:
        suffix: of every file; None keeps an image's own.
    """

    def __init__(self, suffix: str | None = None) -> None:
        self._suffix = suffix
        self._images = UniqueNames()
        self._sources = UniqueNames()

    def of(self, frame: Frame) -> PurePath:
        """A relative path, of this frame alone."""
        if frame.path is None:
            name = self._sources.of(frame.source, PurePath(source_name(frame.source)))
            suffix = ".jpg" if self._suffix is None else self._suffix
            return PurePath(f"{name}_{frame.number:06d}{suffix}")
        wanted = _below_source(frame.path, frame.source)
        if self._suffix is not None:
            wanted = wanted.with_name(wanted.stem + self._suffix)
        return self._images.of((frame.source, frame.path), wanted)


def source_name(source: str) -> str:
    """A file name for a source: a file's own without its suffix, of a URL the host and the path, else its text."""
    text = redacted(source)
    if _SCHEME.match(text):
        text = _SCHEME.sub("", text).rpartition("***@")[2].partition("?")[0].partition("#")[0]
    else:
        text = PurePath(text).stem
    return {"-": "stdin", "": "source"}.get(text) or safe_name(text, "source")


def safe_name(text: str, otherwise: str) -> str:
    """A file name out of any text: letters of every alphabet, digits, and a few more; the rest becomes "_".

    Args:
        otherwise: where nothing is left.
    """
    kept = "".join(character if character.isalnum() or character in " ._-+" else "_" for character in text)
    return kept[:_LONGEST].strip(" .") or otherwise


def _below_source(path: Path, source: str) -> PurePath:
    fixed = []  # the folders of a glob that are no pattern
    for part in PurePath(source).parts:
        if _GLOB.search(part):
            break
        fixed.append(part)
    try:
        below: PurePath = path.relative_to(PurePath(*fixed)) if fixed else path
    except ValueError:  # out of a list file
        below = PurePath(path.name)
    parts = [part for part in below.parts if part not in ("..", ".") and part != below.anchor]
    return PurePath(*parts) if parts else PurePath(path.name)
