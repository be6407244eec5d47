"""Strategies that damage good inputs: near misses find more than noise."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import escape

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

_ODD = (
    "nan", "inf", "-inf", "1e400", "-1e400", "3e38", "-3e38", "1e-400", "1e308", "0", "-0.0", "-1", "1e18", "0x10", "1_0",
    "٣", "½", "1.5", "9" * 5000, "1e", ".", "--1", "1,5", "NaN", "Infinity", "true", "None",
)  # fmt: skip
_SNIPPETS = (
    "&a ", "*a", "!!python/name:os.system ", "<<: ", "[", "]", "{", "}", ":", "- ", "\t", "\n", "\0", "'", '"', "|", ">", "%",
    "---\n", "...\n", "?", "#", "~", "\u2028", "\ufeff", "\x1b[2J", "[" * 200, "{a: " * 120, "1e400", ".nan", "9" * 5000,
    "<!DOCTYPE a>", "&lt;", "<", ">", "</", "&#0;", "\\ud800", "\\u0000",
)  # fmt: skip
_WRONG: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 31, 33, 10**9, 10**18, 10**30, 0.5, -0.5, 1e300, math.nan, math.inf, -math.inf, "", "x",
    "None", "nan", "\ud800", "a\nb\x1b[2J", "x" * 5000, "__import__('os')", [], {}, [[]], [None], {"a": {}}, ["x"] * 50,
    [0] * 2000, "nn.Identity", "torch_load", "Conv", "../../x", "0",
)  # fmt: skip


def odd_numbers() -> SearchStrategy[str]:
    """Numbers as text that parsers disagree about."""
    return st.sampled_from(_ODD)


def json_values() -> SearchStrategy[Any]:
    """Any JSON, with what JSON should not hold."""
    leaf = st.one_of(st.sampled_from(_WRONG), st.text(max_size=8), st.integers(), st.floats())
    return st.recursive(
        leaf, lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=6), inner, max_size=4)),
        max_leaves=12,
    )  # fmt: skip


def text_lines(line: SearchStrategy[str]) -> SearchStrategy[bytes]:
    """A text file of such lines; sometimes not UTF-8."""
    text = st.lists(line, max_size=8).map(lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass"))
    return st.one_of(text, text, text, text.flatmap(lambda content: mutated_bytes([content + b"\n"])))


@st.composite
def mutated_json(draw: st.DrawFn, good: Any) -> bytes:
    """A JSON document with one to three values replaced, removed, added or renamed; seldom damaged as text."""
    content = copy.deepcopy(good)
    for _ in range(draw(st.integers(1, 3))):
        content = with_one_change(draw, content)
    encoded = json.dumps(content).encode()
    return draw(mutated_bytes([encoded])) if draw(st.integers(0, 9)) == 0 else encoded


def with_one_change(draw: st.DrawFn, content: Any) -> Any:
    """The content, with a value of it replaced, removed, added, doubled, or by another name; in place where it can be."""
    if not isinstance(content, dict | list) or not content or draw(st.integers(0, 30)) == 0:
        return _odd_value(draw)
    container, key = content, draw(st.sampled_from(_keys(content)))
    while isinstance(container[key], dict | list) and container[key] and draw(st.integers(0, 3)):
        container = container[key]
        key = draw(st.sampled_from(_keys(container)))
    kind = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add", "double", "near"]))
    if kind == "remove":
        del container[key]
    elif kind == "add" and isinstance(container, dict):
        container[draw(st.text(max_size=6))] = _odd_value(draw)
    elif kind in ("add", "double") and isinstance(container, list):
        container.insert(key, copy.deepcopy(container[key]))
    elif kind == "near":
        container[key] = _near(draw, container[key])
    else:
        container[key] = _odd_value(draw)
    return content


def _odd_value(draw: st.DrawFn) -> Any:
    """A value to put in. A copy: the next change may be one inside of it."""
    return copy.deepcopy(draw(st.one_of(st.sampled_from(_WRONG), json_values())))


def _near(draw: st.DrawFn, value: Any) -> Any:
    """A value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return draw(st.sampled_from([value + 1, value - 1, -value, value * 2, value * 1000, value << 40, float(value)]))
    if isinstance(value, float):
        return draw(st.sampled_from([-value, value * 1e9, value / 1e9, math.nan, math.inf, 0.0]))
    if isinstance(value, str):
        return draw(st.sampled_from([value.upper(), value[:-1], value + "x", value + "\n", f" {value}", value * 500]))
    return value


def _keys(container: Any) -> list[Any]:
    return list(container) if isinstance(container, dict) else list(range(len(container)))


@st.composite
def nudged_json(draw: st.DrawFn, good: Any) -> bytes:
    """A JSON document in which one thing (seldom two) is another plausible one: most of these should be accepted."""
    content = copy.deepcopy(good)
    for _ in range(draw(st.sampled_from([1, 1, 1, 2]))):
        _nudge(draw, content)
    return json.dumps(content).encode()


