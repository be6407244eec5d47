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


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each of the set did. They run in forks of a process that has started no thread, unlike this one."""
    answer = tmp_path_factory.mktemp("hostile") / "verdicts.json"
    command = [sys.executable, str(RUN), "--fast", "--jobs", "2", "--json", str(answer)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert answer.exists(), done.stderr
    return {verdict["name"]: verdict for verdict in json.loads(answer.read_text())}


@pytest.mark.parametrize("name", sorted(FAST))
def test_nothing_runs_hangs_or_breaks(name: str, verdicts: dict[str, Any]) -> None:
    verdict = verdicts[name]
    assert verdict["findings"] == {}, f"{verdict['command']}: {verdict['last_line']}"


def test_the_set_has_some_of_every_family() -> None:
    from corpus import all_cases  # seconds: it makes most of them

    cases = all_cases()
    assert {case.name for case in cases} >= FAST
    assert {case.family for case in cases} == {name.partition("/")[0] for name in FAST}
    assert len(cases) >= 400
