"""Files from outside: only regular ones are opened, no more than a limit is read, and no parser is trusted to end.

Every file that somebody else may have written comes in through here.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from trt_qat.errors import ArtifactError, TrtQatError
from trt_qat.limits import JSON_MEGABYTES, YAML_MEGABYTES, YAML_VALUES, Limit

_DEEPEST = 100  # levels of nesting; a file that somebody wrote has a tenth
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

PICKLE_TRUSTED: ContextVar[bool] = ContextVar("PICKLE_TRUSTED", default=False)
"""Whether the user of the running command trusts the pickles in its weights (``--trust-pickle``)."""

ModelType = TypeVar("ModelType", bound="FileModel")


class FileModel(BaseModel):
    """Base of the one schema of a file's content: immutable, exact types, no unknown field, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


def checked(
    schema: type[ModelType],
    content: Any,
    path: Path,
    advice: str,
    error: type[TrtQatError] = ArtifactError,
    say: Callable[[str], str] = str,
) -> ModelType:
    """A file's content as its schema.

    Args:
        content: JSON values, lists where the schema has tuples.
        advice: the last sentence of the message, e.g. "Make it again."
        say: what the violations are called in the message, for a file that has other names than its schema.

    Raises:
        TrtQatError: of the kind ``error``; the line names the file, the field and what was found.
    """
    try:
        return schema.model_validate_json(json.dumps(content))  # in this mode a list is a tuple
    except ValidationError as exc:
        raise error(f"'{path}': {say(explain(exc))}. {advice}") from exc
    except (TypeError, ValueError, RecursionError) as exc:
        raise error(f"'{path}' holds something that JSON cannot say: {_short(exc)}. {advice}") from exc


def explain(exc: ValidationError, prefix: str = "") -> str:
    """The violations in one line: field, what was found, what is allowed; the first three of them."""
    found = []
    for violation in exc.errors()[:3]:
        field = prefix + ".".join(shown_name(part) for part in violation["loc"])
        message = violation["msg"].removeprefix("Value error, ").replace("a valid tuple", "a list, e.g. [a, b]")
        found.append(f"{field} = {shortened(violation['input'])}: {message}" if field else message)
    more = exc.error_count() - len(found)
    return "; ".join(found) + (f"; and {more} more" if more else "")


def shown_name(name: int | str) -> str:
    """A field's name for a message; as ``repr`` shows it where it is long or cannot be printed."""
    text = str(name)
    return text if text.isprintable() and len(text) <= 80 else shortened(text)


