"""A fixed set of the hostile inputs, a few of every family; `make hostile` runs them all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fast_set import FAST

RUN = Path(__file__).with_name("run.py")


def met(answer: Path, *chosen: str) -> dict[str, Any]:
    """What each of the chosen did. They run in forks of a process that has started no thread, unlike this one."""
    command = [sys.executable, str(RUN), *chosen, "--jobs", "2", "--json", str(answer)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert answer.exists(), done.stderr
    return {verdict["name"]: verdict for verdict in json.loads(answer.read_text())}


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return met(tmp_path_factory.mktemp("hostile") / "verdicts.json", "--fast")


@pytest.mark.parametrize("name", sorted(FAST))
def test_nothing_runs_hangs_or_breaks(name: str, verdicts: dict[str, Any]) -> None:
    verdict = verdicts[name]
    assert verdict["findings"] == {}, f"{verdict['command']}: {verdict['last_line']}"


@pytest.mark.slow  # it calibrates; a quick sibling is "cache below a file" in tests/test_bad_input.py
def test_a_cache_that_is_a_file(tmp_path: Path) -> None:
    name = "caches/folder is a file"
    (verdict,) = met(tmp_path / "verdicts.json", "--only", name).values()
    assert (verdict["name"], verdict["findings"]) == (name, {}), verdict["last_line"]


def test_the_set_has_some_of_every_family() -> None:
    from corpus import all_cases  # seconds: it makes most of them

    cases = all_cases()
    assert {case.name for case in cases} >= FAST
    assert {case.family for case in cases} == {name.partition("/")[0] for name in FAST} | {"caches"}
    assert len(cases) >= 400
