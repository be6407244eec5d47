"""What is released: the files in wheel and source archive, and what stands about the release beside the code."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import trt_qat

ROOT = Path(__file__).resolve().parent.parent
BUILD = "from setuptools import build_meta as b; print(b.build_sdist({out!r})); print(b.build_wheel({out!r}))"


@pytest.fixture(scope="module")
def contents() -> ModuleType:
    """scripts/release_contents.py."""
    spec = importlib.util.spec_from_file_location("release_contents", ROOT / "scripts" / "release_contents.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def files(contents: ModuleType) -> set[str]:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("this is not a git checkout")
    found: set[str] = contents.tracked(ROOT)
    return found


@pytest.fixture(scope="module")
def release(files: set[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Source archive and wheel of a copy of what git tracks, with two files beside it that git does not track."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in files:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    (source / "runs").mkdir()
    for stray in ("engines/mine.plan", "runs/run.json"):
        (source / stray).write_text("{}")
    command = [sys.executable, "-c", BUILD.format(out=str(out))]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (archive,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return archive, wheel


def test_the_wheel_holds_the_package_and_nothing_else(
    release: tuple[Path, Path], files: set[str], contents: ModuleType
) -> None:
    assert {"trt_qat/demo/detector.safetensors", "trt_qat/demo/settings.yaml", "trt_qat/py.typed"} <= files
    assert contents.wheel_differences(release[1], files) == []


def test_the_source_archive_holds_what_git_tracks(
    release: tuple[Path, Path], files: set[str], contents: ModuleType
) -> None:
    assert {"Makefile", "scripts/constraints.txt", "tests/conftest.py", "trt_qat/demo/detector.safetensors"} <= files
    assert contents.source_differences(release[0], files) == []


def test_a_file_too_many_or_missing_is_named(release: tuple[Path, Path], files: set[str], contents: ModuleType) -> None:
    other = (files - {"trt_qat/py.typed"}) | {"trt_qat/report/new.css"}
    for found in (contents.wheel_differences(release[1], other), contents.source_differences(release[0], other)):
        assert [line.partition(" ")[2] for line in found] == [
            "lacks trt_qat/report/new.css",
            "holds trt_qat/py.typed, which it should not",
        ]


def _issue_forms() -> list[Path]:
    return [file for file in sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")) if file.name != "config.yml"]


@pytest.mark.parametrize("form", _issue_forms(), ids=lambda form: form.stem)
def test_an_issue_form_is_one_that_github_shows(form: Path) -> None:
    content = yaml.safe_load(form.read_text(encoding="utf-8"))
    assert set(content) == {"name", "description", "labels", "body"}
    fields = [entry for entry in content["body"] if entry["type"] != "markdown"]
    assert {entry["type"] for entry in content["body"]} <= {"markdown", "textarea", "input", "checkboxes"}
    assert {*content["body"][0]} <= {"type", "id", "attributes", "validations"}
    assert all(entry["attributes"]["label"] for entry in fields)
    names = [entry["id"] for entry in fields]
    assert len(names) == len(set(names)) >= 3


def test_there_is_a_form_for_each_kind_of_issue_and_no_other_way() -> None:
    assert len(_issue_forms()) == 4
    settings = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / "config.yml").read_text(encoding="utf-8"))
    assert settings == {"blank_issues_enabled": False}


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == trt_qat.__version__
    assert citation["license"] == "AGPL-3.0-or-later"
    released = f"## {citation['version']} ({citation['date-released']:%Y-%m-%d})"
    assert released in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