def shortened(value: Any, longest: int = 80) -> str:
    """A value's ``repr`` for a message; the inside of a large one is not even looked at."""
    if isinstance(value, Mapping | list | tuple | set) and len(value) > 20:
        return f"{type(value).__name__} of {len(value)}"
    if isinstance(value, str | bytes):
        value = value[:longest]
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply; an integer of more digits than Python prints
        return type(value).__name__
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def regular_file(path: Path, what: str, error: type[TrtQatError] = ArtifactError) -> Path:
    """Return ``path`` if it is a regular file. Nothing is opened: opening a pipe waits for whoever writes to it.

    Raises:
        TrtQatError: of the kind ``error``: it is missing, or something else than a file.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise error(f"{what} '{path}' does not exist. Check the path.") from None
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the name
        raise error(f"{what} '{path}' cannot be read: {_short(exc)}.") from exc
    if not stat.S_ISREG(mode):
        raise error(f"{what} '{path}' is {kind_of_file(mode)}, not a file. Give a file.")
    return path


def kind_of_file(mode: int) -> str:
    """What is there instead of a regular file, for messages; ``mode`` as in :mod:`stat`."""
    return next((name for is_kind, name in _KINDS if is_kind(mode)), "something else")


def read_bytes(path: Path, what: str, limit: Limit, error: type[TrtQatError] = ArtifactError) -> bytes:
    """The content of a regular file.

    Raises:
        TrtQatError: of the kind ``error``: missing, not a regular file, larger than the limit (MB), unreadable.
    """
    regular_file(path, what, error)
    try:
        size = path.stat().st_size
        limit.check(size / 1e6, f"{what} '{path}'", error)
        with path.open("rb") as stream:
            return stream.read(size + 1)  # a number: memory is taken for it, and a file that grows is not followed
    except OSError as exc:
        raise error(f"{what} '{path}' cannot be read: {_short(exc)}.") from exc


def read_text(path: Path, what: str, limit: Limit, error: type[TrtQatError] = ArtifactError) -> str:
    """The same as UTF-8 text, a byte order mark removed.

    Raises:
        TrtQatError: of the kind ``error``: as :func:`read_bytes`, or it is not UTF-8.
    """
    try:
        return read_bytes(path, what, limit, error).decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise error(f"{what} '{path}' is not UTF-8 text: byte {exc.start} cannot be decoded.") from exc


def read_json(path: Path, what: str, limit: Limit = JSON_MEGABYTES, error: type[TrtQatError] = ArtifactError) -> Any:
    """The values of a JSON file.

    Raises:
        TrtQatError: of the kind ``error``: as :func:`read_text`, or it is not JSON.
    """
    return parse_json(read_text(path, what, limit, error), f"{what} '{path}'", error)


def parse_json(text: str | bytes, where: str, error: type[TrtQatError] = ArtifactError) -> Any:
    """JSON as RFC 8259 has it: no NaN, no infinity, not nested without end.

    Args:
        where: begins the message.

    Raises:
        TrtQatError: of the kind ``error``.
    """
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as exc:
        raise error(f"{where} is not valid JSON: {_short(exc)}.") from exc


def read_yaml(path: Path, what: str, error: type[TrtQatError] = ArtifactError) -> Any:
    """The values of a YAML file, plain types only.

    Raises:
        TrtQatError: of the kind ``error``: as :func:`read_text`, not YAML, nested or repeated without end.
    """
    return parse_yaml(read_text(path, what, YAML_MEGABYTES, error), f"{what} '{path}'", error)


def parse_yaml(text: str, where: str, error: type[TrtQatError] = ArtifactError) -> Any:
    """The values of a YAML text, plain types only. Aliases may not unfold into more values than a file could hold.

    Args:
        where: begins the message.

    Raises:
        TrtQatError: of the kind ``error``.
    """
    try:
        _check_depth(text)  # before anything recurses, in C too
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            values = _unfolded(node, {})
            if values == float("inf"):
                raise ValueError("an alias stands inside of what it names")
            YAML_VALUES.check(values, where, error)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError, OverflowError) as exc:
        raise error(f"{where} is not valid YAML: {_short(exc)}.") from exc


def file_name(text: str) -> str:
    """A file name out of a UTF-8 text as this process spells it: Python in a C locale knows names as ASCII only."""
    return os.fsdecode(text.encode("utf-8", "surrogateescape"))


def printable(text: str) -> str:
    """A text with file names in it as UTF-8 can say it: the inverse of :func:`file_name`, "\ufffd" for what is none."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except UnicodeEncodeError:  # half of a pair, out of a JSON escape
        return text.encode("utf-8", "replace").decode()


def _check_depth(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise ValueError(f"nested more than {_DEEPEST} levels deep")


def _unfolded(node: Any, known: dict[int, float]) -> float:
    """How many values a node stands for once every alias is replaced by what it names; infinite for a cycle."""
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = float("inf")  # until it is counted: whoever meets it below is inside of it
    inside = node.value if isinstance(node, yaml.CollectionNode) else ()
    parts = [part for entry in inside for part in (entry if isinstance(entry, tuple) else (entry,))]
    known[id(node)] = 1 + sum(_unfolded(part, known) for part in parts)
    return known[id(node)]


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number that JSON knows")


def _short(exc: Exception) -> str:
    if isinstance(exc, RecursionError):
        return "nested too deeply"
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror
    text = str(exc).replace('in "<unicode string>", ', "at ")  # PyYAML's name for a text that is no file
    return " ".join(text.split())[:200].rstrip(".")
