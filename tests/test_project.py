"""What the documents promise is there: files, names, commands, targets."""

from __future__ import annotations

import inspect
import re
import subprocess
from pathlib import Path

import pytest

import trt_qat
from trt_qat import errors
from trt_qat.config import Config

ROOT = Path(__file__).resolve().parent.parent
EXPECTED = {
    "trt_qat", "configs", "engines", "calib", "scripts", "tests", "docs", "benchmarks", "Makefile", "pyproject.toml",
    "README.md", "LICENSE", "CHANGELOG.md", "SECURITY.md", "CONTRIBUTING.md", "CITATION.cff", "MANIFEST.in",
    "mkdocs.yml", ".ci", ".github", ".gitignore",
}  # fmt: skip
# put together here, so that this file does not hold what it looks for
REGISTRIES = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("pypi", "nvidia", "com"),
        ("ngc", "nvidia", "com"),
        ("download", "pytorch", "org"),
        ("anaconda", "org"),
    )
]
MACHINE_PATHS = [f"/{name}/" for name in ("root", "home")]


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    """Files that git tracks and that are there, relative to the project."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if not (ROOT / ".git").exists() or listed.returncode != 0:
        pytest.skip("this is not a git checkout")
    return [Path(name) for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def _text(path: Path) -> str | None:
    content = (ROOT / path).read_bytes()
    return None if b"\0" in content[:8192] else content.decode("utf-8")


def test_nothing_unexpected_is_tracked(tracked: list[Path]) -> None:
    assert {path.parts[0] for path in tracked} <= EXPECTED


def test_no_registry_host_and_no_path_of_a_machine_is_tracked(tracked: list[Path]) -> None:
    found = [
        f"{path}: {forbidden}"
        for path in tracked
        if (text := _text(path)) is not None
        for forbidden in (*REGISTRIES, *MACHINE_PATHS)
        if forbidden in text
    ]
    assert found == []


def test_public_names_exist() -> None:
    assert sorted(trt_qat.__all__) == sorted(set(trt_qat.__all__))
    assert [name for name in trt_qat.__all__ if not hasattr(trt_qat, name)] == []


def test_error_tree_is_drawn_completely() -> None:
    classes = [value for _, value in inspect.getmembers(errors, inspect.isclass) if value.__module__ == errors.__name__]
    children = {value.__name__ for value in classes if value is not errors.TrtQatError}
    assert all(issubclass(value, errors.TrtQatError) for value in classes)
    assert len(children) <= 10
    drawn = re.findall(r"^[├└]── (\w+)  +\S", inspect.getdoc(errors) or "", flags=re.MULTILINE)
    assert sorted(drawn) == sorted(children)


def test_scripts_hold_valid_configurations() -> None:
    for file in (ROOT / "scripts").glob("*.yaml"):
        assert isinstance(Config.load([file]), Config)
