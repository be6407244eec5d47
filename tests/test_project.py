"""What the documents promise is there: files, names, commands, targets."""

from __future__ import annotations

import importlib.util
import inspect
import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest

import trt_qat
from trt_qat import errors
from trt_qat.cli import cli
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


@pytest.fixture(scope="module")
def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def _text(path: Path) -> str | None:
    content = (ROOT / path).read_bytes()
    return None if b"\0" in content[:8192] else content.decode("utf-8")


def _blocks(readme: str) -> list[str]:
    """The lines of all fenced code blocks, continued lines joined, comments and prompts removed."""
    blocks = "\n".join(re.findall(r"^```\w*\n(.*?)^```", readme, flags=re.MULTILINE | re.DOTALL))
    lines = [line.strip().removeprefix("$ ") for line in blocks.replace("\\\n", " ").splitlines()]
    return [line.split("  #")[0].split(" # ")[0].strip() for line in lines]


def _inline(readme: str) -> list[str]:
    outside = re.sub(r"^```\w*\n.*?^```", "", readme, flags=re.MULTILINE | re.DOTALL)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", outside)]


def _resolve(words: list[str]) -> tuple[click.Command, list[str]]:
    """The click command that the words name, and the words after its name."""
    command: click.Command = cli
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"trt-qat has no command '{words[0]}'"
        command, words = command.commands[words[0]], words[1:]
    return command, words


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


def test_commands_of_the_readme_parse(readme: str) -> None:
    lines = [line for line in _blocks(readme) if line.startswith("trt-qat ")]
    assert lines
    group = click.Context(cli, **cli.context_settings)  # without it a command keeps a help option that lacks -h
    for line in lines:
        command, words = _resolve(shlex.split(line)[1:])
        try:
            command.make_context("trt-qat", words, parent=group)
        except click.exceptions.Exit:
            continue  # --help
        except click.UsageError as exc:
            pytest.fail(f"{line!r}: {exc.format_message()}")


def test_commands_in_the_text_of_the_readme_exist(readme: str) -> None:
    for code in _inline(readme):
        words = code.split()
        if words[:1] == ["trt-qat"] and len(words) > 1 and words[1].islower():
            command, rest = _resolve(words[1:])
            known = {option for parameter in command.params for option in parameter.opts} | {"--help", "-h"}
            assert {word for word in rest if word.startswith("--")} <= known, code


def test_make_targets_of_the_readme_exist(readme: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):(?!=)", makefile, flags=re.MULTILINE))
    named = {
        target
        for code in (*_blocks(readme), *_inline(readme))
        if code.startswith("make ")
        for word in code.split()[1:]
        if re.fullmatch(r"[a-z|-]+", word)
        for target in word.split("|")
    }
    assert {"demo", "test"} <= named
    assert named <= targets


def test_modules_named_in_the_readme_exist(readme: str) -> None:
    modules = re.findall(r"python -m (trt_qat[\w.]*)", readme)
    assert modules
    assert [module for module in modules if importlib.util.find_spec(module) is None] == []


def test_links_of_the_readme_lead_to_files(readme: str) -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", readme) if "://" not in link]
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_scripts_hold_valid_configurations() -> None:
    for file in (ROOT / "scripts").glob("*.yaml"):
        assert isinstance(Config.load([file]), Config)
