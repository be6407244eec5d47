"""What stages hand to each other: files with a known meaning, and how a file is written safely."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trt_qat.errors import ArtifactError
from trt_qat.reading import kind_of_file, printable, regular_file

_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}")  # the names that tempfile.mkdtemp gives in atomic_path


@dataclass(frozen=True)
class CheckpointArtifact:
    """A trt_qat checkpoint: ``*.safetensors``, weights and quantizer state, no code."""

    path: Path


@dataclass(frozen=True)
class OnnxArtifact:
    """An exported ONNX file."""

    path: Path
    precision: str


@dataclass(frozen=True)
class EngineArtifact:
    """A TensorRT engine; ``sidecar`` is the JSON that describes a plain plan, None where the file describes itself."""

    path: Path
    sidecar: Path | None
    flavor: str


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it becomes ``path``, on failure nothing is left.

    Raises:
        ArtifactError: the folder cannot be created or written, or ``path`` is a device, a pipe or a socket, whose
            place a file would take.
    """
    check_replaceable(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as exc:
        raise ArtifactError(f"Cannot write '{path}': {_reason(exc)}. Choose another place.") from exc
    try:
        temporary, mode_probe = folder / path.name, folder / f"{path.name}.mode"
        mode_probe.touch()
        yield temporary
        if temporary.is_file():  # some libraries write for the owner alone; this is the mode that the umask gives
            temporary.chmod(mode_probe.stat().st_mode)
        temporary.replace(path)
    except OSError as exc:
        raise ArtifactError(f"Cannot write '{path}': {_reason(exc)}. Choose another place.") from exc
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_replaceable(path: Path) -> None:
    """Refuse a place that holds something else than a file or a folder. A link is replaced, not what it names.

    Raises:
        ArtifactError: see above.
    """
    try:
        mode = path.lstat().st_mode
    except (OSError, ValueError):  # nothing is there, or whoever writes it finds out why not
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
        raise ArtifactError(f"'{path}' is {kind_of_file(mode)}, not a file. Choose another place.")


def remove_abandoned(folder: Path) -> None:
    """Remove what :func:`atomic_path` left in a folder and its sub-folders when its process was killed.

    The caller makes sure that no other process writes there.
    """
    for place in (folder, *(entry for entry in folder.iterdir() if entry.is_dir() and not entry.is_symlink())):
        for entry in place.glob(".*"):
            if _TEMPORARY.fullmatch(entry.name) and entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as indented JSON, whole or not at all.

    Raises:
        ArtifactError: it cannot be written.
        ValueError: ``content`` holds NaN or infinity, which JSON has not.
    """
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file, whole or not at all.

    Raises:
        ArtifactError: it cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(printable(text).encode())


def writable_folder(path: Path) -> Path:
    """Create the folder and prove that it can be written, before any long work starts.

    Raises:
        ArtifactError: it cannot.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as exc:
        raise ArtifactError(f"Cannot write to folder '{path}': {_reason(exc)}. Choose another place.") from exc
    return path


def writable_file(path: Path, suffix: str) -> Path:
    """Prove that a file of this name can be written, before any long work starts.

    Raises:
        ArtifactError: another suffix, a folder of that name, or a folder that cannot be written.
    """
    if path.suffix.lower() != suffix:
        raise ArtifactError(f"--out '{path}' must be named *{suffix}.")
    if path.is_dir():
        raise ArtifactError(f"--out '{path}' is a folder. Give a file.")
    check_replaceable(path)
    writable_folder(path.parent)
    return path


def existing_file(path: Path, what: str) -> Path:
    """Return ``path`` if it is a readable, non-empty file.

    Raises:
        ArtifactError: it is missing, empty, or not a regular file.
    """
    regular_file(path, what)
    if path.stat().st_size == 0:
        raise ArtifactError(f"{what} '{path}' is empty (0 bytes). Create it again.")
    return path


def size_bytes(path: Path) -> int:
    """Size of a file, or of all files in a folder; 0 if there is neither."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size if path.is_file() else 0


def _reason(exc: OSError) -> str:
    if isinstance(exc, FileExistsError | NotADirectoryError):
        return "a file is where a folder should be"
    return exc.strerror or str(exc)


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(stream)


def _sha256(stream: Any) -> str:  # Python 3.10 has no hashlib.file_digest
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
