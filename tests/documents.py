"""Commands, settings and code that a page of the documentation shows, and what is wrong with them; nothing is run."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import click
import griffe
import yaml
from pydantic import TypeAdapter, ValidationError

import trt_qat
from trt_qat.cli import cli, infer
from trt_qat.config import Config
from trt_qat.errors import TrtQatError
from trt_qat.registry import KINDS, Table
from trt_qat.results import ResultRow
from trt_qat.runtime.sinks.jsonl import FrameRecord

ROOT = Path(__file__).resolve().parent.parent
SHELLS = {"bash", "sh", "console", "shell"}
# The shell's and other programs, which only a machine that has them can check.
OTHERS = {".", "docker", "ffmpeg", "git", "polygraphy"}
OTHER_MODULES = {"http.server", "pip", "pytest", "venv"}
FILES = {"csv", "engine", "json", "mp4", "onnx", "plan", "pt", "py", "yaml"}  # data.yaml is no setting
PLACEHOLDER = re.compile(r"\.\.\.|[A-Z_]+|.*[A-Z]{2}.*")
FENCE = re.compile(
    r"^(?P<indent> *)(?P<ticks>```+) ?(?P<language>[\w-]*)[^\n]*\n(?P<text>.*?)^(?P=indent)(?P=ticks)$", re.M | re.S
)


@dataclass(frozen=True)
class Command:
    """One program's call in a line of a page.

    Args:
        line: number in the page, from 1.
        shown: the whole line, with the other calls in it.
        words: the program and what follows, without redirections.
        environment: what stands before it, ``NAME=value``.
    """

    line: int
    shown: str
    words: tuple[str, ...]
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Block:
    """Fenced code; its line is that of the fence."""

    line: int
    language: str
    text: str


def pages() -> list[Path]:
    """README.md and its neighbours, and docs/**/*.md; what the change log names may be gone."""
    return [page for page in sorted(ROOT.glob("*.md")) if page.name != "CHANGELOG.md"] + sorted(
        (ROOT / "docs").rglob("*.md")
    )


def blocks(text: str) -> list[Block]:
    """The fenced code of a page."""
    return [
        Block(text.count("\n", 0, found.start()) + 1, found["language"], _dedent(found["text"], len(found["indent"])))
        for found in FENCE.finditer(text)
    ]


def commands(text: str) -> list[Command]:
    """Every call in a page: all lines of fenced shell code, and of other code those that begin with our programs."""
    lines = [
        (block.line + 1 + number, line)
        for block in blocks(text)
        for number, line in _joined(block.text)
        if block.language in SHELLS or (not block.language and _is_ours(line))
    ]
    lines += [  # steps of a continuous integration
        (block.line + 1 + number, step[1])
        for block in blocks(text)
        for number, line in _joined(block.text)
        if block.language == "yaml" and (step := re.match(r" *(?:- )?run: (\S.*)", line))
    ]
    outside = FENCE.sub(lambda found: "\n" * found[0].count("\n"), text)
    lines += [(1 + n, line) for n, line in _joined(outside) if line.startswith("    ") and _is_ours(line)]
    return [command for number, line in sorted(lines) for command in _calls(number, line.strip().removeprefix("$ "))]


def problems(text: str) -> list[str]:
    """What is wrong with a page's commands, settings and code, each with its line."""
    with _as_if_installed(text) as stand_ins:
        found = [(call.line, said) for call in commands(text) if (said := _wrong_command(call, stand_ins))]
        for block in blocks(text):
            if check := CHECKS.get(block.language):
                found += [(block.line, said) for said in check(block.text)]
        found += _wrong_inline(text)
    return [f"line {line}: {said}" for line, said in sorted(found)]


def _dedent(text: str, width: int) -> str:
    return "\n".join(line[width:] for line in text.split("\n"))


def _joined(text: str) -> Iterator[tuple[int, str]]:
    """Lines with their number from 0; one that ends in a backslash goes on in the next."""
    begun: tuple[int, str] | None = None
    for number, line in enumerate(text.split("\n")):
        start, before = begun or (number, "")
        begun = (start, before + line[:-1]) if line.endswith("\\") else None
        if begun is None:
            yield start, before + line


def _is_ours(line: str) -> bool:
    return re.match(r" *(\$ )?([A-Z_]+=\S+ )*(trt-qat|make|python|torchrun|pip) ", line) is not None


