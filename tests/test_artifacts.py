from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
from pathlib import Path

import pytest

from trt_qat.artifacts import (
    atomic_path,
    existing_file,
    file_sha256,
    writable_file,
    writable_folder,
    write_json,
)
from trt_qat.errors import ArtifactError
from trt_qat.results import Latency, ResultRow


def _write_half(out: Path, error: BaseException) -> None:
    with atomic_path(out) as temporary:
        temporary.write_bytes(b"half")
        raise error


def test_atomic_path_writes_the_whole_file_into_new_folders(tmp_path: Path) -> None:
    out = tmp_path / "new" / "deep" / "file.bin"
    with atomic_path(out) as temporary:
        temporary.write_bytes(b"content")
        assert not out.exists()
    assert out.read_bytes() == b"content"
    assert list(out.parent.iterdir()) == [out]


def test_atomic_path_leaves_nothing_on_failure(tmp_path: Path) -> None:
    out = tmp_path / "file.bin"
    with pytest.raises(KeyError):
        _write_half(out, KeyError("stop"))
    assert list(tmp_path.iterdir()) == []


def test_atomic_path_keeps_the_old_file_on_failure(tmp_path: Path) -> None:
    out = tmp_path / "file.bin"
    out.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        _write_half(out, KeyboardInterrupt())
    assert out.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [out]


def test_atomic_path_replaces_the_old_file(tmp_path: Path) -> None:
    out = tmp_path / "file.bin"
    out.write_bytes(b"old")
    with atomic_path(out) as temporary:
        temporary.write_bytes(b"new")
    assert out.read_bytes() == b"new"


def test_atomic_path_gives_the_ordinary_mode(tmp_path: Path) -> None:
    (tmp_path / "ordinary").touch()
    out = tmp_path / "file.bin"
    with atomic_path(out) as temporary:
        temporary.touch(mode=0o600)
    assert out.stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_atomic_path_also_works_for_a_folder(tmp_path: Path) -> None:
    out = tmp_path / "folder"
    with atomic_path(out) as temporary:
        temporary.mkdir()
        (temporary / "inside").touch()
    assert [file.name for file in out.iterdir()] == ["inside"]


@pytest.mark.parametrize("below", ["out.bin", "deeper/out.bin"])
def test_atomic_path_below_a_file(tmp_path: Path, below: str) -> None:
    (tmp_path / "blocker").write_text("a file")
    with (
        pytest.raises(ArtifactError, match=r"Cannot write '.*out\.bin': .+\. Choose another place\."),
        atomic_path(tmp_path / "blocker" / below),
    ):
        pytest.fail("the body must not run")
    assert (tmp_path / "blocker").read_text() == "a file"


def test_atomic_path_onto_a_folder(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ArtifactError, match="Is a directory"), atomic_path(tmp_path / "folder") as temporary:
        temporary.touch()
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_atomic_path_says_when_the_disk_refuses(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"Cannot write '.*file\.bin': No space left"):
        _write_half(tmp_path / "file.bin", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert list(tmp_path.iterdir()) == []


def test_write_json_is_readable_and_whole(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"name": "biển báo", "value": [1, 2]})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"name": "biển báo", "value": [1, 2]}
    assert "biển báo" in text
    with pytest.raises(TypeError):
        write_json(tmp_path / "b.json", {"value": object()})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_writable_folder(tmp_path: Path) -> None:
    assert writable_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "blocker").touch()
    for path in (tmp_path / "blocker", tmp_path / "blocker" / "x"):
        with pytest.raises(ArtifactError, match=re.escape(f"Cannot write to folder '{path}': ")):
            writable_folder(path)


def test_writable_file(tmp_path: Path) -> None:
    assert writable_file(tmp_path / "new" / "a.onnx", ".onnx") == tmp_path / "new" / "a.onnx"
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "blocker").touch()
    for name, reason in (
        ("a.pt", "must be named *.onnx"),
        ("folder.onnx", "is a folder"),
        ("blocker/a.onnx", "Cannot write"),
    ):
        with pytest.raises(ArtifactError, match=re.escape(reason)):
            writable_file(tmp_path / name, ".onnx")


def test_existing_file(tmp_path: Path) -> None:
    good, empty = tmp_path / "good", tmp_path / "empty"
    good.write_text("x")
    empty.touch()
    assert existing_file(good, "Thing") == good
    for path, reason in (
        (tmp_path / "none", "does not exist"),
        (tmp_path, "is a folder, not a file"),
        (empty, "is empty"),
    ):
        with pytest.raises(ArtifactError, match=re.escape(f"Thing '{path}' {reason}")):
            existing_file(path, "Thing")


def test_file_sha256(tmp_path: Path) -> None:
    content = bytes(range(256)) * 9000  # more than one block
    (tmp_path / "file").write_bytes(content)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_result_row_is_the_documented_object() -> None:
    row = ResultRow("m.onnx", "int8+fp32", "openvino", 0.4, 0.6, 64, 1000, Latency(1.0, 2.0, 3.0))
    assert row.as_dict() == {
        "model": "m.onnx",
        "precision": "int8+fp32",
        "runtime": "openvino",
        "map50_95": 0.4,
        "map50": 0.6,
        "images": 64,
        "size_bytes": 1000,
        "latency_ms": {"median": 1.0, "p90": 2.0, "p99": 3.0},
    }


def test_a_device_or_a_pipe_is_never_replaced(tmp_path: Path) -> None:
    """As root a rename would put a file in the place of /dev/null."""
    pipe, link, target = tmp_path / "pipe.json", tmp_path / "link.json", tmp_path / "target.json"
    os.mkfifo(pipe)
    for place, kind in ((pipe, "a pipe"), (Path(os.devnull), "a device")):
        with pytest.raises(ArtifactError, match=f"is {kind}, not a file. Choose another place."):
            write_json(place, {})
    with pytest.raises(ArtifactError, match="is a pipe, not a file"):
        writable_file(pipe, ".json")
    assert stat.S_ISFIFO(pipe.lstat().st_mode)
    assert stat.S_ISCHR(Path(os.devnull).lstat().st_mode)
    target.write_text("kept")
    link.symlink_to(target)
    write_json(link, {})
    assert target.read_text() == "kept"
    assert link.read_text() == "{}\n"
