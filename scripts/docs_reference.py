"""The hook of mkdocs.yml: reference pages made of the code when the site is built, so that none can be out of date.

Settings come from the sections of trt_qat/config.py and the comments in configs/, commands from click, files from their
pydantic schemas, Python from docstrings (mkdocstrings). A link that leaves docs/ leads to a page with that file's text.
"""

from __future__ import annotations

import inspect
import json
import pkgutil
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic import TypeAdapter

import trt_qat
from trt_qat.cli import cli
from trt_qat.config import Config
from trt_qat.registry import CALIBRATORS, KINDS, RUNTIMES, TARGETS

ROOT = Path(__file__).resolve().parent.parent
NAMED = {  # settings whose values are the rows of a table, and what else they may be
    "quantization.calibrator": ("auto", *CALIBRATORS.rows),
    "export.target": tuple(TARGETS.rows),
    "evaluation.runtime": (*RUNTIMES.rows, "torch"),
}
SCHEMAS = {  # what a file holds, and the class that is its schema
    "`run.json`": "trt_qat.report.record:RunRecord",
    "A row of `result.json` and of `evaluate --json`": "trt_qat.results:ResultRow",
    "A line of `infer --jsonl`": "trt_qat.runtime.sinks.jsonl:FrameRecord",
    "An entry of `parity.json`": "trt_qat.evaluation.parity_report:ParityReport",
    "`footage.json`": "trt_qat.footage.dataset:FootageFile",
    "The side-car of a plan": "trt_qat.engine.engine_file:EngineDescription",
}
EXTENSION_POINTS = {  # by group of entry points: what somebody writes who adds a row
    "calibrators": (
        "trt_qat.quantization.calibrators.base.Calibrator",
        "trt_qat.quantization.histogram.ActivationHistogram",
    ),
    "features": tuple(
        f"trt_qat.training.features.base.{name}" for name in ("Feature", "Start", "Step", "Epoch", "ParamGroup")
    ),
    "targets": tuple(f"trt_qat.targets.base.{name}" for name in ("Target", "Form", "Writer", "Client")),
    "runtimes": ("trt_qat.runtime.runner.Runner", "trt_qat.runtime.runner.Mode"),
    "deployments": ("trt_qat.deploy.base.Deployment", "trt_qat.deploy.base.Writer"),
}
WORK = (
    *("load", "label", "train", "quantize", "sensitivity", "finetune", "keep_budget", "export", "build", "evaluate"),
    "parity",
)
LINK = re.compile(r"(?<=\]\()(?P<path>\.\./[^)#\s]+)")
PAGE = re.compile(r"docs/(?P<path>[\w/-]+)\.md")
ROLE = re.compile(r":(?:class|func|meth|data|mod|attr):<code>~?(?P<name>[\w.]+)</code>")
LANGUAGES = {".yaml": "yaml", ".py": "python", ".sh": "bash", ".toml": "toml", ".json": "json"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here, and one for each file outside docs/ that a page links to."""
    pages = {
        "reference/configuration.md": configuration_page(),
        "reference/commands.md": commands_page(),
        "reference/python.md": python_page(),
        "reference/extending.md": extending_page(),
        "reference/files.md": files_page(),
    }
    for file in files.documentation_pages():
        for link in LINK.finditer(file.content_string):
            if outside := _outside(link["path"], file):
                pages[_page_of(outside)] = source_page(outside)
    for uri, text in pages.items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead the links that leave docs/ to the pages of those files."""
    up = "../" * page.file.src_uri.count("/")

    def led(link: re.Match[str]) -> str:
        outside = _outside(link["path"], page.file)
        return f"{up}{_page_of(outside)}" if outside else link["path"]

    return LINK.sub(led, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make links of what docstrings and comments name: ``:class:`~a.b.C``` and ``docs/page.md``."""
    if not page.file.src_uri.startswith("reference/"):
        return html
    return PAGE.sub(lambda link: _page_link(link["path"], page, files), ROLE.sub(_cross_reference, html))


def configuration_page() -> str:
    """Every setting: type, range, default and the comment that stands above it in configs/."""
    schema, comments = Config.model_json_schema(), dict(_comments(sorted((ROOT / "configs").glob("*.yaml"))))
    lines = [
        "# Configuration",
        "",
        "Every command takes `--config FILE` (YAML, repeatable, the last wins) and `--set section.key=value` "
        "(repeatable, wins over files). What is not named keeps its default. Unknown keys and values out of range are "
        "refused in one line. `configs/` in the repository has the same as files to copy from.",
    ]
    for section in Config.model_fields:
        content = _resolved(schema["properties"][section], schema)
        lines += ["", f"## {section} {{ #{section} }}", "", content["description"], ""]
        for key, entry in content["properties"].items():
            name, default = f"{section}.{key}", json.dumps(getattr(Config(), section).model_dump(mode="json")[key])
            lines += [f"### `{key}` {{ #{name} data-toc-label='{key}' }}", ""]
            allowed = _choices(NAMED[name]) if name in NAMED else _allowed(entry, schema)
            lines += [f"`{name}`: {allowed}; default `{default}`", "", _escaped(comments[name]), ""]
    return "\n".join(lines)


def commands_page() -> str:
    """Every command of ``trt-qat`` with its arguments and options, from click."""
    return "\n".join(["# Commands", "", *_command(cli, click.Context(cli, info_name="trt-qat"))])


def python_page() -> str:
    """The names in ``trt_qat.__all__``, in the order of the work."""
    others = sorted(set(trt_qat.__all__) - {*WORK, "__version__"})
    return "\n".join(
        [
            "# Python",
            "",
            "`import trt_qat` has these names. It loads neither torch nor TensorRT; a name does when it is first used, "
            "and `Detector` and `lint` load no torch at all.",
            "",
            *(f"::: trt_qat.{name}\n" for name in (*WORK, *others)),
            "## Errors",
            "",
            "::: trt_qat.errors",
            "    options:",
            "      show_root_heading: false",
            "      show_root_toc_entry: false",
        ]
    )


def extending_page() -> str:
    """What a calibrator, feature, target, runtime or deployment of another package implements, and what is there."""
    lines = ["# Extending", "", "A package of yours adds a row to one of these tables by an entry point of its group."]
    for group, table in KINDS.items():
        lines += [
            "",
            f"## {table.what[0].upper()}{table.what[1:]}s",
            "",
            f'`[project.entry-points."trt_qat.{group}"]`',
            "",
        ]
        lines += [f"- `{name}`: `{where}`" for name, where in table.rows.items()]
        lines += ["", *(f"::: {name}\n    options:\n      heading_level: 3\n" for name in EXTENSION_POINTS[group])]
    return "\n".join(lines)


def files_page() -> str:
    """The files that other programs read: every field of their schemas."""
    adapters = {where: TypeAdapter(pkgutil.resolve_name(where)) for where in SCHEMAS.values()}
    by_file, schema = TypeAdapter.json_schemas(
        [(where, "serialization", adapter) for where, adapter in adapters.items()]
    )
    roots = {where: _name(by_file[where, "serialization"]) for where in adapters}
    lines = ["# Files", "", "What the JSON files hold. A reader refuses unknown fields, NaN and values out of range."]
    for title, where in SCHEMAS.items():
        lines += ["", f"## {title} {{ #{roots[where]} }}", "", f"`{where.replace(':', '.')}`", ""]
        lines += _fields(schema["$defs"][roots[where]], schema)
    lines += ["", "## Their parts", ""]
    for name, part in sorted(schema["$defs"].items()):
        if "properties" in part and name not in roots.values():
            lines += ["", f"### {part['title']} {{ #{name} }}", "", *_fields(part, schema)]
    return "\n".join(lines)


def source_page(path: str) -> str:
    """A file of the repository as a page.

    Raises:
        PluginError: there is no such file.
    """
    file = ROOT / path
    if not file.is_file():
        raise PluginError(f"A page of docs/ links to '{path}', which is no file of the repository.")
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".md":
        return text
    longest = max((len(ticks) for ticks in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    header = f"---\nsearch:\n  exclude: true\n---\n\n# {path}\n\n"
    return f"{header}{fence}{LANGUAGES.get(file.suffix, 'text')}\n{text}\n{fence}\n"


def _outside(link: str, file: File) -> str | None:
    """The path in the repository of what a page's link leads to, None for another page."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(file.src_uri), link))
    return None if path.startswith("docs/") else path


def _page_of(path: str) -> str:
    return f"files/{path.removesuffix('.md')}.md"


def _cross_reference(role: re.Match[str]) -> str:
    name = role["name"]
    return f'<autoref identifier="{name}" optional><code>{name.rpartition(".")[2]}</code></autoref>'


def _page_link(path: str, page: Page, files: Files) -> str:
    file = files.get_file_from_path(f"{path}.md")
    if file is None:
        raise PluginError(f"A docstring or a comment names 'docs/{path}.md', which is not there.")
    return f'<a href="{file.url_relative_to(page.file)}">docs/{path}.md</a>'


def _comments(files: Iterable[Path]) -> Iterator[tuple[str, str]]:
    """``section.key`` and the comment above it."""
    for file in files:
        section, comment = "", list[str]()
        for line in file.read_text(encoding="utf-8").splitlines():
            if found := re.match(r"(\w+):", line):
                section, comment = found[1], []
            elif found := re.match(r"  (\w+):", line):
                yield f"{section}.{found[1]}", " ".join(comment)
                comment = []
            elif line.startswith("  #"):
                comment.append(line.strip("# "))


def _command(command: click.Command, context: click.Context) -> Iterator[str]:
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    yield from ["", f"## {context.command_path}", ""] if context.parent else []
    yield from ["```text", usage, "```", "", *_help(command), ""]
    for parameter in command.get_params(context):
        if record := parameter.get_help_record(context):
            yield from [f"`{record[0]}`", f":   {_escaped(record[1])}", ""]
    for name, inner in sorted(getattr(command, "commands", {}).items()):
        yield from _command(inner, click.Context(inner, parent=context, info_name=name))


def _help(command: click.Command) -> Iterator[str]:
    """The paragraphs; one that begins with ``\\b`` keeps its lines, as on the terminal."""
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        kept = paragraph.startswith("\b\n")
        yield from ["```text", paragraph[2:], "```", ""] if kept else [_escaped(paragraph), ""]


def _fields(content: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[str]:
    """A class and its fields, each with what its docstring says of it."""
    summary, described = _docstring(content.get("description", ""))
    yield from [_escaped(summary), ""] if summary else []
    for key, entry in content.get("properties", {}).items():
        optional = "" if key in content.get("required", ()) else "; may be absent"
        text = f": {_escaped(described[key])}" if key in described else ""
        yield f"- `{key}`: {_allowed(entry, schema)}{optional}{text}"


def _docstring(text: str) -> tuple[str, dict[str, str]]:
    """A docstring's own text, and what its ``Args:`` say of each field."""
    sections = griffe.Docstring(text).parse("google", warnings=False)
    fields = {
        name: " ".join(field.description.split())
        for section in sections
        if isinstance(section, griffe.DocstringSectionParameters)
        for field in section.value
        for name in field.name.split(", ")
    }
    said = [section.value for section in sections if isinstance(section, griffe.DocstringSectionText)]
    return "\n\n".join(said), fields


def _name(entry: Mapping[str, Any]) -> str:
    return str(entry["$ref"].rpartition("/")[2])


def _resolved(entry: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    return schema["$defs"][_name(entry)] if "$ref" in entry else entry


def _allowed(entry: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """What a value may be, in words."""
    if "properties" in (content := _resolved(entry, schema)):
        return f"[{content['title']}](#{_name(entry)})"
    if "const" in content or "enum" in content:
        return _choices(content.get("enum") or [content["const"]])
    if "anyOf" in content:
        return " or ".join(_allowed(part, schema) for part in content["anyOf"])
    if "prefixItems" in content:
        return f"`[{', '.join(item.get('type', 'value') for item in content['prefixItems'])}]`"
    if content.get("type") == "array":
        return f"list of {_allowed(content.get('items', {}), schema)}"
    if content.get("type") == "object":
        return f"object of {_allowed(content.get('additionalProperties') or {}, schema)}"
    if content.get("type") == "null":
        return "`null`"
    return ", ".join([content.get("type", "any value"), *_range(content)])


def _range(entry: Mapping[str, Any]) -> Iterator[str]:
    for key, words in (
        ("minimum", "{} or more"),
        ("exclusiveMinimum", "above {}"),
        ("maximum", "at most {}"),
        ("exclusiveMaximum", "below {}"),
        ("multipleOf", "a multiple of {}"),
    ):
        if key in entry:
            yield words.format(f"{entry[key]:.4g}")


def _choices(names: Sequence[Any]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _escaped(text: str) -> str:
    """Plain text for Markdown: what stands in backticks stays as it is."""
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(part if part.startswith("`") else _escaped_plain(part) for part in parts)


def _escaped_plain(text: str) -> str:
    return re.sub(r"([*_\[\]{}#])", r"\\\1", text.replace("<", "&lt;"))