def _calls(number: int, line: str) -> Iterator[Command]:
    lexer = shlex.shlex(re.sub(r"\b[12](?=>)", "", line), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    skip = False
    for word in [*lexer, ";"]:
        if skip or word[0] in "<>":
            skip = not skip
        elif word in {"|", "||", "&&", "&", ";"}:
            if words:
                assigned = [word.partition("=") for word in words if re.match(r"[A-Z_]+=", word)]
                before = {name: value for name, _, value in assigned} if words[0] != "make" else {}
                yield Command(number, line, tuple(words[len(before) :]), before)
            words = []
        else:
            words.append(word)


def _own_rows(text: str) -> Iterator[tuple[Table, str, str]]:
    """Entry points that the page itself registers in a pyproject.toml: table, name, where it is."""
    for group, lines in re.findall(r'^\[project\.entry-points\."trt_qat\.(\w+)"\]\n((?:[\w-]+ *=.*\n)+)', text, re.M):
        for name, where in re.findall(r'^([\w-]+) *= *"(.+)"', lines, re.M):
            yield KINDS[group], name, where


@contextmanager
def _as_if_installed(text: str) -> Iterator[Mapping[str, str]]:
    """While the page is judged its own rows are there; gives a name of ours for each, for what was made at import."""
    own = list(_own_rows(text))
    stand_ins = {name: next(iter(table.rows), name) for table, name, _ in own}
    for table, name, where in own:
        table.rows[name] = where
    try:
        yield stand_ins
    finally:
        for table, name, _ in own:
            del table.rows[name]


def _wrong_command(command: Command, stand_ins: Mapping[str, str]) -> str | None:
    program, *words = command.words
    check = PROGRAMS.get(program)
    if check is None:
        return None if program in OTHERS else f"'{program}' is no program that the test knows"
    said = check([stand_ins.get(word, word) for word in words])
    return f"{command.shown!r}: {said}" if said else None


def _wrong_verb(words: Sequence[str], command: click.Command = cli) -> str | None:
    """What is wrong with the words after ``trt-qat``. ``...`` stands for anything that is left out."""
    given = [word for word in words if word != "..."]
    try:
        command, rest = _resolve(command, given)
        # a command made without the group keeps a help option that lacks -h, for every test after this one
        context = command.make_context("trt-qat", rest, parent=click.Context(cli, **cli.context_settings))
        return _wrong_settings(context.params)
    except click.exceptions.Exit:  # --help, --version
        return None
    except click.MissingParameter as exc:
        return None if len(given) < len(words) else exc.format_message()
    except click.UsageError as exc:
        return exc.format_message()


def _resolve(command: click.Command, words: Sequence[str]) -> tuple[click.Command, list[str]]:
    """The command that the words name, and the words after its name."""
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        if words[0] not in command.commands:
            raise click.UsageError(f"there is no command '{words[0]}'")
        command, words = command.commands[words[0]], words[1:]
    return command, list(words)


def _wrong_settings(params: Mapping[str, Any]) -> str | None:
    ours = [file for file in params.get("files", ()) if file.parts[0] in ("configs", "scripts")]
    try:
        Config.load([ROOT / file for file in ours], params.get("overrides", ()))
    except TrtQatError as exc:
        return str(exc)
    return None


def _wrong_python(words: Sequence[str]) -> str | None:
    if words[:2] == ["-m", "trt_qat"]:
        return _wrong_verb(words[2:])
    if words[:2] == ["-m", "trt_qat.infer"]:
        return _wrong_verb(words[2:], infer)
    if words[0] == "-m":
        return None if words[1] in OTHER_MODULES else f"no module '{words[1]}' that the test knows"
    script = ROOT / words[0]
    if not script.is_file():
        return f"there is no file '{words[0]}'"
    known = set(re.findall(r'"(--[\w-]+)"', script.read_text(encoding="utf-8")))
    unknown = {word.partition("=")[0] for word in words[1:] if word.startswith("--")} - known - {"--help"}
    return f"'{words[0]}' has no {', '.join(sorted(unknown))}" if unknown else None


def _wrong_torchrun(words: Sequence[str]) -> str | None:
    return _wrong_python(words[words.index("-m") :]) if "-m" in words else "no -m trt_qat"


def _wrong_make(words: Sequence[str]) -> str | None:
    for word in words:
        name, is_variable, _ = word.partition("=")
        known = r"^{} *[?:]?=|ifdef {}$" if is_variable else r"^{}:(?!=)"
        if not word.startswith("-") and not re.search(known.replace("{}", re.escape(name)), _makefile(), re.M):
            return f"the Makefile has no {'variable' if is_variable else 'target'} '{name}'"
    return None


def _wrong_pip(words: Sequence[str]) -> str | None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[project.optional-dependencies]")[2]
    extras = set(re.findall(r"^(\w+) = \[", project.partition("\n\n")[0], re.M))
    asked = {
        extra for word in words for found in re.findall(r"trt_qat\[([\w,]+)\]", word) for extra in found.split(",")
    }
    return f"pyproject.toml has no extra {', '.join(sorted(asked - extras))}" if asked - extras else None


PROGRAMS: dict[str, Callable[[Sequence[str]], str | None]] = {
    "trt-qat": _wrong_verb,
    "python": _wrong_python,
    "torchrun": _wrong_torchrun,
    "make": _wrong_make,
    "pip": _wrong_pip,
}


def _wrong_yaml(text: str) -> Iterator[str]:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as exc:
        yield f"not YAML: {' '.join(str(exc).split())}"
        return
    keys = [str(key) for key in content] if isinstance(content, dict) else []
    meant = any(difflib.get_close_matches(key, list(Config.model_fields), cutoff=0.8) for key in keys)
    if meant and "names" not in keys:  # that is a data.yaml
        overrides = [
            f"{section}.{key}={json.dumps(value)}"
            for section in keys
            for key, value in (content[section] or {}).items()
        ]
        if said := _wrong_settings({"overrides": overrides}):
            yield said


def _wrong_json(text: str) -> Iterator[str]:
    try:
        content = json.loads(text)
    except ValueError as exc:
        yield f"not JSON: {exc}"
        return
    for entry in content if isinstance(content, list) else [content]:
        for key, schema in (("detections", FrameRecord), ("map50_95", ResultRow)):
            if isinstance(entry, dict) and key in entry:
                try:
                    TypeAdapter(schema).validate_json(json.dumps(entry))
                except ValidationError as exc:
                    yield f"no {schema.__name__}: {exc.errors()[0]['loc']}: {exc.errors()[0]['msg']}"


def _wrong_code(text: str) -> Iterator[str]:
    """Python that does not compile, or that asks trt_qat for what it has not."""
    try:
        tree = ast.parse(text)
    except SyntaxError as exc:
        yield f"not Python: {exc}"
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "trt_qat":
            yield from (said for name in node.names if (said := _wrong_name(str(node.module), name.name)))
        elif isinstance(node, ast.Import):
            ours = [name.name for name in node.names if name.name.startswith("trt_qat.")]
            yield from (f"there is no module {name}" for name in ours if not _is_module(name))
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "trt_qat":
            if node.attr not in trt_qat.__all__:
                yield f"trt_qat has no '{node.attr}'"
        elif isinstance(node, ast.Call) and ast.unparse(node.func).startswith("trt_qat."):
            yield from _wrong_keywords(node)


def _wrong_name(module: str, name: str) -> str | None:
    if module == "trt_qat" and name in trt_qat.__all__:
        return None
    if not _is_module(module):
        return f"there is no module {module}"
    known = name in _members(module) or _is_module(f"{module}.{name}")
    return None if known else f"{module} has no '{name}'"


def _wrong_keywords(call: ast.Call) -> Iterator[str]:
    name = ast.unparse(call.func).removeprefix("trt_qat.")
    target = _members(trt_qat._HOMES[name]).get(name) if name in trt_qat._HOMES else None
    if isinstance(target, griffe.Class):
        target = target.members.get("__init__")
    if not isinstance(target, griffe.Function):
        return
    known = {parameter.name for parameter in target.parameters}
    if any(parameter.kind is griffe.ParameterKind.var_keyword for parameter in target.parameters):
        known |= {key for section in Config.model_fields for key in type(getattr(Config(), section)).model_fields}
    yield from (f"{name}() takes no '{word.arg}'" for word in call.keywords if word.arg and word.arg not in known)


CHECKS: dict[str, Callable[[str], Iterator[str]]] = {
    "yaml": _wrong_yaml,
    "json": _wrong_json,
    "python": _wrong_code,
}


def _wrong_inline(text: str) -> Iterator[tuple[int, str]]:
    """Commands, settings and targets named in the text. What is in capitals stands for something."""
    outside = FENCE.sub(lambda found: "\n" * found[0].count("\n"), text)
    for found in re.finditer(r"(?<!`)`([^`\n]+(?:\n[^`\n]+)?)`(?!`)", outside):
        line, words = outside.count("\n", 0, found.start()) + 1, found[1].split()
        said = None
        if words[0] == "trt-qat" and len(words) > 1 and words[1].islower():
            said = _wrong_options(words[1:])
        elif words[0] == "make" and len(words) > 1:
            said = _wrong_make([target for target in words[1].split("|") if target.islower()])
        elif words[0] == "--set" and len(words) == 2:
            said = _wrong_setting(words[1])
        elif re.fullmatch(rf"({'|'.join(Config.model_fields)})\.[a-z]\w+(=\S+)?", found[1]):
            said = _wrong_setting(found[1])
        if said:
            yield line, f"`{found[1]}`: {said}"


def _wrong_options(words: Sequence[str]) -> str | None:
    try:
        command, rest = _resolve(cli, words)
    except click.UsageError as exc:
        return exc.format_message()
    known = {option for parameter in command.params for option in parameter.opts} | {"--help", "-h"}
    unknown = {word.partition("=")[0] for word in rest if word.startswith("--")} - known
    return f"it has no {', '.join(sorted(unknown))}" if unknown else None


def _wrong_setting(text: str) -> str | None:
    name, _, value = text.partition("=")
    section, _, key = name.partition(".")
    if name == "section.key" or key in FILES:
        return None
    if section not in Config.model_fields or key not in type(getattr(Config(), section)).model_fields:
        return "there is no such setting"
    return None if not value or PLACEHOLDER.fullmatch(value) else _wrong_settings({"overrides": (text,)})


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # what it should be in is no package
        return False


@cache
def _makefile() -> str:
    return (ROOT / "Makefile").read_text(encoding="utf-8")


@cache
def _members(module: str) -> Mapping[str, Any]:
    """What a module defines or imports, read from its text: nothing is imported."""
    file = Path(str(importlib.util.find_spec(module).origin))  # type: ignore[union-attr]
    return griffe.visit(module.rpartition(".")[2], filepath=file, code=file.read_text(encoding="utf-8")).members
