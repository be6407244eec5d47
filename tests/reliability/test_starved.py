"""The verbs without disk, memory, home or streams; the whole table is what ``starved.py`` prints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import starved


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("starved")
    starved.prepare(folder)
    return folder


# with little memory everything is loaded first, torch as well; the others are nearly as two that stay
SLOW = dict.fromkeys(("little memory", "stdout closed", "HOME read-only"), pytest.mark.slow)


@pytest.mark.parametrize("fault", [pytest.param(name, marks=SLOW.get(name, ())) for name in starved.FAULTS])
def test_infer(fault: str, place: Path) -> None:
    if starved.FAULTS[fault].shell and not starved.can_mount():
        pytest.skip("this machine gives a process no mounts of its own")
    outcome = starved.meet(place, "infer", fault)
    assert outcome.faults == (), outcome.stderr


@pytest.mark.slow
def test_every_verb() -> None:
    done = subprocess.run([sys.executable, starved.__file__], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
