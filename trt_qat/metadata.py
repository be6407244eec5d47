"""What an exporter writes about a detector into an ONNX file, an OpenVINO folder or an engine: names, image size, ...

All values are texts. Ultralytics writes the text of a Python dict or list; nothing here evaluates one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from trt_qat.errors import ArtifactError, TrtQatError
from trt_qat.limits import CLASSES
from trt_qat.reading import FileModel, explain, shortened

SMALLEST_SIDE, LARGEST_SIDE = 32, 8192  # pixels of a network input
NMS_KEY = "nms"  # of a file with NMS built in: its thresholds
NMS_FREE_KEY = "nms_free"  # of a raw file: its detector was trained to find each object once
ROWS_KEY = "end2end"  # Ultralytics' own: whether the output is rows of an end-to-end head
_LONGEST_TEXT = 4_000_000  # characters; ten thousand names of 200 fit twice
_LONGEST_NAME = 200
_TOKEN = re.compile(
    r"""\s*(?:(?P<mark>[{}\[\]():,])|(?P<text>[uU]?(?:'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*"))|(?P<word>[\w.+-]+))"""
)


def printable(name: str) -> str:
    """A class name that a terminal and a picture can show.

    Raises:
        ValueError: it is empty, longer than 200 characters, or has control characters.
    """
    if not name.strip() or len(name) > _LONGEST_NAME or not name.isprintable():
        raise ValueError(f"a class name has 1 to {_LONGEST_NAME} printable characters")
    return name


def dense(names: dict[int, str]) -> dict[int, str]:
    """Class names whose ids are 0, 1, 2 ...

    Raises:
        ValueError: an id is missing, or there are more classes than the limit.
    """
    CLASSES.check(len(names), "a model", ArtifactError)
    for wanted, found in enumerate(sorted(names)):
        if wanted != found:
            raise ValueError(f"class ids must be 0 to {len(names) - 1}, {wanted} is missing")
    return dict(sorted(names.items()))


Layout = Literal["raw", "nms_free", "rows"]
"""What a detector puts out. raw: (batch, 4 + classes, anchors), in need of NMS. nms_free: the same of an end-to-end
head, whose boxes are not suppressed. rows: (batch, n, 6) of such a head, each row x1, y1, x2, y2, score, class id."""


def output_layout(texts: Mapping[str, str]) -> Layout:
    """Which layout a file's metadata say; raw where they say nothing."""
    if texts.get(ROWS_KEY) == "True":
        return "rows"
    return "nms_free" if texts.get(NMS_FREE_KEY) == "True" else "raw"


ClassName = Annotated[str, AfterValidator(printable)]
ClassNames = Annotated[dict[int, ClassName], AfterValidator(dense)]
Side = Annotated[int, Field(ge=SMALLEST_SIDE, le=LARGEST_SIDE)]


class ModelMetadata(FileModel):
    """The entries that decide how a detector is run; every one may be missing.

    Args:
        imgsz: height and width of the network input, pixels.
        stride: pixels per cell of the coarsest grid.
    """

    names: ClassNames | None = None
    imgsz: tuple[Side, Side] | None = None
    stride: Annotated[int, Field(ge=1, le=1024)] | None = None
    task: Literal["detect"] | None = None

    @model_validator(mode="after")
    def _sides_fit(self) -> ModelMetadata:
        if self.imgsz and self.stride and any(side % self.stride for side in self.imgsz):
            raise ValueError(f"imgsz = {list(self.imgsz)} is not a multiple of stride = {self.stride}")
        return self


def read_metadata(
    texts: Mapping[str, str], source: str = "The model", error: type[TrtQatError] = ArtifactError
) -> ModelMetadata:
    """The entries of a file, checked; others than those of :class:`ModelMetadata` are left alone.

    Args:
        source: begins the message.

    Raises:
        TrtQatError: of the kind ``error``; the line names the entry and what was found.
    """
    content: dict[str, Any] = {}
    try:
        for key in ("names", "imgsz", "stride"):
            if key in texts:
                content[key] = _number(_value(texts[key])) if key == "stride" else _value(texts[key])
    except ValueError as exc:
        raise error(f"{source}'s metadata '{key}' cannot be read: {exc}: {shortened(texts[key])}.") from exc
    if "names" in content:
        content["names"] = _mapping(content["names"], source, error)
    if "imgsz" in content:
        content["imgsz"] = _sides(content["imgsz"])
    if texts.get("task"):
        content["task"] = texts["task"]
    try:
        return ModelMetadata.model_validate(content)
    except ValidationError as exc:
        raise error(f"{source}'s metadata is wrong: {explain(exc)}. Export the model again.") from exc


def _mapping(value: Any, source: str, error: type[TrtQatError]) -> dict[Any, str]:
    if isinstance(value, list):
        return {class_id: str(name) for class_id, name in enumerate(value)}
    if isinstance(value, dict):
        return {_number(class_id): str(name) for class_id, name in value.items()}
    raise error(f"{source}'s metadata 'names' is not a dict of class names: {shortened(value)}.")


def _sides(value: Any) -> Any:
    sides = [_number(side) for side in value] if isinstance(value, list) else [_number(value)] * 2
    return tuple(sides * 2 if len(sides) == 1 else sides)


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, str) and re.fullmatch(r"-?\d{1,18}", value) else value


def _value(text: str) -> str | list[str] | dict[str, str]:
    """A flat dict, a flat list or one value as Python prints them, strings and numbers inside; numbers stay texts.

    Raises:
        ValueError: it is something else.
    """
    if len(text) > _LONGEST_TEXT:
        raise ValueError(f"{len(text)} characters, at most {_LONGEST_TEXT} are read")
    tokens = _tokens(text)
    first = next(tokens, "")
    closing = {"{": "}", "[": "]", "(": ")"}.get(first)
    if closing is None:
        if first in _MARKS or next(tokens, None) is not None:
            raise ValueError("it is no dict, list or number")
        return first.removeprefix(_QUOTED)
    entries: list[tuple[str, str]] = []
    token = next(tokens, None)
    while token is not None and token != closing:
        key, value = _word(token), ""
        if first == "{":
            if next(tokens, None) != ":":
                raise ValueError(f"no ':' behind {shortened(key)}")
            value = _word(next(tokens, None))
        entries.append((key, value))
        token = next(tokens, None)
        if token == ",":
            token = next(tokens, None)
        elif token != closing:
            break
    if token != closing or next(tokens, None) is not None:
        raise ValueError(f"it does not end with '{closing}' after plain values")
    if first != "{":
        return [key for key, _ in entries]
    if len(dict(entries)) != len(entries):
        raise ValueError("a class id is there twice")
    return dict(entries)


_MARKS = frozenset("{}[]():,")
_ESCAPE = re.compile(r"\\(?:[xuU](?P<code>(?<=x)[0-9a-fA-F]{2}|(?<=u)[0-9a-fA-F]{4}|(?<=U)[0-9a-fA-F]{8})|(?P<one>.))")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"} | {mark: mark for mark in "\\'\"/"}
_QUOTED = "\0"  # tells a quoted mark from a mark; no text from a file has it


def _word(token: str | None) -> str:
    if token is None or token in _MARKS:
        raise ValueError("a string or a number is missing")
    return token.removeprefix(_QUOTED)


def _tokens(text: str) -> Iterator[str]:
    position, text = 0, text.strip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ValueError(f"character {position} is not expected")
        position = match.end()
        if match["text"]:
            yield _QUOTED + _unquoted(match["text"])
        else:
            yield match["mark"] or match["word"]


def _unquoted(literal: str) -> str:
    return _ESCAPE.sub(_escaped, literal.lstrip("uU")[1:-1])


def _escaped(match: re.Match[str]) -> str:
    if match["code"]:
        return chr(min(int(match["code"], 16), 0x10FFFF))
    if match["one"] not in _ESCAPES:
        raise ValueError(f"{shortened(match[0])} is not an escape that Python or JSON writes")
    return _ESCAPES[match["one"]]
