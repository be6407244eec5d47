"""A stage is done again exactly if its inputs or its files are not as they were."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from recording import Recording

from trt_qat.manifest import FILE, Manifest
from trt_qat.progress import Noting


@pytest.fixture
def make(tmp_path: Path) -> Callable[[], int]:
    """Writes a.txt; returns how often it was called."""
    calls = []

    def write() -> int:
        calls.append(1)
        (tmp_path / "a.txt").write_text("content")
        return len(calls)

    return write


def _done(folder: Path, make: Callable[[], int], **inputs: str) -> list[str]:
    """The notes of one run of one stage."""
    progress = Recording()
    Manifest(folder, Noting(progress)).stage("the stage", {"x": "1", **inputs}, [folder / "a.txt"], make)
    return progress.notes


def test_a_finished_stage_is_reused_and_said(tmp_path: Path, make: Callable[[], int]) -> None:
    assert _done(tmp_path, make) == []
    assert _done(tmp_path, make) == ["Reusing the stage: a.txt."]
    assert make() == 2  # it was called once


def test_what_was_said_and_how_long_it_took_stay_with_a_stage(tmp_path: Path) -> None:
    noting = Noting(Recording())
    noting.note("before")

    def make() -> None:
        noting.note("during")
        (tmp_path / "a.txt").write_text("content")

    for told in (noting, Noting(Recording())):  # the second time it is reused
        manifest = Manifest(tmp_path, told)
        manifest.stage("the stage", {}, [tmp_path / "a.txt"], make)
        stage = manifest.stages["the stage"]
        assert stage.notes == ("during",)
        assert stage.seconds is not None
        assert 0 <= stage.seconds < 60
    assert noting.lines == ["before"]


@pytest.mark.parametrize("change", ["another input", "more inputs", "changed file", "file gone", "asked for anew"])
def test_a_stage_is_done_again(change: str, tmp_path: Path, make: Callable[[], int]) -> None:
    _done(tmp_path, make)
    if change == "asked for anew":
        Manifest(tmp_path, anew=True).stage("the stage", {"x": "1"}, [tmp_path / "a.txt"], make)
    else:
        if change == "changed file":
            (tmp_path / "a.txt").write_text("other")
        elif change == "file gone":
            (tmp_path / "a.txt").unlink()
        changed = {"another input": {"x": "2"}, "more inputs": {"y": "1"}}.get(change, {})
        assert _done(tmp_path, make, **changed) == []
    assert make() == 3


def test_a_stage_that_fails_is_not_finished(tmp_path: Path, make: Callable[[], int]) -> None:
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        Manifest(tmp_path).stage("the stage", {"x": "1"}, [tmp_path / "a.txt"], fail)
    assert not (tmp_path / FILE).exists()
    assert _done(tmp_path, make) == []


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"format": "trt_qat-manifest-9", "stages": {}}',
        '{"format": "trt_qat-manifest-1", "stages": {"the stage": {"inputs": {}, "files": {"a.txt": 5}}}}',
        '{"format": "trt_qat-manifest-1", "stages": ' + "[" * 5000,
        "\udcff",
    ],
)
def test_a_damaged_manifest_is_said_and_made_anew(content: str, tmp_path: Path, make: Callable[[], int]) -> None:
    (tmp_path / FILE).write_text(content, errors="surrogateescape")
    (note,) = _done(tmp_path, make)
    assert note.endswith(" Every stage is done anew.")
    assert "\n" not in note
    assert json.loads((tmp_path / FILE).read_text())["stages"]["the stage"]["inputs"] == {"x": "1"}
