"""A run that is killed at any moment goes on to the same end. The table of more moments is in docs/reliability.md."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_killed_runs_end_as_the_unbroken_one(tmp_path: Path) -> None:
    command = [sys.executable, str(Path(__file__).with_name("killed_runs.py")), "--keep", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("40 of 40 runs that were killed end as the unbroken one.\n")
