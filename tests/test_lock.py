"""One process at a time in a run's folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from trt_qat.errors import ArtifactError
from trt_qat.lock import locked

HOLDS = """
import sys, time
from pathlib import Path
from trt_qat.lock import locked
with locked(Path(sys.argv[1])):
    print("holding", flush=True)
    time.sleep(60)
"""


def test_the_second_process_gets_one_line_and_a_dead_one_lets_go(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(folder)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "holding\n"
        with pytest.raises(ArtifactError, match=rf"run' is in use by another process \({holder.pid}\)"), locked(folder):
            pass
        holder.kill()
    assert (folder / ".lock").is_file()  # what a dead process leaves
    with locked(folder):
        assert (folder / ".lock").is_file()
    assert list(folder.iterdir()) == []


def test_a_worker_that_outlives_its_process_does_not_hold_the_lock(tmp_path: Path) -> None:
    script = """
import os, sys, time
from pathlib import Path
from trt_qat.lock import locked
with locked(Path(sys.argv[1])):
    if os.fork() == 0:
        os.close(1)
        time.sleep(30)
    os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], stdout=-1, check=False).returncode == 9
    with locked(tmp_path):
        assert (tmp_path / ".lock").is_file()


def test_a_file_has_a_lock_of_its_own(tmp_path: Path) -> None:
    with locked(tmp_path, "a.json"), locked(tmp_path, "b.json"):
        with pytest.raises(ArtifactError, match=r"a\.json' is in use"), locked(tmp_path, "a.json"):
            pass
        assert sorted(file.name for file in tmp_path.iterdir()) == [".a.json.lock", ".b.json.lock"]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_made_for_nothing_is_removed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="refused"), locked(tmp_path / "new"):
        raise ValueError("refused")
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "kept"):
        (tmp_path / "kept" / "file").touch()
    assert (tmp_path / "kept" / "file").is_file()


def test_temporary_folders_of_a_killed_process_are_swept(tmp_path: Path) -> None:
    script = """
import os, sys
from pathlib import Path
from trt_qat.artifacts import atomic_path
from trt_qat.lock import locked
with locked(Path(sys.argv[1])), atomic_path(Path(sys.argv[1]) / "qat" / "best.safetensors") as temporary:
    temporary.write_text("half")
    os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False).returncode == 9
    (tmp_path / ".mine").mkdir()
    assert len(list((tmp_path / "qat").iterdir())) == 1
    with locked(tmp_path):
        assert list((tmp_path / "qat").iterdir()) == []
    assert sorted(file.name for file in tmp_path.iterdir()) == [".mine", "qat"]


def test_a_lock_is_never_written_through_a_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / ".lock").symlink_to(victim)
    with pytest.raises(ArtifactError, match=r"Cannot write '.*\.lock'"), locked(tmp_path):
        pass
    assert victim.read_text() == "precious"