def _nudge(draw: st.DrawFn, content: Any) -> None:
    """Change one value to one of its type, or order, double, remove one entry of a list; in place."""
    container, key = content, draw(st.sampled_from(_keys(content)))
    while isinstance(container[key], dict | list) and container[key] and draw(st.integers(0, 7)):
        container = container[key]
        key = draw(st.sampled_from(_keys(container)))
    value = container[key]
    if isinstance(value, bool | int | float | str) or value is None:
        container[key] = _plausible(draw, value, content)
        return
    entries = value if isinstance(value, list) else container
    if not isinstance(entries, list) or not entries:
        return
    place, other = draw(st.integers(0, len(entries) - 1)), draw(st.integers(0, len(entries) - 1))
    kind = draw(st.sampled_from(["exchange", "double", "remove"]))
    if kind == "exchange":
        entries[place], entries[other] = entries[other], entries[place]
    elif kind == "double":
        entries.insert(place, copy.deepcopy(entries[other]))
    else:
        del entries[place]


def _plausible(draw: st.DrawFn, value: Any, content: Any) -> Any:
    others = [other for other in _leaves(content) if type(other) is type(value)]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return draw(st.sampled_from([value + 1, value - 1, value * 2, value // 2, 0, 1, 2, 3, *others]))
    if isinstance(value, float):
        return draw(st.sampled_from([value / 2, value * 2, value * 1.01, 0.0, 1.0, *others]))
    if isinstance(value, str):
        return draw(st.sampled_from([value + "x", value[:-1], "é", "Cấm", *others]))
    return draw(st.sampled_from([0, 1.0, "x"]))


def _leaves(content: Any) -> list[Any]:
    if isinstance(content, dict | list):
        parts = content.values() if isinstance(content, dict) else content
        return [leaf for part in parts for leaf in _leaves(part)]
    return [content]


@st.composite
def edited_xml(draw: st.DrawFn, good: str) -> str:
    """An XML text with one to three attributes or texts exchanged or changed, or an element gone, doubled or elsewhere."""
    text = good
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["value", "value", "value", "other", "remove", "double"]))
        pattern = (
            r'(?<=")[^"<>]*(?=")|(?<=>)[^<>\s]+(?=<)'
            if kind in ("value", "other")
            else r"<(\w+)\b[^<>]*(?:/>|>[^<>]*</\1>)"
        )
        found = list(re.finditer(pattern, text))
        if not found:
            break
        start, end = draw(st.sampled_from(found)).span()
        if kind == "value":
            new = draw(
                st.one_of(
                    st.sampled_from(_ODD),
                    st.sampled_from(["", "0", "1", "2", "4", "64"]),
                    st.text(max_size=6).map(escape),
                )
            )
        elif kind == "other":
            new = draw(st.sampled_from(found)).group()
        else:
            new = text[start:end] * 2 if kind == "double" else ""
        text = (
            text[:start] + new.replace('"', "") + text[end:]
            if kind in ("value", "other")
            else text[:start] + new + text[end:]
        )
    return text


@st.composite
def mutated_text(draw: st.DrawFn, good: Sequence[str]) -> bytes:
    """A text with snippets put in, pieces cut out, doubled or exchanged."""
    text = draw(st.sampled_from(good))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(text)))
        end = min(len(text), place + draw(st.integers(0, 12)))
        kind = draw(st.sampled_from(["insert", "insert", "replace", "cut", "double", "end"]))
        snippet = draw(st.one_of(st.sampled_from(_SNIPPETS), st.sampled_from(_ODD), st.text(max_size=6)))
        if kind == "insert":
            text = text[:place] + snippet + text[place:]
        elif kind == "replace":
            text = text[:place] + snippet + text[end:]
        elif kind == "cut":
            text = text[:place] + text[end:]
        elif kind == "double":
            text = text[:end] + text[place:]
        else:
            text = text[:place]
    encoded = text.encode("utf-8", "surrogatepass")
    return draw(mutated_bytes([encoded + b" "])) if draw(st.integers(0, 9)) == 0 else encoded


@st.composite
def mutated_bytes(draw: st.DrawFn, good: Sequence[bytes]) -> bytes:
    """A file with bytes changed (most at its head), cut, doubled, or spans exchanged with another good one's."""
    content = bytearray(draw(st.sampled_from(good)))
    for _ in range(draw(st.integers(1, 6))):
        length = len(content)
        reach = draw(st.sampled_from([min(length, 64), min(length, 400), length]))
        place = draw(st.integers(0, max(reach - 1, 0)))
        kind = draw(st.sampled_from(["byte", "byte", "byte", "number", "cut", "remove", "double", "insert", "swap"]))
        if kind == "byte" and length:
            content[place] = draw(st.one_of(st.integers(0, 255), st.sampled_from([0, 1, 0x7F, 0x80, 0xFF])))
        elif kind == "number":
            width = draw(st.sampled_from([2, 4, 8]))
            content[place : place + width] = draw(st.sampled_from([b"\xff", b"\x00", b"\x7f"])) * width
        elif kind == "cut" and draw(st.booleans()):
            del content[place:]
        elif kind == "remove":
            del content[place : place + draw(st.integers(1, 8))]
        elif kind == "double":
            content[place:place] = content[place : place + draw(st.integers(1, 64))]
        elif kind == "insert":
            content[place:place] = draw(st.binary(min_size=1, max_size=8))
        elif kind == "swap":
            other = draw(st.sampled_from(good))
            content[place : place + 16] = other[place : place + 16]
    return bytes(content)
