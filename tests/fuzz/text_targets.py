"""Targets for settings, for YAML and JSON as such, for what SOURCE may say, and for secrets in any text."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from mutations import json_values, mutated_text, odd_numbers
from target import Target, written

from trt_qat.errors import TrtQatError

CONFIG = Path(__file__).resolve().parents[2] / "configs"


def _config_files() -> SearchStrategy[bytes]:
    good = [path.read_text(encoding="utf-8") for path in sorted(CONFIG.glob("*.yaml"))]
    values = json_values().map(lambda value: json.dumps({"qat": value, "model": {"imgsz": value}}).encode())
    return st.one_of(mutated_text(good), values)


def _check_config_file(content: bytes, folder: Path) -> None:
    from trt_qat.config import Config

    config = Config.load([written(folder, "c.yaml", content)], [])
    _check_config(config)


def _check_config(config: Any) -> None:
    text = json.dumps(config.model_dump(mode="json"), allow_nan=False)
    assert json.loads(text)
    assert config.model.imgsz in (None, "auto") or all(side % 32 == 0 and side >= 32 for side in config.model.imgsz)


def _set_options() -> SearchStrategy[bytes]:
    from trt_qat.config import Config

    defaults = {
        f"{section}.{key}": value
        for section, values in Config.load([], []).model_dump(mode="json").items()
        for key, value in values.items()
    }
    syntax = [
        "!!python/name:os.system",
        "&a [*a]",
        "[",
        "{",
        "'",
        "null",
        "true",
        "2024-02-31",
        "1:1",
        "0x10",
        "~",
        ".nan",
    ]
    odd = st.one_of(odd_numbers(), json_values().map(json.dumps), st.text(max_size=30), st.sampled_from(syntax))
    key = st.sampled_from(sorted(defaults))
    good = key.map(lambda name: f"{name}={json.dumps(defaults[name])}")
    number = st.tuples(key, st.one_of(st.integers(-3, 5000).map(str), st.floats(0, 2).map(repr))).map("=".join)
    known = sorted({json.dumps(value) for value in defaults.values()})
    typed = key.flatmap(lambda name: st.sampled_from(known + _near(defaults[name])).map(lambda text: f"{name}={text}"))
    return st.one_of(
        good.flatmap(lambda text: mutated_text([text])),
        *[option.map(lambda text: text.encode("utf-8", "surrogatepass")) for option in (
            number, typed, typed, st.tuples(key, odd).map("=".join), st.text(max_size=60))],
    )  # fmt: skip


def _near(value: Any) -> list[str]:
    """Values of the type of a default."""
    if isinstance(value, bool):
        return ["true", "false"]
    if isinstance(value, int | float):
        return [json.dumps(other) for other in (value, value + 1, value * 2, value / 2, 1, 64, 0.1)]
    return [json.dumps(value)]


def _check_set(content: bytes, folder: Path) -> None:
    from trt_qat.config import Config

    _check_config(Config.load([], [content.decode("utf-8", "surrogateescape")]))


def _yaml() -> SearchStrategy[bytes]:
    seeds = [
        "a: &a [1, 2]\nb: [*a, *a]\nc: {<<: {x: 1}, y: 2024-01-01}\n",
        "train: images\nnames: {0: a, 1: 'b'}\nnc: 2\npath: .\n",
        "- !!set {a, b}\n- !!binary aGk=\n- 0o17\n- 1:30\n- .inf\n- ~\n- |\n  text\n- >-\n  more\n",
        "? [a, b]\n: {c: d}\n---\nx\n...\n",
    ]
    return mutated_text(seeds)


def _check_yaml(content: bytes, folder: Path) -> None:
    from trt_qat.reading import parse_yaml

    parse_yaml(content.decode("utf-8", "replace"), "x")


def _json() -> SearchStrategy[bytes]:
    return st.one_of(
        json_values().map(lambda value: json.dumps(value).encode()),
        mutated_text(['{"a": [1, 2.5e3, "\\u00e9", null, true]}']),
    )


def _check_json(content: bytes, folder: Path) -> None:
    from trt_qat.reading import parse_json

    json.dumps(parse_json(content, "x"))


def _sources() -> SearchStrategy[bytes]:
    part = st.sampled_from(
        ["rtsp://", "http://", "user", ":", "hunter2", "@", "host", "/", "a.mp4", "?", "token=", "hunter2", "&", "#", "\n",
         "%40", ";", " ", "key=", " ! ", "video0", "/dev/", "..", "-", "0", "[::1]", "\0", "é", "\\", "=", "password", "*", "[", "]", "?"]
    )  # fmt: skip
    there = st.sampled_from(["a.mp4", "./a.mp4", "image.png", "user:a.mp4", "../a.mp4", ".", "", "a.mp4/"])
    return st.one_of(st.lists(part, max_size=12).map("".join), st.text(max_size=40), there).map(
        lambda text: text.encode("utf-8", "surrogatepass")
    )


def _check_source(content: bytes, folder: Path) -> None:
    from trt_qat.footage.named import footage_in
    from trt_qat.runtime.sources import name_sources

    text = content.decode("utf-8", "surrogateescape")
    here = Path.cwd()
    os.chdir(folder)
    for name in ("a.mp4", "host", "0", "-", "user:a.mp4", "image.png"):
        Path(name).touch()
    try:
        for named in name_sources([text]):
            assert named.paths or named.kind in ("stdin", "camera", "url")
            assert all(path.exists() for path in named.paths)
        found = footage_in([text])
        assert found is None or all(path.exists() for path in (*found.images, *found.videos))
    except TrtQatError as exc:
        secret = re.match(r"[a-z]+://[^/?#\s]*hunter2[^/?#\s]*@", text) or re.search(
            r"://.*[?&](token|key|password)=hunter2", text
        )
        assert not (secret and secret.group() in str(exc)), "a secret in the message"
        raise
    finally:
        os.chdir(here)


@st.composite
def _secrets(draw: st.DrawFn) -> bytes:
    """A URL with a user and a password, or with a token in its query, as a value and in a sentence."""
    plain = st.text(
        st.characters(codec="utf-8", exclude_characters="'\"\\", exclude_categories=("Z", "C")), max_size=20
    )
    secret = draw(plain) + _SECRET + draw(plain)
    scheme = draw(st.sampled_from(["rtsp", "http", "https", "HTTPS", "s3", "git+ssh", "x-a.b+c", "rtsps"]))
    host = draw(st.sampled_from(["host", "10.0.0.2:554", "[::1]:80", "a.b-c.d"]))
    path = draw(st.sampled_from(["", "/", "/a.mp4", "/a/b.jpg?size=2", "/stream#1"]))
    kind = draw(st.sampled_from(["user", "user", "bare", "token"]))
    if kind == "token":
        field = draw(st.sampled_from(["token", "password", "api_key", "X-Amz-Signature", "pwd", "auth", "sig"]))
        before = draw(st.sampled_from(["?", "?a=1&", "?a&", "?a=;"]))
        secret = re.sub("[&#;?]", "", secret)
        value = f"{scheme}://{host}/a{before}{field}={secret}{draw(st.sampled_from(['', '&b=2', '#c']))}"
    else:
        if kind == "bare":
            secret = secret.lstrip("/")  # "admin:/x@host" may as well be the path of "file:/x@2.png"
        user = draw(st.sampled_from(["", "me", "admin.x", "né", "a%40b", "@me", "a@b"]))
        value = f"{scheme}://{user}:{secret}@{host}{path}" if kind == "user" else f"admin:{secret}@{host}{path}"
    sentence = draw(
        st.sampled_from(["'{}'", "Dataset '{}' does not exist.", '"{}" is wrong', "a {} b", "x={}", "({})"])
    )
    return json.dumps([value, sentence]).encode()


_SECRET = "hunter2"


def _check_redacted(content: bytes, folder: Path) -> None:
    from trt_qat.errors import ConfigError
    from trt_qat.redact import redacted, redacted_message

    del folder
    value, sentence = json.loads(content)
    shown = redacted(value)
    assert _SECRET not in shown, f"a secret in {shown!r}"
    assert redacted(shown) == shown, "another value the second time"
    message = sentence.replace("{}", value)
    for said in (redacted_message(message), str(ConfigError(message)), redacted_message(sentence.replace("{}", shown))):
        assert _SECRET not in said, f"a secret in {said!r}"
    assert redacted_message(redacted_message(message)) == redacted_message(message), "another message the second time"


TARGETS = (
    Target("config-file", _config_files, _check_config_file),
    Target("config-set", _set_options, _check_set),
    Target("yaml", _yaml, _check_yaml),
    Target("json", _json, _check_json),
    Target("source", _sources, _check_source),
    Target("redact", _secrets, _check_redacted),
)
