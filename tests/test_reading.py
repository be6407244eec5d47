"""Files from outside: what is refused before it is opened, read or unfolded, and that every refusal is one line."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from trt_qat.errors import ArtifactError, ConfigError
from trt_qat.limits import JSON_MEGABYTES, YAML_MEGABYTES
from trt_qat.reading import (
    FileModel,
    checked,
    parse_json,
    parse_yaml,
    read_bytes,
    read_json,
    read_text,
    read_yaml,
    regular_file,
    shortened,
)


class Inner(FileModel):
    name: str


class Outer(FileModel):
    count: int
    pair: tuple[float, float]
    inner: Inner


def _laughs() -> str:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    for name, before in zip("bcdefghi", "abcdefgh", strict=True):
        lines.append(f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]")
    return "\n".join(lines)


def test_yaml_that_unfolds_without_end_is_refused_before_it_unfolds() -> None:
    with pytest.raises(ArtifactError, match=r"1,234,\d+ values .* limit is 1,000,000.*TRT_QAT_MAX_YAML_VALUES=1234\d+"):
        parse_yaml(_laughs().rsplit("\n", 4)[0] + "\n" + "h: [" + ", ".join(["*e"] * 10) + "]", "X")
    with pytest.raises(ArtifactError, match="values once its aliases are written out"):
        parse_yaml(_laughs(), "X")
    with pytest.raises(ArtifactError, match="an alias stands inside of what it names"):
        parse_yaml("&a [*a]", "X")


def test_aliases_that_a_file_may_use_still_work() -> None:
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: *a", "X") == {
        "a": {"x": 1},
        "b": {"x": 1, "y": 2},
        "c": {"x": 1},
    }


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "- " * 100_000,
        "{" * 5_000,
        "a: 2001-99-99",
        "a: " + "9" * 10_000,
        "{[1]: 2}",
        "a: !!python/object/apply:os.system [touch ran]",
        "\0",
        "a: !!binary \u00fc",
        "<<: 5",
        "a: &a {<<: *a}",
        "!!omap [a]",
        "'\udc80'",
    ],
)
def test_broken_yaml_is_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^X is not valid YAML: ") as refused:
        parse_yaml(text, "X", ConfigError)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300
    assert not Path("ran").exists()


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": NaN}', "[Infinity]", "1" * 10_000, "{", b"\xff\xfe\xfa"])
def test_broken_json_is_one_line(text: str | bytes) -> None:
    with pytest.raises(ArtifactError, match=r"^X is not valid JSON: "):
        parse_json(text, "X")


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    pipe, sock, link = tmp_path / "pipe.json", tmp_path / "s", tmp_path / "link.json"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(sock))
        for path, kind in (
            (pipe, "a pipe"),
            (link, "a pipe"),
            (sock, "a socket"),
            (tmp_path, "a folder"),
            (Path("/dev/zero"), "a device"),
        ):
            with pytest.raises(ArtifactError, match=f"is {kind}, not a file"):
                regular_file(path, "Thing")
            with pytest.raises(ArtifactError, match=f"is {kind}, not a file"):
                read_json(path, "Thing")  # would wait for ever
    for path in (tmp_path / "none", tmp_path / "a\0b", tmp_path / ("n" * 300), tmp_path / "loop"):
        if path.name == "loop":
            path.symlink_to(path)
        with pytest.raises(ArtifactError, match=r"^Thing '.*' (does not exist|cannot be read: .*)\. ?"):
            regular_file(path, "Thing")


def test_a_limit_names_itself_and_can_be_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "large.yaml"
    file.write_bytes(b"# " + b"x" * 4_100_000)
    with pytest.raises(ConfigError, match=r"has 4\.100002 MB, the limit is 4\. .* raise it: TRT_QAT_MAX_YAML_MB=5\.$"):
        read_yaml(file, "Config file", ConfigError)
    monkeypatch.setenv("TRT_QAT_MAX_YAML_MB", "5")
    assert read_yaml(file, "Config file", ConfigError) is None
    for wrong in ("many", "0", "-1", "1e3", "\u0661"):
        monkeypatch.setenv("TRT_QAT_MAX_YAML_MB", wrong)
        with pytest.raises(ConfigError, match=r"TRT_QAT_MAX_YAML_MB=.* must be a whole number of MB, 1 or more"):
            read_bytes(file, "Config file", YAML_MEGABYTES)


def test_text_is_utf8_without_its_mark(tmp_path: Path) -> None:
    file = tmp_path / "x.txt"
    file.write_bytes(b"\xef\xbb\xbfbi\xe1\xbb\x83n")
    assert read_text(file, "Text", JSON_MEGABYTES) == "bi\u1ec3n"
    file.write_bytes(b"bi\xff")
    with pytest.raises(ArtifactError, match="byte 2 cannot be decoded"):
        read_text(file, "Text", JSON_MEGABYTES)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"count": "3"}, "count = '3': Input should be a valid integer"),
        ({"pair": [1.0]}, r"pair.1 = \[1.0\]: Field required"),
        ({"pair": [1.0, float("nan")]}, "holds something that JSON cannot say|pair.1"),
        ({"inner": {"name": 5}}, "inner.name = 5: Input should be a valid string"),
        ({"more": 1}, "more = 1: Extra inputs are not permitted"),
        ({"count": {1, 2}}, "holds something that JSON cannot say"),
    ],
)
def test_a_violation_names_file_field_and_value(change: dict[str, Any], said: str) -> None:
    good = {"count": 3, "pair": [1.0, 2.5], "inner": {"name": "x"}}
    assert checked(Outer, good, Path("f.json"), "Make it again.").pair == (1.0, 2.5)
    with pytest.raises(ArtifactError, match=f"^'f.json'.*({said}).* Make it again.$"):
        checked(Outer, {**good, **change}, Path("f.json"), "Make it again.")


def test_large_values_are_named_by_their_size() -> None:
    assert shortened(list(range(1000))) == "list of 1000"
    assert len(shortened("x" * 10**6)) <= 80
    assert shortened(10**5000) == "int"
